"""`flask verify`: compares the tables with the events, and each event with the one before.

Every snapshot must be consistent in itself, differ from the one before only in what its event may change, and the last
one must be what the tables render to.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

import orjson
from sqlalchemy import Row, func, select
from sqlalchemy.orm import Session, selectinload

from app.db.transactions import consistent_read
from app.db.types import rfc3339
from app.models import ChangeKey, Erasure, Order, OrderEvent, OrderItem, OutboxEntry
from app.models.erasure import DONE, scrub
from app.models.lifecycle import ACTIONS, CREATED, ERASED, IMPORTED, OPEN, allowed_actions
from app.models.order import CONTENT, CONTENT_WHILE_PENDING
from app.models.order_id import LOWEST_ID, first_order_id, hash_reference, is_alias
from app.models.order_item import order_totals
from app.services.new_order import content_columns, fingerprint, item_columns
from app.services.order_document import render_stored_order

_BATCH = 200  # orders in memory at once
_EVENTS_PAGE = 100  # events in memory at once

_FIRST_ID, _LAST_ID = "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"

_ACTION_BY_EVENT = {action.event: name for name, action in ACTIONS.items()}
_WHILE_PENDING = {*CONTENT_WHILE_PENDING, "totals"}
# The members that an event may change, besides _ALWAYS_CHANGING. A fulfillment and a return also count units of items.
_CHANGEABLE = {
    "order.updated": _WHILE_PENDING.union(CONTENT),
    "order.confirmed": {"status"},
    "order.cancelled": {"status", "hold", "cancellation"},
    "order.held": {"hold"},
    "order.released": {"hold"},
    "order.fulfilled": {"status", "fulfillment_status", "fulfillments"},
    "order.completed": {"status"},
    "order.returned": {"returns"},
    ERASED: set(),  # an erasure removes data from all snapshots, also from those before
}
_ALWAYS_CHANGING = {"version", "allowed_actions", "updated_at"}
_UNITS_MEMBER = {"order.fulfilled": "fulfilled", "order.returned": "returned"}
_RECORDS_MEMBER = {"order.fulfilled": "fulfillments", "order.returned": "returns"}
_ALIASES = select(Erasure.customer_id, Erasure.alias).where(Erasure.customer_id.is_not(None))


def count_orders() -> int:
    """The number of orders."""
    with consistent_read(statement_timeout=None) as session:
        return session.scalar(select(func.count()).select_from(Order)) or 0


def verify_orders() -> Iterator[tuple[int, list[str]]]:
    """Verify all orders, and yield the number of orders and the differences of each batch.

    Each batch is read from one snapshot of the database, so that concurrent changes are no differences. Rows without an
    order are searched in the ranges of ids between the orders.
    """
    after, last = _FIRST_ID, ""
    while last != _LAST_ID:
        with consistent_read(statement_timeout=None) as session:
            ids = session.scalars(select(Order.id).where(Order.id > after).order_by(Order.id).limit(_BATCH)).all()
            last = ids[-1] if len(ids) == _BATCH else _LAST_ID
            differences = [*_compare_batch(ids, session), *_find_orphans(after, last, session)]
        yield len(ids), differences
        after = last


def _find_orphans(after: str, last: str, session: Session) -> Iterator[str]:
    """Rows without an order, and outbox entries and keys without an event."""
    for model in (OrderItem, OrderEvent, ChangeKey, OutboxEntry):
        orphans = select(model.order_id).where(
            model.order_id > after, model.order_id <= last, ~select(Order).where(Order.id == model.order_id).exists()
        )
        for order_id in session.scalars(orphans.distinct()):
            yield f"order {order_id}: there is no such order, but rows of it in {model.__tablename__}"
    for model, table in ((OutboxEntry, "the outbox"), (ChangeKey, "a key")):
        of_event = (OrderEvent.order_id == model.order_id) & (OrderEvent.version == model.version)
        entries = select(model.order_id, model.version).where(
            model.order_id > after, model.order_id <= last, ~select(OrderEvent).where(of_event).exists()
        )
        for order_id, version in session.execute(entries):
            yield f"order {order_id}: {table} has version {version}, but there is no such event"


def verify_erasures() -> Iterator[list[str]]:
    """Verify all erasures, and yield the differences of each batch."""
    last = LOWEST_ID
    count = select(func.count()).where(Order.customer_id == Erasure.alias).scalar_subquery()
    while True:
        with consistent_read(statement_timeout=None) as session:
            query = select(Erasure, count).where(Erasure.id > last).order_by(Erasure.id).limit(_BATCH)
            rows = session.execute(query).all()
            yield [difference for row in rows for difference in _compare_erasure(*row)]
        if len(rows) < _BATCH:
            return
        last = rows[-1][0].id


def _compare_erasure(erasure: Erasure, count: int) -> Iterator[str]:
    name = f"erasure {erasure.id}"
    if erasure.orders != count:
        yield f"{name}: orders is {erasure.orders}, but {count} have its alias"
    if erasure.status == DONE and (erasure.customer_id is not None or erasure.finished_at is None):
        yield f"{name}: it is done, but still has a customer_id, or no finished_at"


def _compare_batch(ids: Sequence[str], session: Session) -> list[str]:
    try:
        return list(_compare_orders(ids, session))
    except ValueError as error:  # SQLite stores any text as a time or as JSON
        if len(ids) > 1:
            return [difference for order_id in ids for difference in _compare_batch([order_id], session)]
        return [f"order {ids[0]}: a value in a row of it cannot be read ({type(error).__name__})"]


def _compare_orders(ids: Sequence[str], session: Session) -> Iterator[str]:
    orders = session.scalars(
        select(Order).where(Order.id.in_(ids)).order_by(Order.id).options(selectinload(Order.items))
    ).all()
    events = (
        select(OrderEvent.order_id, OrderEvent.version, OrderEvent.type)
        .add_columns(OrderEvent.actor, OrderEvent.at, OrderEvent.snapshot)
        .where(OrderEvent.order_id.in_(ids))
        .order_by(OrderEvent.order_id, OrderEvent.version)
        .execution_options(yield_per=_EVENTS_PAGE)
    )
    aliases = dict(session.execute(_ALIASES).all())
    logs = groupby(session.execute(events), lambda event: event.order_id)
    log_id, log = next(logs, (None, iter(())))
    for order in orders:
        if log_id == order.id:
            for difference in _compare_events(order, log, alias=aliases.get(order.customer_id)):
                yield f"order {order.id}: {difference}"
            log_id, log = next(logs, (None, iter(())))
        else:
            yield f"order {order.id}: there is no event in the log"


def _compare_events(order: Order, log: Iterator[Row[Any]], *, alias: str | None) -> Iterator[str]:
    """Compare each event with the one before, and the last one with the tables. Two snapshots are in memory at a time.

    `alias` is that of a running erasure of the customer, which may have erased only some of the snapshots.
    """
    before: tuple[Row[Any], Any] | None = None
    for event in log:
        try:
            snapshot = orjson.loads(event.snapshot)
            yield from _verify_snapshot(event, snapshot)
            yield from _verify_erased(order, event, snapshot)
            if before is None:
                yield from _verify_first(order, event, snapshot, alias=alias)
            elif alias is None:
                yield from _verify_change(event, before[1], snapshot)
            else:
                yield from _verify_change(event, scrub(before[1], alias=alias), scrub(snapshot, alias=alias))
        except orjson.JSONDecodeError:
            yield f"the snapshot of version {event.version} is not JSON"
            return
        except (KeyError, TypeError, AttributeError, ValueError):
            yield f"the snapshot of version {event.version} is not the document of an order"
            return
        if before is not None and event.version != before[0].version + 1:
            yield f"version {event.version} follows version {before[0].version} in the log"
        before = event, snapshot
    if before is not None:
        yield from _verify_tables(order, *before)


def _verify_snapshot(event: Row[Any], snapshot: Mapping[str, Any]) -> Iterator[str]:
    where = f"in the snapshot of version {event.version}"
    for member, expected in (("id", event.order_id), ("version", event.version), ("updated_at", rfc3339(event.at))):
        if snapshot[member] != expected:
            yield f"{member} is {_abbreviated(snapshot[member])} {where}, {_abbreviated(expected)} in its event"
    for member in inconsistent_members(snapshot):
        yield f"{member} contradicts other members {where}"
    if orjson.dumps(snapshot) != event.snapshot.encode():
        yield f"the snapshot of version {event.version} is not written as it was rendered"


def _verify_erased(order: Order, event: Row[Any], snapshot: Mapping[str, Any]) -> Iterator[str]:
    """Every snapshot of an erased order has the alias as its customer."""
    if is_alias(order.customer_id) and snapshot["customer_id"] != order.customer_id:
        yield f"customer_id is {_abbreviated(snapshot['customer_id'])} in version {event.version} of an erased order"


def _verify_first(order: Order, event: Row[Any], snapshot: Mapping[str, Any], *, alias: str | None) -> Iterator[str]:
    """The first event, and the columns of the order that are derived from it."""
    if alias is not None and snapshot["customer_id"] == alias:
        return  # this snapshot is erased, and the order's row not yet
    if event.type != IMPORTED and (event.type, event.version, snapshot["status"]) != (CREATED, 1, "pending"):
        yield f"the log begins with {event.type} at version {event.version}"
    if order.principal != event.actor:
        yield f"principal is {order.principal!r} in the table, {event.actor!r} in the log"
    content = [content_columns(snapshot), item_columns(snapshot)]
    if order.fingerprint not in (None, fingerprint(content)):  # an erasure removes it
        yield "fingerprint is not that of the first version"
    if order.idempotency_key_hash is not None and order.idempotency_key_hash[-4:] != order.id[-4:]:
        yield "idempotency_key_hash is not the one that the id was made for"
    erased = order.fingerprint is None  # an erasure may have renamed the principal, and leaves the hash
    if not erased and order.external_ref_hash != hash_reference(order.external_ref, principal=order.principal):
        yield "external_ref_hash is not that of the principal's external_ref"


def _verify_change(event: Row[Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """An event and its snapshot, compared with the snapshot before."""
    label = f"version {event.version}, which is {event.type}"
    name = _ACTION_BY_EVENT.get(event.type)
    if name is None and event.type == ERASED:
        yield from _compare_unchanged(event, before, after)
        return
    if name is None or name not in before["allowed_actions"]:
        yield f"{label}, cannot follow version {before['version']}"
        return
    status = ACTIONS[name].to_status or before["status"]
    if event.type == "order.fulfilled" and after["fulfillment_status"] == "fulfilled":
        status = "completed"
    if after["status"] != status:
        yield f"status is {_abbreviated(after['status'])} in {label}, not {_abbreviated(status)}"
    if name in ("hold", "release") and (after["hold"] is None) != (name == "release"):
        yield f"hold is {_abbreviated(after['hold'])} in {label}"
    records = _RECORDS_MEMBER.get(event.type)
    if records and after[records][:-1] != before[records]:
        yield f"{records} of the past differ in {label}"
    yield from _compare_unchanged(event, before, after)


def _compare_unchanged(event: Row[Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    expected, actual = _unchanged_members(before, event.type), _unchanged_members(after, event.type)
    for member in sorted(expected.keys() | actual.keys()):
        if expected.get(member) != actual.get(member):
            yield f"{member} differs in version {event.version}, which is {event.type}"


def _unchanged_members(order: Mapping[str, Any], event_type: str) -> dict[str, Any]:
    """The members of an order document that an event of this type must not change."""
    changed = _CHANGEABLE[event_type] if order["status"] == "pending" else _CHANGEABLE[event_type] - _WHILE_PENDING
    members = {name: value for name, value in order.items() if name not in _ALWAYS_CHANGING | changed}
    if units := _UNITS_MEMBER.get(event_type):
        members["items"] = [item | {units: None} for item in order["items"]]
    return members


def _verify_tables(order: Order, event: Row[Any], snapshot: Mapping[str, Any]) -> Iterator[str]:
    """The last snapshot, compared with what the tables render to."""
    rendered = render_stored_order(order)
    if rendered == event.snapshot:
        return
    tables = orjson.loads(rendered)
    names = [name for name in tables.keys() | snapshot.keys() if tables.get(name) != snapshot.get(name)]
    for name in sorted(names):
        yield f"{name} is {_abbreviated(tables.get(name))} in the tables, {_abbreviated(snapshot.get(name))} in the log"
    if not names:
        yield "the newest snapshot is not written as the tables render it"


def _abbreviated(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 80 else text[:79] + "…"


_TIME_LENGTH = len("0199c7a4-0000-7000")  # the part of an id that holds the time of creation

# The fulfillment statuses that an order can have, by its status.
_FULFILLMENT_STATUSES = {
    "pending": ("unfulfilled",),
    "confirmed": ("unfulfilled", "partial"),
    "completed": ("unfulfilled", "partial", "fulfilled"),
    "cancelled": ("unfulfilled",),
}


def inconsistent_members(order: Mapping[str, Any]) -> list[str]:
    """The names of the members of an order document that are inconsistent with other members.

    Raises KeyError, TypeError or ValueError if it is not an order document.
    """
    items, status, customer_id = order["items"], order["status"], order["customer_id"]
    derived_status = _fulfillment_status(items)
    checks = {
        "id": order["id"][:_TIME_LENGTH] == first_order_id(datetime.fromisoformat(order["created_at"]))[:_TIME_LENGTH],
        "customer_id": not is_alias(customer_id) or scrub(order, alias=customer_id) == order,
        "items": all(0 <= item["returned"] <= item["fulfilled"] <= item["quantity"] for item in items)
        and [item["line"] for item in items] == list(range(1, len(items) + 1)),
        "totals": order.get("totals") == _totals(order),
        "fulfillments": _units(order, "fulfillments") == {item["line"]: item["fulfilled"] for item in items},
        "returns": _units(order, "returns") == {item["line"]: item["returned"] for item in items},
        "fulfillment_status": order["fulfillment_status"] == derived_status,
        "status": derived_status in _FULFILLMENT_STATUSES[status],
        "hold": order["hold"] is None or status in OPEN,
        "cancellation": (order["cancellation"] is not None) == (status == "cancelled"),
        "allowed_actions": order.get("allowed_actions")
        == allowed_actions(
            status=status,
            on_hold=order["hold"] is not None,
            any_fulfilled=derived_status != "unfulfilled",
            any_returnable=any(item["fulfilled"] > item["returned"] for item in items),
        ),
    }
    return [name for name, consistent in checks.items() if not consistent]


def _fulfillment_status(items: Sequence[Mapping[str, Any]]) -> str:
    if all(item["fulfilled"] == item["quantity"] for item in items):
        return "fulfilled"
    return "partial" if any(item["fulfilled"] for item in items) else "unfulfilled"


def _totals(order: Mapping[str, Any]) -> dict[str, int] | None:
    items, adjustments = order_totals(order["items"], order["adjustments"])
    if items is None or adjustments is None:
        return None
    return {"items": items, "adjustments": adjustments, "total": items + adjustments}


def _units(order: Mapping[str, Any], records: str) -> dict[int, int] | None:
    """The units in the fulfillments or the returns by line; None if their numbers are not 1, 2, 3, …"""
    if [record["number"] for record in order[records]] != list(range(1, len(order[records]) + 1)):
        return None
    units = {item["line"]: 0 for item in order["items"]}
    for record in order[records]:
        for entry in record["items"]:
            units[entry["line"]] = units.get(entry["line"], 0) + entry["quantity"]
    return units
