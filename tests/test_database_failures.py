"""What the service does while its database is away, locked or restarted: real servers, real databases."""

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.credentials import bearer
from tests.postgres import libpq_url, private_postgres, socket_directory
from tests.servers import GUNICORN, ROOT, Server, environment, free_port, running

ORDER = {"customer_id": "c-1", "items": [{"item_id": "sku-1", "quantity": 2}]}
ONE_WORKER = {"WEB_CONCURRENCY": "1", "AUTH": "required"}
KEY_MEMORY = 1.1  # seconds, after which an API key is looked up in the database again


def flask(url: str, *command: str) -> str:
    words = [sys.executable, "-m", "flask", "--app", "wsgi", *command]
    done = subprocess.run(
        words, cwd=ROOT, env=environment(DATABASE_URL=url, LOG_LEVEL="error"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def migrated(url: str) -> str:
    flask(url, "db", "upgrade")
    return url


def new_key(url: str) -> dict[str, str]:
    """The header of a key that may read and create."""
    words = "api-keys create --name shop --scope orders:read --scope orders:write".split()
    return bearer(flask(url, *words).strip())


def gunicorn(url: str, **settings: str) -> Any:
    port = free_port()
    return running(*GUNICORN, port=port, PORT=str(port), DATABASE_URL=url, **(ONE_WORKER | settings))


@pytest.fixture
def sqlite_file(tmp_path: Path) -> str:
    return migrated(f"sqlite:///{tmp_path}/orders.db")


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with private_postgres() as url:
        yield migrated(url)


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """A path that can be made to lead to a PostgreSQL server's socket, as a virtual address does."""
    return tmp_path / ".s.PGSQL.5432"


def lead_to(url: str, link: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(socket_directory(url) / link.name)


def url_of(link: Path) -> str:
    return f"postgresql://postgres@/postgres?host={link.parent}&port=5432"


def until_ready(server: Server, *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while server.ask("GET", "/readyz").status != 200:
        assert time.monotonic() < deadline, "the service does not recover"
        time.sleep(0.1)


def test_while_another_process_writes_to_sqlite_readers_are_served_and_writers_told_to_come_back(
    sqlite_file: str,
) -> None:
    key = new_key(sqlite_file)
    writers: list[Any] = []
    with gunicorn(sqlite_file) as server, closing(sqlite3.connect(sqlite_file[10:], isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        def write() -> None:
            writers.append((server.ask("POST", "/orders", ORDER, key), time.monotonic() - started))

        started = time.monotonic()
        threads = [threading.Thread(target=write) for _ in range(20)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        reads = [server.ask("GET", path, headers=key).status for path in ("/orders", "/readyz", "/healthz")]
        time.sleep(KEY_MEMORY)
        reads += [server.ask("GET", path, headers=key).status for path in ("/orders", "/readyz", "/healthz")]
        reads_took = time.monotonic() - started
        for thread in threads:
            thread.join()
        other.execute("COMMIT")
        created = server.ask("POST", "/orders", ORDER, key)

    assert reads == [200] * 6 and reads_took < 4
    assert {(writer.status, writer.headers["Retry-After"]) for writer, _ in writers} == {(503, "1")}
    assert max(seconds for _, seconds in writers) < 10
    assert created.status == 201


def test_after_all_idle_connections_were_ended_no_request_fails(postgres: str) -> None:
    key = new_key(postgres)
    with gunicorn(postgres) as server, psycopg.connect(libpq_url(postgres), autocommit=True) as administrator:
        statuses = []
        for method, path, body in (
            ("GET", "/orders", None), ("GET", "/readyz", None), ("POST", "/orders", ORDER), ("GET", "/readyz", None)
        ):  # fmt: skip
            time.sleep(KEY_MEMORY)
            administrator.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'order-service'"
            )
            statuses.append(server.ask(method, path, body, key | {"Idempotency-Key": f"k-{len(statuses)}"}).status)

    assert statuses == [200, 200, 201, 200]


def test_a_worker_starts_without_its_database_and_serves_when_it_is_there(postgres: str, link: Path) -> None:
    key = new_key(postgres)
    with gunicorn(url_of(link)) as server:
        away = [server.ask("GET", path, headers=key) for path in ("/readyz", "/orders")]
        alive = server.ask("GET", "/openapi.json").status

        lead_to(postgres, link)
        until_ready(server)

        strangers = server.ask("GET", "/orders").status, server.ask("GET", "/orders", headers=bearer("osk_x")).status
        served = server.ask("GET", "/orders", headers=key).status
        still_there = server.process.poll() is None

    assert [(answer.status, answer.headers["Retry-After"]) for answer in away] == [(503, "1")] * 2
    assert (alive, strangers, served, still_there) == (200, (401, 401), 200, True)


def test_a_database_that_comes_back_with_another_schema_is_not_served_from(link: Path) -> None:
    with private_postgres() as empty, gunicorn(url_of(link), AUTH="off") as server:
        lead_to(empty, link)

        answers = [server.ask("GET", path) for path in ("/readyz", "/orders")]
        migrated(empty)
        until_ready(server)
        served = server.ask("POST", "/orders", ORDER).status

    assert [answer.status for answer in answers] == [503, 503]
    assert all("migration" in answer.json["detail"] for answer in answers)
    assert served == 201


def test_a_worker_starts_while_sqlite_is_locked_and_serves_when_it_is_free(sqlite_file: str) -> None:
    key = new_key(sqlite_file)
    with closing(sqlite3.connect(sqlite_file[10:], isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with gunicorn(sqlite_file) as server:
            started = time.monotonic()
            locked = [server.ask("GET", path, headers=key).status for path in ("/healthz", "/readyz", "/orders")]
            took = time.monotonic() - started
            other.execute("COMMIT")
            other.close()
            until_ready(server)
            served = server.ask("GET", "/orders", headers=key).status

    assert locked == [200, 503, 503] and took < 20
    assert served == 200
