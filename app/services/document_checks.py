"""Whether the members of an order document agree with each other: every derived member is computed again."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson

from app.models.erasure import scrub
from app.models.fulfillment import FULFILLMENT_STATUSES, delivery_status
from app.models.lifecycle import OPEN
from app.models.order_id import first_order_id, is_alias
from app.models.pricing import InvalidPrices
from app.services.order_document import parse_order, render_stored_order

_TIME_LENGTH = len("0199c7a4-0000-7000")  # the part of an id that holds the time of creation

# The fulfillment statuses that an order can have, by its status.
_FULFILLMENT_STATUSES: dict[str, tuple[str, ...]] = {
    "pending": ("unfulfilled",),
    "confirmed": FULFILLMENT_STATUSES,
    "completed": FULFILLMENT_STATUSES,
    "cancelled": ("unfulfilled",),
}


def inconsistent_members(order: Mapping[str, Any]) -> list[str]:
    """The names of the members of an order document that are inconsistent with other members.

    Raises KeyError, TypeError or ValueError if it is not an order document.
    """
    items, status, customer_id = order["items"], order["status"], order["customer_id"]
    checks = {
        "id": order["id"][:_TIME_LENGTH] == first_order_id(datetime.fromisoformat(order["created_at"]))[:_TIME_LENGTH],
        "customer_id": not is_alias(customer_id) or scrub(order, alias=customer_id) == order,
        "items": [item["line"] for item in items] == list(range(1, len(items) + 1)),
        "status": order["fulfillment_status"] in _FULFILLMENT_STATUSES[status]
        and (status != "cancelled" or all(item["cancelled"] == item["quantity"] for item in items)),
        "holds": not order["holds"] or status in OPEN,
        **{name: _are_numbered(order[name]) for name in ("cancellations", "fulfillments", "returns")},
    }
    wrong = {name for name, is_consistent in checks.items() if not is_consistent}
    return sorted(wrong.union(_wrongly_derived(order)))


def _wrongly_derived(document: Mapping[str, Any]) -> Iterator[str]:
    """The members that are not what the model derives from the others."""
    order = parse_order(document, principal="", external_ref_hash=None)
    try:
        order.derive()
    except InvalidPrices as error:
        yield from error.messages
        return
    derived = orjson.loads(render_stored_order(order))
    yield from (name for name in derived if derived[name] != document.get(name))
    for fulfillment in document["fulfillments"]:
        if fulfillment["status"] != delivery_status(fulfillment["events"]):
            yield "fulfillments"


def _are_numbered(records: Sequence[Mapping[str, Any]]) -> bool:
    return [record["number"] for record in records] == list(range(1, len(records) + 1))
