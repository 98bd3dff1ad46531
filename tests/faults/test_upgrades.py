"""The database is migrated while the previous release serves requests, and by several processes at once.

The previous release is the newest tag; without a tag, it is the current code. The additions of a next release are
in NEXT.
"""

import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from alembic.script import ScriptDirectory

from tests.support.commands import FLASK
from tests.support.databases import MIGRATIONS, ORDER, flask, new_database, wait_until_ready
from tests.support.postgres import libpq_url
from tests.support.servers import (
    GUNICORN,
    ROOT,
    TIMEOUT,
    Server,
    environment,
    free_port,
    running,
    running_worker,
    wait_until,
)

CLIENTS = 4
# Migrations with which older code still works: a column, a table, an index, and values in the new column.
NEXT = {
    "expand": """
        op.add_column("orders", sa.Column("gift_wrap", sa.Boolean))
        op.create_table("gifts", sa.Column("id", sa.Integer, primary_key=True))
    """,
    "index": """
        create_index_concurrently("ix_orders_gift_wrap", "orders", ["gift_wrap"])
    """,
    "fill": """
        op.execute("UPDATE orders SET gift_wrap = false WHERE id IN (SELECT id FROM orders ORDER BY id LIMIT 100)")
    """,
}
# A migration with which older code does not work.
CONTRACT = {
    "contract": """
        op.drop_column("orders", "note")
        op.execute("UPDATE schema_compatibility SET oldest_code = 'contract'")
    """
}
MIGRATION = """
import sqlalchemy as sa
from alembic import op
from app.db.migrations import create_index_concurrently

revision = {revision!r}
down_revision = {before!r}

def upgrade():{operations}
"""


