"""The Idempotency-Key of every action with POST: it is stored even if the action changes nothing."""

import sqlite3
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.services import order_actions
from tests.support.actions import POSTED, READY, ROUTES, UNIT, event_types, order_after, send_action
from tests.support.concurrency import run_concurrently
from tests.support.lock_waits import observed_lock_waits
from tests.support.marks import on_postgresql, on_sqlite
from tests.support.postgres import libpq_url
from tests.support.samples import MINIMAL, slug
from tests.support.servers import wait_until

OTHER_BODIES = {
    "cancel": [{"reason": "fraud"}, {"reason": "customer", "note": "x"}],
    "fulfill": [{"items": [{"line": 1, "quantity": 2}]}, UNIT | {"tracking": {"number": "1"}}],
    "return": [{"items": [{"line": 1, "quantity": 2}]}, UNIT | {"reason": "broken"}],
}


@pytest.mark.parametrize("name", POSTED)
def test_a_replay_is_the_first_response_after_later_changes(client: FlaskClient, name: str) -> None:
    path = order_after(client, *READY[name])
    first = send_action(client, path, name, Idempotency_Key="k-1")
    now = send_action(client, path, "update")

    again = send_action(client, path, name, Idempotency_Key='"k-1"')

    assert (again.status_code, again.data) == (ROUTES[name][2], first.data)
    assert again.headers["ETag"] == first.headers["ETag"]
    assert (first.headers.get("Idempotent-Replayed"), again.headers["Idempotent-Replayed"]) == (None, "true")
    assert client.get(path).data == now.data


@pytest.mark.parametrize("name", POSTED)
def test_a_replay_ignores_if_match(client: FlaskClient, name: str) -> None:
    path = order_after(client, *READY[name])
    tag = client.get(path).headers["ETag"]

    first, again = (send_action(client, path, name, Idempotency_Key="k-1", If_Match=tag) for _ in range(2))

    assert (again.status_code, again.data) == (first.status_code, first.data)
    assert again.headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize(("name", "body"), [(name, body) for name in OTHER_BODIES for body in OTHER_BODIES[name]])
def test_another_body_under_the_same_key_is_422(client: FlaskClient, name: str, body: Any) -> None:
    path = order_after(client, *READY[name])
    first = send_action(client, path, name, Idempotency_Key="k-1")

    response = send_action(client, path, name, body, Idempotency_Key="k-1")

    assert slug(response) == (422, "idempotency-key-reused")
    assert client.get(path).data == first.data


@pytest.mark.parametrize("name", ["confirm", "complete"])
def test_no_body_and_an_empty_object_are_one_request(client: FlaskClient, name: str) -> None:
    path = order_after(client, *READY[name])

    first, again = (send_action(client, path, name, body, Idempotency_Key="k-1") for body in (None, {}))

    assert (again.status_code, again.data) == (200, first.data)


def test_a_key_belongs_to_one_action_of_one_order(client: FlaskClient) -> None:
    path = client.post("/orders", json=MINIMAL, headers={"Idempotency-Key": "k-1"}).headers["Location"]
    other = order_after(client)
    names = ["confirm", "fulfill", "return", "complete"]

    responses = [send_action(client, path, name, Idempotency_Key="k-1") for name in names]
    other_order = send_action(client, other, "confirm", Idempotency_Key="k-1")

    assert [response.json["version"] for response in responses] == [2, 3, 4, 5]
    assert all("Idempotent-Replayed" not in response.headers for response in [*responses, other_order])
    replays = [send_action(client, path, name, Idempotency_Key="k-1") for name in names]
    assert [replay.data for replay in replays] == [response.data for response in responses]


def test_a_refused_action_does_not_use_its_key(client: FlaskClient) -> None:
    path = order_after(client, "confirm", "hold")

    refused = [
        send_action(client, path, "fulfill", Idempotency_Key="k-1"),
        send_action(client, path, "fulfill", UNIT, Idempotency_Key="k-1", If_Match='"1"'),
        send_action(client, path, "fulfill", {"items": []}, Idempotency_Key="k-1"),
    ]
    send_action(client, path, "release")
    accepted = send_action(client, path, "fulfill", {"items": [{"line": 1, "quantity": 2}]}, Idempotency_Key="k-1")

    assert [response.status_code for response in refused] == [409, 412, 400]
    assert (accepted.status_code, accepted.json["status"]) == (201, "completed")


