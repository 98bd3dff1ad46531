"""`flask worker` publishes each event to a real broker: as a CloudEvent, at least once, in order."""

import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import kombu
import orjson
import pytest
from flask.testing import FlaskClient
from redis import Redis
from sqlalchemy import create_engine, select, update

from app.models import BROKER_CURSOR, FEED, FEED_HEAD
from tests.broker.brokers import TOPIC, Broker
from tests.faults.traffic import Traffic
from tests.support.commands import FLASK, run_python
from tests.support.samples import MINIMAL
from tests.support.servers import GUNICORN, ROOT, Server, free_port, running, running_worker, wait_until

SETTINGS = {"LOG_LEVEL": "info", "AUTH": "off", "WEB_CONCURRENCY": "1"}
# Seconds: another worker takes over after ten, and on a busy machine everything starts slowly.
PUBLISHED_WITHIN = 120
NEW_ORDER = MINIMAL | {"note": "for Ann"}


def publishing_worker(database_url: str, broker: Broker, **settings: str) -> Any:
    return running_worker(DATABASE_URL=database_url, BROKER_URL=broker.url, **SETTINGS | settings)


def create_order(client: FlaskClient) -> dict[str, Any]:
    order: dict[str, Any] = client.post("/orders", json=NEW_ORDER).json
    return order


def scalar(url: str, query: Any) -> Any:
    engine = create_engine(url)
    with engine.connect() as connection:
        value = connection.scalar(query)
    engine.dispose()
    return value


def is_published(url: str) -> bool:
    """Whether all events of the feed, and at least one, have been published."""
    published = scalar(url, select(BROKER_CURSOR.c.seq))
    return bool(published) and published == scalar(url, select(FEED_HEAD.c.seq))


def metric(worker: Server, name: str) -> float:
    lines = worker.request("GET", "/metrics").body.decode().splitlines()
    [value] = [line.split()[1] for line in lines if line.startswith(f"{name} ")]
    return float(value)


def test_an_event_is_published_as_a_cloud_event_without_personal_data(
    broker: Broker, database_url: str, client: FlaskClient
) -> None:
    broker.bind()
    order = create_order(client)
    client.post(f"/orders/{order['id']}/confirm")
    with publishing_worker(database_url, broker, BROKER_SOURCE="https://shop.example/orders"):
        wait_until(lambda: is_published(database_url), seconds=PUBLISHED_WITHIN)

    first, second = broker.messages()
    created_event, confirmed_event = (orjson.loads(message.body) for message in (first, second))
    history = client.get(f"/orders/{order['id']}/history").json["events"]
    [created] = [entry for entry in history if entry["version"] == 1]
    assert first.content_type == "application/cloudevents+json; charset=utf-8"
    assert first.properties["delivery_mode"] == 2
    assert first.properties["message_id"] == f"{order['id']}:1"
    if broker.kind == "amqp":
        assert [one.delivery_info["routing_key"] for one in (first, second)] == ["order.created", "order.confirmed"]
    assert created_event == {
        "specversion": "1.0",
        "id": f"{order['id']}:1",
        "source": "https://shop.example/orders",
        "type": "order.created",
        "subject": order["id"],
        "time": created["at"],
        "datacontenttype": "application/json",
        "sequence": "0000000000000000001",
        "data": {
            "order_id": order["id"],
            "version": 1,
            "seq": 1,
            "status": "pending",
            "fulfillment_status": "unfulfilled",
            "payment_status": "unpaid",
            "return_status": "none",
        },
    }
    assert confirmed_event["data"]["status"] == "confirmed"


