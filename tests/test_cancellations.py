"""Cancelling orders, lines and units."""

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support.actions import event_types, order_after, send_action
from tests.support.credentials import api_key, bearer, token
from tests.support.samples import error_locations, priced, slug

# Two lines for 1,000 and 300, a discount of 10 on the second, and shipping.
ORDER: dict[str, Any] = {
    "items": [
        {"item_id": "sku-1", "quantity": 2, "unit_price": 500},
        {"item_id": "sku-2", "quantity": 3, "unit_price": 100},
    ],
    "adjustments": [{"type": "discount", "amount": -10, "line": 2}, {"type": "shipping", "amount": 490}],
}
BOTH_UNITS = {"line": 1, "quantity": 2}


def cancelled(*units: tuple[int, int], **members: Any) -> dict[str, Any]:
    items = [{"line": line, "quantity": quantity} for line, quantity in units]
    return {"reason": "inventory"} | ({"items": items} if items else {}) | members


def test_cancelled_units_reduce_the_total_by_their_part_of_the_line(client: FlaskClient) -> None:
    path = order_after(client, **ORDER)

    orders = [send_action(client, path, "cancel", cancelled((2, 1))).json for _ in range(2)]

    totals = [order["totals"] for order in orders]
    # One unit of three for 290 is 96⅔, rounded down; two are 193⅓.
    assert [(one["cancelled"], one["total"], one["due"]) for one in totals] == [(-96, 1684, 1684), (-193, 1587, 1587)]
    assert [(one["items"], one["adjustments"]) for one in totals] == [(1300, 480)] * 2
    assert [item["cancelled"] for item in orders[1]["items"]] == [0, 2]
    assert orders[1]["status"] == "pending"
    assert event_types(client, path)[1:] == ["order.partially_cancelled"] * 2
    assert [record["number"] for record in orders[1]["cancellations"]] == [1, 2]


def test_cancelling_the_last_open_unit_cancels_the_order_and_nothing_is_due(client: FlaskClient) -> None:
    path = order_after(client, "confirm", "hold", **ORDER)
    send_action(client, path, "cancel", cancelled((2, 3)))

    order = send_action(client, path, "cancel", cancelled((1, 2))).json

    assert (order["status"], order["holds"]) == ("cancelled", [])
    assert order["totals"].items() >= {"cancelled": -1780, "total": 0, "due": 0}.items()
    assert event_types(client, path)[-2:] == ["order.partially_cancelled", "order.cancelled"]


def test_cancelling_the_open_units_of_a_partly_fulfilled_order_completes_it(client: FlaskClient) -> None:
    path = order_after(client, "confirm", **ORDER)
    send_action(client, path, "fulfill", {"items": [BOTH_UNITS]})

    order = send_action(client, path, "cancel", cancelled()).json

    assert (order["status"], order["fulfillment_status"]) == ("completed", "fulfilled")
    assert order["cancellations"][0]["items"] == [{"line": 2, "quantity": 3}]
    assert order["totals"]["total"] == 1490  # the fulfilled line, and shipping
    assert event_types(client, path)[-1] == "order.partially_cancelled"
    assert "cancel" not in order["allowed_actions"]


def test_adjustments_of_a_cancellation_replace_those_of_the_order(client: FlaskClient) -> None:
    path = order_after(client, "confirm", **ORDER)
    cheaper = [{"type": "shipping", "label": "letter", "amount": 190}]

    order = send_action(client, path, "cancel", cancelled((2, 3), adjustments=cheaper)).json

    assert order["adjustments"] == [{"type": "shipping", "label": "letter", "amount": 190, "line": None}]
    assert order["totals"].items() >= {"adjustments": 190, "cancelled": -300, "total": 1190}.items()
    assert order["items"][1]["discount"] == 0


@pytest.mark.parametrize(
    ("members", "places"),
    [
        ({"adjustments": [{"type": "discount", "amount": -1301}]}, {"#/adjustments"}),
        ({"adjustments": [{"type": "discount", "amount": -301, "line": 2}]}, {"#/adjustments/0/amount"}),
        ({"adjustments": [{"type": "fee", "amount": 1, "line": 3}]}, {"#/adjustments/0/line"}),
        ({"adjustments": [{"type": "other", "amount": -1100}]}, {"#/adjustments"}),  # more than the remaining price
        ({"items": []}, {"#/items"}),
        ({"items": [BOTH_UNITS, BOTH_UNITS]}, {"#/items/1/line"}),
        ({"items": [{"line": 3, "quantity": 1}]}, {"#/items/0"}),
        ({"items": None}, {"#/items"}),
    ],
)
def test_a_cancellation_with_inconsistent_amounts_changes_nothing(
    client: FlaskClient, members: dict[str, Any], places: set[str]
) -> None:
    path = order_after(client, **ORDER)

    refused = send_action(client, path, "cancel", cancelled((2, 3)) | members)

    assert error_locations(refused) == places
    assert client.get(path).json["version"] == 1


def test_an_order_without_a_currency_accepts_no_adjustments(client: FlaskClient) -> None:
    path = client.post("/orders", json={"customer_id": "c-1", "items": [{"item_id": "i", "quantity": 2}]}).location

    fee = send_action(client, path, "cancel", cancelled((1, 1), adjustments=[{"type": "fee", "amount": 100}]))

    assert error_locations(fee) == {"#/adjustments"}
    assert send_action(client, path, "cancel", cancelled((1, 1), adjustments=[])).json["totals"] is None


def test_fulfilled_or_cancelled_units_cannot_be_cancelled(client: FlaskClient) -> None:
    path = order_after(client, "confirm", **ORDER)
    send_action(client, path, "fulfill", {"items": [{"line": 1, "quantity": 1}]})
    send_action(client, path, "cancel", cancelled((2, 2)))

    refused = send_action(client, path, "cancel", cancelled((1, 2), (2, 1)))
    both = send_action(client, path, "cancel", cancelled((1, 2), (2, 2)))

    assert slug(refused) == slug(both) == (409, "quantity-exceeded")
    assert [fault["pointer"] for fault in both.json["errors"]] == ["#/items/0", "#/items/1"]
    assert refused.json["errors"][0]["detail"] == "Line 1 has 1 unit left."


def test_items_are_not_replaced_while_units_of_them_are_cancelled(client: FlaskClient) -> None:
    path = order_after(client, **ORDER)
    send_action(client, path, "cancel", cancelled((2, 1)))

    refused = send_action(client, path, "update", {"items": ORDER["items"][:1] * 2})

    assert slug(refused) == (409, "illegal-action")
    assert refused.json["detail"] == "Items can be changed only while none of their units is cancelled."


def test_a_customer_cancels_units_but_does_not_set_prices(secure_app: Flask, secure_client: FlaskClient) -> None:
    shop = bearer(api_key(secure_app, "orders:write", "orders:manage"))
    customer = bearer(token(customer="c-1"))
    path = secure_client.post("/orders", json=priced() | ORDER, headers=shop).location

    def cancel(body: dict[str, Any]) -> Any:
        return secure_client.post(f"{path}/cancel", json=body, headers=customer)

    refused = [cancel(cancelled((1, 1), adjustments=adjustments)) for adjustments in ([], ORDER["adjustments"])]

    assert [slug(response) for response in refused] == [(403, "forbidden")] * 2
    assert cancel(cancelled((1, 1))).json["items"][0]["cancelled"] == 1
