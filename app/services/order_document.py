"""The order document: rendered here and nowhere else.

It is built once a version and stored with the event; every reader gets those bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from app.models import Fulfillment, Order, Return
from app.models.types import rfc3339

Values = Mapping[str, Any]


def render_order(
    order: Values,
    *,
    items: Sequence[Values],
    allowed_actions: Sequence[str],
    fulfillments: Iterable[Fulfillment] = (),
    returns: Iterable[Return] = (),
) -> bytes:
    """The document of an order given by its columns and its lines' columns, as JSON bytes (DESIGN: the order)."""
    return orjson.dumps(
        {
            "id": order["id"],
            "number": order["number"],
            "customer_id": order["customer_id"],
            "external_ref": order["external_ref"],
            "status": order["status"],
            "fulfillment_status": order["fulfillment_status"],
            "hold": order["hold"],
            "currency": order["currency"],
            "items": [_render_item(item) for item in items],
            "adjustments": order["adjustments"],
            "totals": _render_totals(order),
            "shipping_address": order["shipping_address"],
            "billing_address": order["billing_address"],
            "note": order["note"],
            "metadata": order["metadata"],
            "cancellation": order["cancellation"],
            "fulfillments": [_render_fulfillment(fulfillment) for fulfillment in fulfillments],
            "returns": [_render_return(one) for one in returns],
            "version": order["version"],
            "allowed_actions": allowed_actions,
            "created_at": rfc3339(order["created_at"]),
            "updated_at": rfc3339(order["updated_at"]),
        }
    )


def render_stored_order(order: Order) -> bytes:
    """The document of an order with its items, fulfillments and returns loaded."""
    return render_order(
        order.columns(),
        items=[vars(item) for item in order.items],
        allowed_actions=order.allowed_actions,
        fulfillments=order.fulfillments,
        returns=order.returns,
    )


def _render_item(item: Values) -> dict[str, Any]:
    return {
        "line": item["line"],
        "item_id": item["item_id"],
        "quantity": item["quantity"],
        "unit_price": item["unit_price"],
        "fulfilled": item["fulfilled"],
        "returned": item["returned"],
    }


def _render_fulfillment(fulfillment: Fulfillment) -> dict[str, Any]:
    return {
        "number": fulfillment.number,
        "items": fulfillment.items,
        "tracking": fulfillment.tracking,
        "created_at": rfc3339(fulfillment.created_at),
    }


def _render_return(one: Return) -> dict[str, Any]:
    return {
        "number": one.number,
        "items": one.items,
        "reason": one.reason,
        "created_at": rfc3339(one.created_at),
    }


def _render_totals(order: Values) -> dict[str, int] | None:
    if order["items_total"] is None:
        return None
    items, adjustments = order["items_total"], order["adjustments_total"]
    return {"items": items, "adjustments": adjustments, "total": items + adjustments}
