"""How Alembic reaches the database: over the application's own engine."""

from alembic import context
from flask import current_app
from sqlalchemy import Connection, text

from app.cli.common import errors_in_one_line

database = current_app.extensions["migrate"].db

# Any number, as long as it is the same in every version of the service.
ADVISORY_LOCK = 6_513_207_314


def run() -> None:
    with errors_in_one_line(), database.engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=database.metadata,
            render_as_batch=connection.dialect.name == "sqlite",
            # SQLite too: app.db.engine begins its transactions by name, and the first takes the lock of the file.
            transactional_ddl=True,
        )
        with context.begin_transaction():
            if connection.dialect.name == "postgresql":
                wait_for_other_migrations(connection)
            context.run_migrations()


def wait_for_other_migrations(connection: Connection) -> None:
    """Take the lock that lets one `flask db upgrade` run at a time; the next one finds nothing to do.

    Lock and settings end with the transaction, so that they hold behind a pooler too.
    """
    # A migration may take longer than a request may, and so may waiting for another one to end.
    connection.connection.dbapi_connection.answer_within = None
    for limit in ("statement_timeout", "idle_in_transaction_session_timeout"):
        connection.execute(text(f"SET LOCAL {limit} = 0"))
    lock_timeout = connection.scalar(text("SELECT current_setting('lock_timeout')"))
    connection.execute(text("SET LOCAL lock_timeout = 0"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
    # From here on the limit holds again, lest a migration that waits for a table stop the service.
    connection.execute(text("SELECT set_config('lock_timeout', :limit, true)"), {"limit": lock_timeout})


run()
