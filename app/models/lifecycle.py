"""The order lifecycle: statuses, actions and events; then fulfillments and returns, with their statuses and units.

`allowed_actions` and the README's diagram are built from `ACTIONS`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

STATUSES = ("pending", "confirmed", "completed", "cancelled")
OPEN = ("pending", "confirmed")

ON_HOLD, OPEN_UNITS, UNITS_TO_RETURN = "on hold", "open units", "units to return"
EXPECTED_RETURNS, ACTIVE_FULFILLMENTS, PRICES = "expected returns", "active fulfillments", "prices"
NOT_ERASED = "not erased"
# What an action can require besides the status of the order, with the error detail where it is not met.
# `document_checks` computes them in this sequence.
CONDITIONS = {
    ON_HOLD: "the order is not on hold",
    OPEN_UNITS: "all units of the order are cancelled or fulfilled",
    UNITS_TO_RETURN: "the order has no fulfilled units left to return",
    EXPECTED_RETURNS: "the order has no expected return",
    ACTIVE_FULFILLMENTS: "the order has no fulfillment, or only cancelled ones",
    PRICES: "the order has no prices",
    NOT_ERASED: "the customer's personal data was erased",
}

CREATED, IMPORTED, ERASED, LATE = "order.created", "order.imported", "order.erased", "order.late"
# Events of actions whose result differs from the usual one.
PARTIALLY_CANCELLED, RETURN_EXPECTED = "order.partially_cancelled", "order.return_expected"


@dataclass(frozen=True, slots=True)
class Action:
    """A change of an order: the event that records it, the statuses that allow it, and the status it leads to.

    `to_status` is None if the status does not change. `condition` is a further condition, if there is one.
    """

    event: str
    from_statuses: tuple[str, ...]
    to_status: str | None = None
    blocked_by_hold: bool = False
    condition: str | None = None


ACTIONS = {
    "update": Action("order.updated", STATUSES),
    "confirm": Action("order.confirmed", ("pending",), "confirmed", blocked_by_hold=True),
    "cancel": Action("order.cancelled", OPEN, condition=OPEN_UNITS),
    "hold": Action("order.held", OPEN),
    "release": Action("order.released", OPEN, condition=ON_HOLD),
    "fulfill": Action("order.fulfilled", ("confirmed",), blocked_by_hold=True, condition=OPEN_UNITS),
    "track": Action("order.fulfillment_updated", STATUSES, condition=ACTIVE_FULFILLMENTS),
    "complete": Action("order.completed", ("confirmed",), "completed", blocked_by_hold=True),
    "return": Action("order.returned", ("confirmed", "completed"), condition=UNITS_TO_RETURN),
    "receive": Action("order.return_received", STATUSES, condition=EXPECTED_RETURNS),
    "reject": Action("order.return_rejected", STATUSES, condition=EXPECTED_RETURNS),
    "pay": Action("order.payment_recorded", STATUSES, condition=PRICES),
    "reopen": Action("order.reopened", ("completed", "cancelled"), condition=NOT_ERASED),
}
EVENT_TYPES = (
    CREATED, IMPORTED, *(action.event for action in ACTIONS.values()), PARTIALLY_CANCELLED, RETURN_EXPECTED, LATE,
    ERASED,
)  # fmt: skip


@cache
def allowed_actions(status: str, conditions: frozenset[str]) -> tuple[str, ...]:
    """The names of the actions that are allowed next, sorted. `conditions` are those that the order meets."""
    on_hold = ON_HOLD in conditions
    allowed = (
        name
        for name, action in ACTIONS.items()
        if status in action.from_statuses
        and (action.condition is None or action.condition in conditions)
        and not (on_hold and action.blocked_by_hold)
    )
    return tuple(sorted(allowed))


NEW_ORDER_ACTIONS = {
    False: allowed_actions("pending", frozenset([OPEN_UNITS])),  # of an order without prices
    True: allowed_actions("pending", frozenset([OPEN_UNITS, PRICES])),
}


def lifecycle_diagram() -> str:
    """The statuses and the transitions between them as a Mermaid state diagram."""
    return "\n".join(["stateDiagram-v2", *(f"    {line}" for line in _transitions())])


def _transitions() -> Iterator[str]:
    yield "[*] --> pending: create"
    for name, action in ACTIONS.items():
        for from_status in action.from_statuses:
            if action.to_status:
                yield f"{from_status} --> {action.to_status}: {name}"
    for from_status in OPEN:
        yield f"{from_status} --> cancelled: cancel (the last open unit, none fulfilled)"
    yield "confirmed --> completed: fulfill, cancel (the last open unit)"
    yield "completed --> confirmed: reopen, or cancel the fulfillment that completed it"
    yield "cancelled --> pending: reopen"


# How much of an order is fulfilled or returned, and below it, the statuses of one fulfillment and one return.
FULFILLMENT_STATUSES = ("unfulfilled", "partial", "fulfilled", "delivered")
NOT_RETURNED = "none"
RETURN_STATUSES = (NOT_RETURNED, "partial", "returned")

SHIPPED, DELIVERED, FULFILLMENT_CANCELLED = "shipped", "delivered", "cancelled"
DELIVERY_EVENTS = (
    SHIPPED, "in_transit", "out_for_delivery", "ready_for_pickup", DELIVERED, "failed_attempt", "returned_to_sender",
    FULFILLMENT_CANCELLED,
)  # fmt: skip
DELIVERY_EVENTS_MAX = 200  # of one fulfillment
EXPECTED, RECEIVED, REJECTED = "expected", "received", "rejected"
RETURN_RECORD_STATUSES = (EXPECTED, RECEIVED, REJECTED)

Record = Mapping[str, Any]


def fulfillment_status(*, fulfilled: int, is_open: bool, active: Sequence[Record]) -> str:
    """The fulfillment status of an order with `fulfilled` units fulfilled; `is_open` states whether open units remain.

    `active` are the fulfillments that were not cancelled.
    """
    if not fulfilled:
        return "unfulfilled"
    if is_open:
        return "partial"
    return "delivered" if all(fulfillment["status"] == DELIVERED for fulfillment in active) else "fulfilled"


def active_fulfillments(fulfillments: Iterable[Record]) -> list[Record]:
    """The fulfillments that were not cancelled."""
    return [fulfillment for fulfillment in fulfillments if fulfillment["status"] != FULFILLMENT_CANCELLED]


def delivery_status(events: Sequence[Record]) -> str:
    """The status of a fulfillment: its latest event's, by `occurred_at`; of equal times the one recorded last.

    A fulfillment without events has been shipped. One that was cancelled stays so.
    """
    if any(event["type"] == FULFILLMENT_CANCELLED for event in events):
        return FULFILLMENT_CANCELLED
    latest = max(enumerate(events), key=lambda entry: (entry[1]["occurred_at"], entry[0]), default=None)
    return latest[1]["type"] if latest else SHIPPED


def return_status(*, fulfilled: int, returned: int) -> str:
    """The return status of an order; `fulfilled` and `returned` are numbers of units."""
    if not returned:
        return NOT_RETURNED
    return "returned" if returned == fulfilled else "partial"


def with_status(returns: Iterable[Record], status: str) -> list[Record]:
    """The returns with the status."""
    return [record for record in returns if record["status"] == status]


def count_units(records: Iterable[Record]) -> dict[int, int]:
    """The units in the records by line."""
    units: dict[int, int] = {}
    for record in records:
        for entry in record["items"]:
            units[entry["line"]] = units.get(entry["line"], 0) + entry["quantity"]
    return units
