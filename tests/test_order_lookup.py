"""An order is found by its creator's reference, and by the idempotency key of its create."""

from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.support.actions import send_action
from tests.support.credentials import api_key, bearer, token
from tests.support.samples import MINIMAL, error_locations, slug

REFERENCES = [
    "r-1", "a/b", "/a", "a/", "a//b", "//", "%2F", "%", "history", "confirm", "a b", "é", "🙂", "a?b#c", "...",
    "a.b/.c", "x" * 64, "'; DROP TABLE orders; --",
]  # fmt: skip


def by_reference(client: FlaskClient, external_ref: str, **headers: str) -> TestResponse:
    return client.get(f"/orders/by-ref/{quote(external_ref, safe='')}", headers=headers)


def keyed(client: FlaskClient, key: str, headers: dict[str, str] | None = None) -> list[str]:
    """The ids of the orders that a list by idempotency key has."""
    response = client.get("/orders", query_string={"idempotency_key": key}, headers=headers)
    assert response.status_code == 200, response.text
    return [order["id"] for order in response.json["orders"]]


@pytest.fixture
def shop(secure_app: Flask) -> dict[str, str]:
    return bearer(api_key(secure_app, "orders:read", "orders:write", "orders:manage", "privacy:erase", name="shop"))


@pytest.fixture
def office(secure_app: Flask) -> dict[str, str]:
    return bearer(api_key(secure_app, "orders:read", "orders:write", name="office"))


@pytest.mark.parametrize("reference", REFERENCES)
def test_an_order_is_read_by_a_reference_with_any_characters(client: FlaskClient, reference: str) -> None:
    created = client.post("/orders", json=MINIMAL | {"external_ref": reference})
    client.post("/orders", json=MINIMAL | {"external_ref": "another"})

    read = by_reference(client, reference)

    assert (read.status_code, read.data, read.headers["ETag"]) == (200, created.data, '"1"')


def test_the_response_is_the_current_order_with_its_entity_tag(client: FlaskClient) -> None:
    path = client.post("/orders", json=MINIMAL | {"external_ref": "r-1"}).headers["Location"]
    confirmed = send_action(client, path, "confirm")

    assert by_reference(client, "r-1").data == confirmed.data
    assert by_reference(client, "r-1", **{"If-None-Match": '"1"'}).status_code == 200
    assert by_reference(client, "r-1", **{"If-None-Match": '"2"'}).status_code == 304


def test_an_order_is_found_by_its_reference_until_that_is_changed(client: FlaskClient) -> None:
    path = client.post("/orders", json=MINIMAL | {"external_ref": "old"}).headers["Location"]
    send_action(client, path, "update", {"external_ref": "new"})

    assert slug(by_reference(client, "old")) == (404, "order-not-found")
    assert by_reference(client, "new").status_code == 200


@pytest.mark.parametrize("reference", ["a%00b", "%0A", "x" * 65])
def test_an_invalid_reference_is_refused(client: FlaskClient, reference: str) -> None:
    refused = client.get(f"/orders/by-ref/{reference}")

    assert error_locations(refused) == {"external_ref"}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_looking_up_a_reference_changes_nothing(client: FlaskClient, method: str) -> None:
    client.post("/orders", json=MINIMAL | {"external_ref": "hold"})

    assert slug(client.open("/orders/by-ref/hold", method=method, json={})) == (405, "method-not-allowed")


def test_the_same_reference_of_another_service_is_another_order(
    secure_client: FlaskClient, shop: dict[str, str], office: dict[str, str]
) -> None:
    body = MINIMAL | {"external_ref": "r-1"}
    of_shop = secure_client.post("/orders", json=body, headers=shop).json["id"]
    assert slug(by_reference(secure_client, "r-1", **office)) == (404, "order-not-found")

    of_office = secure_client.post("/orders", json=body, headers=office).json["id"]

    assert by_reference(secure_client, "r-1", **shop).json["id"] == of_shop
    assert by_reference(secure_client, "r-1", **office).json["id"] == of_office


