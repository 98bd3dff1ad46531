"""The same Litestar service with group commit and grouped reads of stored documents."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID

from litestar import Litestar, Response, get, post
from litestar.datastructures import State
from litestar.exceptions import NotFoundException
from litestar.params import Parameter

from bench.peers import orders, store
from bench.peers.litestar_asyncpg import (
    ERRORS,
    ORDER,
    Key,
    confirm_order,
    create_orders,
    created,
    json,
    new_order,
)

_DOCUMENT = "SELECT snapshot FROM order_events e WHERE e.order_id = orders.id AND e.version = orders.version"
_GET = f"SELECT id, ({_DOCUMENT}) FROM orders WHERE id = ANY ($1::uuid[])"
_LIST = f"SELECT id::text, ({_DOCUMENT}) AS document FROM orders WHERE id < $1 ORDER BY orders.id DESC LIMIT $2"


class Group:
    """Executes the calls of concurrent requests together: one group at a time, each with all calls made meanwhile."""

    def __init__(self, run: Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]) -> None:
        self._run = run
        self._waiting: list[tuple[Any, asyncio.Future[Any]]] = []
        self._leader: asyncio.Task[None] | None = None

    async def __call__(self, item: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._leader is None:
            self._leader = asyncio.create_task(self._lead())
        return await future

    async def _lead(self) -> None:
        while self._waiting:
            await asyncio.sleep(0)  # requests that are ready join the group
            group, self._waiting = self._waiting, []
            await self._answer(group)
        self._leader = None

    async def _answer(self, group: list[tuple[Any, asyncio.Future[Any]]]) -> None:
        try:
            results = await self._run([item for item, _ in group])
        except Exception as error:
            if len(group) == 1:
                group[0][1].set_exception(error)
                return
            for one in group:  # only invalid calls may fail
                await self._answer([one])
            return
        for (_, future), result in zip(group, results, strict=True):
            if not future.done():
                future.set_result(result)


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    async with await store.open_pool() as pool:

        async def read(ids: Sequence[UUID]) -> list[str | None]:
            found = dict(await pool.fetch(_GET, ids))
            return [found.get(order_id) for order_id in ids]

        app.state.pool = pool
        app.state.create = Group(lambda batch: store.create_many(pool, batch))
        app.state.read = Group(read)
        yield


@post("/orders")
async def create_order(
    body: bytes, state: State, key: Annotated[Key | None, Parameter(header="Idempotency-Key")] = None
) -> Response[bytes]:
    outcome = await state.create(new_order(ORDER.decode(body), key))
    if isinstance(outcome, Exception):
        raise outcome
    return created(*outcome)


@get("/orders/{order_id:uuid}")
async def get_order(order_id: UUID, state: State) -> Response[bytes]:
    document = await state.read(order_id)
    if document is None:
        raise NotFoundException("There is no such order.")
    return json(document.encode())


@get("/orders")
async def list_orders(
    state: State, limit: Annotated[int, Parameter(ge=1, le=orders.PAGE_MAX)] = 20, cursor: UUID | None = None
) -> Response[bytes]:
    rows = await state.pool.fetch(_LIST, cursor or store.NEWEST, limit + 1)
    following = f'"{rows[limit - 1]["id"]}"' if len(rows) > limit else "null"
    documents = ",".join([row["document"] for row in rows[:limit]])
    return json(f'{{"orders":[{documents}],"next_cursor":{following}}}'.encode())


HANDLERS = [create_order, create_orders, get_order, list_orders, confirm_order]

app = Litestar(HANDLERS, lifespan=[lifespan], exception_handlers=ERRORS, openapi_config=None)
