"""The Idempotency-Key on POST /orders (draft-ietf-httpapi-idempotency-key-header-07)."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, select, text, update
from werkzeug.test import TestResponse

from app.db.engine import db
from app.models import Order
from app.models.order_id import hash_key
from tests.support.concurrency import run_concurrently
from tests.support.samples import MINIMAL, RICHEST, slug

OTHER = MINIMAL | {"customer_id": "c-2"}


def post(client: FlaskClient, body: Any, key: str) -> TestResponse:
    return client.post("/orders", json=body, headers={"Idempotency-Key": key})


def order_count(client: FlaskClient) -> int:
    return len(client.get("/orders?limit=100").json["orders"])


def test_a_replay_is_the_first_response_byte_for_byte(client: FlaskClient) -> None:
    first, again = post(client, RICHEST, "k-1"), post(client, RICHEST, "k-1")

    assert (again.status_code, again.data) == (201, first.data)
    for name in ("ETag", "Location", "Content-Type"):
        assert again.headers[name] == first.headers[name]
    assert (first.headers.get("Idempotent-Replayed"), again.headers["Idempotent-Replayed"]) == (None, "true")
    assert order_count(client) == 1


def test_a_replay_takes_precedence_over_the_conflict_of_its_own_reference(client: FlaskClient) -> None:
    body = MINIMAL | {"external_ref": "r-1"}
    first = post(client, body, "k-1")

    again, other_key = post(client, body, "k-1"), post(client, body, "k-2")

    assert again.data == first.data
    assert slug(other_key) == (409, "duplicate-external-ref")


def test_another_body_under_the_same_key_is_422(client: FlaskClient) -> None:
    post(client, MINIMAL, "k-1")

    response = post(client, OTHER, "k-1")

    assert slug(response) == (422, "idempotency-key-reused")
    assert order_count(client) == 1


@pytest.mark.parametrize(
    ("quoted", "bare"),
    [('"k-1"', "k-1"), ('  "k-1"  ', "k-1"), (r'"a\\b"', r"a\b"), ('"' + "k" * 255 + '"', "k" * 255)],
)
def test_a_quoted_key_equals_the_same_key_without_quotes(client: FlaskClient, quoted: str, bare: str) -> None:
    first = post(client, MINIMAL, quoted)

    again = post(client, MINIMAL, bare)

    assert (first.status_code, again.status_code, again.data) == (201, 201, first.data)


def test_keys_differ_by_case(client: FlaskClient) -> None:
    assert post(client, MINIMAL, "k").data != post(client, MINIMAL, "K").data


@pytest.mark.parametrize("key", [r'"a\"b"', '"two words"', '"a,b"', "a;b", "{}", r"\\"])
def test_a_key_may_contain_any_printable_ascii_character(client: FlaskClient, key: str) -> None:
    assert post(client, MINIMAL, key).status_code == post(client, MINIMAL, key).status_code == 201
    assert order_count(client) == 1


MALFORMED = [
    "", " ", '""', '"', '"a', 'a"', 'a"b', "two words", "a,b", '"a", "b"', '"a";x=1', r'"a\b"', '"a\\"',
    "k" * 256, '"' + "k" * 256 + '"', "é", '"é"', "\x7f", "a\tb", "\x85", "\u00a0",
]  # fmt: skip


@pytest.mark.parametrize("key", MALFORMED)
def test_a_malformed_key_is_400_and_stores_nothing(client: FlaskClient, key: str) -> None:
    response = post(client, MINIMAL, key)

    assert slug(response) == (400, "invalid-idempotency-key")
    assert order_count(client) == 0


def test_a_failed_request_does_not_use_its_key(client: FlaskClient) -> None:
    taken = MINIMAL | {"external_ref": "r-1"}
    client.post("/orders", json=taken)

    failed = [post(client, {}, "k-1"), post(client, taken, "k-1")]

    assert [response.status_code for response in failed] == [400, 409]
    assert post(client, MINIMAL, "k-1").status_code == 201


def shuffled(value: Any, order: Any) -> Any:
    """The same value, with the members of every object in another order."""
    if isinstance(value, dict):
        names = order.draw(st.permutations(list(value)))
        return {name: shuffled(value[name], order) for name in names}
    return [shuffled(entry, order) for entry in value] if isinstance(value, list) else value


@given(order=st.data(), indent=st.none() | st.integers(0, 4), ascii_only=st.booleans())
def test_the_json_notation_of_the_body_does_not_change_the_fingerprint(
    client: FlaskClient, order: Any, indent: int | None, ascii_only: bool
) -> None:
    first = post(client, RICHEST, "spelling")
    text = json.dumps(shuffled(RICHEST, order), indent=indent, ensure_ascii=ascii_only)
    headers = {"Idempotency-Key": "spelling", "Content-Type": "application/json"}

    again = client.post("/orders", data=text.encode(), headers=headers)

    assert (again.status_code, again.data) == (201, first.data)


@given(change=st.sampled_from(["quantity", "order of items", "note", "metadata", "address"]))
def test_a_different_body_changes_the_fingerprint(client: FlaskClient, change: str) -> None:
    post(client, RICHEST, "meaning")
    first, *rest = RICHEST["items"]
    changed = {
        "quantity": {"items": [first | {"quantity": 3}, *rest]},
        "order of items": {"items": [*rest, first]},
        "note": {"note": RICHEST["note"] + " "},
        "metadata": {"metadata": {}},
        "address": {"shipping_address": None},
    }

    assert post(client, RICHEST | changed[change], "meaning").status_code == 422


def test_concurrent_requests_with_one_key_create_one_order(app: Flask, client: FlaskClient) -> None:
    responses = run_concurrently(8, lambda i: post(app.test_client(), MINIMAL if i % 4 else OTHER, "k-1"))

    # The first body creates the order; the other is refused because the key is in use.
    created = [response for response in responses if response.status_code == 201]
    assert {response.status_code for response in responses} <= {201, 409, 422}
    assert len({response.data for response in created}) == 1
    assert [response.headers.get("Idempotent-Replayed") for response in created].count(None) == 1
    assert order_count(client) == 1


def test_concurrent_requests_with_few_keys_create_one_order_per_key(app: Flask, client: FlaskClient) -> None:
    def send(i: int) -> list[TestResponse]:
        own = app.test_client()
        return [post(own, MINIMAL, f"k-{(i + j) % 10}") for j in range(10)]

    responses = [response for batch in run_concurrently(6, send) for response in batch]

    assert Counter(response.status_code for response in responses) == {201: 60}
    assert order_count(client) == 10


def test_a_reference_in_concurrent_creates_is_assigned_to_one_order(app: Flask, client: FlaskClient) -> None:
    body = MINIMAL | {"external_ref": "r-1"}

    responses = run_concurrently(6, lambda i: app.test_client().post("/orders", json=body))

    assert Counter(response.status_code for response in responses) == {201: 1, 409: 5}
    [order] = client.get("/orders").json["orders"]
    assert {r.json["order_id"] for r in responses if r.status_code == 409} == {order["id"]}


@pytest.fixture
def short_lock_timeout(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connections that wait for a lock for a moment only, so that the test need not take seconds."""

    def shorten(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
        if "options" in options:
            options["options"] = options["options"].replace("lock_timeout=2s", "lock_timeout=200ms")

    monkeypatch.setattr("app.db.engine.SQLITE_LOCK_TIMEOUT", 0.2)
    with app.app_context():
        engine = db.engine
    engine.dispose()
    event.listen(engine, "do_connect", shorten)
    yield
    event.remove(engine, "do_connect", shorten)
    engine.dispose()


@pytest.mark.usefixtures("short_lock_timeout")
@pytest.mark.parametrize("named_by", ["idempotency_key", "external_ref"])
def test_a_request_that_waits_too_long_for_its_key_is_409_or_503(
    app: Flask, client: FlaskClient, named_by: str
) -> None:
    body = MINIMAL | ({"external_ref": "held"} if named_by == "external_ref" else {})
    key = "held" if named_by == "idempotency_key" else "k-1"
    client.post("/orders", json=OTHER)

    operation = "create" if named_by == "idempotency_key" else named_by
    columns = {f"{named_by}_hash": hash_key("held", principal="anonymous", operation=operation)}
    with app.app_context(), (engine := db.engine).begin() as other:
        other.execute(update(Order).values(columns | ({"external_ref": "held"} if named_by == "external_ref" else {})))
        refused = post(client, body, key)
        other.rollback()

    # A lock on SQLite's file is not a lock on this key.
    sqlite = engine.dialect.name == "sqlite"
    assert slug(refused) == ((503, "service-unavailable") if sqlite else (409, "request-in-flight"))
    assert refused.headers["Retry-After"] == "1"
    # The other transaction was rolled back, so the same request succeeds now.
    assert post(client, body, key).status_code == 201


def test_a_key_is_stored_as_a_hash_with_the_order(app: Flask, client: FlaskClient) -> None:
    post(client, MINIMAL, "k-1")

    with app.app_context(), db.engine.connect() as connection:
        order = connection.execute(select(Order.id, Order.idempotency_key_hash, Order.fingerprint)).one()
        stored = repr(connection.execute(text("SELECT * FROM orders")).one())
    assert re.fullmatch("[0-9a-f]{32}", order.idempotency_key_hash) and len(order.fingerprint) == 32
    assert order.id[-4:] == order.idempotency_key_hash[-4:]
    assert "k-1" not in stored
