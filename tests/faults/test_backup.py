"""Backups: a file that is whole after a clean stop, and copies made while the service runs, restored by the README."""

import json
import re
import shlex
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from tests.support.databases import migrated
from tests.support.postgres import postgres_installation
from tests.support.servers import GUNICORN, ROOT, TIMEOUT, Server, environment, free_port, running

ORDER = {"customer_id": "c-1", "items": [{"item_id": "sku-1", "quantity": 2}]}
SERVERS = {
    "flask": ("-m", "flask", "--app", "wsgi", "run", "--port", "{port}"),
    "gunicorn": GUNICORN,
    "uvicorn": ("-m", "uvicorn", "--interface", "wsgi", "--port", "{port}", "wsgi:app"),
}


def flask(*words: str, url: str) -> str:
    """Run a flask command; its output."""
    command = [sys.executable, "-m", "flask", "--app", "wsgi", *words]
    env = environment(DATABASE_URL=url)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    return done.stdout


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
    file, port = tmp_path / "orders.db", free_port()
    url = f"sqlite:///{file}"
    migrated(url)
    words = [word.format(port=port) for word in command]
    workers = "1" if "uvicorn" in command else "2"  # uvicorn kills what it started
    with running(*words, port=port, PORT=str(port), DATABASE_URL=url, WEB_CONCURRENCY=workers) as server:
        statuses = {server.request("POST", "/orders", ORDER).status for _ in range(20)}
        server.stop()

    assert statuses == {201}
    assert [path.name for path in tmp_path.iterdir()] == ["orders.db"]
    assert orders_in(file) == 20


def test_after_a_command_the_file_alone_is_the_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/orders.db"

    flask("db", "upgrade", url=url)
    flask("seed", "--orders", "20", url=url)

    assert [path.name for path in tmp_path.iterdir()] == ["orders.db"]
    assert orders_in(tmp_path / "orders.db") == 20


class Traffic:
    """Orders that come in, one after the other, while the block runs."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.created: list[Any] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.created.append(self.server.request("POST", "/orders", ORDER).json)


def restored_orders(url: str) -> list[str]:
    """The ids of the orders in a restored database, which is in order otherwise."""
    assert ", 0 differences." in flask("verify", url=url)
    return [json.loads(line)["id"] for line in flask("orders", "export", url=url).splitlines()]


def test_an_sqlite_backup_made_under_traffic_can_be_restored(tmp_path: Path) -> None:
    file, copy, port = tmp_path / "orders.db", tmp_path / "copy" / "orders.db", free_port()
    copy.parent.mkdir()
    migrated(f"sqlite:///{file}")
    flask("seed", "--orders", "50", url=f"sqlite:///{file}")
    with running(*GUNICORN, port=port, PORT=str(port), DATABASE_URL=f"sqlite:///{file}") as server:
        earlier = [server.request("POST", "/orders", ORDER).json["id"] for _ in range(20)]
        # What the command ".backup" of the sqlite3 program calls.
        with Traffic(server), closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
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
    urls = [make_url(postgresql_url).set(drivername="postgresql", database=name) for name in ("backed_up", "restored")]
    source, target = (url.render_as_string(hide_password=False) for url in urls)
    with psycopg.connect(postgresql_url.replace("+psycopg", ""), autocommit=True) as connection:
        for name in ("backed_up", "restored"):
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {name}")
    dump, port = str(tmp_path / "orders.dump"), free_port()
    migrated(source)
    with running(*GUNICORN, port=port, PORT=str(port), DATABASE_URL=source, WEB_CONCURRENCY="2") as server:
        earlier = [server.request("POST", "/orders", ORDER).json["id"] for _ in range(20)]
        with Traffic(server):
            subprocess.run(readme_command("pg_dump", **{"$DATABASE_URL": source, "orders.dump": dump}), check=True)

    subprocess.run(readme_command("pg_restore", **{"$DATABASE_URL": target, "orders.dump": dump}), check=True)
    orders = restored_orders(target)

    assert set(earlier) <= set(orders)
