"""Reopening completed and cancelled orders."""

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support.actions import UNIT, event_types, order_after, send_action
from tests.support.samples import error_locations, slug


def test_a_completed_order_is_confirmed_again(client: FlaskClient) -> None:
    path = order_after(client, "confirm", "fulfill", "complete")

    order = send_action(client, path, "reopen", {"reason": "One mug\nis missing."}).json

    assert order["status"] == "confirmed"
    assert order["reopening"] == {
        "from_status": "completed",
        "reason": "One mug\nis missing.",
        "at": order["updated_at"],
    }
    assert event_types(client, path)[-1] == "order.reopened"
    assert send_action(client, path, "fulfill").json["status"] == "completed"


def test_a_cancelled_order_is_pending_again_with_all_cancelled_units_open(client: FlaskClient) -> None:
    path = order_after(client, "confirm")
    send_action(client, path, "cancel", {"reason": "inventory"} | UNIT)
    cancelled = send_action(client, path, "cancel").json

    order = send_action(client, path, "reopen").json

    assert (cancelled["status"], order["status"]) == ("cancelled", "pending")
    assert [item["cancelled"] for item in order["items"]] == [0]
    assert [record["reopened_at"] for record in order["cancellations"]] == [order["updated_at"]] * 2
    assert order["totals"].items() >= {"cancelled": 0, "total": 2000, "due": 2000}.items()
    assert order["allowed_actions"] == ["cancel", "confirm", "hold", "pay", "update"]


def test_units_that_were_cancelled_before_the_rest_was_sent_stay_cancelled(client: FlaskClient) -> None:
    path = order_after(client, "confirm")
    send_action(client, path, "cancel", {"reason": "inventory"} | UNIT)
    send_action(client, path, "fulfill")

    order = send_action(client, path, "reopen").json

    assert (order["status"], order["items"][0]["cancelled"]) == ("confirmed", 1)
    assert order["cancellations"][0]["reopened_at"] is None
    assert "fulfill" not in order["allowed_actions"] and "complete" in order["allowed_actions"]


def test_a_second_cancellation_is_reopened_at_its_own_time(client: FlaskClient) -> None:
    path = order_after(client, "cancel", "reopen")
    first = client.get(path).json["cancellations"]
    send_action(client, path, "cancel")

    order = send_action(client, path, "reopen").json

    assert order["cancellations"][0] == first[0]
    assert order["cancellations"][1]["reopened_at"] == order["updated_at"] > first[0]["reopened_at"]


def test_refunds_of_a_cancelled_order_are_due_again_after_it_is_reopened(app: Flask, client: FlaskClient) -> None:
    path = order_after(client)
    payment = {"type": "capture", "amount": 2000, "reference": "p-1"}
    send_action(client, path, "pay", payment)
    send_action(client, path, "cancel")
    send_action(client, path, "pay", payment | {"type": "refund", "amount": 1500})

    reopened = send_action(client, path, "reopen").json
    paid = send_action(client, path, "pay", payment | {"amount": 1500, "reference": "p-2"}).json
    refunded = send_action(client, path, "pay", payment | {"type": "refund", "amount": 100, "reference": "p-2"}).json
    cancelled = send_action(client, path, "cancel").json

    assert [one["totals"]["due"] for one in (reopened, paid, refunded, cancelled)] == [1500, 0, 0, -1900]
    assert reopened["totals"].items() >= {"paid": 2000, "refunded": 1500}.items()
    assert app.test_cli_runner().invoke(args=["verify"]).exit_code == 0


def test_items_of_a_reopened_order_can_be_replaced_by_fewer(app: Flask, client: FlaskClient) -> None:
    path = order_after(client, "cancel", "reopen", items=[{"item_id": "sku-1", "quantity": 2}] * 3)

    order = send_action(client, path, "update", {"items": [{"item_id": "sku-9", "quantity": 5}]}).json

    assert [(item["item_id"], item["quantity"], item["cancelled"]) for item in order["items"]] == [("sku-9", 5, 0)]
    assert [entry["line"] for entry in order["cancellations"][0]["items"]] == [1, 2, 3]
    assert app.test_cli_runner().invoke(args=["verify"]).exit_code == 0


@pytest.mark.parametrize("way", [(), ("confirm",), ("cancel", "reopen")], ids="-".join)
def test_an_open_order_cannot_be_reopened(client: FlaskClient, way: tuple[str, ...]) -> None:
    assert slug(send_action(client, order_after(client, *way), "reopen")) == (409, "illegal-action")


@pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": None}, {"reason": "x" * 2001}])
def test_reopening_needs_a_reason(client: FlaskClient, body: Any) -> None:
    path = order_after(client, "cancel")

    assert error_locations(client.post(f"{path}/reopen", json=body)) == {"#/reason"}


@pytest.mark.parametrize("way", [("cancel",), ("confirm", "fulfill", "complete")], ids="-".join)
def test_an_erased_order_is_not_opened_again(app: Flask, client: FlaskClient, way: tuple[str, ...]) -> None:
    path = order_after(client, *way, customer_id="c-gone")
    client.delete("/customers/c-gone/personal-data")

    refused = send_action(client, path, "reopen")

    assert slug(refused) == (409, "illegal-action")
    assert refused.json["detail"] == "The action reopen is not allowed: the customer's personal data was erased."
    order = client.get(path).json
    assert "reopen" not in order["allowed_actions"] and refused.json["allowed_actions"] == order["allowed_actions"]
    assert app.test_cli_runner().invoke(args=["verify"]).exit_code == 0


def test_a_fulfillment_of_an_erased_order_cannot_be_cancelled(client: FlaskClient) -> None:
    path = order_after(client, "confirm", "fulfill", "fulfill", customer_id="c-gone")
    client.delete("/customers/c-gone/personal-data")

    refused = send_action(client, path, "track", {"type": "cancelled"})

    assert refused.json["detail"] == "The customer's personal data was erased; the order cannot be opened again."
    delivered = send_action(client, path, "track", {"type": "delivered"}).json
    assert delivered["fulfillments"][0]["status"] == "delivered"
