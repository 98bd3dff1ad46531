"""What a create stores, how many round trips it takes, and what happens when connections are lost."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, Select, event, select

from app.db.engine import db, rfc3339
from app.db.statements import Statement
from app.models import Order, OrderEvent, OrderItem, OutboxEntry
from app.services import order_actions, order_service, order_storage
from app.services.order_queries import OrderKey, Snapshot
from tests.support.actions import event_types, order_after, send_action
from tests.support.applications import wait_for_notifiers
from tests.support.marks import on_postgresql
from tests.support.protocol_trace import messages_sent
from tests.support.samples import MINIMAL, RICHEST, slug


def rows(app: Flask, query: Select[Any]) -> list[Any]:
    with app.app_context(), db.engine.connect() as connection:
        return list(connection.execute(query))


def test_order_items_event_and_outbox_entry_are_stored_together(app: Flask, client: FlaskClient) -> None:
    created = client.post("/orders", json=RICHEST)
    order = created.json

    [stored] = rows(app, select(Order.__table__))
    [event] = rows(app, select(OrderEvent.__table__))
    [entry] = rows(app, select(OutboxEntry.__table__))
    lines = rows(app, select(OrderItem.line, OrderItem.item_id, OrderItem.quantity, OrderItem.unit_price))
    assert (stored.id, stored.number, stored.principal) == (order["id"], order["number"], "anonymous")
    assert (stored.total, stored.metadata) == (2740, RICHEST["metadata"])
    assert rfc3339(stored.created_at) == order["created_at"]
    assert sorted(lines) == [(1, "sku-1", 2, 1250), (2, "sku-2", 1, None), (3, "sku-1", 3, None)]
    assert (event.order_id, event.version, event.type, event.actor) == (order["id"], 1, "order.created", "anonymous")
    assert event.snapshot.encode() == created.data
    assert (entry.order_id, entry.version, entry.at) == (order["id"], 1, event.at)
    assert event.at == stored.created_at


def test_an_absent_member_is_null_in_the_database(app: Flask, client: FlaskClient) -> None:
    client.post("/orders", json=MINIMAL)

    nothing = Order.reopening.is_(None) & Order.shipping_address.is_(None) & Order.total.is_(None)
    assert len(rows(app, select(Order.id).where(nothing))) == 1


def test_a_failed_request_stores_nothing(app: Flask, client: FlaskClient) -> None:
    client.post("/orders", json=MINIMAL | {"external_ref": "r-1"})

    client.post("/orders", json=RICHEST | {"external_ref": "r-1"})
    client.post("/orders", json=RICHEST | {"note": 1})

    for table in (Order, OrderEvent, OrderItem, OutboxEntry):
        assert len(rows(app, select(table.__table__))) == 1


KEYS = pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k-1"}], ids=["keyless", "keyed"])


@on_postgresql
@pytest.mark.parametrize("body", [MINIMAL, RICHEST], ids=["minimal", "richest"])
@KEYS
def test_a_create_is_one_statement_and_one_round_trip(
    app: Flask, client: FlaskClient, tmp_path: Path, body: dict[str, Any], headers: dict[str, str]
) -> None:
    client.post("/orders", json=MINIMAL)  # the connection has prepared the statement

    sent = messages_sent(app, lambda: client.post("/orders", json=body, headers=headers), tmp_path / "trace")

    # The server answers at Sync: one Sync is one round trip, and there is neither BEGIN nor COMMIT.
    assert sent == ["Bind", "Describe", "Execute", "Sync"]
    assert len(client.get("/orders").json["orders"]) == 2


@on_postgresql
def test_a_read_is_one_round_trip(app: Flask, client: FlaskClient, tmp_path: Path) -> None:
    address = client.post("/orders", json=MINIMAL).headers["Location"]
    client.get(address)

    assert messages_sent(app, lambda: client.get(address), tmp_path / "trace").count("Sync") == 1


def end_all_connections(app: Flask, url: str) -> None:
    """As in a failover or a restart of a proxy: all connections of the service are closed."""
    wait_for_notifiers()
    with app.app_context(), ExitStack() as stack:
        pool = db.engine.pool
        idle = [stack.enter_context(closing(db.engine.raw_connection())) for _ in range(pool.checkedin())]
        processes = [connection.dbapi_connection.info.backend_pid for connection in idle]
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        alive = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid = ANY(%s)"
        ended = connection.execute(alive, [processes]).fetchall()
        assert ended and all(exited for (exited,) in ended)


@on_postgresql
@KEYS
def test_a_create_survives_the_loss_of_all_connections(
    app: Flask, client: FlaskClient, postgresql_url: str, headers: dict[str, str]
) -> None:
    for _ in range(3):
        client.post("/orders", json=MINIMAL)
    end_all_connections(app, postgresql_url)

    response = client.post("/orders", json=MINIMAL, headers=headers)

    assert response.status_code == 201
    assert len(client.get("/orders").json["orders"]) == 4


@on_postgresql
def test_a_read_survives_the_loss_of_all_connections(app: Flask, client: FlaskClient, postgresql_url: str) -> None:
    address = client.post("/orders", json=MINIMAL).headers["Location"]

    for path in (address, "/orders"):
        end_all_connections(app, postgresql_url)
        assert client.get(path).status_code == 200, path


@on_postgresql
def test_a_change_survives_the_loss_of_all_connections(app: Flask, client: FlaskClient, postgresql_url: str) -> None:
    path = order_after(client)
    end_all_connections(app, postgresql_url)

    assert send_action(client, path, "confirm").json["version"] == 2


def lose_the_answer(
    of: Statement, monkeypatch: pytest.MonkeyPatch, *, meanwhile: Callable[[], Any], times: int = 1
) -> None:
    """Break the connection after the statement was executed and before its result arrives."""
    run, losses = Statement.execute, iter([True] * times)

    def run_and_lose(self: Statement, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        response = run(self, parameters)
        if self is of and next(losses, False):
            meanwhile()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return response

    monkeypatch.setattr(Statement, "execute", run_and_lose)


@on_postgresql
@KEYS
def test_an_order_whose_response_was_lost_is_stored_once(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    lose_the_answer(order_storage.INSERT_ORDERS, monkeypatch, meanwhile=lambda: None)

    response = client.post("/orders", json=MINIMAL, headers=headers)

    assert response.status_code == 201
    [order] = client.get("/orders").json["orders"]
    assert order == response.json


@on_postgresql
@KEYS
def test_an_order_whose_response_is_always_lost_is_created(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    """A client without a key that is told to retry would create a second order."""
    lose_the_answer(order_storage.INSERT_ORDERS, monkeypatch, meanwhile=lambda: None, times=3)

    response = client.post("/orders", json=MINIMAL, headers=headers)

    assert response.status_code in (200, 201)
    assert client.get("/orders").json["orders"] == [response.json]


@on_postgresql
@pytest.mark.parametrize("keys", [[{}, {}], [{"idempotency_key": "k-1"}, {"idempotency_key": "k-2"}]], ids=str)
def test_a_batch_whose_response_is_always_lost_is_created(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, keys: list[dict[str, str]]
) -> None:
    lose_the_answer(order_storage.INSERT_ORDERS, monkeypatch, meanwhile=lambda: None, times=3)

    response = client.post("/orders/batch", json={"orders": [MINIMAL | key for key in keys]})

    assert response.status_code == 200
    created = [result["order"] for result in response.json["results"]]
    assert client.get("/orders?sort=created_at").json["orders"] == created


@on_postgresql
def test_an_order_that_is_not_stored_after_a_lost_connection_is_503(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: Any) -> Any:
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(order_storage.INSERT_ORDERS, "rows", lambda **_: lose())

    response = client.post("/orders", json=MINIMAL)

    assert slug(response) == (503, "service-unavailable")
    assert client.get("/orders").json["orders"] == []


def lose_the_database(after: Statement, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lose all connections, new ones too, once the statement was executed."""
    execute, is_lost = Statement.execute, False

    def execute_until_lost(self: Statement, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        nonlocal is_lost
        if not is_lost:
            rows = execute(self, parameters)
            if self is not after:  # perhaps in another thread, of the notifier
                return rows
            is_lost = True
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    def refuse(_orders: Any) -> Any:
        raise psycopg.OperationalError("connection refused")

    monkeypatch.setattr(Statement, "execute", execute_until_lost)
    monkeypatch.setattr(order_service, "find_stored_ids", refuse)


@on_postgresql
@pytest.mark.parametrize(
    ("identity", "detail"),
    [
        ({}, "The database connection was lost, and the order may have been created. List the orders before you send "
         "it again."),
        ({"external_ref": "r-1"}, "The database is temporarily unavailable. Send the request again."),
    ],
)  # fmt: skip
def test_an_order_that_may_be_stored_is_not_to_be_sent_again_without_a_key(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, identity: dict[str, str], detail: str
) -> None:
    with monkeypatch.context() as failing:
        lose_the_database(order_storage.INSERT_ORDERS, failing)
        response = client.post("/orders", json=MINIMAL | identity)

    assert (slug(response), response.json["detail"]) == ((503, "service-unavailable"), detail)
    assert len(client.get("/orders").json["orders"]) == 1


@on_postgresql
@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ({}, "The database connection was lost, and the order may have been changed. Read it before you retry."),
        ({"Idempotency_Key": "k-1"}, "The database is temporarily unavailable. Send the request again."),
    ],
)
def test_a_change_that_may_be_stored_is_not_to_be_sent_again_without_a_key(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], detail: str
) -> None:
    path = order_after(client, "confirm")

    with monkeypatch.context() as failing:
        lose_the_database(order_storage.UPDATE_ORDERS, failing)
        response = send_action(client, path, "fulfill", **headers)

    assert (slug(response), response.json["detail"]) == ((503, "service-unavailable"), detail)
    assert client.get(path).json["version"] == 3


