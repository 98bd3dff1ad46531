"""A standby takes over from the primary, under load, and nothing that was acknowledged is lost."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.faults.checks import SETTINGS, assert_each_order_once, assert_tables_valid
from tests.faults.traffic import Traffic
from tests.support.commands import run_python
from tests.support.databases import ORDER, gunicorn, migrated, point_link_at, url_through, wait_until_ready
from tests.support.postgres import libpq_url, private_postgres, processes, socket_directory
from tests.support.servers import TIMEOUT, wait_until


def sql(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(libpq_url(url), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


@contextmanager
def primary_and_standby() -> Iterator[tuple[str, str]]:
    """The primary commits only what the standby has too, so acknowledged changes survive the primary."""
    with private_postgres(durable=True) as primary:
        migrated(primary)
        with private_postgres(durable=True, primary=primary) as standby:
            sql(primary, "ALTER SYSTEM SET synchronous_standby_names = '*'")
            sql(primary, "SELECT pg_reload_conf()")
            while not sql(primary, "SELECT pid FROM pg_stat_replication WHERE sync_state = 'sync'"):
                time.sleep(0.05)
            yield primary, standby


def kill_server(url: str) -> None:
    for pid in processes(url):
        os.kill(pid, signal.SIGKILL)


def promote(url: str) -> None:
    [[promoted]] = sql(url, f"SELECT pg_promote(wait_seconds => {TIMEOUT})")
    assert promoted


@pytest.fixture
def servers() -> Iterator[tuple[str, str]]:
    with primary_and_standby() as urls:
        yield urls


@pytest.fixture
def link(tmp_path: Path) -> Path:
    return tmp_path / ".s.PGSQL.5432"


@pytest.mark.parametrize("address", ["one address that moves", "both servers in the URL"])
def test_acknowledged_changes_survive_the_kill_of_the_primary(
    address: str, servers: tuple[str, str], link: Path
) -> None:
    primary, standby = servers
    url = url_through(link)
    if address == "both servers in the URL":
        hosts = ",".join(str(socket_directory(server)) for server in servers)
        url = f"postgresql://postgres@/postgres?host={hosts}&port=5432,5432"
    point_link_at(primary, link)
    with gunicorn(url, AUTH="off", **SETTINGS) as server, Traffic(server.port) as traffic:
        wait_until(lambda: len(traffic.record.documents) > 20)
        kill_server(primary)
        time.sleep(1)
        point_link_at(standby, link)  # it is still a standby, and refuses to write
        time.sleep(2)
        promote(standby)
        wait_until_ready(server)
        acknowledged = len(traffic.record.documents)
        wait_until(lambda: len(traffic.record.documents) > acknowledged + 20)

        traffic.stop()
        assert_each_order_once(traffic, server.port)
    assert_tables_valid(standby)


def test_a_read_only_server_is_not_ready_and_writes_are_503(servers: tuple[str, str], link: Path) -> None:
    primary, standby = servers
    point_link_at(standby, link)
    with gunicorn(url_through(link), AUTH="off") as server:
        responses = [
            server.request("POST", "/orders", ORDER, {"Idempotency-Key": "k-1"}),
            server.request("POST", "/orders", ORDER),
            server.request("GET", "/readyz"),
        ]
        batch = server.request("POST", "/orders/batch", {"orders": [ORDER]}).json["results"][0]["status"]
        listed = server.request("GET", "/orders").status
        point_link_at(primary, link)
        created = [server.request("POST", "/orders", ORDER, {"Idempotency-Key": "k-1"}) for _ in range(2)]
        ready = server.request("GET", "/readyz").status
    found = run_python("-m", "flask", "--app", "wsgi", "doctor", DATABASE_URL=standby).stdout

    assert [(response.status, response.headers["Retry-After"]) for response in responses] == [(503, "1")] * 3
    assert (batch, listed) == (503, 200)
    assert [response.status for response in created] == [201, 201] and created[0].body == created[1].body
    assert ready == 200
    assert "The server is a standby, which stores nothing. Point DATABASE_URL at the primary." in found


def test_a_primary_that_becomes_read_only_is_left_for_the_new_one_at_once(servers: tuple[str, str], link: Path) -> None:
    primary, standby = servers
    point_link_at(primary, link)
    with gunicorn(url_through(link), AUTH="off") as server:
        before = server.request("POST", "/orders", ORDER)
        path = before.headers["Location"]
        sql(primary, "ALTER SYSTEM SET default_transaction_read_only = on")
        sql(primary, "SELECT pg_reload_conf()")  # as a cluster manager fences it; its connections live on
        promote(standby)
        point_link_at(standby, link)

        created = server.request("POST", "/orders", ORDER)
        confirmed = server.request("POST", f"{path}/confirm", {})

    assert (before.status, created.status, confirmed.status) == (201, 201, 200)
