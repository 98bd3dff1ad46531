"""Workers are woken by PostgreSQL's notifications instead of frequent polling."""

import threading

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from app.db.engine import db
from app.db.statements import can_listen, listening
from app.services.worker import order_tasks
from tests.support.applications import wait_for_notifiers
from tests.support.marks import on_postgresql
from tests.support.samples import MINIMAL
from tests.support.servers import TIMEOUT, wait_until

LISTENING = "FROM pg_stat_activity WHERE query LIKE 'LISTEN %' AND datname = current_database()"


def rows(app: Flask, sql: str) -> list[tuple[object, ...]]:
    with app.app_context(), db.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(sql))]


@on_postgresql
def test_a_create_and_a_change_notify_a_worker(app: Flask, client: FlaskClient) -> None:
    woken = threading.Event()
    with listening(woken.set, context=app.app_context):
        assert woken.wait(TIMEOUT)  # for events stored before

        woken.clear()
        order = client.post("/orders", json=MINIMAL).headers["Location"]
        assert woken.wait(TIMEOUT)

        woken.clear()
        assert client.post(f"{order}/confirm").status_code == 200
        assert woken.wait(TIMEOUT)


@on_postgresql
def test_an_order_is_acknowledged_even_if_no_thread_can_be_started(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_notifiers()

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)

    assert [client.post("/orders", json=MINIMAL).status_code for _ in range(2)] == [201, 201]


@on_postgresql
def test_a_listener_is_woken_again_after_a_lost_connection(
    app: Flask, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    woken = threading.Event()
    with listening(woken.set, context=app.app_context):
        assert woken.wait(TIMEOUT)
        woken.clear()
        assert rows(app, f"SELECT pg_terminate_backend(pid) {LISTENING}") == [(True,)]
        assert woken.wait(TIMEOUT)  # for notifications sent meanwhile
        woken.clear()
        client.post("/orders", json=MINIMAL)
        assert woken.wait(TIMEOUT)
    wait_until(lambda: rows(app, f"SELECT pid {LISTENING}") == [])
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("url", "pooler", "expected"),
    [
        ("sqlite:///orders.db", "", False),
        ("postgresql+psycopg://localhost/orders", "", True),
        ("postgresql+psycopg://localhost/orders", "transaction", False),
    ],
)
def test_a_worker_polls_frequently_only_if_it_cannot_be_notified(url: str, pooler: str, expected: bool) -> None:
    config = {"DATABASE_URL": url, "DATABASE_POOLER": pooler, "EXPIRE_PENDING_AFTER": None}
    notified = can_listen(config)

    sequencing = order_tasks(config, notified=notified)[0]

    assert notified is expected
    assert sequencing.idle_pause == (1 if expected else 0.1)
