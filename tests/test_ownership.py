"""Ownership: for a customer nobody else's orders exist, whichever way they look."""

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.support.credentials import api_key, bearer, token
from tests.support.samples import MINIMAL, slug

Send = Callable[..., TestResponse]
RICH = {"external_ref": "r-1", "note": "canary", "metadata": {"paid": "no"}, "currency": "EUR", "items": [
    {"item_id": "sku-9", "quantity": 1, "unit_price": 1250}
]}  # fmt: skip


def caller(client: FlaskClient, credential: str) -> Send:
    """Sends requests with the credentials."""

    def send(method: str, path: str, body: Any = None, **headers: str) -> TestResponse:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        sent: dict[str, Any] = {} if body is None else {"json": body, "content_type": kind}
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.open(path, method=method, headers=bearer(credential) | given, buffered=True, **sent)

    return send


@pytest.fixture
def shop(secure_app: Flask, secure_client: FlaskClient) -> Send:
    return caller(secure_client, api_key(secure_app, "orders:read", "orders:write", "orders:manage"))


@pytest.fixture
def ada(secure_client: FlaskClient) -> Send:
    return caller(secure_client, token(customer="c-ada"))


@pytest.fixture
def bob(secure_client: FlaskClient) -> Send:
    return caller(secure_client, token(customer="c-bob"))


@pytest.fixture
def adas(shop: Send, ada: Send) -> list[str]:
    """Two orders of Ada, one created by a service and one by herself. Bob has one, too."""
    shop("POST", "/orders", MINIMAL | {"customer_id": "c-bob"})
    responses = [send("POST", "/orders", MINIMAL | RICH | {"customer_id": "c-ada"}) for send in (shop, ada)]
    return [response.json["id"] for response in responses]


def ids(response: TestResponse) -> set[str]:
    return {order["id"] for order in response.json["orders"]}


def test_a_customer_lists_all_orders_of_the_customer_and_no_others(
    ada: Send, bob: Send, shop: Send, adas: list[str]
) -> None:
    assert ids(ada("GET", "/orders")) == set(adas)
    assert len(ids(bob("GET", "/orders"))) == 1
    assert len(ids(shop("GET", "/orders"))) == 3


FILTERS = [
    "customer_id=c-ada", "status=pending&customer_id=c-ada", "external_ref=r-1", "item_id=sku-9", "number={number}",
    "number={number}&customer_id=c-ada", "external_ref=r-1&customer_id=c-ada", "item_id=sku-9&customer_id=c-ada",
    "customer_id=c-ada&created_from=2020-01-01T00:00:00Z", "sort=created_at&item_id=sku-9&status=pending",
]  # fmt: skip


@pytest.mark.parametrize("query", FILTERS)
def test_no_filter_finds_an_order_of_another_customer(ada: Send, bob: Send, adas: list[str], query: str) -> None:
    query = query.format(number=ada("GET", f"/orders/{adas[0]}").json["number"])

    found, hidden = (send("GET", f"/orders?{query}") for send in (ada, bob))
    absent = bob("GET", "/orders?number=x")

    assert ids(found) and ids(found) <= set(adas)
    assert (hidden.status_code, hidden.data) == (absent.status_code, absent.data)


@pytest.mark.parametrize("query", ["status=pending", "fulfillment_status=unfulfilled", "limit=1", "limit=100"])
def test_no_filter_lists_orders_of_another_customer(ada: Send, bob: Send, adas: list[str], query: str) -> None:
    seen: set[str] = set()
    page = bob("GET", f"/orders?{query}")
    for _ in range(5):
        seen |= ids(page)
        if page.json["next_cursor"]:
            page = bob("GET", f"/orders?{query}&cursor={page.json['next_cursor']}")

    assert len(seen) == 1 and not seen & set(adas)


def test_a_cursor_of_another_principal_lists_only_own_orders(shop: Send, bob: Send, adas: list[str]) -> None:
    cursor = shop("GET", "/orders?limit=1").json["next_cursor"]

    page = bob("GET", f"/orders?limit=1&cursor={cursor}")

    assert page.status_code == 200 and not ids(page) & set(adas)