@pytest.mark.parametrize("name", POSTED)
def test_a_malformed_key_is_400_and_changes_nothing(client: FlaskClient, name: str) -> None:
    path = order_after(client, *READY[name])
    before = client.get(path).data

    assert slug(send_action(client, path, name, Idempotency_Key="two words")) == (400, "invalid-idempotency-key")
    assert client.get(path).data == before


@pytest.mark.parametrize("name", POSTED)
def test_concurrent_requests_with_one_key_store_one_version(app: Flask, client: FlaskClient, name: str) -> None:
    path = order_after(client, *READY[name])
    before = event_types(client, path)

    responses = run_concurrently(4, lambda _: send_action(app.test_client(), path, name, Idempotency_Key="k-1"))

    assert {response.status_code for response in responses} == {ROUTES[name][2]}
    assert len({response.data for response in responses}) == 1
    assert Counter(response.headers.get("Idempotent-Replayed") for response in responses) == {None: 1, "true": 3}
    assert len(event_types(client, path)) == len(before) + 1


# The body of an action that changes nothing, and an action after which the same body does.
NO_CHANGE: dict[str, tuple[Any, str]] = {
    "update": ({}, "update"),
    "hold": ({"kind": "other", "reason": "same"}, "release"),
    "release": (None, "hold"),
}
OTHERS_OF_NO_CHANGE = {"update": {"note": "other"}, "hold": {"kind": "other", "reason": "other"}}


def unchanged_order(client: FlaskClient, name: str, body: Any) -> str:
    """The path of an order that the action would leave as it is."""
    path = order_after(client)
    if name == "hold":
        send_action(client, path, name, body)
    return path


@pytest.mark.parametrize("name", NO_CHANGE)
def test_an_action_that_changed_nothing_is_replayed_after_later_changes(client: FlaskClient, name: str) -> None:
    body, since = NO_CHANGE[name]
    path = unchanged_order(client, name, body)
    before = client.get(path).data
    first = send_action(client, path, name, body, Idempotency_Key="k-1")
    assert send_action(client, path, since).status_code == 200
    now = client.get(path).data

    again = send_action(client, path, name, body, Idempotency_Key="k-1")

    assert (first.status_code, first.data) == (200, before)
    assert (again.status_code, again.data, again.headers["ETag"]) == (200, before, first.headers["ETag"])
    assert (first.headers.get("Idempotent-Replayed"), again.headers["Idempotent-Replayed"]) == (None, "true")
    assert client.get(path).data == now != before


@pytest.mark.parametrize("name", OTHERS_OF_NO_CHANGE)
def test_another_body_under_the_key_of_an_action_that_changed_nothing_is_422(client: FlaskClient, name: str) -> None:
    body = NO_CHANGE[name][0]
    path = unchanged_order(client, name, body)
    first = send_action(client, path, name, body, Idempotency_Key="k-1")

    response = send_action(client, path, name, OTHERS_OF_NO_CHANGE[name], Idempotency_Key="k-1")

    assert slug(response) == (422, "idempotency-key-reused")
    assert client.get(path).data == first.data


@pytest.mark.parametrize("name", NO_CHANGE)
def test_an_action_that_changes_nothing_stores_no_version(client: FlaskClient, name: str) -> None:
    body = NO_CHANGE[name][0]
    path = unchanged_order(client, name, body)
    before = event_types(client, path)

    responses = [send_action(client, path, name, body, Idempotency_Key=f"k-{i}") for i in range(3)]

    assert [response.status_code for response in responses] == [200] * 3
    assert event_types(client, path) == before


@pytest.mark.parametrize("name", NO_CHANGE)
def test_concurrent_requests_with_one_key_that_change_nothing_get_one_response(
    app: Flask, client: FlaskClient, name: str
) -> None:
    body = NO_CHANGE[name][0]
    path = unchanged_order(client, name, body)

    responses = run_concurrently(4, lambda _: send_action(app.test_client(), path, name, body, Idempotency_Key="k-1"))

    assert {response.status_code for response in responses} == {200}
    assert len({response.data for response in responses}) == 1
    assert Counter(response.headers.get("Idempotent-Replayed") for response in responses) == {None: 1, "true": 3}


