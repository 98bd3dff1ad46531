"""Do the tables say what the log says? Replays every order's events and names each difference."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import orjson
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session, selectinload

from app.extensions import Base, db
from app.models import Fulfillment, Order, OrderEvent, OrderItem, OutboxEntry, Return
from app.models.lifecycle import ACTIONS
from app.models.money import order_totals
from app.services.order_document import render_stored_order
from app.services.order_writes import CREATED, IMPORTED

_BATCH = 200  # orders in memory at once, with all their events

_ACTION_OF = {action.event: action for action in ACTIONS.values()}


def count_orders() -> int:
    """How many orders there are to verify."""
    with db.engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(Order)) or 0


def verify_orders() -> Iterator[tuple[int, list[str]]]:
    """Go through all orders, and yield how many were looked at and the differences found, batch by batch."""
    after = "00000000-0000-0000-0000-000000000000"
    while True:
        with Session(db.engine) as session:
            if db.engine.dialect.name == "postgresql":  # SQLite shows one moment anyway
                session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            orders = session.scalars(
                select(Order)
                .where(Order.id > after)
                .order_by(Order.id)
                .limit(_BATCH)
                .options(selectinload(Order.items), selectinload(Order.fulfillments), selectinload(Order.returns))
            ).all()
            if not orders:
                return
            log = _events([order.id for order in orders], session)
            differences = [f"order {o.id}: {what}" for o in orders for what in _verify(o, log.get(o.id, []))]
            after = orders[-1].id
            yield len(orders), differences


def verify_no_strays() -> Iterator[str]:
    """Name rows that belong to no order, and outbox entries for no event."""
    with db.engine.connect() as connection:
        for model in (OrderItem, OrderEvent, Fulfillment, Return, OutboxEntry):
            strays = select(model.order_id).where(~_exists(Order, Order.id == model.order_id)).distinct()
            for order_id in connection.scalars(strays):
                yield f"order {order_id}: there is no such order, but rows of it in {model.__tablename__}"
        of_event = (OrderEvent.order_id == OutboxEntry.order_id) & (OrderEvent.version == OutboxEntry.version)
        for entry in connection.execute(
            select(OutboxEntry.order_id, OutboxEntry.version).where(~_exists(OrderEvent, of_event))
        ):
            yield f"order {entry.order_id}: the outbox holds version {entry.version}, of which there is no event"


def _exists(model: type[Base], condition: Any) -> Any:
    return select(1).select_from(model).where(condition).exists()


def _events(order_ids: Sequence[str], session: Session) -> dict[str, list[OrderEvent]]:
    query = (
        select(OrderEvent)
        .where(OrderEvent.order_id.in_(order_ids))
        .order_by(OrderEvent.order_id, OrderEvent.version)
    )
    return {order_id: list(events) for order_id, events in groupby(session.scalars(query), lambda e: e.order_id)}


def _verify(order: Order, events: Sequence[OrderEvent]) -> Iterator[str]:
    if not events:
        yield "there is no event in the log"
        return
    snapshots = []
    for event in events:
        try:
            snapshots.append(orjson.loads(event.snapshot))
        except orjson.JSONDecodeError:
            yield f"the snapshot of version {event.version} is not JSON"
            return
    yield from _verify_versions(order, events)
    yield from _verify_table(order, events[-1], snapshots[-1])
    try:
        for event, snapshot in zip(events, snapshots, strict=True):
            yield from _verify_snapshot(event, snapshot)
        for (_, before), (event, after) in pairwise(zip(events, snapshots, strict=True)):
            yield from _verify_step(event, before, after)
    except (KeyError, TypeError, AttributeError):
        yield "a snapshot lacks members of an order document"


def _verify_versions(order: Order, events: Sequence[OrderEvent]) -> Iterator[str]:
    first = events[0]
    if first.type not in (CREATED, IMPORTED) or (first.type == CREATED and first.version != 1):
        yield f"the log begins with {first.type} at version {first.version}"
    for before, event in pairwise(events):
        if event.version != before.version + 1:
            yield f"version {event.version} follows version {before.version} in the log"
    if order.version != events[-1].version:
        yield f"version is {order.version} in the table, {events[-1].version} in the log"


def _verify_snapshot(event: OrderEvent, snapshot: Mapping[str, Any]) -> Iterator[str]:
    where = f"in the snapshot of version {event.version}"
    for member, expected in (("id", event.order_id), ("version", event.version)):
        if snapshot[member] != expected:
            yield f"{member} is {snapshot[member]!r} {where}"
    sums = order_totals(snapshot["items"], snapshot["adjustments"])
    stored = snapshot["totals"] or {"items": None, "adjustments": None, "total": None}
    total = None if sums[0] is None or sums[1] is None else sums[0] + sums[1]
    if (stored["items"], stored["adjustments"], stored["total"]) != (*sums, total):
        yield f"totals do not add up {where}"
    for counted, records in (("fulfilled", "fulfillments"), ("returned", "returns")):
        if {item["line"]: item[counted] for item in snapshot["items"]} != _units(snapshot, records):
            yield f"the units {counted} are not those of the {records} {where}"


def _units(snapshot: Mapping[str, Any], records: str) -> dict[int, int]:
    units = {item["line"]: 0 for item in snapshot["items"]}
    for record in snapshot[records]:
        for entry in record["items"]:
            units[entry["line"]] = units.get(entry["line"], 0) + entry["quantity"]
    return units


def _verify_step(event: OrderEvent, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """One event, played on the snapshot before it."""
    action = _ACTION_OF.get(event.type)
    if action is None or before["status"] not in action.starts_from:
        yield f"version {event.version} is {event.type}, which cannot follow status {before['status']}"
        return
    expected = action.to or before["status"]
    if event.type == "order.fulfilled" and after["fulfillment_status"] == "fulfilled":
        expected = "completed"
    if after["status"] != expected:
        yield f"status is {after['status']} after {event.type} at version {event.version}, not {expected}"


def _verify_table(order: Order, event: OrderEvent, snapshot: Mapping[str, Any]) -> Iterator[str]:
    rendered = render_stored_order(order).decode()
    if rendered == event.snapshot:
        return
    table = orjson.loads(rendered)
    names = [name for name in table.keys() | snapshot.keys() if table.get(name) != snapshot.get(name)]
    for name in sorted(names):
        yield f"{name} is {_shown(table.get(name))} in the table, {_shown(snapshot.get(name))} in the log"
    if not names:
        yield "the stored document is not written as it is rendered"


def _shown(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 80 else text[:79] + "…"
