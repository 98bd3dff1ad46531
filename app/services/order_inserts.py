"""Storing new orders: a list of them at once, each with its items, its event and its outbox row.

PostgreSQL does it in one statement and one round trip. SQLite, which cannot insert inside WITH, uses a transaction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

import orjson
from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    FromClause,
    Insert,
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
from app.db.notifications import notify_workers
from app.db.statement import Statement, json_rows, typed_columns
from app.db.transactions import read_rows
from app.models import EVENTS, ITEMS, ORDERS, OUTBOX, Order, OrderEvent
from app.models.lifecycle import CREATED, IMPORTED
from app.models.order import RECORDS

# The columns of a new order that always have the same values, which the database fills in.
NEW_ORDER_STATE: dict[str, Any] = {
    "fulfillment_status": "unfulfilled",
    "payment_status": "unpaid",
    "return_status": "none",
    "late": False,
    **RECORDS,
}


@dataclass(slots=True)
class NewOrder:
    """An order to store: its columns, those of its items, its document, and the id and the span of its request.

    `channels` are those that the principal is bound to, or None: an error must not name an order of another channel.
    """

    columns: dict[str, Any]
    items: list[dict[str, Any]]
    document: str
    request_id: str | None = None
    traceparent: str | None = None
    channels: frozenset[str] | None = None

    @property
    def id(self) -> str:
        return str(self.columns["id"])


@dataclass(frozen=True, slots=True)
class OrderHistory:
    """An order as it is after its last event, and all of its events in their order."""

    order: NewOrder
    events: Sequence[Mapping[str, Any]]


def insert_orders(orders: Sequence[NewOrder]) -> set[str]:
    """Store the orders that conflict with no stored one, and return the ids of those that are stored. This commits.

    An order conflicts by its key, its principal's external_ref, its id or its number; `find_conflicts` finds the stored
    one. Raises the driver's error for the whole list; then nothing is stored, except that this is unknown after a lost
    connection.
    """
    ordered = _in_lock_order(orders)
    if db.engine.dialect.name == "sqlite":
        return _insert_in_transaction(ordered, [_first_event(order, CREATED) for order in ordered])
    batch = orjson.dumps([_parameter(order) for order in ordered])
    stored = {row[0] for row in INSERT_ORDERS.rows(batch=batch.decode())}
    notify_workers()
    return stored


def _parameter(order: NewOrder) -> dict[str, Any]:
    """The order as a row of the statement's JSON parameter."""
    return {
        **order.columns,
        "request_id": order.request_id,
        "traceparent": order.traceparent,
        "items": order.items,
        "snapshot": orjson.Fragment(order.document),
    }


def _in_lock_order(orders: Sequence[NewOrder]) -> list[NewOrder]:
    """The orders in the sequence in which all processes lock: two batches that share keys would otherwise deadlock.

    Of the orders with one key or one reference, the first stays the first and is stored.
    """
    if len(orders) == 1:
        return list(orders)
    positions: dict[str, str] = {}  # the position of the last order with each key and reference
    positioned: list[tuple[str, NewOrder]] = []
    for order in orders:
        columns = order.columns
        hashes = [columns[name] for name in ("idempotency_key_hash", "external_ref_hash") if columns[name] is not None]
        known = [positions[key_hash] for key_hash in hashes if key_hash in positions]
        position = max(known, default=hashes[0] if hashes else "")
        positions.update(dict.fromkeys(hashes, position))
        positioned.append((position, order))
    return [order for _, order in sorted(positioned, key=itemgetter(0))]


