"""Is the database at the schema that this code was written for, and can it be written to?"""

from dataclasses import dataclass
from functools import cache

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from app.config import StartupError
from app.db.engine import db, migrate
from app.db.errors import DATABASE_ERRORS
from app.db.transactions import with_retry

# A standby, or a server that is kept from writing by its settings. Other transactions than ours are read-write.
_READ_ONLY = text("SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean")


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """The migration that the database is at, None where it has seen none, and whether its server takes no writes."""

    revision: str | None
    read_only: bool


@cache
def expected_revision() -> str | None:
    """The newest migration that comes with this code."""
    return ScriptDirectory(migrate.directory).get_current_head()


def database_state() -> DatabaseState:
    """Ask the database, without a lock that a writer could hold. Raises the database's errors."""
    state = with_retry(_read_state)
    if state.read_only:
        db.engine.dispose()  # new connections may find the primary
    return state


def _read_state() -> DatabaseState:
    with db.engine.execution_options(read_only=True).connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
        read_only = connection.dialect.name == "postgresql" and bool(connection.scalar(_READ_ONLY))
    return DatabaseState(revision, read_only)


def require_revision() -> None:
    """Raise StartupError unless the database is at the newest migration, and the database's errors."""
    stored, expected = database_state().revision, expected_revision()
    if stored != expected:
        raise StartupError(f"The database is at migration {stored}, the code at {expected}: run `flask db upgrade`.")


def require_migrated() -> None:
    """Raise StartupError unless the database answers and is at the newest migration."""
    try:
        require_revision()
    except DATABASE_ERRORS as error:
        raise StartupError(f"The database does not answer: {str(error).partition(chr(10))[0]}") from None
