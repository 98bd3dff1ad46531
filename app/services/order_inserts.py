"""How new orders get into the database: all of a list at once, each with its items, its event and its outbox row.

PostgreSQL does it in one statement, one round trip; SQLite, which cannot write in a WITH, in one transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import (
    JSON,
    Text,
    bindparam,
    case,
    cast,
    column,
    func,
    insert,
    literal_column,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import aliased

from app.db.engine import db
from app.db.statement import Statement, json_rows, typed
from app.db.transactions import read_rows
from app.db.types import Document
from app.models import EVENTS, FULFILLMENTS, ITEMS, ORDERS, OUTBOX, RETURNS, Order, OrderEvent
from app.models.lifecycle import CREATED, IMPORTED
from app.services.new_order import NewOrder


def insert_orders(orders: Sequence[NewOrder]) -> set[str]:
    """Store the orders that collide with none that is there; return the ids of those stored.

    An order collides by its key, its principal's external_ref, its id or its number; `find_collisions` tells.
    Raises the driver's error for the whole list, and then nothing is stored.
    """
    # One order of locking for all processes: two batches that share keys or references would otherwise deadlock.
    ordered = sorted(orders, key=_locking_place)
    if db.engine.dialect.name == "sqlite":
        return _insert_in_transaction(ordered, CREATED)
    batch = orjson.dumps(
        [order.columns | {"items": order.items, "snapshot": orjson.Fragment(order.snapshot)} for order in ordered]
    )
    return {row[0] for row in _INSERT.rows(batch=batch.decode())}


def _locking_place(order: NewOrder) -> tuple[str, str]:
    columns = order.columns
    return columns["idempotency_key_hash"] or columns["external_ref_hash"] or "", order.id


@dataclass(frozen=True, slots=True)
class Collisions:
    """Orders that are there already: by id, and by the hashes of key and reference.

    The rows have id, fingerprint, version and snapshot: those of the first version, or of the current one where the
    fingerprint went with an erasure.
    """

    by_id: dict[str, Any]
    by_key: dict[str | None, Any]
    by_ref: dict[str | None, Any]


def find_collisions(orders: Sequence[NewOrder]) -> Collisions:
    """The stored orders that the given ones collide with.

    A statement of its own, after the insert: inside it the winner of a race is not visible yet.
    """
    keys, refs, ref_hashes = (
        [order.columns[name] for order in orders if order.columns[name] is not None]
        for name in ("idempotency_key_hash", "external_ref", "external_ref_hash")
    )
    # One look into each index. A list of pairs would be a thousand conditions to plan, which takes half a second.
    colliding = union_all(
        select(Order.id).where(Order.id.in_([order.id for order in orders])),
        select(Order.id).where(Order.idempotency_key_hash.in_(keys)),
        select(Order.id).where(Order.external_ref.in_(refs), Order.external_ref_hash.in_(ref_hashes)),
    )
    log = aliased(OrderEvent)
    first = select(func.min(log.version)).where(log.order_id == Order.id).scalar_subquery()  # an import's is not 1
    answered = case((Order.fingerprint.is_(None), Order.version), else_=first)
    query = (
        select(Order.id, Order.idempotency_key_hash, Order.external_ref_hash, Order.fingerprint)
        .add_columns(OrderEvent.version, OrderEvent.snapshot)
        .where(Order.id.in_(colliding), OrderEvent.order_id == Order.id, OrderEvent.version == answered)
    )
    rows = read_rows(query)
    return Collisions(
        by_id={row.id: row for row in rows},
        by_key={row.idempotency_key_hash: row for row in rows if row.idempotency_key_hash is not None},
        by_ref={row.external_ref_hash: row for row in rows if row.external_ref_hash is not None},
    )


def restore_orders(orders: Sequence[NewOrder]) -> set[str]:
    """Store orders that have a life behind them; their log begins at their version. As `insert_orders` otherwise."""
    return _insert_in_transaction(sorted(orders, key=lambda order: order.id), IMPORTED)


def _insert_in_transaction(orders: Sequence[NewOrder], event_type: str) -> set[str]:
    dialect = {"sqlite": sqlite, "postgresql": postgresql}[db.engine.dialect.name]
    insert_order = dialect.insert(ORDERS).on_conflict_do_nothing().returning(ORDERS.c.id)
    with db.engine.begin() as connection:
        stored = set(connection.scalars(insert_order, [order.columns for order in orders]))
        new = [order for order in orders if order.id in stored]
        for table, rows in (
            (ITEMS, [_owned(order, item) for order in new for item in order.items]),
            (FULFILLMENTS, [_owned(order, fulfillment) for order in new for fulfillment in order.fulfillments]),
            (RETURNS, [_owned(order, one) for order in new for one in order.returns]),
            (EVENTS, [_first_event(order, event_type) for order in new]),
            (OUTBOX, [_outbox_entry(order) for order in new]),
        ):
            if rows:
                connection.execute(insert(table), rows)
    return stored


def _owned(order: NewOrder, row: dict[str, Any]) -> dict[str, Any]:
    return {"order_id": order.id} | row


def _first_event(order: NewOrder, event_type: str) -> dict[str, Any]:
    return _outbox_entry(order) | {
        "type": event_type,
        "actor": order.columns["principal"],
        "snapshot": order.snapshot.decode(),
    }


def _outbox_entry(order: NewOrder) -> dict[str, Any]:
    return {"order_id": order.id, "version": order.columns["version"], "at": order.columns["updated_at"]}


def _insert_statement() -> Statement:
    # The whole list is one JSON parameter: 8 µs an order for the client, where arrays cost 46 to 80.
    batch = cast(bindparam("batch", type_=Text), JSON)
    new = select(json_rows(batch, "batch", *typed(ORDERS.c), column("items", JSON), column("snapshot", Document))).cte(
        "new"
    )
    made = (
        postgresql.insert(ORDERS)
        .from_select(ORDERS.c.keys(), select(*(new.c[name] for name in ORDERS.c.keys())))
        .on_conflict_do_nothing()
        .returning(ORDERS.c.id)
        .cte("made")
    )
    stored = new.join(made, new.c.id == made.c.id)
    item = json_rows(new.c["items"], "item", *typed([c for c in ITEMS.c if c.name != "order_id"]))
    items = insert(ITEMS).from_select(
        ["order_id", *item.c.keys()], select(new.c.id, *item.c).select_from(stored.join(item, true()))
    )
    outbox = insert(OUTBOX).from_select(
        ["order_id", "version", "at"], select(new.c.id, new.c.version, new.c.created_at).select_from(stored)
    )
    event = select(
        new.c.id, new.c.version, literal_column(f"'{CREATED}'"), new.c.principal, new.c.created_at, new.c.snapshot
    )
    return Statement(
        insert(EVENTS)
        .from_select(["order_id", "version", "type", "actor", "at", "snapshot"], event.select_from(stored))
        .add_cte(items.cte("items"), outbox.cte("queued"))
        .returning(cast(EVENTS.c.order_id, Text))
    )


_INSERT = _insert_statement()