@dataclass(frozen=True, slots=True)
class Conflicts:
    """Stored orders by id, and by the hashes of key and reference.

    The rows have id, channel, fingerprint, version and snapshot. The last two are those of the first version, or of the
    current one where an erasure has removed the fingerprint.
    """

    by_id: dict[str, Any]
    by_key: dict[str | None, Any]
    by_ref: dict[str | None, Any]

    def add(self, order: NewOrder) -> None:
        """Add an order as if it were stored, for orders that are previewed after it."""
        columns = order.columns
        names = ("id", "channel", "fingerprint", "version")
        stored = SimpleNamespace(snapshot=order.document, **{name: columns[name] for name in names})
        for rows, key in ((self.by_key, "idempotency_key_hash"), (self.by_ref, "external_ref_hash")):
            if columns[key] is not None:
                rows[columns[key]] = stored


def find_conflicts(orders: Sequence[NewOrder]) -> Conflicts:
    """The stored orders that the given ones conflict with.

    A statement of its own, after the insert: within the insert's snapshot the winner of a race is not visible.
    """
    keys, refs, ref_hashes = (
        [order.columns[name] for order in orders if order.columns[name] is not None]
        for name in ("idempotency_key_hash", "external_ref", "external_ref_hash")
    )
    # One scan of each index. A thousand pairs would be a thousand conditions, and half a second to plan.
    conflicting = union_all(
        select(Order.id).where(Order.id.in_([order.id for order in orders])),
        select(Order.id).where(Order.idempotency_key_hash.in_(keys)),
        select(Order.id).where(Order.external_ref.in_(refs), Order.external_ref_hash.in_(ref_hashes)),
    )
    # Materialized: with statistics from when the tables were almost empty, the three scans would be repeated for every
    # row of a table, which takes seconds for a thousand orders.
    conflicting_ids = conflicting.cte("conflicting").prefix_with("MATERIALIZED")
    event = aliased(OrderEvent)
    # The first version of an imported order may be greater than 1.
    first = select(func.min(event.version)).where(event.order_id == Order.id).scalar_subquery()
    replayed = case((Order.fingerprint.is_(None), Order.version), else_=first)
    query = (
        select(Order.id, Order.channel, Order.idempotency_key_hash, Order.external_ref_hash, Order.fingerprint)
        .add_columns(OrderEvent.version, OrderEvent.snapshot)
        .where(
            Order.id.in_(select(conflicting_ids.c.id)), OrderEvent.order_id == Order.id, OrderEvent.version == replayed
        )
    )
    rows = read_rows(query)
    return Conflicts(
        by_id={row.id: row for row in rows},
        by_key={row.idempotency_key_hash: row for row in rows if row.idempotency_key_hash is not None},
        by_ref={row.external_ref_hash: row for row in rows if row.external_ref_hash is not None},
    )


def find_stored_ids(orders: Sequence[NewOrder]) -> set[str]:
    """The ids of those of the orders that are stored."""
    return {row.id for row in read_rows(select(Order.id).where(Order.id.in_([order.id for order in orders])))}


def restore_orders(orders: Sequence[NewOrder]) -> set[str]:
    """Store imported orders: their history begins at their version. Otherwise as `insert_orders`."""
    ordered = sorted(orders, key=lambda order: order.id)
    events = [_first_event(order, IMPORTED) for order in ordered]
    return _insert_in_transaction(ordered, events, imported_at=datetime.now(UTC))


def insert_histories(histories: Sequence[OrderHistory]) -> set[str]:
    """Store orders with all of their events. Otherwise as `insert_orders`."""
    orders = _in_lock_order([history.order for history in histories])
    return _insert_in_transaction(orders, [event for history in histories for event in history.events])


def event_row(
    order_id: str,
    version: int,
    *,
    event_type: str,
    actor: str,
    at: datetime,
    snapshot: str,
    request_id: str | None = None,
    traceparent: str | None = None,
) -> dict[str, Any]:
    """An event by its columns: the one place where events are built. `snapshot` is the order after the change."""
    return {
        "order_id": order_id,
        "version": version,
        "type": event_type,
        "actor": actor,
        "request_id": request_id,
        "traceparent": traceparent,
        "at": at,
        "snapshot": snapshot,
    }


