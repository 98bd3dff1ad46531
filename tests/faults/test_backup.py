"""Backups: a file that is whole after a clean stop, and copies made while the service runs, restored by the README."""

import json
import re
import shlex
import sqlite3
import subprocess
import sys
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.concurrency import repeatedly
from tests.support.databases import ORDER, flask, migrated, new_database
from tests.support.postgres import libpq_url, postgres_installation
from tests.support.servers import GUNICORN, ROOT, SERVERS, Server, environment, free_port, running


def orders_in(file: Path) -> int:
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as connection:
        count: int = connection.execute("SELECT count(*) FROM orders").fetchone()[0]
        return count


def test_a_log_that_the_workers_left_is_removed_when_gunicorn_stops(tmp_path: Path) -> None:
    file = tmp_path / "orders.db"
    leave_log = f"import os, sqlite3; c = sqlite3.connect({str(file)!r}); c.execute('PRAGMA journal_mode=WAL'); "
    leave_log += "c.execute('CREATE TABLE t (a)'); c.commit(); os._exit(0)"
    subprocess.run([sys.executable, "-c", leave_log], check=True)
    assert (tmp_path / "orders.db-wal").exists()

    stop = "import runpy; runpy.run_path('gunicorn.conf.py')['on_exit'](None)"
    settings = environment(DATABASE_URL=f"sqlite:///{file}")
    subprocess.run([sys.executable, "-c", stop], cwd=ROOT, env=settings, check=True)

    assert [path.name for path in tmp_path.iterdir()] == ["orders.db"]


@pytest.mark.parametrize("command", SERVERS.values(), ids=SERVERS)
def test_after_a_clean_stop_the_file_alone_is_the_database(tmp_path: Path, command: tuple[str, ...]) -> None:
    file = tmp_path / "orders.db"
    url = f"sqlite:///{file}"
    migrated(url)
    workers = "1" if "uvicorn" in command else "2"  # uvicorn kills what it started
    with running(*command, port=free_port(), DATABASE_URL=url, WEB_CONCURRENCY=workers) as server:
        statuses = {server.request("POST", "/orders", ORDER).status for _ in range(20)}
        server.stop()

    assert statuses == {201}
    assert [path.name for path in tmp_path.iterdir()] == ["orders.db"]
    assert orders_in(file) == 20


def test_after_a_command_the_file_alone_is_the_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/orders.db"

    flask(url, "db", "upgrade")
    flask(url, "seed", "--orders", "20")

    assert [path.name for path in tmp_path.iterdir()] == ["orders.db"]
    assert orders_in(tmp_path / "orders.db") == 20


def traffic(server: Server) -> AbstractContextManager[Any]:
    """Orders that come in, one after the other, while the block runs."""
    return repeatedly(lambda: server.request("POST", "/orders", ORDER))


def restored_orders(url: str) -> list[str]:
    """The ids of the orders in a restored database, which is in order otherwise."""
    assert ", 0 differences." in flask(url, "verify")
    return [json.loads(line)["id"] for line in flask(url, "orders", "export").splitlines()]


def test_an_sqlite_backup_made_under_traffic_can_be_restored(tmp_path: Path) -> None:
    file, copy = tmp_path / "orders.db", tmp_path / "copy" / "orders.db"
    copy.parent.mkdir()
    migrated(f"sqlite:///{file}")
    flask(f"sqlite:///{file}", "seed", "--orders", "50")
    with running(*GUNICORN, port=free_port(), DATABASE_URL=f"sqlite:///{file}") as server:
        earlier = [server.request("POST", "/orders", ORDER).json["id"] for _ in range(20)]
        # What the command ".backup" of the sqlite3 program calls.
        with traffic(server), closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)

    orders = restored_orders(f"sqlite:///{copy}")

    assert len(orders) >= 70 and set(earlier) < set(orders)


def readme_command(program: str, **variables: str) -> list[str]:
    """A command of the README's, with the wheel's program and these values."""
    [command] = re.findall(rf"`({program} [^`]*)`", (ROOT / "README.md").read_text())
    words = shlex.split(command)
    for name, value in variables.items():
        words = [word.replace(name, value) for word in words]
    return [str(postgres_installation() / "bin" / program), *words[1:]]


def test_a_postgresql_backup_made_under_traffic_can_be_restored(postgresql_url: str, tmp_path: Path) -> None:
    source, target = (libpq_url(new_database(postgresql_url, name)) for name in ("backed_up", "restored"))
    dump = str(tmp_path / "orders.dump")
    migrated(source)
    with running(*GUNICORN, port=free_port(), DATABASE_URL=source, WEB_CONCURRENCY="2") as server:
        earlier = [server.request("POST", "/orders", ORDER).json["id"] for _ in range(20)]
        with traffic(server):
            subprocess.run(readme_command("pg_dump", **{"$DATABASE_URL": source, "orders.dump": dump}), check=True)

    subprocess.run(readme_command("pg_restore", **{"$DATABASE_URL": target, "orders.dump": dump}), check=True)
    orders = restored_orders(target)

    assert set(earlier) <= set(orders)