def test_a_customer_finds_neither_the_shops_references_nor_its_keys(
    secure_client: FlaskClient, shop: dict[str, str]
) -> None:
    own = bearer(token(customer="c-1"))
    body = MINIMAL | {"external_ref": "r-1"}
    secure_client.post("/orders", json=body, headers=shop | {"Idempotency-Key": "k-1"})

    assert slug(by_reference(secure_client, "r-1", **own)) == (404, "order-not-found")
    assert keyed(secure_client, "k-1", own) == []
    created = secure_client.post("/orders", json=body, headers=own | {"Idempotency-Key": "k-1"}).json["id"]
    assert by_reference(secure_client, "r-1", **own).json["id"] == created
    assert keyed(secure_client, "k-1", own) == [created]


@pytest.mark.parametrize(("sent", "key"), [("k-1", "k-1"), ('"k 1, \\"2\\""', 'k 1, "2"'), ("é", None)])
def test_an_order_is_listed_by_the_key_it_was_created_with(client: FlaskClient, sent: str, key: str | None) -> None:
    created = client.post("/orders", json=MINIMAL, headers={"Idempotency-Key": sent})
    client.post("/orders", json=MINIMAL, headers={"Idempotency-Key": "another"})

    if key is None:
        assert slug(created) == (400, "invalid-idempotency-key")
    else:
        assert keyed(client, key) == [created.json["id"]]


def test_a_key_of_a_batch_is_listed_and_one_of_a_change_is_not(client: FlaskClient) -> None:
    entries = [MINIMAL | {"idempotency_key": "k-1"}, MINIMAL | {"external_ref": "r-1"}]
    [first, _] = client.post("/orders/batch", json={"orders": entries}).json["results"]
    send_action(client, f"/orders/{first['order']['id']}", "confirm", Idempotency_Key="k-2")

    assert keyed(client, "k-1") == [first["order"]["id"]]
    assert keyed(client, "k-2") == keyed(client, "r-1") == []


def test_a_refused_create_stores_no_key(client: FlaskClient) -> None:
    client.post("/orders", json=MINIMAL | {"items": []}, headers={"Idempotency-Key": "k-1"})

    assert keyed(client, "k-1") == []


def test_other_filters_apply_to_the_order_of_a_key_as_well(client: FlaskClient) -> None:
    created = client.post("/orders", json=MINIMAL, headers={"Idempotency-Key": "k-1"}).json["id"]

    found = [
        client.get("/orders", query_string={"idempotency_key": "k-1"} | filters).json["orders"]
        for filters in ({"status": "pending"}, {"status": "pending,cancelled"}, {"status": "cancelled"})
    ]

    assert [[order["id"] for order in orders] for orders in found] == [[created], [created], []]


@pytest.mark.parametrize("key", ["", "k" * 256, "é", "a\nb"])
def test_an_invalid_key_is_refused(client: FlaskClient, key: str) -> None:
    assert error_locations(client.get("/orders", query_string={"idempotency_key": key})) == {"idempotency_key"}


def test_the_key_of_another_service_is_unknown(
    secure_client: FlaskClient, shop: dict[str, str], office: dict[str, str]
) -> None:
    of_shop, of_office = (
        secure_client.post("/orders", json=MINIMAL, headers=headers | {"Idempotency-Key": "k-1"}).json["id"]
        for headers in (shop, office)
    )

    assert keyed(secure_client, "k-1", shop) == [of_shop]
    assert keyed(secure_client, "k-1", office) == [of_office]


def test_after_an_erasure_a_service_still_finds_its_order_and_the_customer_does_not(
    secure_client: FlaskClient, shop: dict[str, str]
) -> None:
    own = bearer(token(customer="c-1"))
    for headers, reference in ((shop, "shops"), (own, "own")):
        created = headers | {"Idempotency-Key": "k-1"}
        path = secure_client.post("/orders", json=MINIMAL | {"external_ref": reference}, headers=created)
        send_action(secure_client, path.headers["Location"], "cancel", **shop)

    assert secure_client.delete("/customers/c-1/personal-data", headers=shop).json["orders"] == 2

    found = by_reference(secure_client, "shops", **shop)
    assert (found.status_code, found.json["customer_id"][:7]) == (200, "erased-")
    assert keyed(secure_client, "k-1", shop) == [found.json["id"]]
    assert slug(by_reference(secure_client, "own", **own)) == (404, "order-not-found")
    assert keyed(secure_client, "k-1", own) == []
