"""Is the database at the schema that this code was written for?"""

from functools import cache

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.config import StartupError
from app.extensions import db, migrate
from app.models.faults import FAULTS


@cache
def expected_revision() -> str | None:
    """The newest migration that comes with this code."""
    return ScriptDirectory(migrate.directory).get_current_head()


def stored_revision() -> str | None:
    """The migration that the database is at; None where it has seen none."""
    with db.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def require_migrated() -> None:
    """Raise StartupError unless the database answers and is at the newest migration."""
    try:
        stored, expected = stored_revision(), expected_revision()
    except FAULTS as error:
        raise StartupError(f"The database does not answer: {str(error).partition(chr(10))[0]}") from None
    if stored != expected:
        raise StartupError(f"The database is at migration {stored}, the code at {expected}: run `flask db upgrade`.")
