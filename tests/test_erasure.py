"""Erasure: it removes all personal data of a customer, and keeps what accounting needs."""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.test import TestResponse

from app.db.engine import db
from tests.support.actions import UNIT, order_after, send_action
from tests.support.credentials import api_key, bearer, token
from tests.support.personal_data import CANARY, CUSTOMER, address, canary, live, personal_order, traces
from tests.support.samples import MINIMAL, slug


@pytest.fixture
def post(secure_app: Flask, secure_client: FlaskClient) -> Callable[..., TestResponse]:
    """Sends a request as the shop, with a key and an id that contain the customer's name; it must succeed."""
    scopes = ("orders:read", "orders:write", "orders:manage", "payments:write", "privacy:erase")
    headers = bearer(api_key(secure_app, *scopes))

    def post(path: str, body: Any = None, method: str = "POST", **more: str) -> TestResponse:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        sent: dict[str, Any] = {} if body is None else {"json": body, "content_type": kind}
        keyed = headers | {"Idempotency-Key": canary(), "X-Request-Id": canary()} if method != "GET" else headers
        response = secure_client.open(path, method=method, headers=keyed | more, **sent)
        assert response.status_code < 400, response.text
        return response

    return post


def erase(client: FlaskClient, app: Flask, customer: str = CUSTOMER) -> TestResponse:
    """The response of a completed erasure, or its problem."""
    headers = bearer(api_key(app, "privacy:erase", name="privacy"))
    response = client.delete(f"/customers/{customer}/personal-data", headers=headers)
    location = response.headers.get("Location")
    while response.status_code < 300 and response.json["status"] != "done":
        response = client.get(location, headers=headers)
    return response


def test_an_erasure_leaves_no_personal_data_of_the_customer(
    secure_app: Flask, secure_client: FlaskClient, post: Callable[..., TestResponse]
) -> None:
    for end in ("cancel", "complete") * 4:
        live(post, end=end)
    for number in range(100):  # of others too: when pages split, rows move
        theirs = MINIMAL | {"customer_id": f"c-{number}", "note": "n" * random.choice((0, 2000))}
        post("/orders", theirs, **{"Idempotency-Key": f"k-{number}", "X-Request-Id": f"r-{number}"})
        if number % 4 == 0:
            path = post("/orders", personal_order()).headers["Location"]
            post(f"{path}/cancel", {"reason": "customer", "note": canary(1500)})
    own = bearer(token(customer=CUSTOMER))
    made_by_themselves = secure_client.post("/orders", json=personal_order(), headers=own).headers["Location"]
    secure_client.post(f"{made_by_themselves}/cancel", json={"reason": "other", "note": canary()}, headers=own)
    assert {"orders", "order_events"} <= set(traces(secure_app))

    response = erase(secure_client, secure_app)

    assert (response.status_code, response.json["status"], response.json["orders"]) == (200, "done", 8 + 25 + 1)
    assert traces(secure_app) == []
    verified = secure_app.test_cli_runner().invoke(args=["verify"])
    assert verified.exit_code == 0, verified.output


def test_an_erasure_keeps_items_amounts_and_times(
    secure_app: Flask, secure_client: FlaskClient, post: Callable[..., TestResponse]
) -> None:
    path = live(post, end="complete")
    before = post(path, method="GET").json

    erase(secure_client, secure_app)

    after = post(path, method="GET").json
    kept = ("id", "number", "external_ref", "status", "items", "totals", "currency", "created_at")
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert after["adjustments"] == [{"type": "discount", "label": None, "amount": -250, "line": None}]
    assert after["shipping_address"] == {"country": "GB"}
    assert (after["note"], after["metadata"], after["version"]) == (None, {}, before["version"] + 1)
    assert after["customer_id"].startswith("erased-")


# Each member of an order is either kept or erased: a new member must be added to one of the two.
KEPT = {
    "id", "number", "external_ref", "channel", "status", "fulfillment_status", "payment_status", "return_status",
    "currency", "items", "totals", "ship_by", "deliver_by", "late", "related_orders", "created_at",
}  # fmt: skip
ERASED = {
    "customer_id", "adjustments", "holds", "payments", "fulfillments", "returns", "cancellations", "reopening", "tags",
    "metadata", "shipping_address", "billing_address", "note", "version", "updated_at", "allowed_actions",
}  # fmt: skip


