"""Channels: where an order was placed."""

import json

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
