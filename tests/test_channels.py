"""Channels: where an order was placed."""

import json
from urllib.parse import urlencode

import pytest
from flask.testing import FlaskClient

from tests.support.samples import MINIMAL, error_locations

ON_WEB = MINIMAL | {"channel": "web"}


def test_an_order_keeps_the_channel_it_was_created_with(client: FlaskClient) -> None:
    created = client.post("/orders", json=ON_WEB)

    order = client.get(created.headers["Location"])
    assert (created.json["channel"], order.json["channel"]) == ("web", "web")


@pytest.mark.parametrize("channel", ["", "x" * 65, "a\n", 1, ["web"]])
def test_a_channel_has_1_to_64_characters(client: FlaskClient, channel: object) -> None:
    assert error_locations(client.post("/orders", json=MINIMAL | {"channel": channel})) == {"#/channel"}


@pytest.mark.parametrize("channel", ["web", "app", None])
def test_no_patch_changes_the_channel(client: FlaskClient, channel: str | None) -> None:
    path = client.post("/orders", json=ON_WEB).headers["Location"]

    response = client.patch(path, json={"channel": channel})

    assert error_locations(response) == {"#/channel"}
    assert response.json["errors"][0]["detail"].startswith("A patch cannot change this. Allowed: external_ref, ")
    assert client.patch(path, json={"note": "x"}).json["channel"] == "web"


def test_a_batch_and_exports_have_the_channel(client: FlaskClient) -> None:
    client.post("/orders/batch", json={"orders": [ON_WEB, MINIMAL]})

    documents = client.get("/orders/export?sort=created_at").text.splitlines()
    rows = client.get("/orders/export?format=csv").text.splitlines()
    assert [json.loads(document)["channel"] for document in documents] == ["web", None]
    assert rows[0].split(",")[4] == "channel"
    assert sorted(row.split(",")[4] for row in rows[1:]) == ["", "web"]


def test_an_idempotency_key_with_another_channel_is_another_body(client: FlaskClient) -> None:
    headers = {"Idempotency-Key": "k-1"}
    client.post("/orders", json=ON_WEB, headers=headers)

    response = client.post("/orders", json=MINIMAL, headers=headers)

    assert response.status_code == 422


@pytest.fixture
def orders(client: FlaskClient) -> list[dict[str, str]]:
    """Orders of several channels and of none, oldest first; every third one is confirmed."""
    channels = ["web", "app", "web", None, "app", "web", "web", "phone", "WEB", "web", None, "app"]
    orders = [client.post("/orders", json=MINIMAL | {"channel": channel}).json for channel in channels]
    for order in orders[::3]:
        client.post(f"/orders/{order['id']}/confirm")
    return [client.get(f"/orders/{order['id']}").json for order in orders]


def listed(client: FlaskClient, query: str, **headers: str) -> list[str]:
    """The ids of all pages."""
    ids, cursor = [], ""
    while cursor is not None:
        page = client.get(f"/orders?{query}&limit=2{cursor and f'&cursor={cursor}'}", headers=headers)
        assert page.status_code == 200, page.text
        ids += [order["id"] for order in page.json["orders"]]
        cursor = page.json["next_cursor"]
    return ids


@pytest.mark.parametrize("status", [None, "pending", "confirmed", "cancelled"])
@pytest.mark.parametrize("channel", ["web", "app", "phone", "WEB", "none", "%"])
def test_lists_and_exports_filter_by_channel_alone_and_with_the_status(
    client: FlaskClient, orders: list[dict[str, str]], channel: str, status: str | None
) -> None:
    matching = [one["id"] for one in orders if one["channel"] == channel and status in (None, one["status"])]
    query = urlencode({"channel": channel} | ({"status": status} if status else {}))

    exported = client.get(f"/orders/export?{query}").text.splitlines()

    assert listed(client, query) == matching[::-1]
    assert listed(client, f"{query}&sort=created_at") == matching
    assert [json.loads(document)["id"] for document in exported] == matching[::-1]


@pytest.mark.parametrize(
    "filters", [{"customer_id": "c-1"}, {"item_id": "sku-1"}, {"fulfillment_status": "unfulfilled"}]
)
def test_other_filters_are_combined_with_the_channel(
    client: FlaskClient, orders: list[dict[str, str]], filters: dict[str, str]
) -> None:
    matching = [one["id"] for one in orders if one["channel"] == "web"]

    assert listed(client, urlencode(filters | {"channel": "web"})) == matching[::-1]
    assert listed(client, urlencode({"customer_id": "c-2", "channel": "web"})) == []
