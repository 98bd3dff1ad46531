"""A database that accepts requests and never responds: every client still gets a response in time."""

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import ONE_WORKER, ORDER, gunicorn, migrated, new_key, wait_until_ready
from tests.support.postgres import private_postgres, processes
from tests.support.servers import Response

ANSWER_DEADLINE = 10  # seconds


@contextmanager
def stopped(url: str) -> Iterator[None]:
    """Stop all processes of the server, whose sockets stay open, until the block ends."""
    pids = processes(url)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def postgres() -> Iterator[str]:
    with private_postgres() as url:
        yield migrated(url)


@pytest.mark.parametrize("auth", ["required", "off"])
def test_while_postgresql_is_unresponsive_every_request_gets_a_response_within_ten_seconds(
    postgres: str, auth: str
) -> None:
    headers = new_key(postgres) if auth == "required" else {}
    with gunicorn(postgres, **(ONE_WORKER | {"AUTH": auth})) as server:
        created = server.request("POST", "/orders", ORDER, headers)
        path = created.headers["Location"]
        requests: list[Any] = [
            ("GET", path), ("GET", "/orders"), ("GET", f"{path}/history"), ("GET", "/readyz"),
            ("POST", "/orders", ORDER), ("POST", "/orders", ORDER, {"Idempotency-Key": "k-1"}),
            ("POST", f"{path}/cancel", {"reason": "customer"}), ("PATCH", path, {"note": "x"}),
        ] * 4  # fmt: skip
        responses: list[tuple[Response, float]] = []

        def send(method: str, target: str, body: Any = None, more: dict[str, str] | None = None) -> None:
            sent = time.monotonic()
            response = server.request(method, target, body, headers | (more or {}))
            responses.append((response, time.monotonic() - sent))

        with stopped(postgres):
            for _ in range(2):  # with the previous connections, and without
                threads = [threading.Thread(target=send, args=request) for request in requests]
                for thread in threads:
                    thread.start()
                time.sleep(1)
                started = time.monotonic()
                alive = server.request("GET", "/healthz").status
                alive_within = time.monotonic() - started
                for thread in threads:
                    thread.join()
        wait_until_ready(server)
        keyed = [server.request("POST", "/orders", ORDER, headers | {"Idempotency-Key": "k-1"}) for _ in range(2)]

    print(f"answered after {max(seconds for _, seconds in responses):.1f} s at most")
    assert {(response.status, response.headers["Retry-After"]) for response, _ in responses} == {(503, "1")}
    assert len(responses) == 2 * len(requests) and max(seconds for _, seconds in responses) < ANSWER_DEADLINE
    assert alive == 200 and alive_within < 2
    assert [response.status for response in keyed] == [201, 201] and keyed[0].body == keyed[1].body


def test_a_worker_starts_while_sqlite_is_locked_and_serves_once_it_is_unlocked(tmp_path: Path) -> None:
    sqlite_file = migrated(f"sqlite:///{tmp_path}/orders.db")
    key = new_key(sqlite_file)
    with closing(sqlite3.connect(sqlite_file[10:], isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with gunicorn(sqlite_file) as server:
            started = time.monotonic()
            locked = [server.request("GET", path, headers=key).status for path in ("/healthz", "/readyz", "/orders")]
            took = time.monotonic() - started
            other.execute("COMMIT")
            other.close()
            wait_until_ready(server)
            served = server.request("GET", "/orders", headers=key).status

    assert locked == [200, 503, 503] and took < 20
    assert served == 200
