"""All transactions lock webhook endpoints before deliveries, and both in one order, so that they do not deadlock."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from app.db.engine import db
from app.models import DELIVERIES
from app.services import webhook_queue
from app.services.event_feed import renumber_feed
from app.services.webhook_queue import Attempt
from app.services.webhook_service import end_impossible_pauses, prune_deliveries
from tests.support.lock_waits import observed_lock_waits
from tests.support.marks import on_postgresql
from tests.support.postgres import libpq_url
from tests.support.samples import MINIMAL
from tests.support.search import project
from tests.support.servers import TIMEOUT, wait_until
from tests.support.webhooks import create_webhook, queue_events, webhook_rules

pytestmark = on_postgresql

Work = Callable[[FlaskClient, dict[str, Any]], object]


@pytest.fixture(autouse=True)
def rules(app: Flask) -> Iterator[None]:
    with webhook_rules(app):
        yield


def assert_unlocked_during(
    work: Callable[[], object], app: Flask, database_url: str, *, locked: str, unlocked: str
) -> None:
    """While the work waits for a row that another transaction has locked, it has not locked the other rows."""

    def run() -> None:
        with app.app_context():
            work()

    with (
        observed_lock_waits(database_url) as is_waiting,
        ThreadPoolExecutor(1) as threads,
        psycopg.connect(libpq_url(database_url)) as other,
    ):
        assert other.execute(f"SELECT 1 FROM {locked} FOR UPDATE").rowcount == 1
        running = threads.submit(run)
        wait_until(lambda: is_waiting() or running.done())
        try:
            assert not running.done(), running.result()
            assert other.execute(f"SELECT 1 FROM {unlocked} FOR UPDATE NOWAIT").rowcount > 0
        finally:
            other.rollback()
        running.result(TIMEOUT)


def change(database_url: str, statement: str) -> None:
    with psycopg.connect(libpq_url(database_url), autocommit=True) as connection:
        connection.execute(statement)


def create_order(client: FlaskClient) -> str:
    order_id: str = client.post("/orders", json=MINIMAL).json["id"]
    return order_id


def claim_all() -> list[webhook_queue.ClaimedDelivery]:
    return [one for due in webhook_queue.due_endpoints(datetime.now(UTC)) for one in webhook_queue.claim(due, 10)]


def complete(claimed: list[webhook_queue.ClaimedDelivery], *, status: int) -> None:
    webhook_queue.complete([(delivery, Attempt(datetime.now(UTC), 1, status, "")) for delivery in claimed])


def test_a_worker_that_stores_attempts_locks_the_endpoint_before_the_deliveries(
    app: Flask, client: FlaskClient, database_url: str
) -> None:
    create_webhook(client)
    create_order(client)
    with app.app_context():
        queue_events()
        claimed = claim_all()

    assert_unlocked_during(
        lambda: complete(claimed, status=500), app, database_url,
        locked="webhook_endpoints", unlocked="webhook_deliveries",
    )  # fmt: skip


def test_the_deliveries_of_a_deleted_endpoint_are_deleted_once_the_endpoint_is_locked(
    app: Flask, client: FlaskClient, database_url: str
) -> None:
    create_webhook(client)
    create_order(client)
    with app.app_context():
        queue_events()
    change(database_url, "UPDATE webhook_endpoints SET status = 'deleted'")

    assert_unlocked_during(
        lambda: list(prune_deliveries()), app, database_url,
        locked="webhook_endpoints", unlocked="webhook_deliveries",
    )  # fmt: skip


def replay_range(client: FlaskClient, webhook: dict[str, Any]) -> None:
    replayed = client.post(f"/webhooks/{webhook['id']}/replay", json={"from_seq": 1, "to_seq": 3})
    assert replayed.json == {"deliveries": 3}


def replay_failed(client: FlaskClient, webhook: dict[str, Any]) -> None:
    since = {"failed_since": "2026-01-01T00:00:00Z"}
    assert client.post(f"/webhooks/{webhook['id']}/replay", json=since).json == {"deliveries": 3}


def prune(_client: FlaskClient, _webhook: dict[str, Any]) -> None:
    assert list(prune_deliveries(older_than=timedelta(0))) == [3]


@pytest.mark.parametrize(
    "work", [pytest.param(replay_range, id="replay"), pytest.param(replay_failed, id="replay of failed"), prune]
)
def test_deliveries_are_locked_by_order_and_version(
    app: Flask, client: FlaskClient, database_url: str, work: Work
) -> None:
    webhook = create_webhook(client)
    first, second = create_order(client), create_order(client)
    client.post(f"/orders/{first}/confirm")
    with app.app_context():
        queue_events()
    # Those of the second order are the first ones to fail.
    change(
        database_url,
        "UPDATE webhook_deliveries SET status = 'failed', finished_at = now() + "
        f"CASE WHEN order_id = '{second}' THEN interval '0' ELSE interval '1 second' END",
    )

    assert_unlocked_during(
        lambda: work(app.test_client(), webhook), app, database_url,
        locked=f"webhook_deliveries WHERE order_id = '{first}' AND version = 2",
        unlocked=f"webhook_deliveries WHERE order_id = '{second}'",
    )  # fmt: skip


@pytest.mark.parametrize(
    "store", [pytest.param(lambda claimed: complete(claimed, status=200), id="attempts"), webhook_queue.release]
)
def test_a_worker_locks_its_deliveries_by_order(
    app: Flask, client: FlaskClient, database_url: str, store: Callable[[Any], None]
) -> None:
    create_webhook(client)
    first = create_order(client)
    with app.app_context():
        queue_events()
    change(database_url, "ANALYZE webhook_deliveries")  # the plan for one row reads the table in order of its index
    second = create_order(client)
    client.post(f"/orders/{first}/confirm")
    with app.app_context():
        queue_events()
        change(database_url, "UPDATE webhook_deliveries SET status = 'succeeded' WHERE version = 1")
        change(database_url, f"UPDATE webhook_deliveries SET status = 'pending' WHERE order_id = '{second}'")
        claimed = claim_all()
        assert [one.event_id for one in sorted(claimed, key=attrgetter("id"))] == [f"{second}:1", f"{first}:2"]

    assert_unlocked_during(
        lambda: store(claimed), app, database_url,
        locked=f"webhook_deliveries WHERE order_id = '{first}' AND version = 2",
        unlocked=f"webhook_deliveries WHERE order_id = '{second}'",
    )  # fmt: skip


def test_an_erasure_locks_deliveries_last(app: Flask, client: FlaskClient, database_url: str) -> None:
    create_webhook(client)
    order_id = create_order(client)
    client.post(f"/orders/{order_id}/cancel", json={"reason": "customer"})
    with app.app_context():
        queue_events()
    project(app)

    assert_unlocked_during(
        lambda: app.test_client().delete(f"/customers/{MINIMAL['customer_id']}/personal-data"), app, database_url,
        locked="order_search", unlocked="webhook_deliveries",
    )  # fmt: skip


@pytest.mark.parametrize("work", [renumber_feed, end_impossible_pauses])
def test_endpoints_are_locked_by_id(
    app: Flask, client: FlaskClient, database_url: str, work: Callable[[], object]
) -> None:
    first, second = create_webhook(client), create_webhook(client)
    create_order(client)
    with app.app_context():
        queue_events()
    # In the table, the row of the second endpoint precedes the first one's.
    for webhook in (second, first):
        change(
            database_url,
            f"UPDATE webhook_endpoints SET retry_at = now() + interval '9 years' WHERE id = '{webhook['id']}'",
        )

    assert_unlocked_during(
        work, app, database_url,
        locked=f"webhook_endpoints WHERE id = '{first['id']}'",
        unlocked=f"webhook_endpoints WHERE id = '{second['id']}'",
    )  # fmt: skip
    with app.app_context():
        assert {row.status for row in db.session.execute(select(DELIVERIES.c.status))} == {"pending"}
