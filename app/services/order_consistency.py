"""Do the members of an order document fit each other? Asked of what is stored, and of what is to be imported."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from app.models.lifecycle import OPEN, allowed_actions
from app.models.money import order_totals
from app.models.order_id import first_order_id

_TIME_LENGTH = len("0199c7a4-0000-7000")  # the part of an id that tells the time of creation

# How far an order can have been sent, by its status.
_SENT = {
    "pending": ("unfulfilled",),
    "confirmed": ("unfulfilled", "partial"),
    "completed": ("unfulfilled", "partial", "fulfilled"),
    "cancelled": ("unfulfilled",),
}


def contradictions(order: Mapping[str, Any]) -> list[str]:
    """The names of the members of an order document that do not follow from the others, or cannot stand beside them.

    Raises KeyError, TypeError or ValueError where it is not the document of an order at all.
    """
    items, status = order["items"], order["status"]
    sent = _fulfillment_status(items)
    fits = {
        "id": order["id"][:_TIME_LENGTH] == first_order_id(datetime.fromisoformat(order["created_at"]))[:_TIME_LENGTH],
        "items": all(0 <= item["returned"] <= item["fulfilled"] <= item["quantity"] for item in items)
        and [item["line"] for item in items] == list(range(1, len(items) + 1)),
        "totals": order.get("totals") == _totals(order),
        "fulfillments": _units(order, "fulfillments") == {item["line"]: item["fulfilled"] for item in items},
        "returns": _units(order, "returns") == {item["line"]: item["returned"] for item in items},
        "fulfillment_status": order["fulfillment_status"] == sent,
        "status": sent in _SENT[status],
        "hold": order["hold"] is None or status in OPEN,
        "cancellation": (order["cancellation"] is not None) == (status == "cancelled"),
        "allowed_actions": order.get("allowed_actions")
        == allowed_actions(
            status=status,
            held=order["hold"] is not None,
            fulfilled=sent != "unfulfilled",
            units_out=any(item["fulfilled"] > item["returned"] for item in items),
        ),
    }
    return [name for name, it_does in fits.items() if not it_does]


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
    """The units that the fulfillments or the returns add up to, by line; None where their numbers do not count up."""
    if [record["number"] for record in order[records]] != list(range(1, len(order[records]) + 1)):
        return None
    units = {item["line"]: 0 for item in order["items"]}
    for record in order[records]:
        for entry in record["items"]:
            units[entry["line"]] = units.get(entry["line"], 0) + entry["quantity"]
    return units
