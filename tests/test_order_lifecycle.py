"""An order's life over HTTP."""

import pytest
from flask.testing import FlaskClient

BODY = {
    "customer_id": "c-1",
    "currency": "EUR",
    "items": [
        {"item_id": "sku-1", "quantity": 2, "unit_price": 1250},
        {"item_id": "sku-2", "quantity": 1, "unit_price": 500},
    ],
}


@pytest.fixture
def path(client: FlaskClient) -> str:
    return client.post("/orders", json=BODY).headers["Location"]


def test_an_order_goes_through_its_whole_life(client: FlaskClient, path: str) -> None:
    steps = [
        client.post(f"{path}/confirm"),
        client.put(f"{path}/hold", json={"reason": "address check"}),
        client.delete(f"{path}/hold"),
        client.post(f"{path}/fulfillments", json={"items": [{"line": 1, "quantity": 1}], "tracking": {"number": "1"}}),
        client.post(
            f"{path}/fulfillments", json={"items": [{"line": 1, "quantity": 1}, {"line": 2, "quantity": 1}]}
        ),
        client.post(f"{path}/returns", json={"items": [{"line": 2, "quantity": 1}], "reason": "broken"}),
        client.patch(path, json={"note": "thanks", "metadata": {"a": "b"}}),
    ]

    assert [step.status_code for step in steps] == [200, 200, 200, 201, 201, 201, 200]
    assert [step.json["version"] for step in steps] == [2, 3, 4, 5, 6, 7, 8]
    last = steps[-1].json
    assert (last["status"], last["fulfillment_status"]) == ("completed", "fulfilled")
    assert last["items"][1]["returned"] == 1
    assert client.get(path).data == steps[-1].data
    assert client.get(f"{path}?version=6").data == steps[4].data
    history = client.get(f"{path}/history").json["events"]
    assert [event["type"].removeprefix("order.") for event in history] == [
        "created", "confirmed", "held", "released", "fulfilled", "fulfilled", "returned", "updated",
    ]  # fmt: skip
    assert history[-1]["data"] == last


def test_a_patch_that_changes_nothing_makes_no_version(client: FlaskClient, path: str) -> None:
    first = client.patch(path, json={"note": "x", "items": [{"item_id": "sku-3", "quantity": 7}], "currency": None})

    again = client.patch(path, json={"note": "x"})

    assert first.json["items"][0]["item_id"] == "sku-3" and first.json["totals"] is None
    assert (again.status_code, again.data) == (200, first.data)