@pytest.mark.parametrize("media_type", ["application/x-ndjson", "text/csv"])
@pytest.mark.parametrize("query", ["", *FILTERS[:4]])
def test_a_customer_exports_only_own_orders(ada: Send, bob: Send, adas: list[str], media_type: str, query: str) -> None:
    own, others = (send("GET", f"/orders/export?{query}", Accept=media_type) for send in (ada, bob))

    assert own.mimetype == others.mimetype == media_type
    assert all(order_id in own.text for order_id in adas)
    assert not any(trace in others.text for trace in (*adas, "c-ada", "canary", "sku-9"))
    if media_type == "text/csv":
        assert len(list(csv.reader(io.StringIO(others.text)))) == (1 if query else 2)


@pytest.mark.parametrize("below", ["", "?version=1", "/history", "/history?cursor=x"])
def test_only_its_owner_reads_an_order_its_versions_and_its_history(
    ada: Send, bob: Send, adas: list[str], below: str
) -> None:
    for order_id in adas:
        own, hidden = ada("GET", f"/orders/{order_id}{below}"), bob("GET", f"/orders/{order_id}{below}")

        if "cursor" in below:
            assert own.status_code == hidden.status_code == 400
        else:
            assert (own.status_code, slug(hidden)) == (200, (404, "order-not-found"))


def test_if_none_match_reveals_nothing_about_orders_of_others(bob: Send, adas: list[str]) -> None:
    read = bob("GET", f"/orders/{adas[0]}", If_None_Match='"1"')
    changed = bob("PATCH", f"/orders/{adas[0]}", {"note": "n"}, If_Match='"7"')

    assert slug(read) == slug(changed) == (404, "order-not-found")


def test_each_principal_has_its_own_idempotency_keys(ada: Send, bob: Send, shop: Send) -> None:
    responses = [
        send("POST", "/orders", MINIMAL | {"customer_id": customer}, Idempotency_Key="k-1")
        for send, customer in ((ada, "c-ada"), (bob, "c-bob"), (shop, "c-ada"), (shop, "c-ada"), (ada, "c-ada"))
    ]

    assert [response.status_code for response in responses] == [201] * 5
    order_ids = [response.json["id"] for response in responses]
    assert len(set(order_ids)) == 3 and order_ids[2] == order_ids[3] and order_ids[0] == order_ids[4]
    assert ["Idempotent-Replayed" in response.headers for response in responses] == [False, False, False, True, True]


def test_the_key_of_another_principal_is_no_conflict(ada: Send, bob: Send) -> None:
    ada("POST", "/orders", MINIMAL | {"customer_id": "c-ada", "note": "canary"}, Idempotency_Key="k-1")

    created = bob("POST", "/orders", MINIMAL | {"customer_id": "c-bob"}, Idempotency_Key="k-1")

    assert created.status_code == 201 and "canary" not in created.text


def test_the_key_of_a_change_belongs_to_its_principal(ada: Send, shop: Send, bob: Send, adas: list[str]) -> None:
    path = f"/orders/{adas[0]}"
    shop("PATCH", path, {"note": "by the shop"}, Idempotency_Key="k-1")

    own = ada("PATCH", path, {"note": "by Ada"}, Idempotency_Key="k-1")
    others = bob("PATCH", path, {"note": "by the shop"}, Idempotency_Key="k-1")

    assert (own.status_code, own.json["note"]) == (200, "by Ada")
    assert "Idempotent-Replayed" not in own.headers
    assert slug(others) == (404, "order-not-found")


def test_a_reference_is_unique_for_each_principal_alone(ada: Send, bob: Send, shop: Send) -> None:
    def order(customer: str) -> dict[str, Any]:
        return MINIMAL | {"customer_id": customer, "external_ref": "r-1"}

    responses = [send("POST", "/orders", order(who)) for send, who in ((shop, "c-ada"), (ada, "c-ada"), (bob, "c-bob"))]
    again = bob("POST", "/orders", order("c-bob"))

    assert [response.status_code for response in responses] == [201] * 3
    assert slug(again) == (409, "duplicate-external-ref")
    assert again.json["order_id"] == responses[2].json["id"]
    assert not any(response.json["id"] in again.text for response in responses[:2])