@on_postgresql
@KEYS
@pytest.mark.parametrize("next_change", [None, "hold"], ids=["alone", "and another follows"])
def test_a_change_whose_response_was_lost_is_stored_once(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], next_change: str | None
) -> None:
    path = order_after(client, "confirm")
    lose_the_answer(
        order_storage.UPDATE_ORDERS,
        monkeypatch,
        meanwhile=lambda: next_change and send_action(client, path, next_change),
    )

    response = send_action(client, path, "fulfill", **headers)

    assert (response.status_code, response.json["version"], response.json["items"][0]["fulfilled"]) == (201, 3, 1)
    assert client.get(path).json["items"][0]["fulfilled"] == 1
    assert "Idempotent-Replayed" not in response.headers
    assert event_types(client, path)[2:] == ["order.fulfilled", *(["order.held"] if next_change else [])]


@on_postgresql
def test_a_change_that_is_committed_after_its_connection_was_lost_is_stored_once(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may still execute a statement when the service looks for its result."""
    path = order_after(client, "confirm")
    execute, look, pending = Statement.execute, order_actions.find_snapshot, list[dict[str, Any]]()

    def lose_the_connection(self: Statement, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        if self is order_storage.UPDATE_ORDERS and not pending:
            pending.append(parameters)
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return execute(self, parameters)

    def look_and_commit(key: OrderKey) -> Snapshot | None:
        found = look(key)
        monkeypatch.setattr(order_actions, "find_snapshot", look)
        execute(order_storage.UPDATE_ORDERS, pending[0])
        return found

    monkeypatch.setattr(Statement, "execute", lose_the_connection)
    monkeypatch.setattr(order_actions, "find_snapshot", look_and_commit)

    response = send_action(client, path, "fulfill")

    assert (response.status_code, response.json["version"]) == (201, 3)
    assert client.get(path).json["items"][0]["fulfilled"] == 1
    assert event_types(client, path)[2:] == ["order.fulfilled"]


@pytest.fixture
def breaking_reads(app: Flask, database_url: str) -> Iterator[None]:
    """Terminate every query of the service that reads in a transaction, but no insert."""

    def break_off(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if "INSERT" in statement or not statement.lstrip().startswith(("SELECT", "WITH")):
            return
        driver = connection.connection.dbapi_connection
        if isinstance(driver, sqlite3.Connection):
            driver.set_progress_handler(lambda: 1, 1)
            return
        with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [driver.info.backend_pid])

    with app.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", break_off)
    yield
    event.remove(engine, "before_cursor_execute", break_off)
    engine.dispose()


def test_stored_entries_of_a_batch_are_201_even_if_the_others_fail(
    client: FlaskClient, request: pytest.FixtureRequest
) -> None:
    known = MINIMAL | {"idempotency_key": "k-1"}
    client.post("/orders/batch", json={"orders": [known]})
    request.getfixturevalue("breaking_reads")

    new, old = client.post("/orders/batch", json={"orders": [MINIMAL, known]}).json["results"]

    assert new["status"] == 201
    assert old["status"] in (500, 503) and "order" not in old
    [first, second] = client.get("/orders?sort=created_at").json["orders"]
    assert (first["version"], second) == (1, new["order"])


def test_a_duplicate_order_number_is_replaced(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    first = client.post("/orders", json=MINIMAL).json["number"]
    numbers = iter([first, first, "261122-00000001"])
    monkeypatch.setattr(order_service, "order_number", lambda *_: next(numbers))

    response = client.post("/orders", json=MINIMAL)

    assert (response.status_code, response.json["number"]) == (201, "261122-00000001")
