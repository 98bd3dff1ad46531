"""`flask worker`, and the supervisor of `make run`, are killed."""

import json
import os
import signal
import time
from pathlib import Path

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support.databases import migrated, point_link_at, url_through
from tests.support.marks import on_sqlite
from tests.support.postgres import libpq_url, private_postgres
from tests.support.samples import MINIMAL
from tests.support.servers import TIMEOUT, Server, running_supervisor, running_worker, wait_until
from tests.support.tables import events_in_feed

END_CONNECTIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'order-service%'"


def test_when_a_worker_is_killed_another_takes_over(app: Flask, client: FlaskClient, database_url: str) -> None:
    with running_worker(DATABASE_URL=database_url) as first, running_worker(DATABASE_URL=database_url):
        client.post("/orders", json=MINIMAL)
        wait_until(lambda: events_in_feed(app) == 1)

        first.process.kill()
        first.process.wait(TIMEOUT)
        client.post("/orders", json=MINIMAL)

        wait_until(lambda: events_in_feed(app) == 2)


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


def test_the_supervisor_restarts_a_worker_that_died(app: Flask, database_url: str) -> None:
    with running_supervisor(DATABASE_URL=database_url) as server:
        wait_until(lambda: "worker started" in server.output())
        killed = processes(server)["worker"]
        os.kill(killed, signal.SIGKILL)
        server.request("POST", "/orders", MINIMAL)

        wait_until(lambda: events_in_feed(app) == 1)
        assert processes(server)["worker"] != killed
        assert "The worker ended with status -9." in server.output()


@on_sqlite
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_process_outlives_the_supervisor(app: Flask, database_url: str, number: int) -> None:
    with running_supervisor(DATABASE_URL=database_url) as server:
        wait_until(lambda: "worker started" in server.output())
        pids = processes(server)
        assert pids.keys() == {"web", "worker"}

        server.process.send_signal(number)

        assert server.process.wait(TIMEOUT) == (0 if number != signal.SIGKILL else -signal.SIGKILL)
        wait_until(lambda: not any(map(is_running, pids.values())))


def test_a_worker_waits_for_an_unavailable_database_and_continues(tmp_path: Path) -> None:
    link = tmp_path / ".s.PGSQL.5432"
    with private_postgres() as url:
        migrated(url)
        with running_worker(DATABASE_URL=url_through(link), awaited="waiting for the database") as worker:
            point_link_at(url, link)
            wait_until(lambda: "worker started" in worker.output())
            link.unlink()
            with psycopg.connect(libpq_url(url), autocommit=True) as connection:
                connection.execute(END_CONNECTIONS)
            wait_until(lambda: "database unavailable" in worker.output())
            time.sleep(2)  # the other tasks fail, too
            point_link_at(url, link)
            wait_until(lambda: "database available again" in worker.output())

            assert worker.stop() == 0
            events = [json.loads(line)["event"] for line in worker.output().splitlines()]
    assert events == [
        "waiting for the database", "worker started", "database unavailable", "database available again",
        "worker stopped",
    ]  # fmt: skip