def test_a_customers_batch_creates_only_own_orders(ada: Send, bob: Send) -> None:
    ada("POST", "/orders", MINIMAL | {"customer_id": "c-ada", "external_ref": "r-1", "note": "canary"})
    entries = [
        MINIMAL | {"customer_id": "c-bob", "external_ref": "r-1"},
        MINIMAL | {"customer_id": "c-ada", "external_ref": "r-1"},
        MINIMAL | {"customer_id": "c-ada", "idempotency_key": "k-1"},
    ]

    results = bob("POST", "/orders/batch", {"orders": entries})

    assert [result["status"] for result in results.json["results"]] == [201, 403, 403]
    assert "canary" not in results.text


@pytest.mark.parametrize(
    "patch",
    [
        {"external_ref": "r-2"},
        {"metadata": {"paid": "yes"}},
        {"items": [{"item_id": "sku-9", "quantity": 1, "unit_price": 0}]},
        {"items": [{"item_id": "sku-9", "quantity": 1000, "unit_price": 1250}]},
        {"adjustments": [{"type": "discount", "amount": -1250}]},
        {"currency": "JPY"},
        {"note": "n", "metadata": None},
    ],
)
def test_a_customer_can_change_only_the_permitted_members_of_an_order_of_a_service(
    ada: Send, shop: Send, adas: list[str], patch: dict[str, Any]
) -> None:
    of_service, own = adas

    refused = ada("PATCH", f"/orders/{of_service}", patch)

    assert slug(refused) == (403, "forbidden")
    assert shop("GET", f"/orders/{of_service}").json["version"] == 1
    assert ada("PATCH", f"/orders/{own}", patch).status_code == 200
    theirs = {"note": "n", "shipping_address": {"country": "DE"}, "billing_address": {"country": "DE"}}
    assert ada("PATCH", f"/orders/{of_service}", theirs).status_code == 200


def test_a_customer_cannot_find_out_which_references_a_service_uses(ada: Send, shop: Send, adas: list[str]) -> None:
    shop("POST", "/orders", MINIMAL | {"customer_id": "c-bob", "external_ref": "taken"})

    taken, free = (ada("PATCH", f"/orders/{adas[0]}", {"external_ref": ref}) for ref in ("taken", "free"))

    assert slug(taken) == slug(free) == (403, "forbidden")
    assert taken.json["detail"] == free.json["detail"]


def test_customers_cancel_their_own_orders(ada: Send, bob: Send, adas: list[str]) -> None:
    path = f"/orders/{adas[0]}/cancel"

    hidden, own = (send("POST", path, {"reason": "customer"}) for send in (bob, ada))

    assert slug(hidden) == (404, "order-not-found")
    assert (own.status_code, own.json["status"]) == (200, "cancelled")


@pytest.mark.parametrize("scope", ["orders:read orders:write orders:manage"])
def test_a_token_that_manages_orders_is_a_service(
    secure_client: FlaskClient, shop: Send, adas: list[str], scope: str
) -> None:
    agent = caller(secure_client, token(customer="agent-7", scope=scope))

    assert len(ids(agent("GET", "/orders"))) == 3
    assert agent("POST", f"/orders/{adas[0]}/confirm").status_code == 200
    events = shop("GET", f"/orders/{adas[0]}/history").json["events"]
    assert [event["actor"] for event in events] == ["service:shop", "token:agent-7"]


SECRET = "suspected fraud canary-7"


@pytest.fixture
def agent(secure_client: FlaskClient) -> Send:
    return caller(secure_client, token(customer="agent-7", scope="orders:read orders:write orders:manage"))


@pytest.fixture
def on_hold(shop: Send, agent: Send, adas: list[str]) -> str:
    """The path of Ada's own order, on hold twice, the second time by a member of the staff."""
    path = f"/orders/{adas[1]}"
    assert shop("PUT", f"{path}/holds/review", {"kind": "other", "reason": SECRET}).status_code == 200
    assert agent("PUT", f"{path}/holds/review", {"kind": "other", "reason": f"{SECRET} again"}).status_code == 200
    return path


@pytest.mark.parametrize("below", ["", "?version=2", "?version=3", "/history"])
def test_a_customer_does_not_see_reasons_of_holds_or_actors(ada: Send, shop: Send, on_hold: str, below: str) -> None:
    read, full = ada("GET", on_hold + below), shop("GET", on_hold + below)

    assert read.status_code == 200
    assert SECRET in full.text
    for internal in (SECRET, "service:shop", "agent-7", "token:"):
        assert internal not in read.text
    assert read.headers["Vary"] == full.headers["Vary"]
    assert "Authorization" in read.headers["Vary"]


