"""Events are delivered to webhooks: signed, in sequence, at least once, until they are accepted."""

import re
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import time_machine
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select, update
from standardwebhooks import WebhookVerificationError
from structlog.testing import capture_logs

from app.db.engine import db, rfc3339
from app.models import DELIVERIES, EVENTS, WebhookDelivery, WebhookEndpoint
from app.models.webhook import RETRY_FIRST, RETRY_MAX, UNREACHABLE_AFTER, retry_pause
from app.services import webhook_delivery, webhook_queue, webhook_service
from app.services.credentials import SecretStore, new_webhook_secret
from app.services.event_feed import renumber_feed
from app.services.webhook_queue import Attempt, queue_rows
from app.services.webhook_service import prune_deliveries
from app.telemetry import observe_delivery
from tests.support.lock_waits import observed_lock_waits
from tests.support.marks import on_postgresql, on_sqlite
from tests.support.postgres import libpq_url
from tests.support.receivers import Received, receiver
from tests.support.samples import MINIMAL
from tests.support.servers import TIMEOUT, Server, running_worker, wait_until
from tests.support.webhooks import create_webhook, deliver, deliverer, queue_events, webhook_rules


@pytest.fixture(autouse=True)
def rules(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Endpoints on loopback, and maximum pauses, so that no test gets a retry by accident."""
    monkeypatch.setattr("app.models.webhook.random.random", lambda: 1.0)
    with webhook_rules(app):
        yield


def create_order(client: FlaskClient, **members: Any) -> str:
    order_id: str = client.post("/orders", json=MINIMAL | members).json["id"]
    return order_id


def deliveries(client: FlaskClient, webhook: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    """The deliveries of a webhook, oldest first."""
    response = client.get(f"/webhooks/{webhook['id']}/deliveries", query_string={"limit": 100} | query)
    return list(reversed(response.json["deliveries"]))


def health(client: FlaskClient, webhook: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = client.get(f"/webhooks/{webhook['id']}").json
    return document


def make_pending_due(app: Flask) -> None:
    """Make all pending deliveries due now."""
    past = datetime.now(UTC) - timedelta(seconds=1)
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(update(DELIVERIES).where(DELIVERIES.c.status == "pending").values(next_attempt_at=past))
        connection.execute(update(WebhookEndpoint).values(retry_at=None))


def test_an_event_is_delivered_with_a_signature_that_the_reference_library_verifies(
    app: Flask, client: FlaskClient
) -> None:
    with receiver() as endpoint:
        webhook = create_webhook(client, endpoint.url)
        order_id = create_order(client, note="a note")
        deliver(app)

    [request] = endpoint.requests
    payload = request.verify(webhook["secret"])
    assert request.event_id == f"{order_id}:1"
    assert payload["type"] == "order.created"
    assert payload["data"]["order_id"] == order_id
    assert (payload["data"]["version"], payload["data"]["seq"], payload["data"]["status"]) == (1, 1, "pending")
    assert payload["data"]["fulfillment_status"] == "unfulfilled"
    assert b"a note" not in request.body and b"customer" not in request.body
    [delivery] = deliveries(client, webhook)
    assert (delivery["event_id"], delivery["status"], delivery["attempt_count"]) == (f"{order_id}:1", "succeeded", 1)


def test_the_payload_order_has_the_order_as_it_was_after_the_event(app: Flask, client: FlaskClient) -> None:
    with receiver() as endpoint:
        create_webhook(client, endpoint.url, payload="order")
        order_id = create_order(client)
        client.post(f"/orders/{order_id}/confirm")
        deliver(app)

    for version, request in enumerate(endpoint.requests, start=1):
        assert client.get(f"/orders/{order_id}?version={version}").data in request.body
    history = client.get(f"/orders/{order_id}/history").json["events"]
    assert [request.json["timestamp"] for request in endpoint.requests] == [event["at"] for event in history]
    assert [request.json["type"] for request in endpoint.requests] == ["order.created", "order.confirmed"]


@pytest.mark.parametrize(
    "tamper",
    [
        lambda request: request.headers.update({"webhook-id": "x"}),
        lambda request: request.headers.update({"webhook-timestamp": str(int(time.time()) + 1)}),
        lambda request: request.headers.update({"webhook-timestamp": str(int(time.time()) - 400)}),
        lambda request: request.headers.update({"webhook-signature": "v1," + "A" * 43 + "="}),
        lambda request: setattr(request, "body", request.body.replace(b"pending", b"Pending")),
        lambda request: setattr(request, "body", request.body + b" "),
    ],
    ids=["id", "timestamp", "old timestamp", "signature", "body", "longer body"],
)
def test_a_request_that_was_tampered_with_does_not_verify(
    app: Flask, client: FlaskClient, tamper: Callable[[Received], None]
) -> None:
    with receiver() as endpoint:
        webhook = create_webhook(client, endpoint.url)
        create_order(client)
        deliver(app)
    [request] = endpoint.requests
    request.verify(webhook["secret"])

    tamper(request)

    with pytest.raises(WebhookVerificationError):
        request.verify(webhook["secret"])


def test_after_a_rotation_both_secrets_verify_for_24_hours(app: Flask, client: FlaskClient) -> None:
    with receiver() as endpoint:
        webhook = create_webhook(client, endpoint.url)
        rotated = client.post(f"/webhooks/{webhook['id']}/rotate-secret").json
        create_order(client)
        deliver(app)
        with app.app_context(), db.engine.begin() as connection:
            past = datetime.now(UTC) - timedelta(seconds=1)
            connection.execute(update(WebhookEndpoint).values(previous_secret_until=past))
        create_order(client)
        deliver(app)

    until = datetime.fromisoformat(rotated["previous_secret_until"]) - datetime.now(UTC)
    assert timedelta(hours=23, minutes=59) < until <= timedelta(hours=24)
    first, second = endpoint.requests
    for secret in (webhook["secret"], rotated["secret"]):
        first.verify(secret)
    second.verify(rotated["secret"])
    for request, secret in ((second, webhook["secret"]), (first, new_webhook_secret())):
        with pytest.raises(WebhookVerificationError):
            request.verify(secret)


def test_a_webhook_gets_the_events_of_its_types_and_channels(app: Flask, client: FlaskClient) -> None:
    with receiver() as endpoint:
        path = endpoint.url
        create_webhook(client, f"{path}/all")
        create_webhook(client, f"{path}/confirmed", events=["order.confirmed"])
        create_webhook(client, f"{path}/web", channels=["web", "shop"])
        create_webhook(client, f"{path}/both", channels=["app"], events=["order.confirmed", "order.cancelled"])
        create_webhook(client, f"{path}/none", events=["endpoint.failing"])
        orders = {channel: create_order(client, channel=channel) for channel in ("web", "app", None)}
        for order_id in orders.values():
            client.post(f"/orders/{order_id}/confirm")
        deliver(app)

    got: dict[str, set[str]] = {}
    for request in endpoint.requests:
        got.setdefault(request.path.rpartition("/")[2], set()).add(request.event_id)
    assert got == {
        "all": {f"{order_id}:{version}" for order_id in orders.values() for version in (1, 2)},
        "confirmed": {f"{order_id}:2" for order_id in orders.values()},
        "web": {f"{orders['web']}:1", f"{orders['web']}:2"},
        "both": {f"{orders['app']}:2"},
    }


def test_a_webhook_gets_no_events_from_before_its_creation(app: Flask, client: FlaskClient) -> None:
    create_order(client)
    with app.app_context():
        queue_events()
    with receiver() as endpoint:
        create_webhook(client, endpoint.url)
        later = create_order(client)
        deliver(app)

    assert endpoint.event_ids == [f"{later}:1"]


def fail_first(times: int, *answers: int) -> Callable[[Received], int]:
    """Fail the first attempts of each event."""
    counts: dict[str, int] = {}

    def answer(request: Received) -> int:
        counts[request.event_id] = count = counts.get(request.event_id, 0) + 1
        return answers[count % len(answers)] if count <= times else 200

    return answer


def test_a_failed_delivery_is_retried_with_the_same_id_and_a_new_timestamp(app: Flask, client: FlaskClient) -> None:
    with receiver(fail_first(3, 500, 0, 404)) as endpoint:
        webhook = create_webhook(client, endpoint.url)
        order_id = create_order(client)
        for _ in range(4):
            deliver(app)
            make_pending_due(app)
        deliver(app)

    assert endpoint.event_ids == [f"{order_id}:1"] * 4
    for request in endpoint.requests:
        request.verify(webhook["secret"])
    [delivery] = deliveries(client, webhook)
    assert (delivery["status"], delivery["attempt_count"]) == ("succeeded", 4)
    assert [attempt["status"] for attempt in delivery["attempts"]] == [None, 404, 500, 200]
    assert delivery["attempts"][0]["error"] is not None
    assert all(attempt["milliseconds"] >= 0 for attempt in delivery["attempts"])


def test_a_failed_delivery_is_due_after_its_pause(app: Flask, client: FlaskClient) -> None:
    with receiver(lambda _: 500) as endpoint:
        webhook = create_webhook(client, endpoint.url)
        create_order(client)
        deliver(app)
        deliver(app)

    [delivery] = deliveries(client, webhook)
    pause = datetime.fromisoformat(delivery["next_attempt_at"]) - datetime.fromisoformat(delivery["attempts"][0]["at"])
    assert (len(endpoint.requests), delivery["status"], pause) == (1, "pending", RETRY_FIRST)


@given(failures=st.integers(1, 100), retry_after=st.none() | st.floats(0, 10**9))
def test_a_pause_is_at_most_12_hours_and_not_shorter_than_retry_after(failures: int, retry_after: float | None) -> None:
    pause = retry_pause(failures, retry_after=retry_after)

    assert timedelta(0) <= pause <= RETRY_MAX
    assert pause <= max(RETRY_FIRST * 2 ** min(failures - 1, 20), timedelta(seconds=min(retry_after or 0, 43_200)))
    assert pause >= min(RETRY_MAX, timedelta(seconds=min(retry_after or 0, 43_200)))


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_of_an_overloaded_endpoint_pauses_it(app: Flask, client: FlaskClient, status: int) -> None:
    with receiver(lambda _: (status, b"", {"Retry-After": "600"})) as endpoint:
        webhook = create_webhook(client, endpoint.url)
        create_order(client)
        deliver(app)
        create_order(client)
        deliver(app)

    assert len(endpoint.requests) == 1
    assert health(client, webhook)["health"]["retry_at"] >= deliveries(client, webhook)[0]["next_attempt_at"]


def test_an_order_that_fails_does_not_delay_other_orders_and_keeps_its_own_order(
    app: Flask, client: FlaskClient
) -> None:
    accepts = threading.Event()

    def answer(request: Received) -> int:
        return 200 if accepts.is_set() or request.json["data"]["order_id"] != stuck else 500

    with receiver(answer) as endpoint:
        create_webhook(client, endpoint.url)
        stuck, other = create_order(client), create_order(client)
        for order_id in (stuck, other):
            client.post(f"/orders/{order_id}/confirm")
        deliver(app)
        blocked = endpoint.event_ids.copy()
        accepts.set()
        make_pending_due(app)
        deliver(app)

    assert sorted(blocked) == sorted([f"{stuck}:1", f"{other}:1", f"{other}:2"])
    assert endpoint.event_ids[3:] == [f"{stuck}:1", f"{stuck}:2"]


def test_an_unresponsive_endpoint_gets_one_request_at_a_time_until_one_succeeds(
    app: Flask, client: FlaskClient
) -> None:
    with receiver(lambda _: 500) as endpoint:
        webhook = create_webhook(client, endpoint.url)
        for _ in range(30):
            create_order(client)
        deliver(app)
        first = len(endpoint.requests)
        make_pending_due(app)
        deliver(app)
        second = len(endpoint.requests)
        make_pending_due(app)
        endpoint.answer = lambda _: 200
        deliver(app)

    assert first <= webhook_delivery.CONCURRENCY and second == first + 1
    assert len(deliveries(client, webhook, status="succeeded")) == 30


def test_an_order_with_many_pending_events_delays_no_other_order(app: Flask, client: FlaskClient) -> None:
    create_webhook(client)
    orders = [create_order(client)]
    for i in range(10):
        client.patch(f"/orders/{orders[0]}", json={"note": str(i)})
    orders += [create_order(client) for _ in range(4)]
    claimed = []
    with app.app_context():
        queue_events()
        for _ in range(3):  # each claim examines four deliveries, until those wait for an earlier one
            claimed += webhook_queue.claim(*webhook_queue.due_endpoints(datetime.now(UTC)), limit=2)

    assert sorted(delivery.event_id for delivery in claimed) == sorted(f"{order_id}:1" for order_id in orders)


def test_a_delivery_that_waits_for_an_earlier_event_is_due_with_its_next_attempt(
    app: Flask, client: FlaskClient
) -> None:
    waiting_count = webhook_queue.WINDOW * webhook_delivery.CONCURRENCY + 5
    with receiver() as endpoint, app.app_context():
        webhook = create_webhook(client, endpoint.url)
        for _ in range(waiting_count):
            client.post(f"/orders/{create_order(client)}/confirm")
        queue_events()
        first = update(DELIVERIES).where(DELIVERIES.c.version == 1)
        db.session.execute(first.values(next_attempt_at=datetime.now(UTC) + timedelta(hours=1)))
        db.session.commit()
        new = create_order(client)
        deliver(app)
        is_any_due = webhook_queue.any_due(datetime.now(UTC))

    pending = deliveries(client, webhook, status="pending")
    assert (endpoint.event_ids, is_any_due) == ([f"{new}:1"], False)
    assert len(pending) == 2 * waiting_count and len({one["next_attempt_at"] for one in pending}) == 1


def test_a_delivery_that_waits_for_an_event_in_progress_stays_due(app: Flask, client: FlaskClient) -> None:
    webhook = create_webhook(client)
    order_id = create_order(client)
    client.patch(f"/orders/{order_id}", json={"note": "2"})
    client.patch(f"/orders/{order_id}", json={"note": "3"})
    with app.app_context():
        queue_events()
        second = update(DELIVERIES).where(DELIVERIES.c.version == 2)
        db.session.execute(second.values(next_attempt_at=datetime.now(UTC) + timedelta(hours=1)))
        db.session.commit()
        claims = [
            webhook_queue.claim(*webhook_queue.due_endpoints(datetime.now(UTC)), limit=webhook_delivery.CONCURRENCY)
            for _ in range(2)
        ]

    _, second_due, third_due = (one["next_attempt_at"] for one in deliveries(client, webhook))
    assert [len(claimed) for claimed in claims] == [1, 0]
    assert third_due < second_due


def test_a_slow_endpoint_delays_no_other(app: Flask, client: FlaskClient) -> None:
    released = threading.Event()

    def wait(_request: Received) -> int:
        released.wait(TIMEOUT)
        return 200

    with receiver(wait) as slow, receiver() as fast, ThreadPoolExecutor() as executor:
        webhook = create_webhook(client, slow.url)
        create_webhook(client, fast.url)
        orders = [create_order(client) for _ in range(60)]
        delivered = executor.submit(deliver, app)

        wait_until(lambda: len(fast.requests) == 60)
        in_flight = len(slow.requests)
        released.set()
        delivered.result(TIMEOUT)

    assert set(fast.event_ids) == {f"{order_id}:1" for order_id in orders}
    assert in_flight <= webhook_delivery.CONCURRENCY
    assert (
        len(deliveries(client, webhook, status="pending")) + len(deliveries(client, webhook, status="succeeded")) == 60
    )


def test_idle_connections_are_closed_while_another_endpoint_has_open_requests(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_request: Received) -> int:
        assert answered.wait(TIMEOUT)
        return 200

    answered = threading.Event()
    monkeypatch.setattr(webhook_delivery, "_IDLE_SECONDS", 0.0)
    monkeypatch.setattr(webhook_delivery, "_CALL_SECONDS", 0.1)
    with receiver(answer) as slow, receiver() as fast, app.app_context():
        for endpoint in (slow, fast):
            create_webhook(client, endpoint.url)
        create_order(client)
        queue_events()
        running = deliverer(app)
        while not fast.requests or not slow.requests:
            assert running.run()

        assert running.run()

        wait_until(lambda: fast.closed_connections == fast.connections)
        assert slow.closed_connections < slow.connections
        answered.set()
        running.finish()


@on_sqlite
def test_a_worker_forgets_the_endpoints_that_it_has_delivered_to(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_delivery, "ENDPOINTS_MAX", 2)
    with receiver() as endpoint, app.app_context():
        running = deliverer(app)
        for _ in range(5):
            webhook = create_webhook(client, endpoint.url)
            create_order(client)
            queue_events()
            while running.run():
                pass
            client.delete(f"/webhooks/{webhook['id']}")
        running.finish()

    assert len(endpoint.requests) == 5
    assert len(running._endpoints) <= 3


def test_410_disables_a_webhook_and_pending_deliveries_are_sent_when_it_is_enabled(
    app: Flask, client: FlaskClient
) -> None:
    with receiver(lambda _: 410) as endpoint:
        webhook = create_webhook(client, endpoint.url)
        first = create_order(client)
        deliver(app)
        second = create_order(client)
        make_pending_due(app)
        deliver(app)
        disabled = health(client, webhook)
        endpoint.answer = lambda _: 200
        client.patch(f"/webhooks/{webhook['id']}", json={"status": "enabled"})
        deliver(app)

    assert (disabled["status"], disabled["disabled_reason"]) == ("disabled", "gone")
    assert sorted(endpoint.event_ids) == sorted([f"{first}:1", f"{first}:1", f"{second}:1"])


def test_waiting_deliveries_are_sent_at_once_when_the_webhook_is_enabled_or_gets_another_url(
    app: Flask, client: FlaskClient
) -> None:
    def change(**members: str) -> None:
        client.patch(f"/webhooks/{webhook['id']}", json=members)
        deliver(app)

    with receiver(lambda _: 500) as endpoint, receiver() as other:
        webhook = create_webhook(client, endpoint.url)
        order_id = create_order(client)
        deliver(app)
        change(description="the same")
        change(status="disabled")
        change(status="enabled")
        change(url=other.url)

    assert (len(endpoint.requests), other.event_ids) == (2, [f"{order_id}:1"])


def test_all_waiting_deliveries_are_due_when_the_webhook_is_enabled_with_any_batch_size(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_service, "REPLAY_MAX", 2)
    with receiver() as endpoint, app.app_context():
        webhook = create_webhook(client, endpoint.url)
        orders = [create_order(client) for _ in range(5)]
        queue_events()
        db.session.execute(update(DELIVERIES).values(next_attempt_at=datetime.now(UTC) + timedelta(hours=1)))
        db.session.commit()
        client.patch(f"/webhooks/{webhook['id']}", json={"status": "enabled"})
        deliver(app)

    assert sorted(endpoint.event_ids) == sorted(f"{order_id}:1" for order_id in orders)


@pytest.mark.parametrize("by", ["enabled", "test"])
def test_a_repaired_webhook_gets_a_request_at_once(app: Flask, client: FlaskClient, by: str) -> None:
    with receiver(lambda _: 500) as endpoint:
        webhook = create_webhook(client, endpoint.url)
        for _ in range(UNREACHABLE_AFTER):
            create_order(client)
        deliver(app)
        paused = health(client, webhook)
        create_order(client)
        deliver(app)
        failures = len(endpoint.requests)
        endpoint.answer = lambda _: 200
        if by == "enabled":
            client.patch(f"/webhooks/{webhook['id']}", json={"status": "enabled"})
        else:
            client.post(f"/webhooks/{webhook['id']}/test")
        deliver(app)

    assert paused["health"]["retry_at"] is not None and failures == UNREACHABLE_AFTER
    assert len(endpoint.requests) > failures
    assert health(client, webhook)["health"]["consecutive_failures"] == 0


@pytest.mark.parametrize("repair", [{"status": "enabled"}, {"url": "http://127.0.0.1:2/"}, {"description": "mended"}])
def test_a_failure_that_began_before_a_repair_does_not_count(
    app: Flask, client: FlaskClient, repair: dict[str, str]
) -> None:
    webhook = create_webhook(client, "http://127.0.0.1:1/")
    order_id = create_order(client)
    with app.app_context():
        queue_events()
        began = datetime.now(UTC)
        [claimed] = webhook_queue.claim(*webhook_queue.due_endpoints(began), limit=10)
    client.patch(f"/webhooks/{webhook['id']}", json=repair)

    with app.app_context():
        webhook_queue.complete([(claimed, Attempt(began, 9_000, 410, ""))])

    after = health(client, webhook)
    [delivery] = deliveries(client, webhook)
    assert (after["status"], after["health"]["consecutive_failures"]) == ("enabled", 0)
    assert (delivery["order_id"], [attempt["status"] for attempt in delivery["attempts"]]) == (order_id, [410])
    assert delivery["status"] == "pending" and delivery["next_attempt_at"] <= rfc3339(datetime.now(UTC))


def test_pauses_that_a_worker_with_a_later_clock_has_stored_are_ended(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_service, "REPLAY_MAX", 2)
    with receiver() as endpoint, app.app_context():
        webhook = create_webhook(client, endpoint.url)
        orders = [create_order(client) for _ in range(3)]
        queue_events()
        ahead = datetime.now(UTC) + timedelta(days=400)
        db.session.execute(update(DELIVERIES).values(next_attempt_at=ahead))
        db.session.execute(update(WebhookEndpoint).values(retry_at=ahead, reported_at=ahead))
        db.session.commit()
        rounds = [webhook_service.end_impossible_pauses() for _ in range(2)]
        deliver(app)

    assert rounds == [True, False]
    assert sorted(endpoint.event_ids) == sorted(f"{order_id}:1" for order_id in orders)
    assert health(client, webhook)["health"]["retry_at"] is None


@pytest.mark.parametrize("hours", [0, 12])
def test_pauses_after_failures_are_not_ended(app: Flask, client: FlaskClient, hours: int) -> None:
    with receiver() as endpoint, app.app_context():
        create_webhook(client, endpoint.url)
        create_order(client)
        queue_events()
        due = datetime.now(UTC) + timedelta(hours=hours, minutes=1)
        db.session.execute(update(DELIVERIES).values(next_attempt_at=due))
        db.session.commit()
        more = webhook_service.end_impossible_pauses()
        deliver(app)

    assert (more, endpoint.requests) == (False, [])


def age_failures(app: Flask, time: timedelta) -> None:
    """Move the beginning of the failures into the past."""
    with app.app_context(), db.engine.begin() as connection:
        for column in (WebhookEndpoint.failing_since, WebhookDelivery.first_attempt_at, WebhookEndpoint.reported_at):
            past = datetime.now(UTC) - time
            connection.execute(update(column.class_).where(column.is_not(None)).values({column: past}))


def test_after_72_hours_a_delivery_has_failed_and_can_be_sent_again(app: Flask, client: FlaskClient) -> None:
    with receiver(lambda _: 500) as endpoint:
        webhook = create_webhook(client, endpoint.url)
        order_id = create_order(client)
        client.post(f"/orders/{order_id}/confirm")
        deliver(app)
        age_failures(app, timedelta(hours=72))
        make_pending_due(app)
        deliver(app)
        failed, _ = deliveries(client, webhook)
        endpoint.answer = lambda _: 200
        make_pending_due(app)
        since = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
        replayed = client.post(f"/webhooks/{webhook['id']}/replay", json={"failed_since": since})
        deliver(app)

    assert (failed["status"], failed["next_attempt_at"]) == ("failed", None)
    assert failed["finished_at"] == failed["attempts"][-1]["at"]
    assert (replayed.status_code, replayed.json) == (202, {"deliveries": 1})
    assert {one["status"] for one in deliveries(client, webhook)} == {"succeeded"}


def test_the_last_attempt_is_made_at_the_end_of_the_72_hours(app: Flask, client: FlaskClient) -> None:
    with receiver(lambda _: (503, b"", {"Retry-After": "3600"})) as endpoint:
        webhook = create_webhook(client, endpoint.url)
        create_order(client)
        deliver(app)
        age_failures(app, timedelta(hours=71, minutes=30))
        make_pending_due(app)
        deliver(app)

    [delivery] = deliveries(client, webhook)
    with app.app_context():
        first_attempt_at = db.session.scalars(select(WebhookDelivery.first_attempt_at)).one()
    assert (len(endpoint.requests), delivery["status"]) == (2, "pending")
    assert datetime.fromisoformat(delivery["next_attempt_at"]) - first_attempt_at == timedelta(hours=72)


@pytest.mark.parametrize(
    ("failures", "hours", "status"),
    [(15, 72, "disabled"), (14, 72, "enabled"), (15, 71, "enabled"), (100, 1, "enabled")],
)
def test_15_failures_in_a_row_and_72_hours_disable_a_webhook(
    app: Flask, client: FlaskClient, failures: int, hours: int, status: str
) -> None:
    with receiver(lambda _: 500) as endpoint:
        webhook = create_webhook(client, endpoint.url)
        create_order(client)
        deliver(app)
        age_failures(app, timedelta(hours=hours))
        with app.app_context(), db.engine.begin() as connection:
            connection.execute(update(WebhookEndpoint).values(consecutive_failures=failures - 1))
        make_pending_due(app)
        deliver(app)

    document = health(client, webhook)
    assert document["status"] == status
    assert document["disabled_reason"] == ("failing" if status == "disabled" else None)
    assert document["health"]["consecutive_failures"] == failures


def test_a_success_ends_a_series_of_failures(app: Flask, client: FlaskClient) -> None:
    with receiver(fail_first(2, 500)) as endpoint:
        webhook = create_webhook(client, endpoint.url)
        create_order(client)
        deliver(app)
        failing = health(client, webhook)["health"]
        for _ in range(2):
            make_pending_due(app)
            deliver(app)

    assert (failing["consecutive_failures"], failing["last_success_at"]) == (1, None)
    assert failing["failing_since"] == failing["last_failure_at"] != None  # noqa: E711
    healthy = health(client, webhook)["health"]
    assert (healthy["consecutive_failures"], healthy["failing_since"]) == (0, None)
    assert healthy["last_success_at"] > healthy["last_failure_at"]


def test_failing_and_disabled_webhooks_are_reported_to_operators(app: Flask, client: FlaskClient) -> None:
    with receiver(lambda _: 500) as endpoint, receiver() as operators, capture_logs() as lines:
        webhook = create_webhook(client, endpoint.url + "?token=secret", channels=["web"])
        alarm = create_webhook(client, operators.url, events=["endpoint.failing", "endpoint.disabled"])
        create_webhook(client, operators.url, events=["endpoint.failing"], channels=["app"])
        create_order(client, channel="web")
        for status in (500, 500, 410):
            endpoint.answer = lambda _, status=status: status  # type: ignore[misc]
            deliver(app)
            make_pending_due(app)
        deliver(app)

    failing, disabled = operators.requests
    assert failing.verify(alarm["secret"])["type"] == "endpoint.failing"
    assert failing.json["data"]["endpoint_id"] == webhook["id"]
    assert (failing.json["data"]["response_status"], failing.json["data"]["consecutive_failures"]) == (500, 1)
    assert (disabled.json["type"], disabled.json["data"]["disabled_reason"]) == ("endpoint.disabled", "gone")
    lines = [line for line in lines if line["log_level"] == "warning"]
    assert [line["event"] for line in lines] == ["endpoint.failing", "endpoint.disabled"]
    assert {line["endpoint_id"] for line in lines} == {webhook["id"]}
    assert "token=secret" not in str(lines)


def test_a_test_event_is_sent_and_listed(app: Flask, client: FlaskClient) -> None:
    with receiver() as endpoint:
        webhook = create_webhook(client, endpoint.url, events=["order.created"])
        response = client.post(f"/webhooks/{webhook['id']}/test")
        deliver(app)

    [request] = endpoint.requests
    [delivery] = deliveries(client, webhook)
    assert (response.status_code, response.json) == (202, {"deliveries": 1})
    assert request.verify(webhook["secret"])["type"] == "webhook.test"
    assert (request.event_id, delivery["status"]) == (delivery["event_id"], "succeeded")


def test_delivered_events_are_sent_again_with_the_same_id(app: Flask, client: FlaskClient) -> None:
    with receiver() as endpoint:
        webhook = create_webhook(client, endpoint.url, events=["order.created"])
        orders = [create_order(client) for _ in range(4)]
        client.post(f"/orders/{orders[0]}/confirm")
        deliver(app)
        path = f"/webhooks/{webhook['id']}/replay"
        one = client.post(path, json={"event_id": f"{orders[0]}:1"})
        other_type = client.post(path, json={"event_id": f"{orders[0]}:2"})
        deliver(app)
        some = client.post(path, json={"from_seq": 2, "to_seq": 10_000})
        deliver(app)

    assert [one.json, other_type.json, some.json] == [{"deliveries": 1}, {"deliveries": 1}, {"deliveries": 3}]
    assert endpoint.event_ids[4:6] == [f"{orders[0]}:1", f"{orders[0]}:2"]
    assert set(endpoint.event_ids[6:]) == {f"{order_id}:1" for order_id in orders[1:]}
    assert {one["status"] for one in deliveries(client, webhook)} == {"succeeded"}


def test_an_event_whose_success_is_not_stored_yet_can_be_sent_again(app: Flask, client: FlaskClient) -> None:
    with receiver() as endpoint:
        webhook = create_webhook(client, endpoint.url)
        order_id = create_order(client)
        with app.app_context():
            queue_events()
            [claimed] = webhook_queue.claim(*webhook_queue.due_endpoints(datetime.now(UTC)), limit=10)
        client.post(f"/webhooks/{webhook['id']}/replay", json={"event_id": f"{order_id}:1"})
        with app.app_context():
            webhook_queue.complete([(claimed, Attempt(datetime.now(UTC), 1, 200, ""))])
        deliver(app)

    assert endpoint.event_ids == [f"{order_id}:1"]
    assert [one["status"] for one in deliveries(client, webhook)] == ["succeeded"]


def test_a_webhook_that_is_ahead_of_a_restored_feed_gets_the_next_events(app: Flask, client: FlaskClient) -> None:
    with receiver() as endpoint:
        create_webhook(client, endpoint.url)
        with app.app_context(), db.engine.begin() as connection:
            connection.execute(update(WebhookEndpoint).values(last_seq=5))
        deliver(app)
        order_id = create_order(client)
        deliver(app)

    assert endpoint.event_ids == [f"{order_id}:1"]


def test_a_replay_reaches_events_from_before_the_creation_of_the_webhook(app: Flask, client: FlaskClient) -> None:
    orders = [create_order(client) for _ in range(3)]
    with app.app_context():
        queue_events()
    with receiver() as endpoint:
        webhook = create_webhook(client, endpoint.url)
        client.post(f"/webhooks/{webhook['id']}/replay", json={"from_seq": 1, "to_seq": 2})
        deliver(app)

    assert set(endpoint.event_ids) == {f"{order_id}:1" for order_id in orders[:2]}


@pytest.mark.parametrize("replayed", [{"event_id": "{order_id}:2"}, {"from_seq": 2, "to_seq": 2}])
def test_a_replay_sends_no_event_before_an_earlier_one_that_is_not_queued(
    app: Flask, client: FlaskClient, replayed: dict[str, Any]
) -> None:
    with receiver() as endpoint, app.app_context():
        webhook = create_webhook(client, endpoint.url)
        client.patch(f"/webhooks/{webhook['id']}", json={"status": "disabled"})
        order_id = create_order(client)
        client.post(f"/orders/{order_id}/confirm")
        body = replayed | {name: id.format(order_id=order_id) for name, id in replayed.items() if name == "event_id"}
        responses = [client.post(f"/webhooks/{webhook['id']}/replay", json=body)]
        queue_events()
        responses.append(client.post(f"/webhooks/{webhook['id']}/replay", json=body))
        client.patch(f"/webhooks/{webhook['id']}", json={"status": "enabled"})
        running = deliverer(app)
        running.run()
        sent_first = endpoint.event_ids
        running.finish()
        deliver(app)

    refused = "event_id" in replayed
    assert [response.status_code for response in responses] == ([404, 404] if refused else [202, 202])
    assert (sent_first, endpoint.event_ids) == ([], [f"{order_id}:1", f"{order_id}:2"])


@pytest.mark.parametrize("status", [200, 500])
def test_a_replayed_delivery_has_the_current_number_of_its_event(app: Flask, client: FlaskClient, status: int) -> None:
    with receiver(lambda _: status) as endpoint, app.app_context():
        webhook = create_webhook(client, endpoint.url)
        order_id = create_order(client)
        deliver(app)
        if status != 200:
            db.session.execute(update(DELIVERIES).values(status="failed", finished_at=datetime.now(UTC)))
            db.session.commit()
        added = renumber_feed()
        one = {"event_id": f"{order_id}:1"} if status == 200 else {"failed_since": "2026-01-01T00:00:00Z"}
        client.post(f"/webhooks/{webhook['id']}/replay", json=one)
        deliver(app)

    assert [request.json["data"]["seq"] for request in endpoint.requests] == [1, 1 + added]


def test_a_disabled_webhook_gets_the_missed_events_when_it_is_enabled(app: Flask, client: FlaskClient) -> None:
    with receiver() as endpoint:
        webhook = create_webhook(client, endpoint.url)
        client.patch(f"/webhooks/{webhook['id']}", json={"status": "disabled"})
        order_id = create_order(client)
        deliver(app)
        missed = endpoint.requests.copy()
        client.patch(f"/webhooks/{webhook['id']}", json={"status": "enabled"})
        deliver(app)

    assert (missed, endpoint.event_ids) == ([], [f"{order_id}:1"])


def test_deliveries_of_an_erased_order_have_no_personal_data_and_responses_are_erased(
    app: Flask, client: FlaskClient
) -> None:
    with receiver(lambda request: (500, request.body, {})) as endpoint:
        webhook = create_webhook(client, endpoint.url, payload="order")
        order_id = create_order(client, note="erika.canary", customer_id="c-canary")
        client.post(f"/orders/{order_id}/cancel", json={"reason": "customer"})
        deliver(app)
        before = deliveries(client, webhook)
        client.delete("/customers/c-canary/personal-data")
        after = deliveries(client, webhook)
        endpoint.requests.clear()
        endpoint.answer = lambda _: 200
        make_pending_due(app)
        deliver(app)

    assert "canary" in str(before)
    assert "canary" not in str(after) and after[0]["attempts"][0]["status"] == 500
    assert endpoint.event_ids == [f"{order_id}:{version}" for version in (1, 2, 3)]
    assert not [request for request in endpoint.requests if b"canary" in request.body]


def test_a_response_to_a_request_from_before_an_erasure_is_not_stored(app: Flask, client: FlaskClient) -> None:
    webhook = create_webhook(client, "http://127.0.0.1:1/", payload="order")
    order_id = create_order(client, customer_id="c-canary")
    client.post(f"/orders/{order_id}/cancel", json={"reason": "customer"})
    with app.app_context():
        queue_events()
        [claimed] = webhook_queue.claim(*webhook_queue.due_endpoints(datetime.now(UTC)), limit=10)
    client.delete("/customers/c-canary/personal-data")

    with app.app_context():
        webhook_queue.complete([(claimed, Attempt(datetime.now(UTC), 1, 200, "c-canary"))])

    first, *_ = deliveries(client, webhook)
    assert (first["status"], first["attempts"]) == ("pending", [])


@on_postgresql
@pytest.mark.parametrize("by", ["enabled", "replay"])
def test_deliveries_locked_by_another_transaction_are_not_queued_again(
    app: Flask, client: FlaskClient, database_url: str, by: str
) -> None:
    webhook = create_webhook(client, "http://127.0.0.1:1/")
    create_order(client)
    with app.app_context():
        queue_events()
    failed = by == "replay"
    change(
        database_url,
        f"status = '{'failed' if failed else 'pending'}', finished_at = now(), "
        "next_attempt_at = now() + interval '1 hour'",
    )
    with (
        observed_lock_waits(database_url) as is_waiting,
        ThreadPoolExecutor() as executor,
        psycopg.connect(libpq_url(database_url)) as worker,
    ):
        leased = f"UPDATE webhook_deliveries SET status = 'pending', {LEASED} RETURNING next_attempt_at"
        lease_end = worker.execute(leased).fetchone()
        path = f"/webhooks/{webhook['id']}"
        if failed:
            since = {"failed_since": "2026-01-01T00:00:00Z"}
            repairing = executor.submit(app.test_client().post, f"{path}/replay", json=since)
        else:
            repairing = executor.submit(app.test_client().patch, path, json={"status": "enabled"})
        wait_until(lambda: is_waiting() or repairing.done())
        worker.commit()
        repairing.result()

    with app.app_context():
        [row] = db.session.execute(select(DELIVERIES)).all()
    assert (row.lease, lease_end) == ("of another worker", (row.next_attempt_at,))


def change(database_url: str, assignments: str) -> None:
    with psycopg.connect(libpq_url(database_url), autocommit=True) as connection:
        connection.execute(f"UPDATE webhook_deliveries SET {assignments}")


LEASED = "lease = 'of another worker', next_attempt_at = now() + interval '30 seconds'"


def test_an_erasure_waits_for_a_claim_that_has_read_the_event(
    app: Flask, client: FlaskClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    webhook = create_webhook(client, "http://127.0.0.1:1/", payload="order")
    order_id = create_order(client, customer_id="c-canary")
    client.post(f"/orders/{order_id}/cancel", json={"reason": "customer"})
    render, read, commit = webhook_queue.render_event, threading.Event(), threading.Event()

    def render_slowly(*arguments: Any, **members: Any) -> bytes:
        read.set()
        commit.wait(TIMEOUT)
        return render(*arguments, **members)

    def claim() -> list[webhook_queue.ClaimedDelivery]:
        with app.app_context():
            return webhook_queue.claim(*webhook_queue.due_endpoints(datetime.now(UTC)), limit=10)

    monkeypatch.setattr(webhook_queue, "render_event", render_slowly)
    with app.app_context():
        queue_events()
    with observed_lock_waits(database_url) as is_waiting, ThreadPoolExecutor() as executor:
        claiming = executor.submit(claim)
        assert read.wait(TIMEOUT)
        erasing = executor.submit(app.test_client().delete, "/customers/c-canary/personal-data")
        wait_until(lambda: is_waiting() or erasing.done())
        commit.set()
        [claimed] = claiming.result()
        assert erasing.result().status_code in (200, 202)
    with app.app_context():
        webhook_queue.complete([(claimed, Attempt(datetime.now(UTC), 1, 200, "c-canary"))])

    assert b"c-canary" in claimed.body
    assert "canary" not in str(deliveries(client, webhook))


def test_a_delivery_whose_worker_dies_is_due_again_and_late_results_are_ignored(
    app: Flask, client: FlaskClient
) -> None:
    with receiver() as endpoint:
        webhook = create_webhook(client, endpoint.url)
        order_id = create_order(client)
        with app.app_context():
            queue_events()
            [due] = webhook_queue.due_endpoints(datetime.now(UTC))
            [lost] = webhook_queue.claim(due, limit=10)
            assert webhook_queue.claim(due, limit=10) == []
        make_pending_due(app)
        deliver(app)
        with app.app_context():
            webhook_queue.complete([(lost, Attempt(datetime.now(UTC), 1, 500, ""))])

    [delivery] = deliveries(client, webhook)
    assert (endpoint.event_ids, delivery["status"]) == ([f"{order_id}:1"], "succeeded")


def test_concurrent_workers_deliver_each_event_once_and_in_order(app: Flask, client: FlaskClient) -> None:
    with receiver() as endpoint, ThreadPoolExecutor() as executor:
        create_webhook(client, endpoint.url)
        orders = [create_order(client) for _ in range(20)]
        for order_id in orders:
            client.post(f"/orders/{order_id}/confirm")
            client.post(f"/orders/{order_id}/cancel", json={"reason": "customer"})
        for delivered in [executor.submit(deliver, app) for _ in range(3)]:
            delivered.result(TIMEOUT)
        deliver(app)

    versions: dict[str, list[int]] = {order_id: [] for order_id in orders}
    for request in endpoint.requests:
        versions[request.json["data"]["order_id"]].append(request.json["data"]["version"])
    assert versions == {order_id: [1, 2, 3] for order_id in orders}


@on_sqlite
def test_a_claim_waits_for_another_writer_and_a_check_does_not(
    app: Flask, client: FlaskClient, database_url: str
) -> None:
    def claim(due: webhook_queue.DueEndpoint) -> int:
        with app.app_context():
            return len(webhook_queue.claim(due, limit=10))

    create_webhook(client)
    create_order(client)
    with (
        app.app_context(),
        observed_lock_waits(database_url) as is_waiting,
        ThreadPoolExecutor(1) as threads,
        closing(sqlite3.connect(database_url[10:], isolation_level=None)) as other,
    ):
        queue_events()
        other.execute("BEGIN IMMEDIATE")
        [due] = webhook_queue.due_endpoints(datetime.now(UTC))
        claimed = threads.submit(claim, due)
        wait_until(is_waiting)
        assert not claimed.done(), claimed.result()
        other.execute("ROLLBACK")

        assert claimed.result(TIMEOUT) == 1


def test_deliveries_that_wait_too_long_for_a_slow_endpoint_are_released(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_delivery, "CLAIM_SECONDS", -1.0)
    with receiver() as endpoint, app.app_context():
        webhook = create_webhook(client, endpoint.url)
        create_order(client)
        queue_events()
        waiting = deliverer(app)
        waiting.run()
        waiting.finish()

    [delivery] = deliveries(client, webhook)
    assert (endpoint.requests, delivery["status"], delivery["attempts"]) == ([], "pending", [])


def test_no_more_deliveries_are_claimed_than_an_endpoint_accepts_in_a_second(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_request: Received) -> int:
        answered.wait(0.25 if len(endpoint.requests) == 1 else TIMEOUT)
        return 200

    answered = threading.Event()
    monkeypatch.setattr(webhook_delivery, "_CALL_SECONDS", 0.4)
    with receiver(answer) as endpoint, app.app_context():
        create_webhook(client, endpoint.url)
        running = deliverer(app)
        for count in (1, 50):
            for _ in range(count):
                create_order(client)
            queue_events()
            running.run()
        claimed = select(func.count()).select_from(DELIVERIES).where(DELIVERIES.c.lease.is_not(None))
        claimed_count = db.session.scalars(claimed).one()
        db.session.rollback()
        answered.set()
        running.finish()

    assert webhook_delivery.CONCURRENCY <= claimed_count <= 4 * webhook_delivery.CONCURRENCY


def test_a_failure_counts_once_if_the_database_fails_meanwhile(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_request: Received) -> int:
        """Accept the first request, and make the deliveries that wait for the second be released."""
        if len(endpoint.requests) == 1:
            return 200
        monkeypatch.setattr(webhook_delivery, "CLAIM_SECONDS", -1.0)
        return 500

    def fail(_unsent: Any) -> None:
        monkeypatch.setattr(webhook_delivery, "release", webhook_queue.release)
        raise sqlite3.OperationalError

    monkeypatch.setattr(webhook_delivery, "CONCURRENCY", 1)
    monkeypatch.setattr(webhook_delivery, "release", fail)
    with receiver(answer) as endpoint, app.app_context():
        webhook = create_webhook(client, endpoint.url)
        running = deliverer(app)
        for count in (1, 2):
            for _ in range(count):
                create_order(client)
            queue_events()
            with suppress(sqlite3.OperationalError):
                running.run()
        running.run()
        running.finish()

    assert len(endpoint.requests) == 2
    assert health(client, webhook)["health"]["consecutive_failures"] == 1


@on_sqlite
def test_no_more_deliveries_are_sent_than_have_room_for_results_that_cannot_be_stored(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_sent: Any) -> None:
        raise sqlite3.OperationalError

    monkeypatch.setattr(webhook_delivery, "OPEN_MAX", 20)
    monkeypatch.setattr(webhook_delivery, "complete", fail)
    with receiver() as endpoint, app.app_context():
        create_webhook(client, endpoint.url)
        for _ in range(60):
            create_order(client)
        queue_events()
        running = deliverer(app)
        for _ in range(10):
            with suppress(sqlite3.OperationalError):
                running.run()
        sent = len(endpoint.requests)
        monkeypatch.setattr(webhook_delivery, "complete", webhook_queue.complete)
        while running.run():
            pass
        running.finish()

    assert sent <= 20
    assert len(set(endpoint.event_ids)) == len(endpoint.requests) == 60


@on_sqlite
def test_results_that_could_not_be_stored_during_a_lease_are_stored_before_the_next_claim(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_sent: Any) -> None:
        raise sqlite3.OperationalError

    with receiver() as endpoint, app.app_context():
        webhook = create_webhook(client, endpoint.url)
        create_order(client)
        queue_events()
        running = deliverer(app)
        with monkeypatch.context() as without_database, pytest.raises(sqlite3.OperationalError):
            without_database.setattr(webhook_delivery, "complete", fail)
            while running.run():
                pass
        with time_machine.travel(datetime.now(UTC) + 2 * webhook_queue.LEASE):
            while running.run():
                pass
            running.finish()

    assert len(endpoint.requests) == 1
    assert len(deliveries(client, webhook, status="succeeded")) == 1


def test_a_transaction_stores_a_limited_number_of_results(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def complete(results: Any) -> None:
        counts.append(len(results))
        webhook_queue.complete(results)

    counts: list[int] = []
    monkeypatch.setattr(webhook_delivery, "RESULTS_MAX", 4)
    monkeypatch.setattr(webhook_delivery, "complete", complete)
    with receiver() as endpoint:
        webhook = create_webhook(client, endpoint.url)
        for _ in range(25):
            create_order(client)
        deliver(app)

    assert max(counts) <= 4 and sum(counts) == 25
    assert len(deliveries(client, webhook, status="succeeded")) == len(endpoint.requests) == 25


def test_an_event_whose_snapshot_is_not_an_order_does_not_delay_others(app: Flask, client: FlaskClient) -> None:
    with receiver() as endpoint:
        create_webhook(client, endpoint.url)
        broken, other = (create_order(client) for _ in range(2))
        with app.app_context(), db.engine.begin() as connection:
            connection.execute(update(EVENTS).where(EVENTS.c.order_id == broken).values(snapshot="[]"))
        deliver(app)

    received = {request.json["data"]["order_id"]: request.json["data"] for request in endpoint.requests}
    assert received.keys() == {broken, other}
    assert received[broken] == {"order_id": broken, "version": 1, "seq": 1}


def test_a_secret_that_cannot_be_decrypted_is_a_failure_that_says_what_to_do(app: Flask, client: FlaskClient) -> None:
    with receiver() as endpoint:
        webhook = create_webhook(client, endpoint.url)
        create_order(client)
        with webhook_rules(app, secrets=SecretStore("another secret key of the installation")):
            deliver(app)
            [delivery] = deliveries(client, webhook)
            rotated = client.post(f"/webhooks/{webhook['id']}/rotate-secret").json
            make_pending_due(app)
            deliver(app)

    assert "Rotate the secret" in delivery["attempts"][0]["error"]
    [request] = endpoint.requests
    request.verify(rotated["secret"])


def test_an_unexpected_error_of_a_request_is_a_failed_attempt_and_is_logged(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("unexpected")

    webhook = create_webhook(client, "http://127.0.0.1:9/")
    create_order(client)
    monkeypatch.setattr("app.services.webhook_delivery.WebhookSender.send", fail)
    with capture_logs() as logs:
        deliver(app)

    [delivery] = deliveries(client, webhook)
    assert (delivery["status"], delivery["attempt_count"]) == ("pending", 1)
    assert "error in the service" in delivery["attempts"][0]["error"]
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["webhook request failed"]


def test_the_bodies_of_open_requests_have_limited_memory(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_request: Received) -> int:
        assert answered.wait(TIMEOUT)
        return 200

    answered = threading.Event()
    monkeypatch.setattr(webhook_delivery, "OPEN_BYTES_MAX", 1)
    monkeypatch.setattr(webhook_delivery, "_CALL_SECONDS", 0.2)
    with receiver(answer) as first, receiver(answer) as second, app.app_context():
        for endpoint in (first, second):
            create_webhook(client, endpoint.url, payload="order")
        for _ in range(3):
            create_order(client)
        queue_events()
        running = deliverer(app)
        while not (first.requests or second.requests):
            running.run()
        open_requests = sorted(len(endpoint.requests) for endpoint in (first, second))
        answered.set()
        while running.run():
            pass
        running.finish()

    assert open_requests == [0, 1]
    assert (len(first.requests), len(second.requests)) == (3, 3)


def test_finished_deliveries_are_deleted_after_the_retention_time_and_pending_ones_are_kept(
    app: Flask, client: FlaskClient
) -> None:
    with receiver() as endpoint:
        webhook = create_webhook(client, endpoint.url)
        create_order(client)
        deliver(app)
        endpoint.answer = lambda _: 500
        create_order(client)
        deliver(app)
        with app.app_context():
            kept = list(prune_deliveries())
            deleted = list(prune_deliveries(older_than=timedelta(0)))

    assert (kept, deleted) == ([0], [1])
    assert [delivery["status"] for delivery in deliveries(client, webhook)] == ["pending"]


def test_a_batch_of_the_retention_reads_over_a_limited_number_of_pending_deliveries(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_service, "_PRUNE_MAX", 2)
    webhook = create_webhook(client, "http://127.0.0.1:9/")
    for _ in range(5):
        create_order(client)
    with app.app_context():
        queue_events()
        newest = deliveries(client, webhook)[-1]["id"]
        db.session.execute(update(DELIVERIES).where(DELIVERIES.c.id == newest).values(status="succeeded"))
        db.session.commit()

        assert list(prune_deliveries(older_than=timedelta(0))) == [0, 0, 1]


def test_the_lag_is_that_of_the_oldest_delivery_that_could_be_sent(app: Flask, client: FlaskClient) -> None:
    webhook = create_webhook(client)
    order = create_order(client)
    client.post(f"/orders/{order}/confirm")
    now = datetime.now(UTC)
    with app.app_context():
        queue_events()
        first, second = (delivery["id"] for delivery in deliveries(client, webhook))

        def lag(times: dict[str, datetime], *, retry_at: datetime | None = None) -> timedelta | None:
            for delivery_id, at in times.items():
                db.session.execute(update(DELIVERIES).where(DELIVERIES.c.id == delivery_id).values(next_attempt_at=at))
            db.session.execute(update(WebhookEndpoint).values(retry_at=retry_at))
            db.session.commit()
            since = webhook_queue.oldest_due(now)
            return since and now - since

        hour = timedelta(hours=1)
        assert lag({first: now - hour, second: now - 2 * hour}) == hour  # the second waits for the first
        assert lag({}, retry_at=now + hour) is None
        assert lag({first: now + hour}) is None


def test_the_lag_is_known_after_as_many_waiting_deliveries_as_a_claim_examines(app: Flask, client: FlaskClient) -> None:
    webhook, now = create_webhook(client), datetime.now(UTC)
    orders = [str(uuid4()) for _ in range(webhook_queue.WINDOW * webhook_delivery.CLAIMED_MAX)]
    with app.app_context():
        events = [{"type": "order.paid", "order_id": id, "version": n} for n in (1, 2) for id in orders]
        queue_rows(webhook["id"], events, again=False)
        queue_rows(webhook["id"], [{"type": "order.paid", "order_id": str(uuid4()), "version": 1}], again=False)
        for hours, version in ((-1, 1), (2, 2)):
            changed = update(DELIVERIES).where(DELIVERIES.c.version == version, DELIVERIES.c.order_id.in_(orders))
            db.session.execute(changed.values(next_attempt_at=now - timedelta(hours=hours)))
        db.session.commit()

        since = webhook_queue.oldest_due(now + timedelta(minutes=1))

    assert since is not None and since >= now


def test_the_retention_task_processes_all_webhooks_and_starts_again(app: Flask, client: FlaskClient) -> None:
    create_webhook(client)
    create_webhook(client)
    *_, retention = webhook_delivery.webhook_tasks(app.config, observe_delivery)

    with pytest.raises(RuntimeError):  # as after any error
        retention.run()
    with app.app_context():
        assert [retention.run() for _ in range(5)] == [True, True, False, True, True]


def test_after_a_change_of_secret_key_a_rotated_secret_signs_the_waiting_deliveries(
    app: Flask, client: FlaskClient
) -> None:
    with receiver() as endpoint:
        webhook = create_webhook(client, endpoint.url)
        create_order(client)
        with webhook_rules(app, secrets=SecretStore("another secret key, of 32 characters")):
            deliver(app)
            [waiting] = deliveries(client, webhook)
            secret = client.post(f"/webhooks/{webhook['id']}/rotate-secret").json["secret"]
            make_pending_due(app)
            deliver(app)

    assert waiting["status"] == "pending" and "SECRET_KEY has changed" in waiting["attempts"][0]["error"]
    [request] = endpoint.requests
    request.verify(secret)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal. The worker removes it when it begins to stop."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(re.findall(r"^SigCgt:\s+(\w+)$", status, re.MULTILINE)[0], 16)
    return bool(mask >> (number - 1) & 1)


def test_a_stopping_worker_completes_its_open_requests(app: Flask, client: FlaskClient, database_url: str) -> None:
    def answer(_request: Received) -> int:
        arrived.set()
        return 200 if may_answer.wait(TIMEOUT) else 500

    arrived, may_answer = threading.Event(), threading.Event()
    settings = {"DATABASE_URL": database_url, "WEBHOOKS_ALLOW_PRIVATE": "1", "SECRET_KEY": "x" * 32}
    with receiver(answer) as endpoint, webhook_rules(app, secrets=SecretStore("x" * 32)):
        webhook = create_webhook(client, endpoint.url)
        create_order(client)
        with running_worker(**settings) as worker:
            assert arrived.wait(TIMEOUT) and catches(worker.process.pid, signal.SIGTERM)
            worker.process.terminate()
            wait_until(lambda: not catches(worker.process.pid, signal.SIGTERM))  # it has begun to stop
            time.sleep(2)  # longer than a call of the task, which would store the result as well
            may_answer.set()
            assert worker.process.wait(TIMEOUT) == 0

    [delivery] = deliveries(client, webhook)
    assert (len(endpoint.requests), delivery["status"]) == (1, "succeeded")


@on_sqlite
def test_a_worker_counts_its_requests_by_their_outcome(app: Flask, client: FlaskClient, database_url: str) -> None:
    def is_counted(worker: Server) -> bool:
        metrics = worker.request("GET", "/metrics").body.decode()
        counts = re.findall(r'^webhook_request_duration_seconds_count\{outcome="(.*)"\} [1-9]', metrics, re.MULTILINE)
        return set(counts) == {"2xx", "5xx", "no response"}

    settings = {"DATABASE_URL": database_url, "WEBHOOKS_ALLOW_PRIVATE": "1", "SECRET_KEY": "x" * 32}
    with receiver() as good, receiver(lambda _: 500) as failing, webhook_rules(app, secrets=SecretStore("x" * 32)):
        with receiver() as away:
            for url in (good.url, failing.url, away.url):
                create_webhook(client, url)
        create_order(client)
        with running_worker(**settings) as worker:
            wait_until(lambda: is_counted(worker))


@contextmanager
def open_files_limited_to(number: int) -> Iterator[None]:
    """Start processes with this soft limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@on_sqlite
def test_a_worker_has_enough_files_for_its_requests_to_many_endpoints(
    app: Flask, client: FlaskClient, database_url: str
) -> None:
    def answer(_request: Received) -> int:
        if len(endpoint.requests) == 80:
            all_open.set()
        return 200 if all_open.wait(TIMEOUT) else 500

    all_open = threading.Event()
    settings = {"DATABASE_URL": database_url, "WEBHOOKS_ALLOW_PRIVATE": "1", "SECRET_KEY": "x" * 32}
    with receiver(answer) as endpoint, webhook_rules(app, secrets=SecretStore("x" * 32)), ExitStack() as stack:
        webhooks = [create_webhook(client, f"{endpoint.url}/{number}") for number in range(8)]
        for _ in range(10):
            create_order(client)
        with open_files_limited_to(100):
            stack.enter_context(running_worker(**settings))
        wait_until(lambda: all(len(deliveries(client, each, status="succeeded")) == 10 for each in webhooks))

    attempts = [delivery["attempt_count"] for webhook in webhooks for delivery in deliveries(client, webhook)]
    assert attempts == [1] * 80


def test_a_range_without_events_queues_nothing(client: FlaskClient) -> None:
    webhook = create_webhook(client, "http://127.0.0.1:1/")

    response = client.post(f"/webhooks/{webhook['id']}/replay", json={"from_seq": 1, "to_seq": 10})

    assert (response.status_code, response.json) == (202, {"deliveries": 0})
