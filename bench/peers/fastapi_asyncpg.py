"""FastAPI with Pydantic and asyncpg: one statement per request, responses encoded by orjson."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import orjson
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from bench.peers import orders, store
from bench.peers.orders import DuplicateExternalRef, IdempotencyKeyReused, NewOrder
from bench.peers.pydantic_schemas import BatchEntryIn, BatchIn, OrderIn

JSON = "application/json"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with await store.open_pool() as app.state.pool:
        yield


app = FastAPI(lifespan=lifespan)


async def get_pool(request: Request) -> asyncpg.Pool:
    return request.app.state.pool


Pool = Annotated[asyncpg.Pool, Depends(get_pool)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=orders.KEY_MAX)]


@app.exception_handler(RequestValidationError)
async def invalid(_: Request, error: RequestValidationError) -> Response:
    return JSONResponse({"detail": [fault["msg"] for fault in error.errors()]}, 400)


@app.post("/orders", status_code=201)
async def create_order(body: OrderIn, pool: Pool, key: Key = None) -> Response:
    try:
        document, replayed = await store.create(pool, new_order(body, key))
    except IdempotencyKeyReused:
        raise HTTPException(422, "The key was used with another body.") from None
    except DuplicateExternalRef:
        raise HTTPException(409, "Another order has this external_ref.") from None
    return Response(document, 201, orders.REPLAYED if replayed else None, JSON)


@app.post("/orders/batch")
async def create_orders(body: BatchIn, pool: Pool) -> Response:
    results: list[dict[str, Any]] = [{"status": 400} for _ in body.orders]
    valid: dict[int, NewOrder] = {}
    for i, entry in enumerate(body.orders):
        try:
            order = BatchEntryIn.model_validate(entry)
        except ValidationError as error:
            results[i]["problem"] = {"detail": error.error_count()}
        else:
            valid[i] = new_order(order, order.idempotency_key)
    for i, outcome in zip(valid, await store.create_many(pool, list(valid.values())), strict=True):
        results[i] = result(outcome)
    return Response(orjson.dumps({"results": results}), media_type=JSON)


@app.get("/orders/{order_id}")
async def get_order(order_id: UUID, pool: Pool) -> Response:
    return Response(render(await find(pool, order_id)), media_type=JSON)


@app.get("/orders")
async def list_orders(
    pool: Pool, limit: Annotated[int, Query(ge=1, le=orders.PAGE_MAX)] = 20, cursor: UUID | None = None
) -> Response:
    rows, cursor = await store.page(pool, limit=limit, after=cursor)
    documents = [orders.stored_order(row, raw=orjson.Fragment) for row in rows]
    return Response(encode({"orders": documents, "next_cursor": cursor}), media_type=JSON)


@app.post("/orders/{order_id}/confirm")
async def confirm_order(order_id: UUID, pool: Pool) -> Response:
    document = await store.confirm(pool, await find(pool, order_id), render)
    if document is None:
        raise HTTPException(409, "The order is not pending.")
    return Response(document, media_type=JSON)


async def find(pool: asyncpg.Pool, order_id: UUID) -> asyncpg.Record:
    row = await store.find(pool, order_id)
    if row is None:
        raise HTTPException(404, "There is no such order.")
    return row


def new_order(body: OrderIn, key: str | None) -> NewOrder:
    return orders.new_order(body.model_dump(exclude={"idempotency_key"}), idempotency_key=key, encode=encode)


def result(outcome: store.Outcome) -> dict[str, Any]:
    if isinstance(outcome, Exception):
        return {"status": 409 if isinstance(outcome, DuplicateExternalRef) else 422, "problem": {}}
    return {"status": 201, "order": orjson.Fragment(outcome[0])}


def render(row: Any) -> bytes:
    return encode(orders.stored_order(row, raw=orjson.Fragment))


def encode(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_UTC_Z)
