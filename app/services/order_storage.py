"""Storing new orders and new versions of orders, each with its event and its outbox row.

First new orders: a statement stores a list of them at once, and another finds the orders that they conflict with. Then
changes: concurrent ones share the statement that reads the orders, and the one that stores each as its next version,
unless another writer has stored that version first. PostgreSQL stores either in one statement and one round trip.
SQLite, which cannot insert inside WITH, uses a transaction, and so do imported orders and those with a whole history.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from operator import attrgetter, itemgetter
from types import SimpleNamespace
from typing import Any

import orjson
from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    FromClause,
    Insert,
    Integer,
    Select,
    Subquery,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
    false,
    func,
    insert,
    literal_column,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import aliased

from app.db.batching import Batcher, PerApplication
from app.db.engine import DATABASE_ERRORS, db, is_unavailable
from app.db.statements import Lookup, Statement, json_rows, notify_workers, read_rows, typed_columns
from app.errors import TooManyIdempotencyKeys
from app.models import CHANGE_KEYS, EVENTS, ITEMS, ORDERS, OUTBOX, ChangeKey, Order, OrderEvent
from app.models.event import CHANGE_KEYS_MAX
from app.models.lifecycle import CREATED, IMPORTED
from app.models.order import IMMUTABLE_CONTENT, RECORDS, line_columns
from app.models.order_aggregate import OrderAggregate
from app.models.principal import Principal
from app.services.order_queries import GROUP_READ_MAX, ORDER_KEY_COLUMNS, owned_by, owner_values

# The columns of a new order that always have the same values, which the database fills in.
NEW_ORDER_STATE: dict[str, Any] = {
    "fulfillment_status": "unfulfilled",
    "payment_status": "unpaid",
    "return_status": "none",
    "late": False,
    **RECORDS,
}

GROUP_CHANGES_MAX = 100  # changes of concurrent requests in one statement; more would delay each request without a gain
_IMMUTABLE_COLUMNS = {
    "id",
    "number",
    "principal",
    *IMMUTABLE_CONTENT,
    "idempotency_key_hash",
    "fingerprint",
    "created_at",
}
# Each as a str: orjson takes no quoted_name.
_MUTABLE_COLUMNS = [str(name) for name in ORDERS.c.keys() if name not in _IMMUTABLE_COLUMNS]
_mutable_values = attrgetter(*_MUTABLE_COLUMNS)


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
    batch = orjson.dumps([_order_parameter(order) for order in ordered])
    stored = {row[0] for row in INSERT_ORDERS.rows(batch=batch.decode())}
    notify_workers()
    return stored


def restore_orders(orders: Sequence[NewOrder]) -> set[str]:
    """Store imported orders: their history begins at their version. Otherwise as `insert_orders`."""
    ordered = sorted(orders, key=lambda order: order.id)
    events = [_first_event(order, IMPORTED) for order in ordered]
    return _insert_in_transaction(ordered, events, imported_at=datetime.now(UTC))


def insert_histories(histories: Sequence[OrderHistory]) -> set[str]:
    """Store orders with all of their events. Otherwise as `insert_orders`."""
    orders = _in_lock_order([history.order for history in histories])
    return _insert_in_transaction(orders, [event for history in histories for event in history.events])


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


def _order_parameter(order: NewOrder) -> dict[str, Any]:
    """The order as a row of the statement's JSON parameter."""
    return {
        **order.columns,
        "request_id": order.request_id,
        "traceparent": order.traceparent,
        "items": order.items,
        "snapshot": orjson.Fragment(order.document),
    }


def _insert_in_transaction(
    orders: Sequence[NewOrder], events: Sequence[Mapping[str, Any]], *, imported_at: datetime | None = None
) -> set[str]:
    """Store orders with those of the events that are theirs, on either database."""
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