def insert_events(
    connection: Connection, events: Sequence[Mapping[str, Any]], *, imported_at: datetime | None = None
) -> None:
    """Insert events and their outbox rows, in the transaction of the change.

    With `imported_at`, they have been in the outbox since that time, however long ago they happened.
    """
    if events:
        connection.execute(insert(EVENTS), events)
        since = {} if imported_at is None else {"at": imported_at}
        rows = [{name: event[name] for name in OUTBOX.c.keys()} | since for event in events]
        connection.execute(insert(OUTBOX), rows)


def insert_events_from(rows: FromClause, values: Mapping[str, ColumnElement[Any]]) -> tuple[Insert, Insert]:
    """INSERT … SELECT of an event and its outbox row for each row of `rows`: parts of PostgreSQL's one statement.

    `values` are the expressions of the event's columns.
    """
    events, outbox = (
        insert(table).from_select(table.c.keys(), select(*(values[name] for name in table.c.keys())).select_from(rows))
        for table in (EVENTS, OUTBOX)
    )
    return events, outbox


def _insert_in_transaction(
    orders: Sequence[NewOrder], events: Sequence[Mapping[str, Any]], *, imported_at: datetime | None = None
) -> set[str]:
    dialect = {"sqlite": sqlite, "postgresql": postgresql}[db.engine.dialect.name]
    insert_order = dialect.insert(ORDERS).on_conflict_do_nothing().returning(ORDERS.c.id)
    with db.engine.begin() as connection:
        stored = set(connection.scalars(insert_order, [order.columns for order in orders]))
        new = [order for order in orders if order.id in stored]
        if new:
            connection.execute(insert(ITEMS), [{"order_id": order.id} | item for order in new for item in order.items])
        insert_events(connection, [event for event in events if event["order_id"] in stored], imported_at=imported_at)
    return stored


def _first_event(order: NewOrder, event_type: str) -> dict[str, Any]:
    columns = order.columns
    return event_row(
        order.id,
        columns["version"],
        event_type=event_type,
        actor=columns["principal"],
        at=columns["updated_at"],
        snapshot=order.document,
        request_id=order.request_id,
        traceparent=order.traceparent,
    )


def _insert_statement() -> Statement:
    # The batch is one JSON parameter: 8 µs an order in the driver, where arrays cost 46 to 80 µs.
    batch = cast(bindparam("batch", type_=Text), JSON)
    # Those that the database does not fill in.
    order_columns = [column for column in ORDERS.c if column.name not in NEW_ORDER_STATE]
    of_event = typed_columns(EVENTS.c[name] for name in ("request_id", "traceparent", "snapshot"))
    columns = (*typed_columns(order_columns), *of_event, column("items", JSON))
    new = select(json_rows(batch, "batch", *columns)).cte("new_orders")
    inserted = (
        postgresql.insert(ORDERS)
        .from_select(order_columns, select(*(new.c[column.name] for column in order_columns)))
        .on_conflict_do_nothing()
        .returning(ORDERS.c.id)
        .cte("inserted_orders")
    )
    stored = new.join(inserted, new.c.id == inserted.c.id)
    item = json_rows(new.c["items"], "item", *typed_columns(c for c in ITEMS.c if c.name != "order_id"))
    items = insert(ITEMS).from_select(
        ["order_id", *item.c.keys()], select(new.c.id, *item.c).select_from(stored.join(item, true()))
    )
    events, outbox = insert_events_from(
        stored,
        {
            "order_id": new.c.id,
            "version": new.c.version,
            "type": literal_column(f"'{CREATED}'"),
            "actor": new.c.principal,
            "request_id": new.c.request_id,
            "traceparent": new.c.traceparent,
            "at": new.c.created_at,
            "snapshot": new.c.snapshot,
        },
    )
    return Statement(
        events.add_cte(items.cte("new_items"), outbox.cte("new_outbox")).returning(cast(EVENTS.c.order_id, Text))
    )


INSERT_ORDERS = _insert_statement()
