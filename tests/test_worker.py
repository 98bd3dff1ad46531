"""`flask worker` and the supervisor of `make run`, as real processes."""

import linecache
import re
import signal
import socket
import sys
import threading
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import time_machine
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select
from sqlalchemy.exc import TimeoutError as PoolTimeout
from structlog.testing import capture_logs

from app.cli.seed import sample_orders
from app.db.engine import rfc3339
from app.db.statements import read_rows
from app.models import Erasure
from app.routes import customer_routes
from app.services import worker
from app.services.order_storage import insert_orders
from app.services.worker import Task, Worker
from supervisor import Probe
from tests.support.commands import run_python
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL
from tests.support.servers import SUPERVISOR, TIMEOUT, WORKER, running_supervisor, running_worker, wait_until
from tests.support.tables import events_in_feed


def erased_orders(app: Flask) -> list[tuple[int, str]]:
    """The number of orders and the status of each erasure."""
    with app.app_context():
        return [(row.orders, row.status) for row in read_rows(select(Erasure.orders, Erasure.status))]


def test_a_worker_makes_due_changes_and_stops_on_sigterm(
    app: Flask, client: FlaskClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with time_machine.travel(datetime.now(UTC) - timedelta(hours=1)):
        soon = rfc3339(datetime.now(UTC) + timedelta(minutes=30))
        held = client.post("/orders", json=MINIMAL).headers["Location"]
        client.put(f"{held}/holds/review", json={"kind": "review", "until": soon})
        late = client.post("/orders", json=MINIMAL | {"ship_by": soon}).headers["Location"]
    assert client.get(held).json["holds"] and not client.get(late).json["late"]
    erased = [client.post("/orders", json=MINIMAL | {"customer_id": "c-gone"}).headers["Location"] for _ in range(2)]
    for path in erased:
        client.post(f"{path}/cancel", json={"reason": "customer"})
    monkeypatch.setattr(customer_routes, "REQUEST_SECONDS", 0)
    assert client.delete("/customers/c-gone/personal-data").status_code == 202
    with app.app_context():
        insert_orders(list(sample_orders(20, seed=1, until=datetime.now(UTC) - timedelta(days=365))))

    def pending() -> list[str]:
        return [order["id"] for order in client.get("/orders?status=pending&limit=100").json["orders"]]

    assert len(pending()) > 2
    with running_worker(DATABASE_URL=database_url, EXPIRE_PENDING_AFTER="30d") as worker:
        wait_until(lambda: client.get(held).json["holds"] == [] and client.get(late).json["late"])
        wait_until(lambda: len(pending()) == 2)
        wait_until(lambda: erased_orders(app) == [(2, "done")])
        client.post(f"{late}/confirm")
        wait_until(lambda: client.get("/events?types=order.confirmed").json["events"])

        worker.process.send_signal(signal.SIGTERM)

        assert worker.process.wait(TIMEOUT) == 0
        assert "worker stopped" in worker.output()


@on_sqlite
def test_a_worker_serves_its_metrics_and_stops_on_ctrl_c(app: Flask, database_url: str) -> None:
    with running_worker(DATABASE_URL=database_url) as worker:
        metrics = worker.request("GET", "/metrics").body.decode()

        assert worker.stop() == 0
        assert "worker stopped" in worker.output()

    assert "\nevent_feed_seq 0.0\n" in metrics and "\noutbox_oldest_event_seconds 0.0\n" in metrics
    assert re.search(r'^worker_task_duration_seconds_count\{task="sequencing"\} [1-9]', metrics, re.MULTILINE)


def test_a_database_that_is_unavailable_to_some_tasks_is_reported_once_until_all_can_use_it() -> None:
    """Like another process that locks SQLite's file, or a read-only server: reads succeed."""
    calls: list[str] = []

    def reads_since_the_first_write() -> int:
        return calls[calls.index("write") :].count("read")

    def read() -> bool:
        calls.append("read")
        return False

    def write() -> bool:
        calls.append("write")
        if calls.count("write") == 3:
            wait_until(lambda: reads_since_the_first_write() > 3)
            running.stop()
            return True
        raise PoolTimeout

    tasks = Task("reads", read, idle_pause=0.1), Task("writes", write, idle_pause=0.1)
    running = Worker(tasks, context=nullcontext, observe=lambda *_: None)
    with capture_logs() as logs:
        running.run()

    assert [(line["event"], line.get("task")) for line in logs if "database" in line["event"]] == [
        ("database unavailable", "writes"),
        ("database available again", None),
    ]


def test_an_error_at_the_end_of_a_task_is_logged() -> None:
    def finish() -> None:
        raise PoolTimeout

    def work() -> bool:
        running.stop()
        return False

    task = Task("broker", work, idle_pause=1, finish=finish)
    running = Worker((task,), context=nullcontext, observe=lambda *_: None)
    with capture_logs() as logs:
        assert running.run()

    assert {line["event"] for line in logs} == {"worker started", "database unavailable", "worker stopped"}


def test_a_signal_stops_the_worker_at_whichever_line_it_interrupts() -> None:
    files = {threading.__file__, worker.__file__}
    countdown = moment = 0
    waiting = "self._stop_requests.get()"

    def trace(frame: FrameType, _event: str, _argument: object) -> Any:
        nonlocal countdown
        if frame.f_code.co_filename not in files:
            return None
        countdown -= 1
        if countdown == 0:
            signal.raise_signal(signal.SIGTERM)
        elif waiting in linecache.getline(frame.f_code.co_filename, frame.f_lineno):
            running.stop()  # the line to interrupt comes later
        return trace

    before = signal.getsignal(signal.SIGTERM)
    try:
        while countdown <= 0:
            moment += 1
            countdown = moment
            running = Worker((), context=nullcontext, observe=lambda *_: None)
            signal.signal(signal.SIGTERM, lambda *_: running.stop())
            sys.settrace(trace)
            try:
                assert running.run()
            finally:
                sys.settrace(None)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert moment > 10


@on_sqlite
def test_a_metrics_port_in_use_is_one_line(app: Flask, database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        ended = run_python(*WORKER, DATABASE_URL=database_url, WORKER_METRICS_PORT=port)

    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
    assert ended.stderr.startswith(f"Error: WORKER_METRICS_PORT {port} on 127.0.0.1 cannot be used: ")


def test_a_worker_on_an_unmigrated_database_names_the_migration_command(tmp_path: Path) -> None:
    ended = run_python(*WORKER, DATABASE_URL=f"sqlite:///{tmp_path}/orders.db")

    assert ended.returncode == 1
    assert ended.stderr == "Error: The database has no tables of the service: run `flask db upgrade`.\n"


@on_sqlite
def test_the_supervisor_runs_web_server_and_worker(app: Flask, database_url: str) -> None:
    with running_supervisor(DATABASE_URL=database_url, URL_PREFIX="/shop/") as server:
        assert server.request("POST", "/shop/orders", MINIMAL).status == 201

        wait_until(lambda: events_in_feed(app) == 1)
        url = f"http://127.0.0.1:{server.port}/shop"
        wait_until(lambda: f"Serving on {url}. The documentation is at {url}/docs\n" in server.output())


def test_a_slow_start_gets_one_request_of_the_supervisor() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        probe = Probe(server.getsockname())
        before = [probe.is_answered() for _ in range(5)]
        connection, _ = server.accept()
        request = connection.recv(1024)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        wait_until(probe.is_answered)
        connection.close()
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()

    assert (before, request) == ([False] * 5, b"GET /healthz HTTP/1.0\r\n\r\n")


def test_the_supervisor_repeats_a_request_whose_connection_was_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        probe = Probe(server.getsockname())
        probe.is_answered()
        server.accept()[0].close()
        server.setblocking(False)

        def accept() -> bool:
            assert not probe.is_answered()
            with suppress(BlockingIOError):
                connection, _ = server.accept()
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
                connections.append(connection)
            return bool(connections)

        connections: list[socket.socket] = []
        wait_until(accept)
        wait_until(probe.is_answered)
        connections[0].close()


@on_sqlite
def test_a_port_in_use_is_one_line_that_suggests_another_one(app: Flask, database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = run_python(*SUPERVISOR, HOST="127.0.0.1", PORT=str(port), AUTH="off", DATABASE_URL=database_url)

    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"Port {port} on 127.0.0.1 is in use. Choose another one, for example: PORT={port + 1} make run\n"
    )


@on_sqlite
@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("203.0.113.9", "8000", "Cannot assign requested address"),
        ("127.0.0.1", "80000", "Ports end at 65535"),
        ("ü..x", "8000", "Not a name"),
    ],
)
def test_an_unusable_address_is_an_error_in_one_line(
    app: Flask, database_url: str, host: str, port: str, reason: str
) -> None:
    ended = run_python(*SUPERVISOR, HOST=host, PORT=port, AUTH="required", DATABASE_URL=database_url)

    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"HOST is {host} and PORT is {port}: {reason}. Set HOST to an address of this machine, or another PORT.\n"
    )


@on_sqlite
def test_when_the_web_server_cannot_start_the_supervisor_ends_with_its_status(app: Flask, database_url: str) -> None:
    ended = run_python(*SUPERVISOR, AUTH="nonsense", DATABASE_URL=database_url)

    assert ended.returncode == 1
    assert "AUTH is 'nonsense'" in ended.stderr


@on_sqlite
def test_a_worker_with_a_broker_and_without_its_library_ends_in_one_line(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "kombu.py").write_text("raise ModuleNotFoundError(__name__)")
    url = "amqp://user:s3cret@127.0.0.1/"

    ended = run_python(*WORKER, PYTHONPATH=str(tmp_path), DATABASE_URL=database_url, BROKER_URL=url)

    assert ended.returncode == 1
    assert ended.stderr == (
        "Error: BROKER_URL is set, but kombu is missing: run `pip install -r requirements-broker.txt`.\n"
    )
