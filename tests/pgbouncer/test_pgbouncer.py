"""The service behind the real PgBouncer in transaction mode."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from tests.support.servers import GUNICORN, ROOT, TIMEOUT, Server, environment, free_port, running

ORDER = {"customer_id": "c-1", "items": [{"item_id": "sku-1", "quantity": 2}]}
UPGRADE = (sys.executable, "-m", "flask", "--app", "wsgi", "db", "upgrade")
_names = (f"shop_{number}" for number in count())


@pytest.fixture
def database(pooled_url: str, server_url: str) -> Iterator[str]:
    """The pooler's URL of a new, empty database with unsuitable defaults."""
    name = next(_names)
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        connection.execute(f"ALTER DATABASE {name} SET DateStyle = 'German'")
        connection.execute(f"ALTER DATABASE {name} SET TimeZone = 'America/St_Johns'")
    yield make_url(pooled_url).set(database=name).render_as_string(hide_password=False)


def upgrade(url: str, pooler: str = "transaction") -> Any:
    env = environment(DATABASE_URL=url, DATABASE_POOLER=pooler)
    return subprocess.run(UPGRADE, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT)


def as_role(url: str, role: str) -> str:
    return make_url(url).set(username=role).render_as_string(hide_password=False)


def serve(url: str, port: int, workers: int = 2) -> Any:
    settings = {"DATABASE_URL": url, "DATABASE_POOLER": "transaction", "PORT": str(port)}
    settings["WEB_CONCURRENCY"] = str(workers)
    return running(*GUNICORN, port=port, **settings)


def warnings(server: Server) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in server.output().splitlines()]
    return [line for line in lines if "time limits" in line["event"]]


def test_orders_are_created_once_changed_and_read(database: str) -> None:
    migrated = upgrade(database)
    with serve(database, free_port()) as server, ThreadPoolExecutor(16) as pool:
        sent = [
            pool.submit(server.request, "POST", "/orders", ORDER, {"Idempotency-Key": f"k-{number % 20}"})
            for number in range(200)
        ]
        created = [future.result() for future in sent]
        paths = sorted({response.headers["Location"] for response in created})
        confirmed = list(pool.map(lambda path: server.request("POST", f"{path}/confirm"), paths * 2))
        listed = server.request("GET", "/orders?status=confirmed&limit=100").json["orders"]
        history = server.request("GET", f"{paths[0]}/history").json["events"]
        warned = warnings(server)
        status = server.stop()

    assert migrated.returncode == 0, migrated.stderr
    assert {response.status for response in created} == {201}
    assert len(paths) == len(listed) == 20
    assert sorted(response.status for response in confirmed) == [200] * 20 + [409] * 20
    assert [event["at"] for event in history] == [listed[-1]["created_at"], listed[-1]["updated_at"]]
    assert (warned, status) == ([], 0)


def test_concurrent_upgrades_run_one_after_the_other(database: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        upgrades = list(pool.map(upgrade, [database] * 3))

    assert [ended.returncode for ended in upgrades] == [0, 0, 0], upgrades


def test_a_role_without_time_limits_is_reported_once(database: str) -> None:
    url = as_role(database, "unlimited")
    upgrade(url)
    with serve(url, free_port(), workers=1) as server, ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: server.request("GET", "/orders"), range(16)))  # over several connections
        warned = warnings(server)

    assert {response.status for response in responses} == {200}
    assert len(warned) == 1
    for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        assert f"ALTER ROLE unlimited SET {name} = " in warned[0]["advice"]


def test_a_role_of_another_isolation_is_refused_in_one_line(database: str) -> None:
    ended = upgrade(as_role(database, "serializable"))

    [line] = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert "run ALTER ROLE serializable SET default_transaction_isolation = 'read committed'." in line


@pytest.mark.parametrize(
    ("pooler", "options", "advice"),
    [("", "", "set DATABASE_POOLER=transaction."), ("transaction", "?options=-cwork_mem%3D5MB", "remove PGOPTIONS")],
    ids=["without the setting", "with options"],
)
def test_options_that_the_pooler_refuses_are_explained_in_one_line(
    database: str, pooler: str, options: str, advice: str
) -> None:
    ended = upgrade(database + options, pooler=pooler)

    [line] = ended.stderr.splitlines()
    assert ended.returncode == 1 and advice in line
