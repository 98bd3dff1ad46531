"""The service while its database is unavailable, locked, unresponsive or restarted: real servers and databases."""

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask
from sqlalchemy import Connection, event

from app import create_app
from app.db.engine import db
from tests.support.commands import run_python
from tests.support.concurrency import run_concurrently
from tests.support.credentials import bearer
from tests.support.databases import (
    KEY_CACHE,
    ORDER,
    gunicorn,
    migrated,
    new_key,
    point_link_at,
    url_through,
    wait_until_ready,
)
from tests.support.postgres import libpq_url, private_postgres
from tests.support.servers import GUNICORN, TIMEOUT, Response, free_port, running, wait_until


@pytest.fixture
def sqlite_file(tmp_path: Path) -> str:
    return migrated(f"sqlite:///{tmp_path}/orders.db")


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with private_postgres() as url:
        yield migrated(url)


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """A path that can be linked to the socket of a PostgreSQL server, as a virtual IP address can."""
    return tmp_path / ".s.PGSQL.5432"


def test_while_another_process_writes_to_sqlite_reads_are_served_and_writes_are_503(
    sqlite_file: str,
) -> None:
    key = new_key(sqlite_file)
    reads: list[int] = []
    with gunicorn(sqlite_file) as server, closing(sqlite3.connect(sqlite_file[10:], isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        def write(_: int) -> tuple[Response, float]:
            started = time.monotonic()
            response = server.request("POST", "/orders", ORDER, key)
            return response, time.monotonic() - started

        _, alone = write(0)
        with ThreadPoolExecutor(1) as thread:
            writing = thread.submit(run_concurrently, 20, write)
            while not writing.done():
                reads += [
                    server.request("GET", path, headers=key).status for path in ("/orders", "/readyz", "/healthz")
                ]
        other.execute("COMMIT")
        created = server.request("POST", "/orders", ORDER, key)

    refused, waits = zip(*writing.result(), strict=True)
    assert set(reads) == {200} and len(reads) > 20  # a read that waited for the lock would take as long as the writers
    assert {(response.status, response.headers["Retry-After"]) for response in refused} == {(503, "1")}
    assert max(waits) < 4 * alone  # they do not wait for the lock one after the other
    assert created.status == 201


def test_after_all_idle_connections_were_ended_no_request_fails(postgres: str) -> None:
    key = new_key(postgres)
    with gunicorn(postgres) as server, psycopg.connect(libpq_url(postgres), autocommit=True) as administrator:
        statuses = []
        for method, path, body in (
            ("GET", "/orders", None), ("GET", "/readyz", None), ("POST", "/orders", ORDER), ("GET", "/readyz", None)
        ):  # fmt: skip
            time.sleep(KEY_CACHE)
            administrator.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'order-service'"
            )
            statuses.append(server.request(method, path, body, key | {"Idempotency-Key": f"k-{len(statuses)}"}).status)

    assert statuses == [200, 200, 201, 200]


def test_a_worker_starts_without_its_database_and_serves_once_it_is_available(postgres: str, link: Path) -> None:
    key = new_key(postgres)
    with gunicorn(url_through(link)) as server:
        away = [server.request("GET", path, headers=key) for path in ("/readyz", "/orders")]
        alive = server.request("GET", "/openapi.json").status

        point_link_at(postgres, link)
        wait_until_ready(server)

        strangers = (
            server.request("GET", "/orders").status,
            server.request("GET", "/orders", headers=bearer("osk_x")).status,
        )
        served = server.request("GET", "/orders", headers=key).status
        still_there = server.process.poll() is None

    assert [(response.status, response.headers["Retry-After"]) for response in away] == [(503, "1")] * 2
    assert (alive, strangers, served, still_there) == (200, (401, 401), 200, True)


def test_a_database_that_returns_with_another_schema_causes_503(link: Path) -> None:
    with private_postgres() as empty, gunicorn(url_through(link), AUTH="off") as server:
        point_link_at(empty, link)

        responses = [server.request("GET", path) for path in ("/readyz", "/orders")]
        migrated(empty)
        wait_until_ready(server)
        served = server.request("POST", "/orders", ORDER).status

    assert [response.status for response in responses] == [503, 503]
    assert all("flask db upgrade" in response.json["detail"] for response in responses)
    assert served == 201


@contextmanager
def silent_at_queries(app: Flask) -> Iterator[None]:
    """Stop the server process of each connection that sends a query of a table, and resume it after the block."""
    stopped: list[int] = []

    def stop(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        driver = connection.connection.dbapi_connection
        assert isinstance(driver, psycopg.Connection)
        if "FROM" in statement:
            stopped.append(driver.info.backend_pid)
            os.kill(stopped[-1], signal.SIGSTOP)

    with app.app_context():
        event.listen(db.engine, "before_cursor_execute", stop)
        try:
            yield
        finally:
            event.remove(db.engine, "before_cursor_execute", stop)
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)


def test_reading_an_erasure_from_an_unresponsive_server_is_503_in_time(postgres: str) -> None:
    app = create_app({"DATABASE_URL": postgres, "AUTH": "off", "TESTING": True})
    erasure = app.test_client().delete("/customers/c-unknown/personal-data").json
    responses: list[Any] = []
    reading = threading.Thread(target=lambda: responses.append(app.test_client().get(f"/erasures/{erasure['id']}")))

    with silent_at_queries(app):
        reading.start()
        reading.join(timeout=TIMEOUT)
        in_time = list(responses)
    reading.join()

    assert [(response.status_code, response.headers["Retry-After"]) for response in in_time] == [(503, "1")]


def restricted(*command: str) -> tuple[str, ...]:
    """The Python command, run as a user who cannot override file permissions."""
    return ("-m", "tests.support.restricted", *command[1:])


def test_a_read_only_sqlite_file_serves_reads_and_is_not_ready(sqlite_file: str) -> None:
    file, port = Path(sqlite_file.removeprefix("sqlite:///")), free_port()
    file.chmod(0o444)
    settings = {"DATABASE_URL": sqlite_file, "WEB_CONCURRENCY": "1", "AUTH": "off"}
    with running(*restricted(*GUNICORN), port=port, **settings) as server:
        refused = [
            server.request("POST", "/orders", ORDER, {"Idempotency-Key": "k-1"}),
            server.request("POST", "/webhooks", {"url": "https://203.0.114.1/hook"}),
            server.request("GET", "/readyz"),
        ]
        listed = server.request("GET", "/orders").status
        found = run_python(*restricted("-m", "flask", "--app", "wsgi", "doctor"), **settings)

        assert [(response.status, response.headers["Retry-After"]) for response in refused] == [(503, "1")] * 3
        assert listed == 200
        assert "Traceback" not in server.output()
    assert found.returncode == 1 and f"This user cannot write to {file} or to its directory." in found.stdout


def test_orders_are_stored_again_once_the_sqlite_file_is_writable(sqlite_file: str) -> None:
    """Without a restart."""
    file, port = Path(sqlite_file.removeprefix("sqlite:///")), free_port()
    file.chmod(0o444)
    settings = {"DATABASE_URL": sqlite_file, "WEB_CONCURRENCY": "2", "AUTH": "off"}
    with running(*restricted(*GUNICORN), port=port, **settings) as server:
        for _ in range(8):
            assert server.request("POST", "/orders", ORDER).status == 503
            assert server.request("GET", "/orders").status == 200
        file.chmod(0o644)
        not_ready = server.request("GET", "/readyz").status  # SQLite has given the files beside it the same permissions
        found = run_python(*restricted("-m", "flask", "--app", "wsgi", "doctor"), **settings).stdout
        for name in (f"{file}-wal", f"{file}-shm"):
            Path(name).chmod(0o644)
        wait_until(lambda: [server.request("POST", "/orders", ORDER).status for _ in range(8)] == [201] * 8)

        assert server.request("GET", "/readyz").status == 200
        assert "Traceback" not in server.output()
    assert not_ready == 503 and f"{file}-shm" in found


def test_a_read_only_directory_prevents_the_start_in_one_line(sqlite_file: str) -> None:
    directory = Path(sqlite_file.removeprefix("sqlite:///")).parent
    settings = {"DATABASE_URL": sqlite_file, "AUTH": "off"}
    directory.chmod(0o555)
    try:
        worker, doctor = (
            run_python(*restricted("-m", "flask", "--app", "wsgi", command), **settings)
            for command in ("worker", "doctor")
        )
    finally:
        directory.chmod(0o755)

    assert worker.returncode == 1 and "may this user write to the file" in worker.stderr
    assert doctor.returncode == 1 and f"This user cannot write to {directory}/orders.db" in doctor.stdout
    assert "Traceback" not in worker.stderr + doctor.stderr
