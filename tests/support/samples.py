"""Sample orders, and readers of problem responses."""

from typing import Any

from werkzeug.test import TestResponse

from app.schemas.order import OrderInSchema

MINIMAL: dict[str, Any] = {"customer_id": "c-1", "items": [{"item_id": "sku-1", "quantity": 2}]}

LARGE = MINIMAL | {
    "items": [{"item_id": f"{i:064}", "quantity": 1} for i in range(100)],
    "metadata": {f"{i:040}": "x" * 500 for i in range(50)},
    "note": "n" * 2000,
}  # 58 KB as a document

ADDRESS = {
    "name": "Ada Lovelace",
    "company": "Analytical Engines",
    "line1": "12 St James's Square",
    "line2": "Second floor",
    "city": "London",
    "region": "Greater London",
    "postal_code": "SW1Y 4JH",
    "country": "GB",
    "phone": "+44 20 7946 0000",
    "email": "ada@example.com",
}

# An order with every member, in the order of the schema.
RICHEST: dict[str, Any] = {
    "customer_id": "c-123",
    "items": [
        {"item_id": "sku-1", "title": "Mug", "quantity": 2, "unit_price": 1250},
        {"item_id": "sku-2", "quantity": 1, "unit_price": None},
        {"item_id": "sku-1", "quantity": 3},
    ],
    "external_ref": "shop-1",
    "channel": "web",
    "currency": "EUR",
    "adjustments": [
        {"type": "discount", "label": "WELCOME10", "amount": -250},
        {"type": "shipping", "amount": 490},
    ],
    "ship_by": "2030-01-01T10:00:00+01:00",
    "deliver_by": "2030-01-03T00:00:00Z",
    "related_orders": [{"order_id": "019DAB70-c2b3-7c51-b9f8-1d6f2a6c3e11", "relation": "replacement"}],
    "tags": ["gift", "VIP"],
    "shipping_address": ADDRESS,
    "billing_address": {"country": "DE"},
    "note": "Ring twice.\n\tThen wait. 🛎",
    "metadata": {"channel": "web", "empty": ""},
}

UNKNOWN_MEMBER = f"Unknown member. Allowed: {', '.join(OrderInSchema().fields)}."


def priced(*amounts: int, **members: Any) -> dict[str, Any]:
    """An order of one item for 1,000, with adjustments of the given amounts."""
    adjustments = [{"type": "other", "amount": amount} for amount in amounts]
    items = [{"item_id": "sku-1", "quantity": 1, "unit_price": 1000}]
    return {"customer_id": "c-1", "currency": "EUR", "items": items, "adjustments": adjustments} | members


def error_locations(response: TestResponse) -> set[str]:
    """The JSON pointers and parameters of the errors of a 400."""
    assert (response.status_code, response.mimetype) == (400, "application/problem+json"), response.text
    assert response.json is not None
    return {fault.get("pointer") or fault["parameter"] for fault in response.json["errors"]}


def slug(response: TestResponse) -> tuple[int, str]:
    """The status and the problem type of an error."""
    assert response.mimetype == "application/problem+json", response.text
    assert response.json is not None and response.json["status"] == response.status_code
    return response.status_code, response.json["type"].removeprefix("/problems/")
