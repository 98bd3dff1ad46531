"""Whether the events of an order form its history: each may change only what its type changes.

The columns of the order must agree with the first event and with the last.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Row

from app.db.types import read_timestamp, rfc3339
from app.models.erasure import scrub
from app.models.lifecycle import ACTIONS, CREATED, ERASED, IMPORTED, LATE, PARTIALLY_CANCELLED, RETURN_EXPECTED
from app.models.order import CONTENT, CONTENT_WHILE_PENDING
from app.models.order_id import hash_reference, is_alias
from app.models.payment import sum_payments
from app.models.pricing import InvalidPrices, order_totals, price_lines
from app.services.document_checks import inconsistent_members
from app.services.feed_checks import FeedOrder
from app.services.new_order import content_columns, fingerprint, item_columns
from app.services.order_document import render_order

_ACTION_BY_EVENT = {action.event: name for name, action in ACTIONS.items()} | {
    PARTIALLY_CANCELLED: "cancel",
    RETURN_EXPECTED: "return",
}
_WHILE_PENDING = {*CONTENT_WHILE_PENDING, "totals", "payment_status"}
_UNITS, _MONEY = {"items", "fulfillment_status", "return_status", "late"}, {"totals", "payment_status"}
# The members that an event may change, besides _ALWAYS_CHANGING.
_CHANGEABLE: dict[str, set[str]] = {
    "order.updated": {*CONTENT, "items", "late", *_MONEY},
    "order.confirmed": {"status"},
    "order.cancelled": {"status", "holds", "cancellations", "adjustments", *_UNITS, *_MONEY},
    PARTIALLY_CANCELLED: {"status", "holds", "cancellations", "adjustments", *_UNITS, *_MONEY},
    "order.held": {"holds"},
    "order.released": {"holds"},
    "order.fulfilled": {"status", "fulfillments", *_UNITS},
    "order.fulfillment_updated": {"status", "fulfillments", *_UNITS},
    "order.completed": {"status", "late"},
    "order.returned": {"returns", *_UNITS},
    RETURN_EXPECTED: {"returns"},
    "order.return_received": {"returns", *_UNITS},
    "order.return_rejected": {"returns"},
    "order.payment_recorded": {"payments", *_MONEY},
    "order.reopened": {"status", "reopening", "cancellations", *_UNITS, *_MONEY},
    LATE: {"late"},
    ERASED: set(),  # an erasure removes data from all snapshots, also from those before
}
_ALWAYS_CHANGING = {"version", "allowed_actions", "updated_at"}
# What an event that counts units may change of an item, and what new adjustments change.
_UNIT_MEMBERS, _PRICE_MEMBERS = {"cancelled", "fulfilled", "returned"}, {"discount", "total"}
_RECORDS_MEMBER = {
    "order.fulfilled": "fulfillments",
    "order.returned": "returns",
    RETURN_EXPECTED: "returns",
    "order.payment_recorded": "payments",
}

EVENT_COLUMNS = ("version", "type", "actor", "request_id", "at", "snapshot")  # of `order_events`, compared here

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OrderRow:
    """The columns of an order and those of its items, in the order of the lines."""

    columns: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]

    @property
    def id(self) -> str:
        return str(self.columns["id"])


def compare_events(
    order: OrderRow, log: Iterator[Row[Any]], *, alias: str | None, kept_since: datetime
) -> Iterator[str]:
    """The differences between the events of an order, given in the order of their versions, and the order.

    Two snapshots are in memory at a time. `alias` is that of a running erasure of the customer, which may have erased
    only some of the snapshots. `kept_since` is the time after which no event has been removed from the feed.
    """
    before: tuple[Row[Any], Any] | None = None
    feed_order = FeedOrder(kept_since)
    for event in log:
        yield from feed_order.verify(event)
        try:
            snapshot = orjson.loads(event.snapshot)
            yield from _verify_snapshot(order, event, snapshot)
            if before is None:
                yield from _verify_first(order.columns, event, snapshot, alias=alias)
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


def _verify_snapshot(order: OrderRow, event: Row[Any], snapshot: Document) -> Iterator[str]:
    where = f"in the snapshot of version {event.version}"
    for member, expected in (("id", event.order_id), ("version", event.version), ("updated_at", rfc3339(event.at))):
        if snapshot[member] != expected:
            yield f"{member} is {_abbreviated(snapshot[member])} {where}, {_abbreviated(expected)} in its event"
    for member in inconsistent_members(snapshot):
        yield f"{member} contradicts other members {where}"
    if orjson.dumps(snapshot).decode() != event.snapshot:
        yield f"the snapshot of version {event.version} is not written as it was rendered"
    if is_alias(order.columns["customer_id"]):  # all snapshots are erased before the order is
        erased = {"customer_id": order.columns["customer_id"], "request_id": None}
        actual = {"customer_id": snapshot["customer_id"], "request_id": event.request_id}
        for name in (name for name in erased if actual[name] != erased[name]):
            yield f"{name} is {_abbreviated(actual[name])} in version {event.version} of an erased order"


def _verify_first(order: Document, event: Row[Any], snapshot: Document, *, alias: str | None) -> Iterator[str]:
    """The first event, and the columns of the order that are derived from it."""
    if alias is not None and snapshot["customer_id"] == alias:
        return  # this snapshot is erased, and the order's row not yet
    if event.type != IMPORTED and (event.type, event.version, snapshot["status"]) != (CREATED, 1, "pending"):
        yield f"the log begins with {event.type} at version {event.version}"
    principal, key_hash, first_fingerprint = order["principal"], order["idempotency_key_hash"], order["fingerprint"]
    if principal != event.actor:
        yield f"principal is {principal!r} in the table, {event.actor!r} in the log"
    if key_hash is not None and key_hash[-4:] != order["id"][-4:]:
        yield "idempotency_key_hash is not the one that the id was made for"
    if first_fingerprint is None:
        return  # an erasure removes it; it may also have renamed the principal, and leaves the hash of the reference
    dates = {name: snapshot[name] and read_timestamp(snapshot[name]) for name in ("ship_by", "deliver_by")}
    if first_fingerprint != fingerprint([content_columns({**snapshot, **dates}), item_columns(snapshot)]):
        yield "fingerprint is not that of the first version"
    if order["external_ref_hash"] != hash_reference(order["external_ref"], principal=principal):
        yield "external_ref_hash is not that of the principal's external_ref"


def _verify_change(event: Row[Any], before: Document, after: Document) -> Iterator[str]:
    """An event and its snapshot, compared with the snapshot before."""
    label = f"version {event.version}, which is {event.type}"
    name = _ACTION_BY_EVENT.get(event.type)
    if event.type in (ERASED, LATE):
        yield from _compare_unchanged(event, before, after)
        return
    if name is None or name not in before["allowed_actions"]:
        yield f"{label}, cannot follow version {before['version']}"
        return
    statuses = _next_statuses(name, before["status"])
    if after["status"] not in statuses:
        yield f"status is {_abbreviated(after['status'])} in {label}, not {_abbreviated(statuses[0])}"
    records = _RECORDS_MEMBER.get(event.type)
    if records and after[records][:-1] != before[records]:
        yield f"{records} of the past differ in {label}"
    yield from _compare_unchanged(event, before, after)


def _next_statuses(action: str, status: str) -> tuple[str, ...]:
    """The statuses that an action can lead to."""
    if action == "cancel":
        return status, "cancelled", "completed"
    if action == "fulfill":
        return status, "completed"
    if action == "track":
        return status, "confirmed"
    if action == "reopen":
        return ("pending",) if status == "cancelled" else ("confirmed",)
    return (ACTIONS[action].to_status or status,)


def _compare_unchanged(event: Row[Any], before: Document, after: Document) -> Iterator[str]:
    """The members of an order document that an event of this type must not change."""
    changeable = _CHANGEABLE[event.type]
    if event.type == "order.updated" and before["status"] != "pending":
        changeable = changeable - _WHILE_PENDING
    for member in sorted(_differing_members(before, after) - changeable - _ALWAYS_CHANGING):
        yield f"{member} differs in version {event.version}, which is {event.type}"
    if "items" in changeable and event.type != "order.updated":
        changing = _UNIT_MEMBERS | (_PRICE_MEMBERS if "adjustments" in changeable else set())
        kept, found = ([{n: i[n] for n in i if n not in changing} for i in one["items"]] for one in (before, after))
        if kept != found:
            yield f"items differs in version {event.version}, which is {event.type}"


def _verify_tables(order: OrderRow, event: Row[Any], snapshot: Document) -> Iterator[str]:
    """The last snapshot, compared with what the tables render to.

    The tables have no `allowed_actions`; those of the snapshot agree with its other members.
    """
    try:
        rendered = _render_tables(order, snapshot.get("allowed_actions", []))
    except InvalidPrices as error:
        yield f"{' and '.join(error.messages)} in the tables do not add up"
        return
    if rendered == event.snapshot:
        return
    tables = orjson.loads(rendered)
    names = _differing_members(tables, snapshot)
    for name in sorted(names):
        yield f"{name} is {_abbreviated(tables.get(name))} in the tables, {_abbreviated(snapshot.get(name))} in the log"
    if not names:
        yield "the newest snapshot is not written as the tables render it"


def _render_tables(order: OrderRow, allowed_actions: Sequence[str]) -> str:
    columns, items = order.columns, order.items
    prices, sums = price_lines(items, columns["adjustments"]), sum_payments(columns["payments"])
    totals = order_totals(
        prices, items, is_cancelled=columns["status"] == "cancelled", paid=sums.captured, refunded=sums.refunded
    )
    return render_order(columns, items=items, prices=prices, totals=totals, allowed_actions=allowed_actions)


def _differing_members(one: Document, other: Document) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def _abbreviated(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 80 else text[:79] + "…"
