"""The order document: rendered here and nowhere else.

It is built once a version and stored with the event; every reader gets those bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from app.models.types import rfc3339

Values = Mapping[str, Any]


def render_order(order: Values, *, items: Sequence[Values], allowed_actions: Iterable[str]) -> bytes:
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
            "fulfillments": [],
            "returns": [],
            "version": order["version"],
            "allowed_actions": sorted(allowed_actions),
            "created_at": rfc3339(order["created_at"]),
            "updated_at": rfc3339(order["updated_at"]),
        }
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


def _render_totals(order: Values) -> dict[str, int] | None:
    if order["items_total"] is None:
        return None
    items, adjustments = order["items_total"], order["adjustments_total"]
    return {"items": items, "adjustments": adjustments, "total": items + adjustments}
