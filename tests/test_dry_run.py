"""A dry run returns the response that the request would get, and stores nothing."""

import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from werkzeug.test import TestResponse

from app.db.engine import db
from app.models.lifecycle import ACTIONS
from app.services import order_service
from tests.support.actions import BODIES, READY, ROUTES, order_after, send_action
from tests.support.samples import MINIMAL, RICHEST, error_locations, priced, slug

Rows = dict[str, list[Any]]
UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
OTHERWISE = {"id", "number", "created_at", "updated_at", "at", "placed_at", "occurred_at", "reopened_at", "request_id"}


def rows(app: Flask) -> Rows:
    with app.app_context(), db.engine.connect() as connection:
        return {table.name: sorted(map(repr, connection.execute(select(table)))) for table in db.metadata.sorted_tables}


def without_times(value: Any) -> Any:
    """The value without members that a dry run cannot know."""
    if isinstance(value, dict):
        return {name: None if name in OTHERWISE and part else without_times(part) for name, part in value.items()}
    if isinstance(value, list):
        return [without_times(part) for part in value]
    return UUID.sub("…", value) if isinstance(value, str) else value


def agree(preview: TestResponse, real: TestResponse) -> None:
    """Both are equal except for ids, numbers and times, even in the order of members."""
    assert preview.headers["Dry-Run"] == "true" and "Dry-Run" not in real.headers
    assert preview.status_code == real.status_code
    assert preview.headers.get("ETag") == real.headers.get("ETag")
    first, second = (without_times(orjson.loads(response.data)) for response in (preview, real))
    assert orjson.dumps(first) == orjson.dumps(second)


@pytest.fixture
def compare(app: Flask) -> Callable[[Callable[[str], TestResponse]], TestResponse]:
    """Send a request with `?dry_run=true`, which changes no table, and then without; returns the response to it."""

    def compare(send: Callable[[str], TestResponse]) -> TestResponse:
        before = rows(app)
        preview = send("?dry_run=true")
        assert rows(app) == before
        real = send("")
        agree(preview, real)
        return real

    return compare


Compare = Callable[[Callable[[str], TestResponse]], TestResponse]


@pytest.mark.parametrize("body", [MINIMAL, RICHEST, {}, MINIMAL | {"items": []}], ids=["minimal", "richest", "no", "0"])
def test_a_create_is_previewed(client: FlaskClient, compare: Compare, body: Any) -> None:
    compare(lambda query: client.post(f"/orders{query}", json=body))


def test_a_previewed_create_has_no_location_and_does_not_use_its_key(client: FlaskClient) -> None:
    headers = {"Idempotency-Key": "k-1"}

    preview = client.post("/orders?dry_run=true", json=RICHEST, headers=headers)
    created = client.post("/orders", json=MINIMAL, headers=headers)

    assert "Location" not in preview.headers
    assert created.status_code == 201 and "Idempotent-Replayed" not in created.headers
    assert client.get(f"/orders/{preview.json['id']}").status_code == 404


def test_replays_and_conflicts_of_a_create_are_previewed(client: FlaskClient, compare: Compare) -> None:
    first = client.post("/orders", json=RICHEST, headers={"Idempotency-Key": "k-1"})

    replayed = compare(lambda query: client.post(f"/orders{query}", json=RICHEST, headers={"Idempotency-Key": "k-1"}))
    reused = compare(lambda query: client.post(f"/orders{query}", json=MINIMAL, headers={"Idempotency-Key": "k-1"}))
    duplicate = compare(lambda query: client.post(f"/orders{query}", json=RICHEST))

    assert replayed.data == first.data
    assert slug(reused) == (422, "idempotency-key-reused")
    assert slug(duplicate) == (409, "duplicate-external-ref")


def test_a_batch_is_previewed_entry_by_entry(client: FlaskClient, compare: Compare) -> None:
    keyed = MINIMAL | {"idempotency_key": "k-1"}
    entries = [keyed, RICHEST, {}, keyed, keyed | {"note": "x"}, RICHEST, RICHEST | {"note": "x"}, MINIMAL]

    results = compare(lambda query: client.post(f"/orders/batch{query}", json={"orders": entries})).json["results"]

    assert [result["status"] for result in results] == [201, 201, 400, 201, 422, 201, 409, 201]
    assert [result.get("replayed", False) for result in results] == [
        False,
        False,
        False,
        True,
        False,
        True,
        False,
        False,
    ]