def before_the_first_call(monkeypatch: pytest.MonkeyPatch, name: str, meanwhile: Callable[[], Any]) -> None:
    """Run a function between reading the order and the first write."""
    write, pending = getattr(order_actions, name), [meanwhile]

    def write_late(*args: Any, **kwargs: Any) -> bool:
        while pending:
            pending.pop()()
        return bool(write(*args, **kwargs))

    monkeypatch.setattr(order_actions, name, write_late)


def test_an_action_that_would_change_nothing_sees_a_concurrent_change(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = order_after(client)
    before_the_first_call(monkeypatch, "store_key", lambda: send_action(app.test_client(), path, "hold"))

    first = send_action(client, path, "release", Idempotency_Key="k-1")

    assert (first.json["holds"], first.json["version"]) == ([], 3)
    assert send_action(client, path, "release", Idempotency_Key="k-1").data == first.data


@on_sqlite
@pytest.mark.parametrize("name", NO_CHANGE)
def test_an_action_that_changes_nothing_waits_for_another_process_that_writes(
    app: Flask, client: FlaskClient, database_url: str, name: str
) -> None:
    body = NO_CHANGE[name][0]
    path = unchanged_order(client, name, body)
    with (
        observed_lock_waits(database_url) as is_waiting,
        ThreadPoolExecutor(1) as threads,
        closing(sqlite3.connect(database_url[10:], isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        response = threads.submit(lambda: send_action(app.test_client(), path, name, body, Idempotency_Key="k-1"))
        wait_until(is_waiting)
        assert not response.done(), response.result().text
        other.execute("ROLLBACK")

        assert response.result().status_code == 200


@on_postgresql
def test_storing_the_key_of_an_action_without_change_waits_for_concurrent_changes(
    app: Flask, client: FlaskClient, database_url: str
) -> None:
    """If it were stored during an erasure, its fingerprint would remain."""
    path = order_after(client)
    with (
        observed_lock_waits(database_url) as is_waiting,
        ThreadPoolExecutor(1) as threads,
        psycopg.connect(libpq_url(database_url)) as eraser,
    ):
        eraser.execute("UPDATE orders SET version = 2")
        snapshot = """replace(snapshot::text, '"version":1', '"version":2')::json"""
        eraser.execute(
            "INSERT INTO order_events (order_id, version, type, actor, at, snapshot) "
            f"SELECT order_id, 2, type, actor, at, {snapshot} FROM order_events"
        )
        response = threads.submit(lambda: send_action(app.test_client(), path, "release", Idempotency_Key="k-1"))
        wait_until(is_waiting)
        assert not response.done(), response.result().text
        eraser.commit()

        assert response.result().json["version"] == 2
        assert eraser.execute("SELECT version FROM change_keys").fetchall() == [(2,)]


@pytest.mark.parametrize("twins_body", [{}, {"note": "mine"}])
@pytest.mark.parametrize(("body", "writes"), [({}, "store_key"), ({"note": "mine"}, "store_version")])
def test_a_concurrent_request_with_the_same_key_is_replayed(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, body: Any, writes: str, twins_body: Any
) -> None:
    path = order_after(client)
    twin: list[TestResponse] = []
    before_the_first_call(
        monkeypatch,
        writes,
        lambda: twin.append(send_action(app.test_client(), path, "update", twins_body, Idempotency_Key="k-1")),
    )

    response = send_action(client, path, "update", body, Idempotency_Key="k-1")

    assert twin[0].status_code == 200
    if body == twins_body:
        assert (response.status_code, response.data) == (200, twin[0].data)
        assert response.headers["Idempotent-Replayed"] == "true"
    else:
        assert slug(response) == (422, "idempotency-key-reused")
    assert client.get(path).data == twin[0].data


def test_a_duplicate_reference_is_distinguished_from_a_used_key(client: FlaskClient) -> None:
    other = order_after(client, external_ref="r-1")
    path = order_after(client)

    refused = send_action(client, path, "update", {"external_ref": "r-1"}, Idempotency_Key="k-1")

    assert slug(refused) == (409, "duplicate-external-ref")
    assert f"/orders/{refused.json['order_id']}" == other
    assert send_action(client, path, "update", {"external_ref": "r-2"}, Idempotency_Key="k-1").json["version"] == 2
