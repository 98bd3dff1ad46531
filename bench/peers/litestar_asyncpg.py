"""Litestar with msgspec and asyncpg: one statement per request."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
import msgspec
from litestar import Litestar, MediaType, Response, get, post
from litestar.datastructures import State
from litestar.exceptions import ClientException, HTTPException, NotFoundException
from litestar.params import Parameter
from msgspec import UNSET, Meta, UnsetType

from bench.peers import orders, store
from bench.peers.orders import DuplicateExternalRef, IdempotencyKeyReused, NewOrder

Id = Annotated[str, Meta(min_length=1, max_length=orders.ID_MAX, pattern=orders.TEXT)]
Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=orders.TEXT)]
Place = Annotated[str, Meta(min_length=1, max_length=100, pattern=orders.TEXT)]
Note = Annotated[str, Meta(max_length=orders.NOTE_MAX, pattern=orders.PROSE)]
MetadataKey = Annotated[str, Meta(min_length=1, max_length=40, pattern=orders.TEXT)]
MetadataValue = Annotated[str, Meta(max_length=500, pattern=orders.TEXT)]
Key = Annotated[str, Meta(min_length=1, max_length=orders.KEY_MAX)]


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class ItemIn(Strict):
    item_id: Id
    quantity: Annotated[int, Meta(ge=1, le=orders.QUANTITY_MAX)]
    unit_price: Annotated[int, Meta(ge=0, le=orders.PRICE_MAX)] | None = None


class AdjustmentIn(Strict):
    type: Literal[orders.ADJUSTMENT_TYPES]
    amount: Annotated[int, Meta(ge=-orders.PRICE_MAX, le=orders.PRICE_MAX)]
    label: Place | None = None


class Address(Strict):
    country: Annotated[str, Meta(pattern=orders.COUNTRY)]
    name: Name | UnsetType = UNSET
    company: Name | UnsetType = UNSET
    line1: Name | UnsetType = UNSET
    line2: Name | UnsetType = UNSET
    city: Place | UnsetType = UNSET
    region: Place | UnsetType = UNSET
    postal_code: Annotated[str, Meta(min_length=1, max_length=20, pattern=orders.TEXT)] | UnsetType = UNSET
    phone: Annotated[str, Meta(min_length=1, max_length=40, pattern=orders.TEXT)] | UnsetType = UNSET
    email: Annotated[str, Meta(min_length=1, max_length=254, pattern=orders.TEXT)] | UnsetType = UNSET


class OrderIn(Strict):
    customer_id: Id
    items: Annotated[list[ItemIn], Meta(min_length=1, max_length=orders.ITEMS_MAX)]
    external_ref: Id | None = None
    currency: Literal[orders.CURRENCIES] | None = None
    adjustments: Annotated[list[AdjustmentIn], Meta(max_length=orders.ADJUSTMENTS_MAX)] = []
    shipping_address: Address | None = None
    billing_address: Address | None = None
    note: Note | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=50)] = {}

    def __post_init__(self) -> None:
        items = [{"quantity": item.quantity, "unit_price": item.unit_price} for item in self.items]
        orders.check_sums(self.currency, items, [{"amount": adjustment.amount} for adjustment in self.adjustments])


class BatchEntryIn(OrderIn):
    idempotency_key: Key | None = None


class BatchIn(Strict):
    """Entries are validated separately, so that an invalid one does not affect the others."""

    orders: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=orders.BATCH_MAX)]


# Litestar itself converts leniently ("1" becomes a number); a decoder is strict and faster.
ORDER, ENTRY, BATCH = (msgspec.json.Decoder(kind) for kind in (OrderIn, BatchEntryIn, BatchIn))
encode = msgspec.json.Encoder().encode


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    async with await store.open_pool() as app.state.pool:
        yield


@post("/orders")
async def create_order(
    body: bytes, state: State, key: Annotated[Key | None, Parameter(header="Idempotency-Key")] = None
) -> Response[bytes]:
    return created(*await store.create(state.pool, new_order(ORDER.decode(body), key)))


@post("/orders/batch", status_code=200)
async def create_orders(body: bytes, state: State) -> Response[bytes]:
    data = BATCH.decode(body)
    results: list[dict[str, Any]] = [{"status": 400} for _ in data.orders]
    valid: dict[int, NewOrder] = {}
    for i, entry in enumerate(data.orders):
        try:
            order = ENTRY.decode(entry)
        except msgspec.ValidationError as error:
            results[i]["problem"] = {"detail": str(error)}
        else:
            valid[i] = new_order(order, order.idempotency_key)
    for i, outcome in zip(valid, await store.create_many(state.pool, list(valid.values())), strict=True):
        results[i] = result(outcome)
    return json(encode({"results": results}))


@get("/orders/{order_id:uuid}")
async def get_order(order_id: UUID, state: State) -> Response[bytes]:
    return json(render(await find(state.pool, order_id)))


@get("/orders")
async def list_orders(
    state: State, limit: Annotated[int, Parameter(ge=1, le=orders.PAGE_MAX)] = 20, cursor: UUID | None = None
) -> Response[bytes]:
    rows, next_cursor = await store.page(state.pool, limit=limit, after=cursor)
    documents = [orders.stored_order(row, raw=raw) for row in rows]
    return json(encode({"orders": documents, "next_cursor": next_cursor}))


@post("/orders/{order_id:uuid}/confirm", status_code=200)
async def confirm_order(order_id: UUID, state: State) -> Response[bytes]:
    document = await store.confirm(state.pool, await find(state.pool, order_id), render)
    if document is None:
        raise HTTPException("The order is not pending.", status_code=409)
    return json(document)


async def find(pool: asyncpg.Pool, order_id: UUID) -> asyncpg.Record:
    row = await store.find(pool, order_id)
    if row is None:
        raise NotFoundException("There is no such order.")
    return row


def new_order(data: OrderIn, key: str | None) -> NewOrder:
    body = msgspec.to_builtins(data)
    body.pop("idempotency_key", None)
    return orders.new_order(body, idempotency_key=key, encode=encode)


def created(document: str, replayed: bool) -> Response[bytes]:
    headers = orders.REPLAYED if replayed else None
    return Response(document.encode(), status_code=201, headers=headers, media_type=MediaType.JSON)


def json(document: bytes) -> Response[bytes]:
    return Response(document, media_type=MediaType.JSON)


def result(outcome: store.Outcome) -> dict[str, Any]:
    if isinstance(outcome, Exception):
        return {"status": 409 if isinstance(outcome, DuplicateExternalRef) else 422, "problem": {}}
    return {"status": 201, "order": raw(outcome[0])}


def render(row: Any) -> bytes:
    return encode(orders.stored_order(row, raw=raw))


def raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(text)


def reused(_: Any, error: Exception) -> Response[dict[str, str]]:
    return Response({"detail": "The key was used with another body."}, status_code=422)


def duplicate(_: Any, error: Exception) -> Response[dict[str, str]]:
    return Response({"detail": "Another order has this external_ref."}, status_code=409)


def invalid(_: Any, error: msgspec.DecodeError) -> Response[dict[str, str]]:
    return Response({"detail": str(error)}, status_code=400)


def unreadable(_: Any, error: ClientException) -> Response[dict[str, str]]:
    return Response({"detail": error.detail}, status_code=error.status_code)


HANDLERS = [create_order, create_orders, get_order, list_orders, confirm_order]
ERRORS: dict[type[Exception], Any] = {
    IdempotencyKeyReused: reused,
    DuplicateExternalRef: duplicate,
    msgspec.DecodeError: invalid,  # includes ValidationError
    ClientException: unreadable,
}

app = Litestar(HANDLERS, lifespan=[lifespan], exception_handlers=ERRORS, openapi_config=None)
