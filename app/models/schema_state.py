"""Is the database at the schema that this code was written for?"""

from functools import cache

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.config import StartupError
from app.extensions import db, migrate


@cache
def expected_revision() -> str | None:
    """The newest migration that comes with this code."""
    return ScriptDirectory(migrate.directory).get_current_head()


def stored_revision() -> str | None:
    """The migration that the database is at; None where it has seen none."""
    with db.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def require_migrated() -> None:
    """Raise StartupError unless the database is at the newest migration."""
    stored, expected = stored_revision(), expected_revision()
    if stored != expected:
        raise StartupError(f"The database is at migration {stored}, the code at {expected}: run `flask db upgrade`.")