def _insert_events_from(rows: FromClause, values: Mapping[str, ColumnElement[Any]]) -> tuple[Insert, Insert]:
    """INSERT … SELECT of an event and its outbox row for each row of `rows`: parts of PostgreSQL's one statement.

    `values` are the expressions of the event's columns.
    """
    events, outbox = (
        insert(table).from_select(table.c.keys(), select(*(values[name] for name in table.c.keys())).select_from(rows))
        for table in (EVENTS, OUTBOX)
    )
    return events, outbox


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
    events, outbox = _insert_events_from(
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


# It may be repeated after a lost connection: an order that is already stored conflicts with itself, by its id.
INSERT_ORDERS = _insert_statement()


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


# The parameters of a change: the columns of the order, its event and its key, and the items that have changed.
# `last_line` is the number of its last item if items were removed.
ChangeRow = dict[str, Any]


@dataclass(frozen=True, slots=True)
class HashedKey:
    """The hash of the idempotency key of a change, and the fingerprint of the body that it is sent with."""

    key_hash: str
    fingerprint: str | None


@dataclass(slots=True)
class CurrentOrder:
    """The current snapshot of an order, the columns that it does not hold, and the response to an earlier request with
    the same idempotency key.

    `replayed_version` is None if the key is new, `replayed_change` states whether the request with it changed the
    order; `replayed_fingerprint` is None after an erasure.
    """

    id: str
    principal: str
    external_ref_hash: str | None
    document: str
    replayed_version: int | None
    replayed_change: bool | None
    replayed_fingerprint: str | None
    replayed_document: str | None


def find_current_order(order_id: str, *, principal: Principal, key: HashedKey | None) -> CurrentOrder | None:
    """The order, if the principal has access to it, read in one statement with those of concurrent requests."""
    row = _BATCHERS.get().reads.submit(
        {"id": order_id, **owner_values(principal), "key_hash": None if key is None else key.key_hash}
    )
    return None if row is None else CurrentOrder(*row)


def store_version(
    order: OrderAggregate, event: dict[str, Any], *, key: HashedKey | None, before: Mapping[str, Any]
) -> bool:
    """Store the changed order, its key, its event and its outbox row. Returns False on a version conflict.

    `before` is the document that the order was parsed from. Concurrent changes share one statement, which waits for no
    lock. A change that this statement cannot store is stored by a statement of its own, which waits for locks.

    Raises the driver's error; then nothing is stored, except that this is unknown after a lost connection and after
    BatchAbandoned. A key that another request has stored in between is a duplicate.
    """
    change = dict(zip(_MUTABLE_COLUMNS, _mutable_values(order), strict=True)) | event
    change["items"] = _changed_items(order, before)
    change |= {"key_hash": key and key.key_hash, "fingerprint": key and key.fingerprint, "changed": True}
    change["last_line"] = len(order.items) if len(order.items) < len(before["items"]) else None
    # An order with a new external_ref may wait for another order with the same: in a batch, that could deadlock.
    if order.external_ref == before["external_ref"]:
        stored = _BATCHERS.get().changes.submit(change)
        if stored is not None:
            return stored
    return bool(_store_versions([change], UPDATE_ORDER))


def _changed_items(order: OrderAggregate, before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The columns of the items that are new or changed."""
    lines = zip_longest(order.items, before["items"])
    return line_columns([line for line, old in lines if line and line != old])


def _store_together(changes: Sequence[ChangeRow]) -> list[bool | None]:
    """Whether each change is stored; None for one that has to be stored alone.

    Of the changes of one order only the first can be stored: the others are based on the version before it.
    """
    by_order: dict[str, ChangeRow] = {}
    for change in changes:
        by_order.setdefault(change["order_id"], change)
    try:
        stored = _store_versions(list(by_order.values()), UPDATE_ORDERS)
    except DATABASE_ERRORS as error:
        if is_unavailable(error):  # more statements would only add load
            raise
        stored = set()  # one of them causes the error; stored alone, the others succeed
    return [
        (change["order_id"] in stored or None) if by_order[change["order_id"]] is change else False
        for change in changes
    ]


def _store_versions(changes: Sequence[ChangeRow], statement: Statement) -> set[str]:
    """Store changes of different orders, and return the ids of those that are stored."""
    if db.engine.dialect.name == "sqlite":
        with db.engine.begin() as connection:
            return {change["order_id"] for change in changes if _store_on_sqlite(connection, change)}
    batch = orjson.dumps([{**change, "snapshot": orjson.Fragment(change["snapshot"])} for change in changes])
    stored = {row[0] for row in statement.rows(changes=batch.decode())}
    notify_workers()
    return stored


def _store_on_sqlite(connection: Connection, change: ChangeRow) -> bool:
    """Store a change in the transaction of the connection. Returns False on a version conflict."""
    order_id = change["order_id"]
    before = and_(ORDERS.c.id == order_id, ORDERS.c.version == change["version"] - 1)
    columns = {name: change[name] for name in _MUTABLE_COLUMNS}
    if not connection.execute(update(ORDERS).where(before).values(columns)).rowcount:
        return False
    if change["last_line"] is not None:
        connection.execute(delete(ITEMS).where(ITEMS.c.order_id == order_id, ITEMS.c.line > change["last_line"]))
    if items := change["items"]:
        connection.execute(_upsert_items(sqlite.insert(ITEMS)), [{"order_id": order_id, **item} for item in items])
    insert_events(connection, [{name: change[name] for name in EVENTS.c.keys()}])
    if change["key_hash"] is not None:
        connection.execute(insert(CHANGE_KEYS), {name: change[name] for name in CHANGE_KEYS.c.keys()})
    return True


def _upsert_items(items: Any) -> Any:
    """The insert; an item whose line exists already is updated."""
    values = {c.name: items.excluded[c.name] for c in ITEMS.c if not c.primary_key}
    return items.on_conflict_do_update(index_elements=ITEMS.primary_key, set_=values)


def store_key(key: HashedKey, *, order_id: str, version: int) -> bool:
    """Store the key of a request that changed nothing, with the version that it is answered with.

    Returns False if the order has another version by now, the key has been used, or the order has CHANGE_KEYS_MAX keys.
    """
    statement = _STORE_KEY[db.engine.dialect.name]
    rows = statement.rows(
        id=order_id, version=version, key_hash=key.key_hash, fingerprint=key.fingerprint, keys_max=CHANGE_KEYS_MAX
    )
    return bool(rows)


def require_room_for_key(order_id: str) -> None:
    """Raise TooManyIdempotencyKeys if the order has CHANGE_KEYS_MAX keys."""
    [row] = read_rows(select(func.count().label("keys")).where(ChangeKey.order_id == order_id))
    if row.keys >= CHANGE_KEYS_MAX:
        raise TooManyIdempotencyKeys(
            f"The order has {row.keys} idempotency keys, the maximum for requests that change nothing."
        )


def _select_current_order(key: Subquery) -> Select[*tuple[Any, ...]]:
    # Scalar subqueries: a join may be planned to read all versions of the order for one.
    snapshot = select(cast(OrderEvent.snapshot, Text)).where(OrderEvent.order_id == Order.id).correlate(Order, key)
    used = and_(ChangeKey.order_id == Order.id, ChangeKey.key_hash == key.c.key_hash)
    use = select(ChangeKey).where(used).correlate(Order, key)
    columns = {
        "id": cast(Order.id, Text),
        "principal": Order.principal,
        "external_ref_hash": Order.external_ref_hash,
        "document": snapshot.where(OrderEvent.version == Order.version).scalar_subquery(),
        "replayed_version": use.with_only_columns(ChangeKey.version).scalar_subquery(),
        "replayed_change": use.with_only_columns(ChangeKey.changed).scalar_subquery(),
        "replayed_fingerprint": use.with_only_columns(ChangeKey.fingerprint).scalar_subquery(),
        "replayed_document": snapshot.where(ChangeKey.version == OrderEvent.version, used).scalar_subquery(),
    }
    order = and_(Order.id == key.c.id, owned_by(key.c.customer_id, key.c.channels))
    return select(*(expression.label(name) for name, expression in columns.items())).where(order)


def _insert_key(dialect: Any) -> Any:
    row = select(Order.id, bindparam("key_hash", type_=Text), Order.version, false())
    row = row.add_columns(bindparam("fingerprint", type_=Text))
    row = row.where(Order.id == bindparam("id"), Order.version == bindparam("version", type_=Integer))
    keys = select(func.count()).where(ChangeKey.order_id == Order.id).correlate(Order).scalar_subquery()
    row = row.where(keys < bindparam("keys_max", type_=Integer))
    # The row lock waits for a concurrent change or erasure of the order, and then sees its result.
    row = row.with_for_update(read=True)
    names = ["order_id", "key_hash", "version", "changed", "fingerprint"]
    keys = dialect.insert(CHANGE_KEYS).from_select(names, row).on_conflict_do_nothing()
    return keys.returning(CHANGE_KEYS.c.version)


def _update_statement(*, skip_locked: bool) -> Statement:
    """Store changes of different orders. `skip_locked`: leave out those whose orders another transaction has locked.

    Without it, the statement waits for them, and must have only one change: two with several could deadlock.
    """
    columns = [
        *typed_columns(EVENTS.c),
        *typed_columns(CHANGE_KEYS.c[name] for name in ("key_hash", "changed", "fingerprint")),
        *typed_columns(ORDERS.c[name] for name in _MUTABLE_COLUMNS if name not in EVENTS.c),
        column("items", JSON),
        column("last_line", Integer),
    ]
    change = select(json_rows(cast(bindparam("changes", type_=Text), JSON), "change", *columns)).cte("change")
    # LATERAL: a lookup by primary key for each change, for the reason that `Lookup` has. The version is compared once
    # the row is locked: it is the newest.
    order = select(ORDERS.c.version).where(ORDERS.c.id == change.c.order_id).limit(literal_column("1"))
    locked = order.with_for_update(key_share=True, skip_locked=skip_locked).lateral("locked")
    stored = select(change).select_from(change.join(locked, change.c.version == locked.c.version + 1)).cte("stored")
    changed = (
        update(ORDERS)
        .where(ORDERS.c.id == stored.c.order_id)
        .values({ORDERS.c[name]: stored.c[name] for name in _MUTABLE_COLUMNS})
    )

    item = json_rows(stored.c["items"], "item", *typed_columns(c for c in ITEMS.c if c.name != "order_id"))
    items = select(stored.c.order_id, *item.c).select_from(stored.join(item, true()))
    events, outbox = _insert_events_from(stored, dict(stored.c))
    key = select(*(stored.c[name] for name in CHANGE_KEYS.c.keys())).where(stored.c.key_hash.is_not(None))
    writes = {
        "changed": changed,
        "new_items": _upsert_items(postgresql.insert(ITEMS).from_select(["order_id", *item.c.keys()], items)),
        "removed_items": delete(ITEMS).where(ITEMS.c.order_id == stored.c.order_id, ITEMS.c.line > stored.c.last_line),
        "new_outbox": outbox,
        "new_key": insert(CHANGE_KEYS).from_select(CHANGE_KEYS.c.keys(), key),
    }
    return Statement(
        events.add_cte(*(write.cte(name) for name, write in writes.items())).returning(cast(EVENTS.c.order_id, Text)),
        repeatable=False,  # repeated, it would find the versions that it has stored itself
    )


CURRENT_ORDERS = Lookup([*ORDER_KEY_COLUMNS, column("key_hash", Text)], _select_current_order)
_STORE_KEY = {"postgresql": Statement(_insert_key(postgresql)), "sqlite": Statement(_insert_key(sqlite))}
UPDATE_ORDERS, UPDATE_ORDER = _update_statement(skip_locked=True), _update_statement(skip_locked=False)


class _Batchers:
    """The batchers of reads and of changes. They take turns: a change that is read while another batch is being stored
    could not join that batch anyway, and waits to be read together with others. At 16 connections this saves 19 % of
    the CPU."""

    def __init__(self) -> None:
        execution_lock = threading.Lock()
        self.reads = Batcher[dict[str, Any], tuple[Any, ...] | None](
            CURRENT_ORDERS.rows, max_batch=GROUP_READ_MAX, execution_lock=execution_lock
        )
        self.changes = Batcher[ChangeRow, bool | None](
            _store_together,
            max_batch=GROUP_CHANGES_MAX,
            repeatable=False,
            execution_lock=execution_lock,
            operation="change",
        )


_BATCHERS = PerApplication(_Batchers)
