"""Whether this code works with the database's schema, whether the database accepts writes, and what migrations need.

During an upgrade, the older version of the service keeps running after the newer one has migrated the database. So each
migration keeps the previous code working. A migration that cannot, since it removes what older code uses, stores in
`schema_compatibility` the oldest code that still works.

On PostgreSQL, migrations run in one process at a time, wait for locks only shortly, and create indexes that block no
request.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from alembic import op
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, Engine, Integer, String, Table, event, inspect, select, text

from app.config import StartupError
from app.db.engine import (
    DATABASE_ERRORS,
    UNUSABLE_FILE,
    Base,
    BoundedConnection,
    db,
    is_autocommit,
    is_file_unusable,
    migrate,
)
from app.db.statements import with_retry

# Seconds that a migration waits for the lock of a table. Every request for the table waits behind it, and gives up
# after lock_timeout of app.db.engine.
LOCK_TIMEOUT = 0.5
# The key is arbitrary, but the same in every version of the service.
_TRY_LOCK = "SELECT pg_try_advisory_xact_lock(6513207314)"
_POLL_INTERVAL = 0.2  # seconds
_LIMITS = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0", "lock_timeout": f"{LOCK_TIMEOUT}s"}

# True on a standby, and on a server or for a role whose settings forbid writes.
_READ_ONLY = text("SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean")

_SQLITE_FILE = text("SELECT file FROM pragma_database_list WHERE name = 'main'")

# One row: the newest migration of the oldest code that works with the schema.
compatibility = Table(
    "schema_compatibility",
    Base.metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("oldest_code", String(32), nullable=False),
)


class SchemaMismatch(StartupError):
    """This code does not work with the database's schema."""


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """The migration that the database is at, None before the first one, and whether it refuses writes.

    `oldest_code` is read if this code does not have that migration.
    """

    revision: str | None
    read_only: bool
    oldest_code: str | None = None


@cache
def expected_revision() -> str | None:
    """The newest migration of this code."""
    return _scripts().get_current_head()


def database_state() -> DatabaseState:
    """Read the state of the database without waiting for a writer's lock. Raises DATABASE_ERRORS."""
    state = with_retry(_read_state)
    if state.read_only and db.engine.dialect.name == "postgresql":
        db.engine.dispose()  # after a failover, new connections may reach the primary
    return state


def require_revision() -> None:
    """Raise SchemaMismatch unless this code works with the database's schema, and DATABASE_ERRORS."""
    require_compatible(database_state())


def require_compatible(state: DatabaseState) -> None:
    """Raise SchemaMismatch unless the database is at the newest migration of this code, or at a later one that keeps
    this code working."""
    stored, expected = state.revision, expected_revision()
    if stored == expected or state.oldest_code in _known_revisions():
        return
    if stored is not None and stored not in _known_revisions():
        raise SchemaMismatch(
            f"The database is at migration {stored}, which this version of the service does not have: deploy the "
            "version that contains it or, in development, set up an empty database with `flask db upgrade`."
        )
    if stored is None:
        raise SchemaMismatch("The database has no tables of the service: run `flask db upgrade`.")
    raise SchemaMismatch(f"The database is at migration {stored}, the code at {expected}: run `flask db upgrade`.")


def require_migrated() -> None:
    """Raise StartupError unless the database answers and this code works with its schema."""
    try:
        require_revision()
    except StartupError:
        raise
    except DATABASE_ERRORS as error:
        if is_file_unusable(error):
            raise StartupError(UNUSABLE_FILE) from None
        raise StartupError(f"The database does not answer: {str(error).partition(chr(10))[0]}") from None


@cache
def _known_revisions() -> frozenset[str]:
    """The migrations of this code."""
    return frozenset(script.revision for script in _scripts().walk_revisions())


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(migrate.directory)


def _read_state() -> DatabaseState:
    with db.engine.execution_options(read_only=True).connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
        read_only = _refuses_writes(connection)
        is_unknown = revision is not None and revision not in _known_revisions()
        return DatabaseState(revision, read_only, _read_oldest_code(connection) if is_unknown else None)


def _refuses_writes(connection: Connection) -> bool:
    if connection.dialect.name == "postgresql":
        return bool(connection.scalar(_READ_ONLY))
    file = connection.execute(_SQLITE_FILE).scalar_one()
    # SQLite opens a file that it may not write for reading only. It has given the files beside it the same permissions.
    beside = filter(os.path.exists, (f"{file}-wal", f"{file}-shm"))
    return not all(os.access(path, os.W_OK) for path in (file, *beside))


def _read_oldest_code(connection: Connection) -> str | None:
    if not inspect(connection).has_table(compatibility.name):  # another application's database
        return None
    oldest_code: str | None = connection.scalar(select(compatibility.c.oldest_code))
    return oldest_code


def require_no_orders() -> None:
    """Raise StartupError in a downgrade that removes the tables, if they contain orders."""
    if not op.get_context().as_sql and op.get_bind().scalar(text("SELECT 1 FROM orders LIMIT 1")):
        raise StartupError(
            "This downgrade would delete all orders. To go back to an older release, deploy it without a downgrade: it "
            "works with the newer schema, or says that it does not."
        )


@contextmanager
def migration_lock(engine: Engine) -> Iterator[None]:
    """Wait until no other process migrates the database, and keep others waiting until the block ends.

    The lock belongs to a transaction on a connection of its own, because migrations commit, and because a pooler keeps
    nothing longer than a transaction.
    """
    with engine.connect() as connection:
        connection.begin()
        driver = connection.connection.dbapi_connection
        assert isinstance(driver, BoundedConnection)
        # The process that has the lock may run CREATE INDEX CONCURRENTLY, which waits for all older snapshots. A
        # statement that waits for the lock would hold one, so this polls; and a prepared statement (prepare=True) would
        # hold one until the next statement.
        while driver.execute(_TRY_LOCK, prepare=False).fetchone() != (True,):
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
    """Create an index in a migration, while requests read and write the table.

    PostgreSQL builds it outside a transaction, so the migration commits first. Such a migration must do nothing else:
    if it is interrupted, it starts again. SQLite's index is created as usual.
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
        # An interrupted attempt leaves an index that cannot be used.
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        op.create_index(name, table, columns, unique=unique, if_not_exists=True, postgresql_concurrently=True)
        for limit in limits:
            op.execute(f"RESET {limit}")
