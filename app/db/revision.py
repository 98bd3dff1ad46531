"""Whether this code works with the database's schema, and whether the database accepts writes.

During an upgrade, the older version of the service goes on running after the newer one has migrated the database. So
each migration keeps the code before it working. One that does not (it removes what older code uses) stores in
`schema_compatibility` which code does.
"""

from dataclasses import dataclass
from functools import cache

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, Integer, String, Table, inspect, select, text

from app.config import StartupError
from app.db.engine import Base, db, migrate
from app.db.errors import DATABASE_ERRORS, MISSING_FILE, is_missing_file
from app.db.statement import with_retry

# True on a standby, and on a server or for a role whose settings forbid writes.
_READ_ONLY = text("SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean")

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
    """The migration that the database is at, None before the first one, and whether its server refuses writes.

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
    if state.read_only:
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
            "version that made it or, in development, set up an empty database with `flask db upgrade`."
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
        if is_missing_file(error):
            raise StartupError(MISSING_FILE) from None
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
        read_only = connection.dialect.name == "postgresql" and bool(connection.scalar(_READ_ONLY))
        is_unknown = revision is not None and revision not in _known_revisions()
        return DatabaseState(revision, read_only, _read_oldest_code(connection) if is_unknown else None)


def _read_oldest_code(connection: Connection) -> str | None:
    if not inspect(connection).has_table(compatibility.name):  # another application's database
        return None
    oldest_code: str | None = connection.scalar(select(compatibility.c.oldest_code))
    return oldest_code
