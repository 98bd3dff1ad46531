"""Fulfillments and returns: their statuses, and the units of the lines that they count."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SHIPPED, DELIVERED, FULFILLMENT_CANCELLED = "shipped", "delivered", "cancelled"
DELIVERY_EVENTS = (
    SHIPPED, "in_transit", "out_for_delivery", "ready_for_pickup", DELIVERED, "failed_attempt", "returned_to_sender",
    FULFILLMENT_CANCELLED,
)  # fmt: skip
DELIVERY_EVENTS_MAX = 200  # of one fulfillment
EXPECTED, RECEIVED, REJECTED = "expected", "received", "rejected"
RETURN_RECORD_STATUSES = (EXPECTED, RECEIVED, REJECTED)

FULFILLMENT_STATUSES = ("unfulfilled", "partial", "fulfilled", "delivered")
NOT_RETURNED = "none"
RETURN_STATUSES = (NOT_RETURNED, "partial", "returned")

Record = Mapping[str, Any]


def delivery_status(events: Sequence[Record]) -> str:
    """The status of a fulfillment: its latest event's, by `occurred_at`; of equal times the one recorded last.

    A fulfillment without events has been shipped. One that was cancelled stays so.
    """
    if any(event["type"] == FULFILLMENT_CANCELLED for event in events):
        return FULFILLMENT_CANCELLED
    latest = max(enumerate(events), key=lambda entry: (entry[1]["occurred_at"], entry[0]), default=None)
    return latest[1]["type"] if latest else SHIPPED


def count_units(records: Iterable[Record]) -> dict[int, int]:
    """The units in the records by line."""
    units: dict[int, int] = {}
    for record in records:
        for entry in record["items"]:
            units[entry["line"]] = units.get(entry["line"], 0) + entry["quantity"]
    return units


def active_fulfillments(fulfillments: Iterable[Record]) -> list[Record]:
    """The fulfillments that were not cancelled."""
    return [fulfillment for fulfillment in fulfillments if fulfillment["status"] != FULFILLMENT_CANCELLED]


def with_status(returns: Iterable[Record], status: str) -> list[Record]:
    """The returns with the status."""
    return [record for record in returns if record["status"] == status]


def fulfillment_status(*, fulfilled: int, is_open: bool, active: Sequence[Record]) -> str:
    """The fulfillment status of an order with `fulfilled` units fulfilled; `is_open` states whether open units remain.

    `active` are the fulfillments that were not cancelled.
    """
    if not fulfilled:
        return "unfulfilled"
    if is_open:
        return "partial"
    return "delivered" if all(fulfillment["status"] == DELIVERED for fulfillment in active) else "fulfilled"


def return_status(*, fulfilled: int, returned: int) -> str:
    """The return status of an order; `fulfilled` and `returned` are numbers of units."""
    if not returned:
        return NOT_RETURNED
    return "returned" if returned == fulfilled else "partial"
