"""Concurrent changes share one statement: each order gets its own version, and a failure affects one change only."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import event, update
from werkzeug.test import TestResponse

from app import create_app
from app.db.batching import Batcher
from app.db.engine import db
from app.db.statements import Statement
from app.models import OrderEvent
from app.services import order_actions, order_storage
from tests.support.actions import event_types, order_after, send_action
from tests.support.concurrency import retry_while_unavailable, run_concurrently
from tests.support.marks import on_postgresql
from tests.support.samples import slug
from tests.support.servers import TIMEOUT, wait_until

MANY = 8  # changes; the pool has a connection for each


@pytest.fixture(autouse=True)
def join(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the leader of a batch wait for calls that arrive a moment later."""
    monkeypatch.setattr(Batcher, "wait_for_callers", lambda _: time.sleep(0.1))


@pytest.fixture
def paths(client: FlaskClient) -> list[str]:
    return [order_after(client) for _ in range(MANY)]


@pytest.fixture
def writes(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The statements (PostgreSQL) or transactions (SQLite) that store changes."""
    seen: list[Any] = []
    execute = Statement.execute

    def record(statement: Statement, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        if statement in (order_storage.UPDATE_ORDERS, order_storage.UPDATE_ORDER):
            seen.append(statement)
        return execute(statement, parameters)

    def record_transaction(connection: Any) -> None:
        if connection.dialect.name == "sqlite" and not connection.get_execution_options().get("read_only"):
            seen.append(connection)

    monkeypatch.setattr(Statement, "execute", record)
    with app.app_context():
        engine = db.engine
    event.listen(engine, "begin", record_transaction)
    yield seen
    event.remove(engine, "begin", record_transaction)


def wait_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the leader of a batch wait until all of MANY calls have begun."""
    submit, begun = Batcher.submit, Counter[int]()

    def count(batcher: Batcher[Any, Any], item: Any) -> Any:
        begun[id(batcher)] += 1
        return submit(batcher, item)

    def wait_for_callers(batcher: Batcher[Any, Any]) -> None:
        wait_until(lambda: begun[id(batcher)] >= MANY)
        time.sleep(0.1)  # the last ones join

    monkeypatch.setattr(Batcher, "submit", count)
    monkeypatch.setattr(Batcher, "wait_for_callers", wait_for_callers)


def change_all(app: Flask, paths: list[str], *names: str, **headers: str) -> list[TestResponse]:
    """The responses to one action on each of the orders, sent at the same time; by default to confirm it."""
    actions = names or ["confirm"] * len(paths)
    return run_concurrently(
        len(paths), lambda i: send_action(app.test_client(), paths[i], actions[i % len(actions)], **headers)
    )


def run_before(monkeypatch: pytest.MonkeyPatch, path: str, meanwhile: Callable[[], Any]) -> None:
    """Run a function between reading this order and the first attempt to store its new version."""
    store, pending = order_actions.store_version, [meanwhile]

    def store_late(order: Any, *arguments: Any, **named: Any) -> bool:
        if path.endswith(order.id) and pending:
            pending.pop()()
        return store(order, *arguments, **named)

    monkeypatch.setattr(order_actions, "store_version", store_late)


def test_changes_of_several_orders_are_stored_together(
    app: Flask,
    client: FlaskClient,
    runner: FlaskCliRunner,
    paths: list[str],
    writes: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as waiting:
        wait_for_all(waiting)
        responses = change_all(app, paths, "confirm", "hold", "cancel", "update")

    assert [(response.status_code, response.json["version"]) for response in responses] == [(200, 2)] * MANY
    assert len(writes) < MANY / 2
    for path, response in zip(paths, responses, strict=True):
        assert client.get(path).data == response.data
        assert len(event_types(client, path)) == 2
    assert runner.invoke(args=["verify"]).exit_code == 0


def test_keyed_changes_that_are_stored_together_are_replayed(app: Flask, paths: list[str]) -> None:
    first, again = (change_all(app, paths, Idempotency_Key="k-1") for _ in range(2))

    assert [response.data for response in again] == [response.data for response in first]
    assert {response.headers.get("Idempotent-Replayed") for response in first} == {None}
    assert {response.headers.get("Idempotent-Replayed") for response in again} == {"true"}


def test_two_changes_of_one_order_at_the_same_time_are_two_versions(
    app: Flask, client: FlaskClient, paths: list[str]
) -> None:
    responses = change_all(app, [path for path in paths[:4] for _ in range(2)], "hold", "update")

    assert {response.status_code for response in responses} == {200}
    for path, first, second in zip(paths, responses[::2], responses[1::2], strict=False):
        assert {first.json["version"], second.json["version"]} == {2, 3}
        order = client.get(path).json
        assert order["holds"] and order["note"]


def test_one_order_is_confirmed_once(app: Flask, client: FlaskClient, paths: list[str]) -> None:
    responses = change_all(app, paths[:1] * MANY)

    assert Counter(response.status_code for response in responses) == {200: 1, 409: MANY - 1}
    assert event_types(client, paths[0]) == ["order.created", "order.confirmed"]


def test_a_change_that_the_database_refuses_fails_alone(app: Flask, client: FlaskClient, paths: list[str]) -> None:
    impossible = {"number": 1, "items": [{"line": 1, "quantity": 99}], "status": "shipped", "tracking": None}
    with app.app_context(), db.engine.begin() as connection:
        damaged = {**client.get(paths[3]).json, "fulfillments": [impossible | {"events": []}]}
        of_order = OrderEvent.order_id == damaged["id"]
        connection.execute(update(OrderEvent).where(of_order).values(snapshot=json.dumps(damaged)))

    responses = change_all(app, paths)

    assert [response.status_code for response in responses] == [500 if i == 3 else 200 for i in range(MANY)]
    assert [len(event_types(client, path)) for path in paths] == [1 if i == 3 else 2 for i in range(MANY)]


def test_a_key_that_was_used_meanwhile_fails_no_other_change(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, paths: list[str]
) -> None:
    twin: list[TestResponse] = []
    nothing = {"json": {}, "headers": {"Idempotency-Key": "k-1"}}
    run_before(monkeypatch, paths[3], lambda: twin.append(app.test_client().patch(paths[3], **nothing)))

    responses = run_concurrently(
        MANY,
        lambda i: send_action(app.test_client(), paths[i], "update", {"note": "mine"}, Idempotency_Key="k-1"),
    )

    assert twin[0].status_code == 200
    assert [response.status_code for response in responses] == [422 if i == 3 else 200 for i in range(MANY)]


def test_a_reference_that_another_order_has_fails_no_other_change(
    app: Flask, client: FlaskClient, paths: list[str]
) -> None:
    order_after(client, external_ref="r-1")

    responses = run_concurrently(
        MANY,
        lambda i: send_action(app.test_client(), paths[i], "update", {"external_ref": "r-1"} if i == 3 else None),
    )

    assert [response.status_code for response in responses] == [409 if i == 3 else 200 for i in range(MANY)]
    assert slug(responses[3]) == (409, "duplicate-external-ref")


@on_postgresql
def test_an_order_that_is_locked_delays_no_other_change(app: Flask, database_url: str, paths: list[str]) -> None:
    others_are_stored = threading.Barrier(MANY, timeout=TIMEOUT)

    def confirm(i: int) -> TestResponse:
        response = retry_while_unavailable(lambda: send_action(app.test_client(), paths[i], "confirm"))
        if i != 3:
            others_are_stored.wait()
        return response

    with psycopg.connect(database_url.replace("+psycopg", "")) as eraser:
        eraser.execute("SELECT 1 FROM orders WHERE id = %s FOR UPDATE", [paths[3].rpartition("/")[2]])
        release = threading.Thread(target=lambda: (others_are_stored.wait(), eraser.rollback()))
        release.start()
        responses = run_concurrently(MANY, confirm)
        release.join()

    assert [response.status_code for response in responses] == [200] * MANY


@on_postgresql
def test_two_processes_that_change_the_same_orders_in_opposite_order_do_not_deadlock(
    app: Flask, client: FlaskClient, database_url: str
) -> None:
    """Two applications share only the database, like two processes."""
    other = create_app({"DATABASE_URL": database_url, "AUTH": "off", "TESTING": True})
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as observer:
        before = observer.execute(deadlocks).fetchone()
        for _ in range(5):
            paths = [order_after(client) for _ in range(MANY)]
            both = run_concurrently(
                2 * MANY,
                lambda i, paths=paths: send_action(  # type: ignore[misc]
                    (app if i < MANY else other).test_client(), (paths + paths[::-1])[i], "confirm"
                ),
            )
            confirmed = Counter(response.status_code for response in both)
            assert confirmed == {200: MANY, 409: MANY}
        assert observer.execute(deadlocks).fetchone() == before
    with other.app_context():
        db.engine.dispose()


@on_postgresql
def test_changes_whose_connection_is_lost_are_stored_once(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, paths: list[str]
) -> None:
    end_after_execution(monkeypatch, psycopg.OperationalError("server closed the connection unexpectedly"))

    responses = change_all(app, paths)

    assert [(response.status_code, response.json["version"]) for response in responses] == [(200, 2)] * MANY
    assert {tuple(event_types(client, path)) for path in paths} == {("order.created", "order.confirmed")}


@on_postgresql
def test_changes_whose_leader_is_killed_are_stored_once(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, paths: list[str]
) -> None:
    class Killed(BaseException):
        """Like GreenletExit, with which a server kills a request."""

    end_after_execution(monkeypatch, Killed())

    def confirm(i: int) -> TestResponse | None:
        try:
            return send_action(app.test_client(), paths[i], "confirm")
        except Killed:
            return None

    responses = run_concurrently(MANY, confirm)

    assert responses.count(None) == 1
    assert {(one.status_code, one.json["version"]) for one in responses if one is not None} == {(200, 2)}
    assert {tuple(event_types(client, path)) for path in paths} == {("order.created", "order.confirmed")}


def end_after_execution(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Raise the error once, after the shared statement was executed."""
    execute, errors = Statement.execute, iter([error])

    def execute_and_raise(statement: Statement, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        rows = execute(statement, parameters)
        if statement is order_storage.UPDATE_ORDERS and (raised := next(errors, None)) is not None:
            raise raised
        return rows

    monkeypatch.setattr(Statement, "execute", execute_and_raise)
