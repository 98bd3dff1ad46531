"""FastAPI with Pydantic and the asynchronous SQLAlchemy ORM, as their documentation teaches it.

Run as a command it creates the tables.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, select
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from bench.peers import orders
from bench.peers.pydantic_schemas import BatchEntryIn, BatchIn, OrderIn, OrderList, OrderOut

URL = os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+asyncpg:", 1)
engine = create_async_engine(URL, pool_size=10, max_overflow=0)
Session = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    type_annotation_map = {datetime: TIMESTAMP(timezone=True), dict[str, Any]: JSONB(none_as_null=True)}


class OrderItem(Base):
    __tablename__ = "order_items"

    order_id: Mapped[UUID] = mapped_column(ForeignKey("orders.id"), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[str] = mapped_column(String(64))
    quantity: Mapped[int]
    unit_price: Mapped[int | None] = mapped_column(BigInteger)
    fulfilled: Mapped[int]
    returned: Mapped[int]

    __table_args__ = (Index("order_items_item", item_id, order_id),)


class OrderEvent(Base):
    __tablename__ = "order_events"

    order_id: Mapped[UUID] = mapped_column(ForeignKey("orders.id"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(String(32))
    at: Mapped[datetime]
    snapshot: Mapped[str] = mapped_column(Text)


class OutboxEntry(Base):
    __tablename__ = "outbox"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[str] = mapped_column(String(15), unique=True)
    customer_id: Mapped[str] = mapped_column(String(64))
    external_ref: Mapped[str | None] = mapped_column(String(64), unique=True)
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    fingerprint: Mapped[str] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(16))
    fulfillment_status: Mapped[str] = mapped_column(String(16))
    currency: Mapped[str | None] = mapped_column(String(3))
    adjustments: Mapped[list[Any]] = mapped_column(JSONB)
    items_total: Mapped[int | None] = mapped_column(BigInteger)
    adjustments_total: Mapped[int | None] = mapped_column(BigInteger)
    shipping_address: Mapped[dict[str, Any] | None]
    billing_address: Mapped[dict[str, Any] | None]
    note: Mapped[str | None] = mapped_column(Text)
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    version: Mapped[int] = mapped_column()
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    items: Mapped[list[OrderItem]] = relationship(order_by=OrderItem.line, lazy="selectin")

    __mapper_args__ = {"version_id_col": version}
    __table_args__ = (
        Index("orders_customer", customer_id, id),
        Index("orders_status", status, id),
        Index("orders_fulfillment_status", fulfillment_status, id),
    )

    holds: tuple[()] = ()
    cancellations: tuple[()] = ()
    fulfillments: tuple[()] = ()
    returns: tuple[()] = ()

    @property
    def totals(self) -> dict[str, int] | None:
        return orders.totals(self.items_total, self.adjustments_total)

    @property
    def allowed_actions(self) -> list[str]:
        return orders.ALLOWED_ACTIONS[self.status]


app = FastAPI()


async def get_session() -> AsyncIterator[AsyncSession]:
    async with Session() as session:
        yield session


Database = Annotated[AsyncSession, Depends(get_session)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=orders.KEY_MAX)]


@app.exception_handler(RequestValidationError)
async def invalid(_: Request, error: RequestValidationError) -> Response:
    return JSONResponse({"detail": [fault["msg"] for fault in error.errors()]}, 400)


@app.post("/orders", status_code=201)
async def create_order(body: OrderIn, session: Database, key: Key = None) -> Response:
    document, replayed = await store(session, body, key)
    return Response(document, 201, orders.REPLAYED if replayed else None, "application/json")


@app.post("/orders/batch")
async def create_orders(body: BatchIn, session: Database) -> Response:
    results: list[str] = ['{"status":400,"problem":{}}'] * len(body.orders)
    valid: dict[int, BatchEntryIn] = {}
    for i, entry in enumerate(body.orders):
        try:
            valid[i] = BatchEntryIn.model_validate(entry)
        except ValidationError:
            continue
    try:
        documents = [add(session, order, order.idempotency_key) for order in valid.values()]
        await session.commit()
    except IntegrityError:
        await session.rollback()
        for i, order in valid.items():
            results[i] = await store_alone(session, order)
    else:
        for i, document in zip(valid, documents, strict=True):
            results[i] = f'{{"status":201,"order":{document}}}'
    return Response(f'{{"results":[{",".join(results)}]}}', media_type="application/json")


@app.get("/orders/{order_id}")
async def get_order(order_id: UUID, session: Database) -> OrderOut:
    return await find(session, order_id)


@app.get("/orders")
async def list_orders(
    session: Database, limit: Annotated[int, Query(ge=1, le=orders.PAGE_MAX)] = 20, cursor: UUID | None = None
) -> OrderList:
    query = select(Order).order_by(Order.id.desc()).limit(limit + 1)
    if cursor is not None:
        query = query.where(Order.id < cursor)
    found: Sequence[Order] = (await session.scalars(query)).all()
    page = [OrderOut.model_validate(order) for order in found[:limit]]
    return OrderList(orders=page, next_cursor=str(page[-1].id) if len(found) > limit else None)


@app.post("/orders/{order_id}/confirm")
async def confirm_order(order_id: UUID, session: Database) -> Response:
    order = await find(session, order_id, for_update=True)
    if order.status != "pending":
        raise HTTPException(409, "The order is not pending.")
    order.status, order.updated_at = "confirmed", orders.now()
    await session.flush()  # increments its version
    document = add_event(session, order, "order.confirmed")
    await session.commit()
    return Response(document, media_type="application/json")


async def find(session: AsyncSession, order_id: UUID, *, for_update: bool = False) -> Order:
    order = await session.get(Order, order_id, with_for_update=for_update or None)
    if order is None:
        raise HTTPException(404, "There is no such order.")
    return order


async def store(session: AsyncSession, body: OrderIn, key: str | None) -> tuple[str, bool]:
    """Store an order; return its document, and whether it existed."""
    document = add(session, body, key)
    try:
        await session.commit()
    except IntegrityError:
        await session.rollback()
        return await replay(session, body, key), True
    return document, False


async def store_alone(session: AsyncSession, order: BatchEntryIn) -> str:
    try:
        document, _ = await store(session, order, order.idempotency_key)
    except HTTPException as error:
        return f'{{"status":{error.status_code},"problem":{{}}}}'
    return f'{{"status":201,"order":{document}}}'


async def replay(session: AsyncSession, body: OrderIn, key: str | None) -> str:
    query = select(Order.fingerprint, OrderEvent.snapshot).join(OrderEvent, OrderEvent.order_id == Order.id)
    found = key and (await session.execute(query.where(Order.idempotency_key == key, OrderEvent.version == 1))).first()
    if not found:
        raise HTTPException(409, "Another order has this external_ref.")
    if found.fingerprint != orders.fingerprint(content(body)):
        raise HTTPException(422, "The key was used with another body.")
    return found.snapshot


def add(session: AsyncSession, body: OrderIn, key: str | None) -> str:
    """Add an order, its event and its outbox entry; return its document."""
    data = content(body)
    at, order_id = orders.now(), orders.new_id()
    items_total, adjustments_total = orders.sums(data["items"], data["adjustments"])
    columns = {name: value for name, value in data.items() if name not in ("items", "metadata")}
    order = Order(
        **columns,
        id=order_id,
        number=orders.order_number(order_id, at),
        idempotency_key=key,
        fingerprint=orders.fingerprint(data),
        status="pending",
        fulfillment_status="unfulfilled",
        items_total=items_total,
        adjustments_total=adjustments_total,
        metadata_=data["metadata"],
        version=1,
        created_at=at,
        updated_at=at,
        items=[OrderItem(line=i, fulfilled=0, returned=0, **item) for i, item in enumerate(data["items"], start=1)],
    )
    session.add(order)
    return add_event(session, order, "order.created")


def add_event(session: AsyncSession, order: Order, event: str) -> str:
    document = OrderOut.model_validate(order).model_dump_json()
    at, version = order.updated_at, order.version
    session.add(OrderEvent(order_id=order.id, version=version, type=event, at=at, snapshot=document))
    session.add(OutboxEntry(order_id=order.id, version=version, at=at))
    return document


def content(body: OrderIn) -> dict[str, Any]:
    return body.model_dump(exclude={"idempotency_key"})


async def _create_tables() -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(_create_tables())
