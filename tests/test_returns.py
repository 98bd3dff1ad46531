"""Returns: expected, received and rejected."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.support.actions import UNIT, event_types, order_after, send_action
from tests.support.samples import error_locations, slug


def sent(client: FlaskClient) -> str:
    """The path of a completed order of two units."""
    return order_after(client, "confirm", "fulfill", "fulfill")


def state(order: dict[str, Any]) -> tuple[str, int, list[str]]:
    return order["return_status"], order["items"][0]["returned"], [one["status"] for one in order["returns"]]


def test_a_return_without_a_status_is_received(client: FlaskClient) -> None:
    path = sent(client)

    response = send_action(client, path, "return", UNIT | {"reason": "too small"})

    [record] = response.json["returns"]
    assert record == UNIT | {
        "number": 1,
        "status": "received",
        "reason": "too small",
        "created_at": response.json["updated_at"],
    }
    assert (response.status_code, state(response.json)) == (201, ("partial", 1, ["received"]))
    assert event_types(client, path)[-1] == "order.returned"


def test_only_received_units_count_as_returned(client: FlaskClient) -> None:
    path = sent(client)

    expected = [send_action(client, path, "expect").json for _ in range(2)][-1]
    received = client.post(f"{path}/returns/1/receive").json
    rejected = client.post(f"{path}/returns/2/reject").json
    again = send_action(client, path, "return").json

    assert state(expected) == ("none", 0, ["expected", "expected"])
    assert state(received) == ("partial", 1, ["received", "expected"])
    assert state(rejected) == ("partial", 1, ["received", "rejected"])
    assert state(again) == (
        "returned",
        2,
        ["received", "rejected", "received"],
    )  # a rejected unit can be returned later
    assert event_types(client, path)[-5:] == [
        "order.return_expected", "order.return_expected", "order.return_received", "order.return_rejected",
        "order.returned",
    ]  # fmt: skip
    [listed] = client.get("/orders?return_status=returned").json["orders"]
    assert listed == again


def test_expected_units_cannot_be_returned_again(client: FlaskClient) -> None:
    path = sent(client)
    send_action(client, path, "expect")

    refused = send_action(client, path, "return", {"items": [{"line": 1, "quantity": 2}]})
    send_action(client, path, "expect")
    none_left = send_action(client, path, "return")

    assert slug(refused) == (409, "quantity-exceeded")
    assert refused.json["errors"][0]["detail"] == "Line 1 has 1 unit left."
    assert slug(none_left) == (409, "illegal-action")
    assert "return" not in client.get(path).json["allowed_actions"]


@pytest.mark.parametrize(("first", "other"), [("receive", "reject"), ("reject", "receive")])
def test_a_return_is_settled_once(client: FlaskClient, first: str, other: str) -> None:
    path = sent(client)
    send_action(client, path, "expect")

    settled = client.post(f"{path}/returns/1/{first}")
    again, changed = client.post(f"{path}/returns/1/{first}"), client.post(f"{path}/returns/1/{other}")

    status = {"receive": "received", "reject": "rejected"}[first]
    assert (again.status_code, again.data) == (200, settled.data)
    assert slug(changed) == (409, "illegal-action")
    assert changed.json["detail"] == f"Return 1 is already {status}."


def test_an_expected_return_is_settled_in_any_status_of_the_order(client: FlaskClient) -> None:
    path = order_after(client, "confirm", "fulfill", "expect", "hold")

    assert client.post(f"{path}/returns/1/receive").json["return_status"] == "returned"  # of the fulfilled unit


@pytest.mark.parametrize("action", ["receive", "reject"])
@pytest.mark.parametrize("number", [0, 2, 10**12])
def test_an_unknown_return_is_404(client: FlaskClient, action: str, number: int) -> None:
    path = sent(client)
    send_action(client, path, "expect")

    assert slug(client.post(f"{path}/returns/{number}/{action}")) == (404, "return-not-found")


@pytest.mark.parametrize(
    ("body", "place"),
    [(UNIT | {"status": "rejected"}, "#/status"), (UNIT | {"reason": "x" * 2001}, "#/reason"), ({}, "#/items")],
)
def test_an_invalid_return_is_refused(client: FlaskClient, body: Any, place: str) -> None:
    assert error_locations(client.post(f"{sent(client)}/returns", json=body)) == {place}
