"""An idempotency key survives an erasure: a retry gets the erased order, and never creates a second one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.services.batches import REPLAYS_MAX
from tests.support.actions import order_after, send_action
from tests.support.credentials import api_key, bearer, token
from tests.support.samples import ADDRESS, MINIMAL, slug

BODY = MINIMAL | {"customer_id": "c-erika", "shipping_address": ADDRESS, "note": "for Erika"}
OTHER = MINIMAL | {"customer_id": "c-erika"}
Send = Callable[..., TestResponse]


@pytest.fixture(params=["service", "customer"])
def send(request: pytest.FixtureRequest, secure_app: Flask, secure_client: FlaskClient) -> Send:
    """Sends as a service, whose principal is kept, or as the customer, whose principal is replaced by an alias."""
    scopes = ("orders:read", "orders:write", "orders:manage")
    credential = api_key(secure_app, *scopes) if request.param == "service" else token(customer="c-erika")
    headers = bearer(credential)

    def send(path: str, body: Any, **more: str) -> TestResponse:
        named = {header.replace("_", "-"): value for header, value in more.items()}
        return secure_client.post(path, json=body, headers=headers | named)

    return send


def end_and_erase(client: FlaskClient, order_id: str, customer: str = "c-erika") -> dict[str, Any]:
    """The erased order; `client` has all scopes."""
    assert client.post(f"/orders/{order_id}/cancel", json={"reason": "customer"}).status_code == 200
    assert client.delete(f"/customers/{customer}/personal-data").status_code < 300
    kept: dict[str, Any] = client.get(f"/orders/{order_id}").json
    assert kept["customer_id"] != customer and kept["note"] is None
    return kept


def count_orders(client: FlaskClient) -> int:
    return len(client.get("/orders?limit=100").json["orders"])


@pytest.mark.parametrize("body", [BODY, OTHER], ids=["same body", "other body"])
def test_a_replayed_create_returns_the_erased_order(client: FlaskClient, send: Send, body: Any) -> None:
    first = send("/orders", BODY, Idempotency_Key="k-1")
    kept = end_and_erase(client, first.json["id"])

    again = send("/orders", body, Idempotency_Key="k-1")

    assert (again.status_code, again.json) == (201, kept)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["ETag"] == client.get(f"/orders/{kept['id']}").headers["ETag"]
    assert again.headers["Location"] == first.headers["Location"]
    assert count_orders(client) == 1


@pytest.mark.parametrize("name", [{"idempotency_key": "k-1"}, {"external_ref": "r-1"}], ids=["key", "reference"])
@pytest.mark.parametrize("body", [BODY, OTHER], ids=["same body", "other body"])
def test_a_replayed_batch_entry_returns_the_erased_order(
    client: FlaskClient, send: Send, name: dict[str, str], body: Any
) -> None:
    [first] = send("/orders/batch", {"orders": [BODY | name]}).json["results"]
    kept = end_and_erase(client, first["order"]["id"])

    [again] = send("/orders/batch", {"orders": [body | name]}).json["results"]

    assert (again["status"], again["replayed"], again["order"]) == (201, True, kept)
    assert count_orders(client) == 1


def test_replays_of_a_large_erased_order_do_not_fill_the_memory(client: FlaskClient) -> None:
    lines = [{"item_id": f"sku-{i}", "quantity": 1, "title": "t" * 200} for i in range(100)]
    large = MINIMAL | {"customer_id": "c-9", "items": lines}
    path = client.post("/orders", json=large, headers={"Idempotency-Key": "k-1"}).headers["Location"]
    client.post(f"{path}/cancel", json={"reason": "customer"})
    client.delete("/customers/c-9/personal-data")
    erased = client.get(path).data

    response = client.post("/orders/batch", json={"orders": [MINIMAL | {"idempotency_key": "k-1"}] * 1_000})

    statuses = [result["status"] for result in response.json["results"]]
    replays = REPLAYS_MAX // len(erased) + 1
    assert statuses == [201] * replays + [503] * (1_000 - replays)
    assert len(response.data) < REPLAYS_MAX * 1.1


@pytest.mark.parametrize("headers", [{}, {"Idempotency_Key": "k-1"}], ids=["keyless", "keyed"])
def test_a_reference_of_an_erased_order_stays_in_use(client: FlaskClient, send: Send, headers: dict[str, str]) -> None:
    first = send("/orders", BODY | {"external_ref": "r-1"}, **headers).json
    end_and_erase(client, first["id"])

    single = send("/orders", BODY | {"external_ref": "r-1"}, Idempotency_Key="k-2")
    [entry] = send("/orders/batch", {"orders": [BODY | {"external_ref": "r-1"}]}).json["results"]

    assert (*slug(single), single.json["order_id"]) == (409, "duplicate-external-ref", first["id"])
    assert (entry["status"], entry["replayed"], entry["order"]["id"]) == (201, True, first["id"])
    assert count_orders(client) == 1


def test_a_change_of_an_erased_order_keeps_its_reference_in_use(client: FlaskClient, send: Send) -> None:
    first = send("/orders", BODY | {"external_ref": "r-1"}).json
    end_and_erase(client, first["id"])
    assert client.patch(f"/orders/{first['id']}", json={"shipping_address": None}).status_code == 200

    assert slug(send("/orders", BODY | {"external_ref": "r-1"})) == (409, "duplicate-external-ref")


def test_an_import_finds_every_order(app: Flask, client: FlaskClient, tmp_path: Path) -> None:
    lines = [BODY, BODY, BODY | {"external_ref": "r-1"}]
    file = tmp_path / "orders.ndjson"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run() -> str:
        result = app.test_cli_runner().invoke(args=["orders", "import", str(file)])
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()[-1]

    assert run() == "3 orders imported, 0 existed already, 0 invalid lines."
    for order in client.get("/orders").json["orders"]:
        client.post(f"/orders/{order['id']}/cancel", json={"reason": "customer"})
    assert client.delete("/customers/c-erika/personal-data").status_code < 300

    assert run() == "0 orders imported, 3 existed already, 0 invalid lines."


@pytest.mark.parametrize("changes", [True, False])
@pytest.mark.parametrize("body", [{"note": "for Erika"}, {"note": "other"}], ids=["same body", "other body"])
def test_a_replayed_change_returns_the_erased_order(client: FlaskClient, changes: bool, body: Any) -> None:
    path = order_after(client, customer_id="c-erika", note="Ring." if changes else "for Erika")
    first = send_action(client, path, "update", {"note": "for Erika"}, Idempotency_Key="k-1")
    kept = end_and_erase(client, first.json["id"])

    again = send_action(client, path, "update", body, Idempotency_Key="k-1")

    assert (again.status_code, again.json) == (200, kept)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert client.get(path).json == kept


def test_verify_finds_no_difference(app: Flask, client: FlaskClient, send: Send) -> None:
    first = send("/orders", BODY | {"external_ref": "r-1"}, Idempotency_Key="k-1").json
    path = f"/orders/{first['id']}"
    send_action(client, path, "update", {"note": "for Erika"}, Idempotency_Key="k-1")
    send_action(client, path, "update", {}, Idempotency_Key="k-2")
    end_and_erase(client, first["id"])

    verified = app.test_cli_runner().invoke(args=["verify"])

    assert verified.stdout == "1 order verified, 0 differences.\n"