def test_a_replay_publishes_events_again(broker: Broker, database_url: str, client: FlaskClient) -> None:
    broker.bind()
    for _ in range(3):
        create_order(client)
    with publishing_worker(database_url, broker):
        wait_until(lambda: is_published(database_url), seconds=PUBLISHED_WITHIN)
        replayed = run_python(*FLASK, "broker", "replay", "--after", "1", DATABASE_URL=database_url)
        wait_until(lambda: is_published(database_url), seconds=PUBLISHED_WITHIN)

    beyond = run_python(*FLASK, "broker", "replay", "--after", "4", DATABASE_URL=database_url)
    assert replayed.stdout == "Publishing continues with event 2.\n"
    assert (beyond.returncode, len(beyond.stderr.splitlines())) == (1, 1)
    assert [event["data"]["seq"] for event in broker.events()] == [1, 2, 3, 2, 3]


def test_without_a_broker_events_wait_and_the_log_says_so_once(
    broker: Broker, database_url: str, client: FlaskClient
) -> None:
    broker.bind()
    broker.server.kill()
    order = create_order(client)
    secret = broker.url.replace("127.0.0.1", "user:s3cret@127.0.0.1").replace("guest:guest@", "")
    with running_worker(DATABASE_URL=database_url, BROKER_URL=secret, **SETTINGS) as worker:
        wait_until(lambda: "broker unavailable" in worker.output())
        wait_until(lambda: metric(worker, "broker_lag_events") == 1)
        assert metric(worker, "broker_lag_seconds") > 0
        time.sleep(2)
        assert worker.output().count("broker unavailable") == 1
        assert "s3cret" not in worker.output()
    with publishing_worker(database_url, broker) as worker:
        wait_until(lambda: "broker unavailable" in worker.output())
        broker.server.start()
        wait_until(lambda: "broker available again" in worker.output(), seconds=PUBLISHED_WITHIN)
        wait_until(lambda: metric(worker, "broker_lag_events") == 0)

    assert [event["subject"] for event in broker.events()] == [order["id"]]


REASONS = {"amqp": "MessageNacked", "redis": "OutOfMemoryError"}


@contextmanager
def full(broker: Broker) -> Iterator[None]:
    """Let the broker refuse further messages until the block ends."""
    if broker.kind == "redis":
        with closing(Redis(port=broker.server.port)) as server:
            server.config_set("maxmemory", "1")
            yield
            server.config_set("maxmemory", "0")
        return
    limit = {"x-max-length": 1, "x-overflow": "reject-publish"}
    with kombu.Connection(broker.url) as connection:
        exchange = kombu.Exchange(TOPIC, type="topic", durable=True)
        queue = kombu.Queue("full", exchange, routing_key="#", queue_arguments=limit)(connection.channel())
        queue.declare()
        kombu.Producer(queue.channel).publish("", routing_key=queue.name)
        yield
        queue.delete()


def broker_finding(database_url: str, broker_url: str) -> str:
    """What `flask doctor` says about the broker."""
    doctor = run_python(*FLASK, "doctor", DATABASE_URL=database_url, BROKER_URL=broker_url)
    [line] = [line for line in doctor.stdout.splitlines() if line[9:].startswith("broker")]
    assert "s3cret" not in doctor.stdout + doctor.stderr
    assert not re.search("Traceback", doctor.stderr)
    return str(line)


def with_password(url: str) -> str:
    return url.replace("guest:guest@", "").replace("127.0.0.1", "user:s3cret%2F@127.0.0.1")


def test_the_doctor_logs_in_to_the_broker(broker: Broker, database_url: str, client: FlaskClient) -> None:
    """Even though no event is waiting."""
    accepted = broker_finding(database_url, broker.url)
    refused = broker_finding(database_url, with_password(broker.url))

    assert accepted.startswith("ok") and "0 events" in accepted
    assert refused.startswith("error") and "A login fails" in refused and "Check BROKER_URL" in refused


