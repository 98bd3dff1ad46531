"""Whether the database is at the newest migration and accepts writes."""

from dataclasses import dataclass
from functools import cache

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from app.config import StartupError
from app.db.engine import db, migrate
from app.db.errors import DATABASE_ERRORS
from app.db.statement import with_retry

# True on a standby, and on a server or for a role whose settings forbid writes.
_READ_ONLY = text("SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean")


class SchemaMismatch(StartupError):
    """The database is at another migration than the one this code was written for."""


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """The migration that the database is at, None before the first one, and whether its server refuses writes."""

    revision: str | None
    read_only: bool


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
    """Raise SchemaMismatch unless the database is at the newest migration, and DATABASE_ERRORS."""
    stored, expected = database_state().revision, expected_revision()
    if stored != expected:
        require_known_revision(stored)
        raise SchemaMismatch(f"The database is at migration {stored}, the code at {expected}: run `flask db upgrade`.")


def require_known_revision(stored: str | None) -> None:
    """Raise SchemaMismatch if this code does not have the migration that the database is at, so that no command can
    upgrade it."""
    if stored is not None and stored not in {script.revision for script in _scripts().walk_revisions()}:
        raise SchemaMismatch(
            f"The database is at migration {stored}, which this version of the service does not have: deploy the "
            "version that made it or, in development, set up an empty database with `flask db upgrade`."
        )


def require_migrated() -> None:
    """Raise StartupError unless the database answers and is at the newest migration."""
    try:
        require_revision()
    except StartupError:
        raise
    except DATABASE_ERRORS as error:
        raise StartupError(f"The database does not answer: {str(error).partition(chr(10))[0]}") from None


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(migrate.directory)


def _read_state() -> DatabaseState:
    with db.engine.execution_options(read_only=True).connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
        read_only = connection.dialect.name == "postgresql" and bool(connection.scalar(_READ_ONLY))
    return DatabaseState(revision, read_only)
