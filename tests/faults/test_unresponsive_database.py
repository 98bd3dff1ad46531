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
def test_while_postgresql_is_unresponsive_concurrent_requests_get_responses_like_a_single_one(
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
        alive: list[int] = []
        waiting: list[int] = []  # requests, when the probe has been answered

        def send(method: str, target: str, body: Any = None, more: dict[str, str] | None = None) -> None:
            sent = time.monotonic()
            response = server.request(method, target, body, headers | (more or {}))
            responses.append((response, time.monotonic() - sent))

        with stopped(postgres):
            for _ in range(2):  # with the previous connections, and without
                threads = [threading.Thread(target=send, args=request) for request in requests]
                for thread in threads:
                    thread.start()
                alive.append(server.request("GET", "/healthz").status)
                waiting.append(sum(thread.is_alive() for thread in threads))
                for thread in threads:
                    thread.join()
            concurrent = list(responses)
            send("GET", "/orders")
        wait_until_ready(server)
        keyed = [server.request("POST", "/orders", ORDER, headers | {"Idempotency-Key": "k-1"}) for _ in range(2)]

    longest, (_, alone) = max(seconds for _, seconds in concurrent), responses[-1]
    print(f"answered after {longest:.1f} s at most, a single request after {alone:.1f} s")
    assert {(response.status, response.headers["Retry-After"]) for response, _ in responses} == {(503, "1")}
    assert len(concurrent) == 2 * len(requests) and longest < 5 * alone
    assert alive == [200, 200] and all(waiting)
    assert [response.status for response in keyed] == [201, 201] and keyed[0].body == keyed[1].body


def test_a_worker_starts_while_sqlite_is_locked_and_serves_once_it_is_unlocked(tmp_path: Path) -> None:
    sqlite_file = migrated(f"sqlite:///{tmp_path}/orders.db")
    key = new_key(sqlite_file)
    with closing(sqlite3.connect(sqlite_file[10:], isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with gunicorn(sqlite_file) as server:
            locked = [server.request("GET", path, headers=key).status for path in ("/healthz", "/readyz", "/orders")]
            other.execute("COMMIT")
            other.close()
            wait_until_ready(server)
            served = server.request("GET", "/orders", headers=key).status

    assert locked == [200, 503, 503]
    assert served == 200
