"""Whether the members of an order document agree with each other: every derived member is computed again."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from app.models.erasure import scrub
from app.models.lifecycle import OPEN, allowed_actions
from app.models.order_id import first_order_id, is_alias
from app.models.order_item import order_totals

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
