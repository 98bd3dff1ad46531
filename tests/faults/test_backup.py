"""SQLite's file: complete after a clean stop, and copied while the service writes."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.concurrency import repeatedly
from tests.support.databases import ORDER, flask, migrated
from tests.support.runbook import blocks, run
from tests.support.servers import GUNICORN, ROOT, SERVERS, environment, free_port, running


def orders_in(file: Path) -> int:
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as connection:
        count: int = connection.execute("SELECT count(*) FROM orders").fetchone()[0]
        return count


@pytest.mark.parametrize("url", ["sqlite:///{}", "sqlite:///file:{}?uri=true"])
@pytest.mark.parametrize("name", ["orders.db", "Aufträge 100%.db"])
def test_a_log_that_the_workers_left_is_removed_when_gunicorn_stops(tmp_path: Path, name: str, url: str) -> None:
    file = tmp_path / name
    leave_log = f"import os, sqlite3; c = sqlite3.connect({str(file)!r}); c.execute('PRAGMA journal_mode=WAL'); "
    leave_log += "c.execute('CREATE TABLE t (a)'); c.commit(); os._exit(0)"
    subprocess.run([sys.executable, "-c", leave_log], check=True)
    assert (tmp_path / f"{name}-wal").exists()

    stop = "import runpy; runpy.run_path('gunicorn.conf.py')['on_exit'](None)"
    settings = environment(DATABASE_URL=url.format(quote(str(file))))
    subprocess.run([sys.executable, "-c", stop], cwd=ROOT, env=settings, check=True)

    assert [path.name for path in tmp_path.iterdir()] == [name]


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


def test_copies_made_while_the_service_writes_are_restored_by_the_page(tmp_path: Path) -> None:
    """docs/operations.md, SQLite."""
    file, copies = tmp_path / "orders.db", tmp_path / "copies"
    url, paths = f"sqlite:///{file}", {"instance/": f"{tmp_path}/", "/var/backups/orders": str(copies)}
    flask(migrated(url), "seed", "--orders", "50")
    copy, restore = blocks("SQLite")
    with running(*GUNICORN, port=free_port(), DATABASE_URL=url) as server:
        earlier = [server.request("POST", "/orders", ORDER).json["id"] for _ in range(20)]
        with repeatedly(lambda: server.request("POST", "/orders", ORDER), pause=0.05):
            run(copy, paths)
    [copied] = copies.glob("orders-*.db")
    assert orders_in(copies / "quiet.db") >= orders_in(copied) >= 70

    file.write_bytes(b"damaged")
    output = run(restore, paths | {"orders-2026-11-28.db": copied.name}, DATABASE_URL=url)

    assert ", 0 differences." in output and "was added to each number of the feed." in output
    exported = flask(url, "orders", "export").splitlines()
    assert set(earlier) < {json.loads(line)["id"] for line in exported}
    assert len(exported) == orders_in(copied)
    assert [kept.read_bytes() for kept in tmp_path.glob("damaged-*/orders.db")] == [b"damaged"]
    assert [path.stat().st_mode & 0o777 for path in (copies, *copies.iterdir(), file)] == [0o700, 0o600, 0o600, 0o600]
