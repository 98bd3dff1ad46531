"""`flask worker`, and the supervisor of `make run`, are killed."""

import os
import signal
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL
from tests.support.servers import TIMEOUT, Server, running_supervisor, running_worker, wait_until
from tests.support.tables import events_in_feed

TAKEOVER = 2.0  # seconds


def test_when_a_worker_is_killed_another_goes_on(app: Flask, client: FlaskClient, database_url: str) -> None:
    with running_worker(DATABASE_URL=database_url) as first, running_worker(DATABASE_URL=database_url):
        client.post("/orders", json=MINIMAL)
        wait_until(lambda: events_in_feed(app) == 1)

        first.process.kill()
        first.process.wait(TIMEOUT)
        client.post("/orders", json=MINIMAL)

        wait_until(lambda: events_in_feed(app) == 2, seconds=TAKEOVER)


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


def test_the_supervisor_starts_a_worker_again_that_died(app: Flask, database_url: str) -> None:
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
def test_however_the_supervisor_ends_no_process_is_left(app: Flask, database_url: str, number: int) -> None:
    with running_supervisor(DATABASE_URL=database_url) as server:
        wait_until(lambda: "worker started" in server.output())
        pids = processes(server)
        assert pids.keys() == {"web", "worker"}

        server.process.send_signal(number)

        assert server.process.wait(TIMEOUT) == (0 if number != signal.SIGKILL else -signal.SIGKILL)
        wait_until(lambda: not any(map(is_running, pids.values())))