def migrations_with(directory: Path, following: dict[str, str]) -> Path:
    """A copy of the migrations with further ones."""
    shutil.copytree(MIGRATIONS, directory)
    before = ScriptDirectory(MIGRATIONS).get_current_head()
    for revision, operations in following.items():
        text = MIGRATION.format(revision=revision, before=before, operations=operations.replace("\n    ", "\n"))
        (directory / "versions" / f"{revision}.py").write_text(text)
        before = revision
    return directory


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the previous release."""
    newest = subprocess.run(["git", "describe", "--tags", "--abbrev=0"], cwd=ROOT, capture_output=True, text=True)
    if newest.returncode:
        return ROOT
    directory = tmp_path_factory.mktemp("older")
    archive = subprocess.run(["git", "archive", newest.stdout.strip()], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "--extract"], cwd=directory, input=archive.stdout, check=True)
    return directory


@pytest.fixture
def url(database_url: str, older: Path, tmp_path: Path) -> str:
    """A database of the previous release, with orders."""
    is_sqlite = database_url.startswith("sqlite")
    url = f"sqlite:///{tmp_path}/older.db" if is_sqlite else new_database(database_url, "older")
    for command in (["db", "upgrade"], ["seed", "--orders", "50"]):
        run_flask(url, *command, directory=older)
    return url


def run_flask(url: str, *command: str, directory: Path = ROOT) -> str:
    """The standard error of a command, which must succeed."""
    done = start_flask(url, *command, directory=directory)
    errors = done.communicate(timeout=TIMEOUT)[1]
    assert done.returncode == 0, errors
    return errors


def start_flask(url: str, *command: str, directory: Path = ROOT) -> subprocess.Popen[str]:
    settings = environment(DATABASE_URL=url, LOG_LEVEL="error")
    return subprocess.Popen(
        [sys.executable, *FLASK, *command], cwd=directory, env=settings, stderr=subprocess.PIPE, text=True
    )


def life_of_an_order(server: Server) -> Iterator[int]:
    """The statuses of the responses to all requests for one order, and to the probe."""
    created = server.request("POST", "/orders", ORDER)
    yield created.status
    path = f"/orders/{created.json['id']}"
    for method, target, body in (
        ("POST", f"{path}/confirm", {}),
        ("PATCH", path, {"note": "Ring twice."}),
        ("POST", f"{path}/fulfillments", {"items": [{"line": 1, "quantity": 1}]}),
        ("GET", path, None),
        ("GET", f"{path}/history", None),
        ("GET", "/orders?status=confirmed", None),
        ("GET", "/orders/search?q=sku-1", None),
        ("GET", "/readyz", None),
    ):
        headers = {"Content-Type": "application/merge-patch+json"} if method == "PATCH" else {}
        yield server.request(method, target, body, headers).status


@contextmanager
def load(server: Server) -> Iterator[Counter[int]]:
    """Clients without retries, until the block ends. Yields the number of responses by status."""
    statuses: Counter[int] = Counter()
    stopping = threading.Event()

    def run(_: int) -> None:
        while not stopping.is_set():
            for status in life_of_an_order(server):
                statuses[status] += 1

    with ThreadPoolExecutor(CLIENTS) as clients:
        running_clients = [clients.submit(run, i) for i in range(CLIENTS)]
        try:
            yield statuses
        finally:
            stopping.set()
        for client in running_clients:
            client.result()


def all_succeeded(statuses: Counter[int]) -> bool:
    return statuses.keys() == {200, 201}


@contextmanager
def serving(url: str, directory: Path) -> Iterator[Server]:
    settings = {"DATABASE_URL": url, "WEB_CONCURRENCY": "2", "LOG_LEVEL": "warning"}
    with running(*GUNICORN, port=free_port(), directory=directory, **settings) as server:
        yield server


def new_workers(server: Server) -> None:
    """Make gunicorn replace its workers, as after a crash."""
    workers = set(server.children())
    server.process.send_signal(1)  # HUP
    wait_until(lambda: len(server.children()) == 2 and not workers & set(server.children()))


def test_older_code_serves_every_request_while_and_after_the_database_is_migrated(
    url: str, older: Path, tmp_path: Path
) -> None:
    newer = migrations_with(tmp_path / "migrations", NEXT)
    with (
        serving(url, older) as server,
        running_worker(DATABASE_URL=url, directory=older),
        load(server) as statuses,
    ):
        run_flask(url, "db", "upgrade", "--directory", str(newer))
        migrated = statuses.total()
        new_workers(server)
        wait_until(lambda: statuses.total() > migrated + 200)

    assert all_succeeded(statuses), statuses
    with running_worker(DATABASE_URL=url, directory=older):
        assert flask(url, "verify")


def test_older_code_starts_and_can_be_deployed_again_after_a_newer_migration(
    url: str, older: Path, tmp_path: Path
) -> None:
    run_flask(url, "db", "upgrade", "--directory", str(migrations_with(tmp_path / "migrations", NEXT)))

    run_flask(url, "db", "upgrade", directory=older)
    with serving(url, older) as server:
        wait_until_ready(server)
        assert set(life_of_an_order(server)) == {200, 201}


def test_older_code_does_not_run_on_a_schema_that_lacks_what_it_uses(url: str, older: Path, tmp_path: Path) -> None:
    newer = migrations_with(tmp_path / "migrations", NEXT | CONTRACT)
    with serving(url, older) as server:
        run_flask(url, "db", "upgrade", "--directory", str(newer))
        ready = server.request("GET", "/readyz")

    assert ready.status == 503 and "migration contract, which this version" in ready.json["detail"]
    restart = start_flask(url, "worker", directory=older)
    assert "migration contract, which this version" in restart.communicate(timeout=TIMEOUT)[1]
    assert restart.returncode == 1


def test_a_migration_that_waits_for_a_long_transaction_blocks_no_request(
    postgresql_url: str, older: Path, tmp_path: Path
) -> None:
    url = new_database(postgresql_url, "older")
    run_flask(url, "db", "upgrade", directory=older)
    newer = migrations_with(tmp_path / "migrations", NEXT)
    with (
        serving(url, older) as server,
        load(server) as statuses,
        psycopg.connect(libpq_url(url)) as reader,
    ):
        reader.execute("SELECT count(*) FROM orders")  # the lock lasts until the end of the transaction
        upgrade = start_flask(url, "db", "upgrade", "--directory", str(newer))
        waiting = "SELECT query_start FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        waiting += " AND query LIKE 'ALTER TABLE orders%'"
        attempts: set[tuple[object, ...]] = set()
        with psycopg.connect(libpq_url(url), autocommit=True) as observer:
            wait_until(lambda: attempts.update(observer.execute(waiting)) or len(attempts) > 3)
        served = statuses.total()
        wait_until(lambda: statuses.total() > served + 100)
        assert upgrade.poll() is None
        reader.rollback()
        errors = upgrade.communicate(timeout=TIMEOUT)[1]
        assert upgrade.returncode == 0, errors

    assert all_succeeded(statuses), statuses


def test_an_index_whose_creation_failed_is_created_again(postgresql_url: str, tmp_path: Path) -> None:
    url = new_database(postgresql_url, "failed_index")
    unique = {"index": '\n        create_index_concurrently("uq_orders_note", "orders", ["note"], unique=True)\n'}
    newer = str(migrations_with(tmp_path / "migrations", unique))
    run_flask(url, "db", "upgrade")
    run_flask(url, "seed", "--orders", "20", "--new")
    with psycopg.connect(libpq_url(url), autocommit=True) as connection:
        connection.execute("UPDATE orders SET note = 'the same'")
        failed = start_flask(url, "db", "upgrade", "--directory", newer)
        errors = failed.communicate(timeout=TIMEOUT)[1]
        connection.execute("UPDATE orders SET note = id")
        run_flask(url, "db", "upgrade", "--directory", newer)
        valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'uq_orders_note'::regclass"

        assert failed.returncode == 1 and errors.count("\n") == 1 and "uq_orders_note" in errors
        assert connection.execute(valid).fetchone() == (True,)


def test_concurrent_upgrades_run_one_after_the_other(database_url: str, tmp_path: Path) -> None:
    is_sqlite = database_url.startswith("sqlite")
    url = f"sqlite:///{tmp_path}/empty.db" if is_sqlite else new_database(database_url, "empty")
    newer = str(migrations_with(tmp_path / "migrations", NEXT))

    upgrades = [start_flask(url, "db", "upgrade", "--directory", newer) for _ in range(3)]
    errors = [upgrade.communicate(timeout=TIMEOUT)[1] for upgrade in upgrades]

    assert [upgrade.returncode for upgrade in upgrades] == [0, 0, 0], errors
    assert "fill (head)" in flask(url, "db", "current", "--directory", newer)
