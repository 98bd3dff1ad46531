"""Whether the differences between two versions of an order are those that the event of the later one can make.

The derived members agree with the records in each version (`document_checks`). So a change is correct if the records
are, and if no other member has changed than those that such an event changes.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from app.models.fulfillment import EXPECTED, RECEIVED, REJECTED, SHIPPED
from app.models.lifecycle import ACTIONS, ERASED, LATE, OPEN, PARTIALLY_CANCELLED, RETURN_EXPECTED
from app.models.money import sum_payments, waived_amount
from app.models.order import CONTENT, CONTENT_WHILE_PENDING
from app.models.order_id import is_alias
from app.services.document_checks import Document, UnitCounts, may_be_late

RecordCheck = Callable[[Document, Document], Iterator[str]]  # yields the members that are wrong

_ACTION_BY_EVENT = {action.event: name for name, action in ACTIONS.items()} | {
    PARTIALLY_CANCELLED: "cancel",
    RETURN_EXPECTED: "return",
}
_MONEY = {"totals", "payment_status"}
_WHILE_PENDING = {*CONTENT_WHILE_PENDING, *_MONEY}
_CANCELLATION = {"status", "holds", "cancellations", "adjustments", "items", "fulfillment_status", "late", *_MONEY}
_DELIVERY = {"status", "fulfillments", "items", "fulfillment_status", "return_status", "late"}
_RETURN = {"returns", "items", "return_status"}
# The members that an event may change, besides _ALWAYS_CHANGING.
_CHANGEABLE: dict[str, set[str]] = {
    "order.updated": {*CONTENT, "late", *_WHILE_PENDING},
    "order.confirmed": {"status"},
    "order.cancelled": _CANCELLATION,
    PARTIALLY_CANCELLED: _CANCELLATION,
    "order.held": {"holds"},
    "order.released": {"holds"},
    "order.fulfilled": _DELIVERY,
    "order.fulfillment_updated": _DELIVERY,
    "order.completed": {"status", "late"},
    "order.returned": _RETURN,
    RETURN_EXPECTED: {"returns"},
    "order.return_received": _RETURN,
    "order.return_rejected": {"returns"},
    "order.payment_recorded": {"payments", *_MONEY},
    "order.reopened": {"status", "reopening", "cancellations", "items", "fulfillment_status", *_MONEY},
    LATE: {"late"},
    ERASED: set(),  # an erasure removes data from all snapshots, including earlier ones
}
_ALWAYS_CHANGING = {"version", "allowed_actions", "updated_at"}
# The members of items that an event may change; an update while the order is pending may change all of them.
_PRICES = {"discount", "total"}  # of new adjustments
_CHANGEABLE_OF_ITEMS = {
    "order.cancelled": {"cancelled", *_PRICES},
    PARTIALLY_CANCELLED: {"cancelled", *_PRICES},
    "order.fulfilled": {"fulfilled"},
    "order.fulfillment_updated": {"fulfilled"},
    "order.returned": {"returned"},
    "order.return_received": {"returned"},
    "order.reopened": {"cancelled"},
}


class VersionChange(NamedTuple):
    """Two versions of an order document that follow each other, the names of the members that differ, and the units."""

    before: Document
    after: Document
    differing: set[str]
    units_before: UnitCounts
    units: UnitCounts


def wrong_members(event_type: str, change: VersionChange, *, actor: str) -> list[str]:
    """The names of the members whose change an event of this type, by this actor, cannot have made.

    The new values of members that the event may set freely are not checked: they are stored nowhere else. Raises
    KeyError, TypeError or ValueError if a version is not an order document.
    """
    before, after, differing = change.before, change.after, change.differing
    changeable = _CHANGEABLE[event_type]
    if event_type == "order.updated" and before["status"] != "pending":
        changeable = changeable - _WHILE_PENDING
    wrong = differing - changeable - _ALWAYS_CHANGING
    if "items" in differing and event_type in _CHANGEABLE_OF_ITEMS:
        changing = _CHANGEABLE_OF_ITEMS[event_type]
        items_before, items_after = (
            [{n: i[n] for n in i if n not in changing} for i in version["items"]] for version in (before, after)
        )
        if items_before != items_after:
            wrong.add("items")
    if record_check := _RECORD_CHECKS.get(event_type):
        wrong.update(record_check(before, after))
    if event_type == "order.held" and not _is_held_by(actor, after):
        wrong.add("holds")
    if event_type != LATE and not _keeps_lateness(event_type, change):
        wrong.add("late")
    if event_type in _ACTION_BY_EVENT and after["status"] != _expected_status(event_type, change):
        wrong.add("status")
    return sorted(wrong)


def differing_members(document: Document, other: Document) -> set[str]:
    """The names of the members that differ in two documents, or that only one of them has."""
    if document.keys() == other.keys():  # which all documents have: takes half of the time
        return {name for name, value in document.items() if other[name] != value}
    return {name for name in document.keys() | other.keys() if document.get(name) != other.get(name)}


def is_allowed(event_type: str, before: Document) -> bool:
    """Whether an event of this type can follow the version `before`."""
    if event_type in (ERASED, LATE):
        return (before["status"] in OPEN) == (event_type == LATE)
    return _ACTION_BY_EVENT.get(event_type) in before["allowed_actions"]


def _expected_status(event_type: str, change: VersionChange) -> str:
    """The status that the action leads to; an order whose last open unit is cancelled or fulfilled ends."""
    action, status = _ACTION_BY_EVENT[event_type], str(change.before["status"])
    if action == "reopen":
        return "pending" if status == "cancelled" else "confirmed"
    if action == "track":
        is_reopened = status == "completed" and change.units.open and not change.units_before.open
        return "confirmed" if is_reopened else status
    if action in ("cancel", "fulfill") and not change.units.open:
        return "completed" if change.units.all_fulfilled else "cancelled"
    return ACTIONS[action].to_status or status


def _keeps_lateness(event_type: str, change: VersionChange) -> bool:
    """Whether `late` is as before. An order without open units is not late; a new `ship_by` may end lateness."""
    is_late, after = change.after["late"], change.after
    expected = change.before["late"] and may_be_late(after, change.units)
    return is_late is expected or (event_type == "order.updated" and is_late is False)


def _is_held_by(actor: str, order: Document) -> bool:
    """Whether the actor has placed the hold of this version. An erasure renames the actors of the customer."""
    at = order["updated_at"]
    return is_alias(order["customer_id"]) or any(
        (hold["placed_by"], hold["placed_at"]) == (actor, at) for hold in order["holds"]
    )


def _added_record(name: str, **members: Any) -> RecordCheck:
    """The check that one record with these members was added at the time of the event."""

    def check(before: Document, after: Document) -> Iterator[str]:
        *past, new = after[name] or [{}]
        expected = members | {"created_at": after["updated_at"]}
        if past != before[name] or {**new, **expected} != new:
            yield name

    return check


def _changed_record(name: str, *changing: str, **members: Any) -> RecordCheck:
    """The check that one record has changed, in these members only, and has `members` now."""

    def check(before: Document, after: Document) -> Iterator[str]:
        pairs = [(old, new) for old, new in zip(before[name], after[name], strict=False) if old != new]
        if len(before[name]) != len(after[name]) or len(pairs) != 1:
            yield name
            return
        [(old, new)] = pairs
        if {**old, **{member: new[member] for member in changing}} != new or {**new, **members} != new:
            yield name

    return check


def _check_delivery_event(before: Document, after: Document) -> Iterator[str]:
    """One fulfillment has another tracking, or one event more. An erasure has removed both trackings."""
    if is_alias(after["customer_id"]) and after["fulfillments"] == before["fulfillments"]:
        return
    yield from _changed_record("fulfillments", "status", "events", "tracking")(before, after)
    for old, new in zip(before["fulfillments"], after["fulfillments"], strict=False):
        if old["events"] != new["events"] and (
            old["events"] != new["events"][:-1] or old["tracking"] != new["tracking"]
        ):
            yield "fulfillments"


def _check_cancellation(before: Document, after: Document) -> Iterator[str]:
    """One cancellation was added; the holds of an order that has ended are released."""
    yield from _added_record("cancellations", reopened_at=None)(before, after)
    if after["holds"] != (before["holds"] if after["status"] in OPEN else []):
        yield "holds"


def _check_hold(before: Document, after: Document) -> Iterator[str]:
    """One hold was added at the end, or replaced another one with the same handle."""
    past, new = {hold["handle"]: hold for hold in before["holds"]}, {hold["handle"]: hold for hold in after["holds"]}
    changed = [hold for handle, hold in new.items() if past.get(handle) != hold]
    handles = list(past | new)
    if len(changed) != 1 or list(new) != handles or changed[0]["placed_at"] != after["updated_at"]:
        yield "holds"


def _check_payment(before: Document, after: Document) -> Iterator[str]:
    """One payment was added, of which as much is waived as follows from the version before."""
    yield from _added_record("payments")(before, after)
    sums, total = sum_payments(before["payments"], before["cancellations"]), before["totals"]["total"]
    for new in after["payments"][-1:]:
        if new["waived"] != waived_amount(new["type"], new["amount"], sums, total=total):
            yield "payments"


def _check_release(before: Document, after: Document) -> Iterator[str]:
    """One hold was removed."""
    remaining = [hold for hold in before["holds"] if hold in after["holds"]]
    if remaining != after["holds"] or len(remaining) != len(before["holds"]) - 1:
        yield "holds"


def _check_reopening(before: Document, after: Document) -> Iterator[str]:
    """The units of a cancelled order are open again since the event."""
    reopening, at = after["reopening"], after["updated_at"]
    if reopening is None or (reopening["from_status"], reopening["at"]) != (before["status"], at):
        yield "reopening"
    reopened = before["cancellations"]
    if before["status"] == "cancelled":
        reopened = [{**record, "reopened_at": record["reopened_at"] or at} for record in reopened]
    if after["cancellations"] != reopened:
        yield "cancellations"


def _check_lateness(before: Document, after: Document) -> Iterator[str]:
    """The date to ship by has passed, for the first time."""
    if before["late"] or not after["late"] or after["ship_by"] is None or after["ship_by"] > after["updated_at"]:
        yield "late"


_RECORD_CHECKS: dict[str, RecordCheck] = {
    "order.cancelled": _check_cancellation,
    PARTIALLY_CANCELLED: _check_cancellation,
    "order.held": _check_hold,
    "order.released": _check_release,
    "order.fulfilled": _added_record("fulfillments", status=SHIPPED, events=[]),
    "order.fulfillment_updated": _check_delivery_event,
    "order.returned": _added_record("returns", status=RECEIVED),
    RETURN_EXPECTED: _added_record("returns", status=EXPECTED),
    "order.return_received": _changed_record("returns", "status", status=RECEIVED),
    "order.return_rejected": _changed_record("returns", "status", status=REJECTED),
    "order.payment_recorded": _check_payment,
    "order.reopened": _check_reopening,
    LATE: _check_lateness,
}
