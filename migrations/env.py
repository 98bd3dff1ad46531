"""Alembic's environment: migrations run on the application's own engine, one process at a time."""

from alembic import context
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from flask import current_app
from sqlalchemy import Connection, text

from app.cli.common import errors_in_one_line
from app.db.revision import require_known_revision

database = current_app.extensions["migrate"].db

# Key of pg_advisory_xact_lock: arbitrary, but the same in every version of the service.
ADVISORY_LOCK = 6_513_207_314


def run() -> None:
    with errors_in_one_line(), database.engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=database.metadata,
            render_as_batch=connection.dialect.name == "sqlite",
            # On SQLite too: app.db.engine begins every transaction explicitly, and BEGIN IMMEDIATE locks the file.
            transactional_ddl=True,
        )
        with context.begin_transaction():
            if connection.dialect.name == "postgresql":
                wait_for_other_migrations(connection)
            run_migrations(connection)


def run_migrations(connection: Connection) -> None:
    try:
        context.run_migrations()
    except CommandError:
        require_known_revision(MigrationContext.configure(connection).get_current_revision())
        raise


def wait_for_other_migrations(connection: Connection) -> None:
    """Take the lock that lets one `flask db upgrade` run at a time; the others then find nothing to do.

    Lock and settings last until the end of the transaction, so that this works behind a pooler too.
    """
    # The time limits of requests do not apply to a migration, nor to waiting for another process's migration.
    connection.connection.dbapi_connection.response_timeout = None
    for limit in ("statement_timeout", "idle_in_transaction_session_timeout"):
        connection.execute(text(f"SET LOCAL {limit} = 0"))
    lock_timeout = connection.scalar(text("SELECT current_setting('lock_timeout')"))
    connection.execute(text("SET LOCAL lock_timeout = 0"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
    # lock_timeout applies again: a migration that waits for a table lock blocks every request that comes after it.
    connection.execute(text("SELECT set_config('lock_timeout', :limit, true)"), {"limit": lock_timeout})


run()