def test_a_repeated_key_is_previewed_in_a_batch_that_takes_several_statements(
    client: FlaskClient, compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_service, "STATEMENT_ITEMS_MAX", 2)
    entries = [MINIMAL | {"idempotency_key": "k-1"}, RICHEST, MINIMAL | {"idempotency_key": "k-1"}, RICHEST]

    results = compare(lambda query: client.post(f"/orders/batch{query}", json={"orders": entries})).json["results"]

    assert [result.get("replayed", False) for result in results] == [False, False, True, True]


@pytest.mark.parametrize("name", ACTIONS)
def test_every_action_is_previewed(client: FlaskClient, compare: Compare, name: str) -> None:
    path = order_after(client, *READY[name])
    body = {"hold": {"kind": "other"}, "update": {"note": "x"}}.get(name)

    real = compare(lambda query: send_action(client, path, name, body, query=query, Idempotency_Key="k-1"))

    assert real.status_code == ROUTES[name][2]


@pytest.mark.parametrize("name", ACTIONS)
def test_conflicts_of_every_action_are_previewed(client: FlaskClient, compare: Compare, name: str) -> None:
    path = order_after(client, "hold", "cancel")
    body = {"hold": {"kind": "other"}, "update": {"note": "\0"}, "pay": BODIES["pay"]}.get(name)

    for headers in ({}, {"If_Match": '"1"'}, {"If_Match": '"3"'}):
        compare(lambda query, headers=headers: send_action(client, path, name, body, query=query, **headers))


def test_a_replay_and_a_reused_key_of_a_change_are_previewed(client: FlaskClient, compare: Compare) -> None:
    path = order_after(client)
    client.patch(path, json={"note": "x"}, headers={"Idempotency-Key": "k-1"})

    replayed = compare(lambda query: client.patch(path + query, json={"note": "x"}, headers={"Idempotency-Key": "k-1"}))
    reused = compare(lambda query: client.patch(path + query, json={"note": "y"}, headers={"Idempotency-Key": "k-1"}))

    assert replayed.headers["Idempotent-Replayed"] == "true"
    assert slug(reused) == (422, "idempotency-key-reused")


def test_a_reference_that_another_order_has_is_previewed(client: FlaskClient, compare: Compare) -> None:
    client.post("/orders", json=MINIMAL | {"external_ref": "r-1"})
    path = order_after(client)

    real = compare(lambda query: client.patch(path + query, json={"external_ref": "r-1"}))

    assert slug(real) == (409, "duplicate-external-ref")


@pytest.mark.parametrize("query", ["dry_run=1", "dry_run=True", "dryrun=true", "dry_run=true&dry_run=true"])
def test_a_misspelt_dry_run_is_refused_and_changes_nothing(app: Flask, client: FlaskClient, query: str) -> None:
    path = order_after(client)
    before = rows(app)

    responses = [client.post(f"/orders?{query}", json=MINIMAL), client.post(f"{path}/confirm?{query}")]

    name = query.partition("=")[0]
    assert [error_locations(response) for response in responses] == [{name}] * 2
    assert rows(app) == before


def test_dry_run_false_is_a_real_request(client: FlaskClient) -> None:
    created = client.post("/orders?dry_run=false", json=MINIMAL)

    assert "Dry-Run" not in created.headers
    assert client.get(created.headers["Location"]).data == created.data


@settings(max_examples=settings().max_examples // 6)
@given(names=st.lists(st.sampled_from([*ACTIONS, "confirm", "fulfill", "return", "pay"]), max_size=10))
def test_in_random_sequences_of_actions_each_step_equals_its_preview(
    app: Flask, client: FlaskClient, names: list[str]
) -> None:
    path = client.post("/orders", json=priced()).headers["Location"]
    for number, name in enumerate(names):
        body = {
            "hold": {"kind": "other", "reason": str(number)},
            "update": {"note": str(number)},
            "pay": {"type": "capture", "amount": 1, "reference": str(number)},
        }.get(name)
        before = rows(app)
        preview = send_action(client, path, name, body, query="?dry_run=true")
        assert rows(app) == before
        agree(preview, send_action(client, path, name, body))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/customers/c-1/personal-data"), ("POST", "/webhooks"), ("DELETE", "/webhooks/x"),
        ("POST", "/webhooks/x/rotate-secret"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_previewed_is_refused(client: FlaskClient, method: str, path: str) -> None:
    client.post(f"{order_after(client)}/cancel", json={"reason": "staff"})

    response = client.open(f"{path}?dry_run=true", method=method, json={"url": "https://hooks.shop.com/"})

    assert error_locations(response) == {"dry_run"}
    assert len(client.get("/orders?customer_id=c-1").json["orders"]) == 1
