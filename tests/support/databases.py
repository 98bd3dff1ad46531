"""Databases of single tests, and servers whose database fails or is replaced while they run."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import flask_migrate
import psycopg
from sqlalchemy import make_url

from app import create_app
from app.db.engine import db
from tests.support.credentials import bearer
from tests.support.postgres import libpq_url, socket_directory
from tests.support.servers import GUNICORN, ROOT, Response, Server, environment, free_port, running, wait_until

ORDER = {"customer_id": "c-1", "items": [{"item_id": "sku-1", "quantity": 2}]}
ONE_WORKER = {"WEB_CONCURRENCY": "1", "AUTH": "required"}
MIGRATIONS = str(ROOT / "migrations")
KEY_CACHE = 1.1  # seconds, after which an API key is read from the database again


def flask(url: str, *command: str) -> str:
    words = [sys.executable, "-m", "flask", "--app", "wsgi", *command]
    done = subprocess.run(
        words, cwd=ROOT, env=environment(DATABASE_URL=url, LOG_LEVEL="error"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def memory_directory() -> str | None:
    """The directory of a file system in memory, if it has space for the databases of the tests."""
    directory = "/dev/shm"
    return directory if os.path.isdir(directory) and shutil.disk_usage(directory).free > 2**30 else None


def new_database(server_url: str, name: str, options: str = "") -> str:
    """Create an empty database on the PostgreSQL server, replacing one with that name, and return its URL."""
    with psycopg.connect(libpq_url(server_url), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name} {options}")
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


def generic_plan(connection: psycopg.Connection[Any], sql: str) -> str:
    """The plan of a query with $ parameters for all of their values, as EXPLAIN shows it."""
    parameters = len(set(re.findall(r"\$\d+", sql)))
    arguments = f"({', '.join(['NULL'] * parameters)})" if parameters else ""
    connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    connection.execute(f"PREPARE planned AS {sql}", prepare=False)
    rows = connection.execute(f"EXPLAIN EXECUTE planned{arguments}").fetchall()
    connection.execute("DEALLOCATE planned")
    return "\n".join(row[0] for row in rows)


def migrated(url: str) -> str:
    """Create the tables in the database and return its URL."""
    app = create_app({"DATABASE_URL": url, "AUTH": "off", "TESTING": True})
    with app.app_context():
        flask_migrate.upgrade(directory=MIGRATIONS)
        db.engine.dispose()
    return url


@contextmanager
def creates_blocked(url: str) -> Iterator[None]:
    """Prevent creates from being committed until the block ends."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
    else:
        with psycopg.connect(libpq_url(url)) as connection:
            connection.execute("LOCK TABLE orders IN SHARE MODE")
            yield


def create_order(server: Server) -> Response:
    """The response to a create, which is retried while the worker is at its limit."""
    while (response := server.request("POST", "/orders", ORDER)).status == 503:
        time.sleep(0.05)
    return response


def new_key(url: str) -> dict[str, str]:
    """The header with a new API key that may read and create."""
    words = "api-keys create --name shop --scope orders:read --scope orders:write".split()
    return bearer(flask(url, *words).strip())


def gunicorn(url: str, **settings: str) -> Any:
    port = free_port()
    return running(*GUNICORN, port=port, PORT=str(port), DATABASE_URL=url, **(ONE_WORKER | settings))


def point_link_at(url: str, link: Path) -> None:
    """Point the symbolic link to the socket of the server at the URL."""
    link.unlink(missing_ok=True)
    link.symlink_to(socket_directory(url) / link.name)


def url_through(link: Path) -> str:
    """The URL of the server whose socket the link leads to."""
    return f"postgresql://postgres@/postgres?host={link.parent}&port=5432"


def wait_until_ready(server: Server) -> None:
    wait_until(lambda: server.request("GET", "/readyz").status == 200)