@pytest.mark.parametrize("version", [2, 3])
def test_a_customers_view_has_its_own_entity_tag(ada: Send, shop: Send, on_hold: str, version: int) -> None:
    """One strong tag stands for one sequence of bytes (RFC 9110 §8.8.1)."""
    path = f"{on_hold}?version={version}"

    assert shop("GET", path).headers["ETag"] == f'"{version}"'
    assert ada("GET", path).headers["ETag"] == f'"{version}-customer"'
    assert ada("GET", path, If_None_Match=f'"{version}"').status_code == 200
    assert ada("GET", path, If_None_Match=f'"{version}-customer"').status_code == 304
    assert ada("GET", f"{on_hold}?version=1").headers["ETag"] == shop("GET", f"{on_hold}?version=1").headers["ETag"]


def test_caches_keep_the_responses_of_each_caller_apart(ada: Send, on_hold: str) -> None:
    paths = [on_hold, f"{on_hold}?version=1", "/orders", f"{on_hold}/history"]

    assert ["Authorization" in ada("GET", path).headers["Vary"] for path in paths] == [True] * 4


def test_apart_from_hidden_members_a_customer_reads_the_same_document(ada: Send, shop: Send, on_hold: str) -> None:
    read, full = ada("GET", on_hold).json, shop("GET", on_hold).json

    [hold] = full["holds"]
    assert hold.pop("reason") == f"{SECRET} again"
    assert hold.pop("placed_by") == "token:agent-7" and read["holds"][0].pop("placed_by") == "staff"
    assert read == full
    assert list(read) == list(full)
    [read_events, full_events] = [send("GET", f"{on_hold}/history").json["events"] for send in (ada, shop)]
    assert [event["actor"] for event in read_events] == ["customer:c-ada", "service", "staff"]
    assert [event["actor"] for event in full_events] == ["customer:c-ada", "service:shop", "token:agent-7"]
    assert read_events[0] == full_events[0]


@pytest.mark.parametrize("path", ["/orders", "/orders/export", "/orders/export?format=csv", "/orders?status=pending"])
def test_lists_and_exports_hide_the_reason_of_a_hold_from_customers(ada: Send, on_hold: str, path: str) -> None:
    listed = ada("GET", path)

    assert listed.status_code == 200
    assert on_hold.removeprefix("/orders/") in listed.text
    assert SECRET not in listed.text


def test_responses_to_a_customers_changes_hide_the_reason_of_a_hold(ada: Send, shop: Send, on_hold: str) -> None:
    body = {"note": "Ring twice."}
    tag = ada("GET", on_hold).headers["ETag"]

    changed = ada("PATCH", on_hold, body, Idempotency_Key="k-1", If_Match=tag)
    unchanged = ada("PATCH", on_hold, body)
    shop("PUT", f"{on_hold}/holds/review", {"kind": "other", "reason": f"{SECRET} for ever"})
    replayed = ada("PATCH", on_hold, body, Idempotency_Key="k-1", If_Match=tag)
    cancelled = ada("POST", f"{on_hold}/cancel", {"reason": "customer"}, Idempotency_Key="k-2")

    for response in (changed, unchanged, replayed, cancelled):
        assert response.status_code == 200
        assert SECRET not in response.text
    assert changed.data == replayed.data and "Idempotent-Replayed" in replayed.headers
    assert changed.json["holds"][0].keys() == {"handle", "kind", "until", "placed_by", "placed_at"}
    assert cancelled.json["holds"] == []


def test_a_text_that_resembles_a_hold_is_not_altered(ada: Send, shop: Send, on_hold: str) -> None:
    patch = {"note": '"holds":[],"payments":[],', "metadata": {"holds": "[]", '"holds":[],"payments":[],': ""}}
    assert ada("PATCH", on_hold, patch).status_code == 200

    assert SECRET not in ada("GET", on_hold).text
    assert shop("GET", on_hold).json["note"] == ada("GET", on_hold).json["note"] == '"holds":[],"payments":[],'