def test_the_doctor_does_not_wait_for_a_broker_without_an_answer(
    broker: Broker, database_url: str, client: FlaskClient
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        finding = broker_finding(database_url, f"{broker.kind}://user:s3cret@{address}/")

    assert finding.startswith("error") and "login" in finding


def test_a_full_broker_is_logged_and_gets_the_events_later(
    broker: Broker, database_url: str, client: FlaskClient
) -> None:
    broker.bind()
    orders = [create_order(client)]
    with publishing_worker(database_url, broker) as worker:
        wait_until(lambda: is_published(database_url), seconds=PUBLISHED_WITHIN)
        with full(broker):
            orders.append(create_order(client))
            wait_until(lambda: "broker unavailable" in worker.output())
            assert REASONS[broker.kind] in worker.output()
            assert not is_published(database_url)
        wait_until(lambda: is_published(database_url), seconds=PUBLISHED_WITHIN)

    # RabbitMQ has given the one that was refused to the queue that is not full, each time.
    assert {event["subject"] for event in broker.events()} == {order["id"] for order in orders}


@pytest.mark.parametrize("broker", ["amqp"], indirect=True)
def test_events_without_a_queue_are_logged_again_after_the_broker_was_restarted(
    broker: Broker, database_url: str, client: FlaskClient
) -> None:
    broker.unbind()
    with publishing_worker(database_url, broker) as worker:
        for restarts in range(2):
            if restarts:
                broker.server.kill()
                broker.server.start()
            create_order(client)
            wait_until(lambda: worker.output().count("no queue is bound") > restarts, seconds=PUBLISHED_WITHIN)


def test_the_lease_of_a_worker_whose_clock_was_ahead_stops_no_other(
    broker: Broker, database_url: str, client: FlaskClient
) -> None:
    broker.bind()
    create_order(client)
    engine = create_engine(database_url)
    with engine.begin() as connection:
        until = datetime.now(UTC) + timedelta(hours=1)
        connection.execute(update(BROKER_CURSOR).values(lease="of a killed worker", leased_until=until))
    engine.dispose()

    with publishing_worker(database_url, broker):
        wait_until(lambda: is_published(database_url), seconds=PUBLISHED_WITHIN)


def test_no_event_is_lost_while_the_broker_and_workers_are_killed(
    broker: Broker, database_url: str, client: FlaskClient
) -> None:
    broker.bind()
    port = free_port()
    with ExitStack() as stack:
        stack.enter_context(running(*GUNICORN, port=port, DATABASE_URL=database_url, **SETTINGS))

        def start_worker() -> Server:
            return stack.enter_context(publishing_worker(database_url, broker))

        workers = [start_worker(), start_worker()]
        with Traffic(port, clients=3) as traffic:
            for kill_broker in (False, True):
                time.sleep(random.uniform(0.5, 1))
                if kill_broker:
                    broker.server.kill()
                    time.sleep(random.uniform(0.5, 1))
                    broker.server.start()
                victim = workers.pop(0)
                victim.process.kill()
                victim.process.wait()
                workers.append(start_worker())
            traffic.stop()
        wait_until(lambda: is_published(database_url), seconds=PUBLISHED_WITHIN)

    check_events(broker.events(), database_url)


def check_events(events: list[dict[str, Any]], url: str) -> None:
    """Assert that every event of the feed was published, in order except for repetitions."""
    engine = create_engine(url)
    with engine.connect() as connection:
        feed = connection.execute(select(FEED.c.seq, FEED.c.order_id, FEED.c.version).order_by(FEED.c.seq)).all()
    engine.dispose()
    first = list(dict.fromkeys((event["data"]["seq"], event["subject"], event["data"]["version"]) for event in events))
    print(f"{len(feed)} events, {len(events) - len(feed)} published again", file=sys.stderr)
    assert first == [tuple(row) for row in feed]


@pytest.mark.parametrize("broker", ["amqp"], indirect=True)
def test_the_consumer_of_the_documentation_prints_each_event(
    broker: Broker, database_url: str, client: FlaskClient
) -> None:
    page = (ROOT / "docs" / "broker.md").read_text()
    [program] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    command, environ = [sys.executable, "-c", program], os.environ | {"BROKER_URL": broker.url}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as consumer:
        assert consumer.stdout
        time.sleep(2)
        order = create_order(client)
        with publishing_worker(database_url, broker):
            line = consumer.stdout.readline()
        consumer.kill()

    assert line == f"0000000000000000001 order.created {order['id']}\n"
