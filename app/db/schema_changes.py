"""What migrations need on PostgreSQL: one process at a time, short waits for locks, indexes that block no request."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from alembic import op
from sqlalchemy import Connection, Engine, event

from app.db.connection import BoundedConnection
from app.db.engine import is_autocommit

# Seconds that a migration waits for the lock of a table. Every request for the table waits behind it, and gives up
# after lock_timeout of app.db.connection.
LOCK_TIMEOUT = 0.5
# The key is arbitrary, but the same in every version of the service.
_TAKE_LOCK = "SELECT pg_try_advisory_xact_lock(6513207314)"
_POLL_INTERVAL = 0.2  # seconds
_LIMITS = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0", "lock_timeout": f"{LOCK_TIMEOUT}s"}


@contextmanager
def one_process_at_a_time(engine: Engine) -> Iterator[None]:
    """Wait until no other process migrates the database, and keep others waiting until the block ends.

    The lock belongs to a transaction on a connection of its own, because migrations commit, and because a pooler keeps
    nothing longer than a transaction.
    """
    with engine.connect() as connection:
        connection.begin()
        driver = connection.connection.dbapi_connection
        assert isinstance(driver, BoundedConnection)
        # CREATE INDEX CONCURRENTLY of the process that has the lock waits for all older snapshots: of a statement that
        # waits, and, unless prepare is False, of one that has ended, until the next one.
        while driver.execute(_TAKE_LOCK, prepare=False).fetchone() != (True,):
            time.sleep(_POLL_INTERVAL)
        yield


@contextmanager
def migration_limits(engine: Engine) -> Iterator[None]:
    """Begin transactions without the time limits of requests, and with a shorter one for locks."""
    event.listen(engine, "begin", _set_limits)
    try:
        yield
    finally:
        event.remove(engine, "begin", _set_limits)


def _set_limits(connection: Connection) -> None:
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, BoundedConnection)
    driver.response_timeout = None
    if not is_autocommit(connection):
        for name, limit in _LIMITS.items():
            connection.exec_driver_sql(f"SET LOCAL {name} = '{limit}'")


def create_index_concurrently(name: str, table: str, columns: list[str], *, unique: bool = False) -> None:
    """Create an index in a migration, while requests go on reading and writing the table.

    PostgreSQL builds it outside of a transaction, so the migration commits before. Let it do nothing else: if it is
    interrupted, it starts again. SQLite's index is created as usual.
    """
    context = op.get_context()
    if context.dialect.name == "sqlite":
        op.create_index(name, table, columns, unique=unique)
        return
    with context.autocommit_block():
        # It waits for older transactions, and no request waits for it.
        limits = ("statement_timeout", "lock_timeout")
        for limit in limits:
            op.execute(f"SET {limit} = 0")
        # What is left of an interrupted attempt cannot be used.
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        op.create_index(name, table, columns, unique=unique, if_not_exists=True, postgresql_concurrently=True)
        for limit in limits:
            op.execute(f"RESET {limit}")
