"""Backups: a file that is whole after a clean stop, and copies made while the service runs, restored by the README."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.servers import GUNICORN, PATIENCE, ROOT, environment, free_port, running

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
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def orders_in(file: Path) -> int:
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as connection:
        count: int = connection.execute("SELECT count(*) FROM orders").fetchone()[0]
        return count


@pytest.mark.parametrize("command", SERVERS.values(), ids=SERVERS)
def test_after_a_clean_stop_the_file_alone_is_the_database(tmp_path: Path, command: tuple[str, ...]) -> None:
    file, port = tmp_path / "orders.db", free_port()
    url = f"sqlite:///{file}"
    flask("db", "upgrade", url=url)
    words = [word.format(port=port) for word in command]
    workers = "1" if "uvicorn" in command else "2"  # uvicorn kills what it started
    with running(*words, port=port, PORT=str(port), DATABASE_URL=url, WEB_CONCURRENCY=workers) as server:
        statuses = {server.ask("POST", "/orders", ORDER).status for _ in range(20)}
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
