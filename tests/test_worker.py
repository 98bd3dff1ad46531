"""`flask worker` and the supervisor of `make run`, as real processes."""

import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select

from app.db.engine import db
from app.models import FEED
from tests.support.commands import run_python
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL
from tests.support.servers import TIMEOUT, WORKER, Server, free_port, running, running_worker, wait_until

SUPERVISOR = ("-m", "supervisor")
TAKEOVER = 2.0  # seconds


def in_feed(app: Flask) -> int:
    with app.app_context(), db.engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(FEED)) or 0


def test_a_worker_moves_events_to_the_feed(app: Flask, client: FlaskClient, database_url: str) -> None:
    with running_worker(DATABASE_URL=database_url):
        order = client.post("/orders", json=MINIMAL).headers["Location"]
        client.post(f"{order}/confirm")

        wait_until(lambda: in_feed(app) == 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_stop_exits_with_status_0(database_url: str, app: Flask, number: int) -> None:
    with running_worker(DATABASE_URL=database_url) as worker:
        worker.process.send_signal(number)

        assert worker.process.wait(TIMEOUT) == 0
        assert "worker stopped" in worker.output()


def test_when_a_worker_is_killed_another_goes_on(app: Flask, client: FlaskClient, database_url: str) -> None:
    with running_worker(DATABASE_URL=database_url) as first, running_worker(DATABASE_URL=database_url):
        client.post("/orders", json=MINIMAL)
        wait_until(lambda: in_feed(app) == 1)

        first.process.kill()
        first.process.wait(TIMEOUT)
        client.post("/orders", json=MINIMAL)

        wait_until(lambda: in_feed(app) == 2, seconds=TAKEOVER)


def test_a_worker_serves_its_metrics(app: Flask, database_url: str) -> None:
    with running_worker(DATABASE_URL=database_url) as worker:
        metrics = worker.request("GET", "/metrics").body.decode()

    assert re.search(r'^worker_task_duration_seconds_count\{task="sequencing"\} [1-9]', metrics, re.MULTILINE)


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
    assert ended.stderr.startswith("Error: The database is at migration None") and "flask db upgrade" in ended.stderr


def supervised(database_url: str) -> Any:
    port = free_port()
    return running(*SUPERVISOR, port=port, PORT=str(port), WEB_CONCURRENCY="1", DATABASE_URL=database_url)


def processes(server: Server) -> dict[str, int]:
    """The ids of the web server and of the worker."""
    found = {}
    for pid in server.children():
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        found["worker" if command.endswith(b"worker\0") else "web"] = pid
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_supervisor_runs_web_server_and_worker(app: Flask, database_url: str) -> None:
    with supervised(database_url) as server:
        assert server.request("POST", "/orders", MINIMAL).status == 201

        wait_until(lambda: in_feed(app) == 1)


def test_the_supervisor_starts_a_worker_again_that_died(app: Flask, database_url: str) -> None:
    with supervised(database_url) as server:
        wait_until(lambda: "worker started" in server.output())
        killed = processes(server)["worker"]
        os.kill(killed, signal.SIGKILL)
        server.request("POST", "/orders", MINIMAL)

        wait_until(lambda: in_feed(app) == 1)
        assert processes(server)["worker"] != killed
        assert "The worker ended with status -9." in server.output()


@on_sqlite
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_however_the_supervisor_ends_no_process_is_left(app: Flask, database_url: str, number: int) -> None:
    with supervised(database_url) as server:
        wait_until(lambda: "worker started" in server.output())
        pids = processes(server)
        assert pids.keys() == {"web", "worker"}

        server.process.send_signal(number)

        assert server.process.wait(TIMEOUT) == (0 if number != signal.SIGKILL else -signal.SIGKILL)
        wait_until(lambda: not any(map(is_running, pids.values())))


@on_sqlite
def test_when_the_web_server_cannot_start_the_supervisor_ends_with_its_status(app: Flask, database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        ended = run_python(*SUPERVISOR, PORT=str(other.getsockname()[1]), AUTH="nonsense", DATABASE_URL=database_url)

    assert ended.returncode == 1
    assert "AUTH is 'nonsense'" in ended.stderr