@pytest.mark.parametrize("end", ["cancel", "complete"])
def test_every_member_of_an_order_is_either_kept_or_erased(
    secure_app: Flask, secure_client: FlaskClient, post: Callable[..., TestResponse], end: str
) -> None:
    path = live(post, end=end)
    before = post(path, method="GET").json

    erase(secure_client, secure_app)

    after = post(path, method="GET").json
    undecided = after.keys() ^ (KEPT | ERASED)
    assert not undecided, f"add {undecided} to KEPT or, if it may be personal data, to ERASED"
    assert {name: after[name] for name in KEPT} == {name: before[name] for name in KEPT}
    assert CANARY not in json.dumps(after)
    with secure_app.app_context(), db.engine.connect() as connection:
        for table in ("orders", "change_keys"):
            assert connection.scalar(text(f"SELECT count(fingerprint) FROM {table}")) == 0


def text_members(schemas: dict[str, Any], schema: dict[str, Any], name: str = "") -> Iterator[str]:
    """The names of the strings in a schema, such as holds.reason, that have neither a format nor fixed values."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    for member, below in schema.get("properties", {}).items():
        yield from text_members(schemas, below, f"{name}.{member}".lstrip("."))
    others = [
        *schema.get("anyOf", ()),
        *schema.get("oneOf", ()),
        schema.get("items"),
        schema.get("additionalProperties"),
    ]
    for below in others:
        if isinstance(below, dict):
            yield from text_members(schemas, below, name)
    if "string" in schema.get("type", ()) and not schema.keys() & {"enum", "format"}:
        yield name


def values_of(value: Any, name: str) -> Iterator[Any]:
    if isinstance(value, list):
        for entry in value:
            yield from values_of(entry, name)
    elif name and value is not None:
        member, _, below = name.partition(".")
        yield from values_of(value[member], below) if member in value else ()
    else:
        yield value


# The texts in erased members that are no personal data.
KEPT_TEXTS = {
    "holds.handle", "holds.placed_by", "payments.reference", "payments.method", "shipping_address.country",
    "billing_address.country",
}  # fmt: skip


def test_each_text_that_is_erased_is_personal_data_before(
    client: FlaskClient, post: Callable[..., TestResponse]
) -> None:
    schemas = client.get("/openapi.json").json["components"]["schemas"]
    history = post(f"{live(post, end='complete')}/history?limit=100", method="GET").json["events"]

    names = {name for name in text_members(schemas, schemas["Order"]) if name.partition(".")[0] in ERASED} - KEPT_TEXTS
    assert names >= {"note", "tags", "metadata", "fulfillments.events.description", "fulfillments.tracking.url"}
    for name in sorted(names):
        values = list(values_of([event["data"] for event in history], name))
        assert CANARY in json.dumps(values), f"add {name} to KEPT_TEXTS or, with a canary, to support/personal_data.py"


def test_the_history_records_the_erasure_and_no_personal_data(
    secure_app: Flask, secure_client: FlaskClient, post: Callable[..., TestResponse]
) -> None:
    path = live(post, end="complete")
    count = len(post(f"{path}/history", method="GET").json["events"])

    erase(secure_client, secure_app)

    history = post(f"{path}/history", method="GET")
    events = history.json["events"]
    assert (events[-1]["type"], events[-1]["actor"], len(events)) == ("order.erased", "service:privacy", count + 1)
    assert CANARY not in history.text
    assert CANARY not in post(f"{path}?version=1", method="GET").text


@pytest.mark.parametrize("query", ["", "?version=1"])
def test_no_entity_tag_from_before_is_current_afterwards(
    secure_app: Flask, secure_client: FlaskClient, post: Callable[..., TestResponse], query: str
) -> None:
    path = live(post, end="complete") + query
    tag = post(path, method="GET").headers["ETag"]

    erase(secure_client, secure_app)

    after = post(path, method="GET", **{"If-None-Match": tag})
    assert (after.status_code, after.headers["ETag"] != tag) == (200, True)
    assert post(path, method="GET", **{"If-None-Match": after.headers["ETag"]}).status_code == 304


def test_an_erased_order_is_changed_under_its_entity_tag(
    secure_app: Flask, secure_client: FlaskClient, post: Callable[..., TestResponse]
) -> None:
    path = live(post, end="complete")
    erase(secure_client, secure_app)
    current = post(path, method="GET")

    changed = post(path, {"external_ref": "book-7"}, "PATCH", **{"If-Match": current.headers["ETag"]})

    assert changed.json["version"] == current.json["version"] + 1
    assert changed.headers["ETag"] == post(path, method="GET").headers["ETag"] != current.headers["ETag"]


PERSONAL_CHANGES: list[tuple[str, dict[str, Any], str]] = [
    ("update", {"note": canary()}, "note"),
    ("update", {"metadata": {"name": canary()}}, "metadata"),
    ("update", {"shipping_address": address()}, "shipping_address"),
    ("update", {"note": canary(), "billing_address": address()}, "billing_address, note"),
    ("update", {"tags": [canary()]}, "tags"),
    ("return", UNIT | {"reason": canary()}, "reason"),
    ("expect", UNIT | {"status": "expected", "reason": canary()}, "reason"),
    ("pay", {"type": "capture", "amount": 1, "reference": "p-1", "note": canary()}, "note"),
    ("track", {"type": "delivered", "description": canary()}, "description"),
    ("tracking", {"tracking": {"number": canary()}}, "tracking"),
]


@pytest.mark.parametrize(("action", "body", "names"), PERSONAL_CHANGES)
def test_an_erased_order_accepts_no_personal_data(
    app: Flask, client: FlaskClient, action: str, body: dict[str, Any], names: str
) -> None:
    path = order_after(client, "confirm", "fulfill", "complete", customer_id=CUSTOMER)
    client.delete(f"/customers/{CUSTOMER}/personal-data")

    refused = send_action(client, path, action, body)

    assert slug(refused) == (409, "illegal-action")
    assert refused.json["detail"].endswith(f"no longer accepts {names}.")
    assert traces(app) == []


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("return", UNIT),
        ("pay", {"type": "capture", "amount": 1, "reference": "p-1", "method": "card"}),
        ("track", {"type": "delivered"}),
        ("tracking", {"tracking": {}}),
        ("update", {"related_orders": [], "ship_by": "2030-01-01T00:00:00Z"}),
        ("update", {"external_ref": "book-7", "note": None, "metadata": {}}),
        ("update", {"shipping_address": {"country": "FR"}}),
    ],
)
def test_an_erased_order_accepts_units_references_and_countries(
    app: Flask, client: FlaskClient, action: str, body: dict[str, Any]
) -> None:
    path = order_after(client, "confirm", "fulfill", "complete", customer_id=CUSTOMER)
    client.delete(f"/customers/{CUSTOMER}/personal-data")

    assert send_action(client, path, action, body).status_code in (200, 201)
    assert app.test_cli_runner().invoke(args=["verify"]).exit_code == 0


def test_an_open_order_of_an_erased_customer_accepts_no_personal_data(app: Flask, client: FlaskClient) -> None:
    """An import can bring one in."""
    path = order_after(client, "confirm", customer_id=CUSTOMER)
    document = client.get(path).json | {"customer_id": "erased-0123456789abcdef"}
    document["id"] = document["id"][:-1] + ("0" if document["id"][-1] != "0" else "1")
    document["number"] = document["number"][:-1] + ("0" if document["number"][-1] != "0" else "1")
    imported = import_lines(app, document, document | {"note": canary()})
    path = f"/orders/{document['id']}"
    labelled = {"type": "fee", "amount": 1, "label": canary()}

    refused = [
        send_action(client, path, "hold", {"kind": "other", "reason": canary()}),
        send_action(client, path, "fulfill", UNIT | {"tracking": {"number": canary()}}),
        send_action(client, path, "cancel", {"reason": "customer", "note": canary()}),
        send_action(client, path, "cancel", {"reason": "customer", "adjustments": [labelled]}),
    ]

    assert "line 2: #/customer_id: " in imported
    assert [slug(response) for response in refused] == [(409, "illegal-action")] * 4
    assert send_action(client, path, "cancel", {"reason": "customer"}).status_code == 200


def import_lines(app: Flask, *documents: dict[str, Any]) -> str:
    lines = b"".join(json.dumps(document).encode() + b"\n" for document in documents)
    return app.test_cli_runner().invoke(args=["orders", "import", "-"], input=lines).output


@pytest.mark.parametrize(
    "customer", ["a/b", "/a", "a/", "a//b", "%2F", "a/personal-data", "%", "a%2Fb", "//", "...", "a.b/.c", "a?b#c"]
)
def test_a_customer_is_erased_by_an_id_with_any_characters(
    secure_app: Flask, secure_client: FlaskClient, post: Callable[..., TestResponse], customer: str
) -> None:
    order = post("/orders", MINIMAL | {"customer_id": customer, "note": canary()}).headers["Location"]
    post(f"{order}/cancel", {"reason": "customer"})

    response = erase(secure_client, secure_app, quote(customer, safe=""))

    assert response.status_code == 200
    assert post(order, method="GET").json["note"] is None


def test_open_orders_prevent_the_erasure(
    secure_app: Flask, secure_client: FlaskClient, post: Callable[..., TestResponse]
) -> None:
    ended = live(post, end="cancel")
    open_order = post("/orders", personal_order()).json["id"]

    response = erase(secure_client, secure_app)

    assert slug(response) == (409, "open-orders")
    assert response.json["order_id"] == open_order
    assert post(ended, method="GET").json["customer_id"] == CUSTOMER
    post(f"/orders/{open_order}/cancel", {"reason": "staff"})
    assert erase(secure_client, secure_app).status_code == 200


def test_a_repeated_erasure_changes_nothing(
    secure_app: Flask, secure_client: FlaskClient, post: Callable[..., TestResponse]
) -> None:
    path = live(post, end="complete")

    statuses = [erase(secure_client, secure_app).status_code for _ in range(3)]

    assert statuses == [200] * 3
    assert post(f"{path}/history", method="GET").json["events"][-2]["type"] != "order.erased"


def test_orders_of_other_customers_are_not_changed(
    secure_app: Flask, secure_client: FlaskClient, post: Callable[..., TestResponse]
) -> None:
    post("/orders", MINIMAL | {"customer_id": CUSTOMER.upper(), "note": "mine"})
    post("/orders", MINIMAL | {"customer_id": CUSTOMER + "2", "note": "mine"})

    assert erase(secure_client, secure_app).status_code == 200
    assert {order["note"] for order in post("/orders", method="GET").json["orders"]} == {"mine"}


def test_customers_may_erase_themselves(
    secure_app: Flask, secure_client: FlaskClient, post: Callable[..., TestResponse]
) -> None:
    live(post, end="cancel")
    own = bearer(token(customer=CUSTOMER, scope="privacy:erase"))

    assert secure_client.delete(f"/customers/{CUSTOMER}/personal-data", headers=own).status_code == 200
    # The record of the principal who requested it must not contain the name.
    assert traces(secure_app) == []


@pytest.mark.parametrize("customer", ["a%00b", "%0a", "%7f", "a" * 65, "%ed%a0%80" * 30, "a%C2%85"])
def test_an_impossible_customer_id_is_refused(secure_app: Flask, secure_client: FlaskClient, customer: str) -> None:
    response = erase(secure_client, secure_app, customer)

    assert slug(response) == (400, "invalid-request")
    assert [fault["parameter"] for fault in json.loads(response.data)["errors"]] == ["customer_id"]


@pytest.mark.parametrize("customer", ["nobody", "é", "a%20b", "%25", "a" * 64, "Зоя", "🙂", "'; DROP TABLE orders; --"])
def test_erasing_a_customer_without_orders_succeeds_at_once(
    secure_app: Flask, secure_client: FlaskClient, customer: str
) -> None:
    assert erase(secure_client, secure_app, customer).status_code == 200
