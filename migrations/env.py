"""Alembic's environment: migrations run on the application's own engine, one process at a time."""

import time

from alembic import context
from alembic.util import CommandError
from flask import current_app
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.cli.common import errors_in_one_line
from app.db.engine import is_lock_timeout
from app.db.migrations import LOCK_TIMEOUT, migration_limits, migration_lock, require_revision

database = current_app.extensions["migrate"].db

LOCK_ATTEMPTS = 60
LOCK_PAUSE = 1.0  # seconds; meanwhile, requests that have waited for the lock are served


def run() -> None:
    engine: Engine = database.engine
    with errors_in_one_line():
        if context.is_offline_mode():
            print_sql(engine)
        elif engine.dialect.name == "sqlite":
            migrate_sqlite(engine)
        else:
            migrate_postgresql(engine)


def print_sql(engine: Engine) -> None:
    context.configure(dialect_name=engine.dialect.name, literal_binds=True, transaction_per_migration=True)
    if engine.dialect.name == "postgresql":
        context.execute("SET statement_timeout = 0")
        context.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}s'")
    context.run_migrations()


def migrate_sqlite(engine: Engine) -> None:
    """All migrations are one transaction: app.db.engine begins it with BEGIN IMMEDIATE, which locks the file."""
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=database.metadata,
            render_as_batch=True,
            transactional_ddl=True,
        )
        with context.begin_transaction():
            run_migrations()


def migrate_postgresql(engine: Engine) -> None:
    """Each migration is a transaction, except those that commit to create an index concurrently."""
    with migration_limits(engine), migration_lock(engine), engine.connect() as connection:
        context.configure(connection=connection, target_metadata=database.metadata, transaction_per_migration=True)
        try:
            run_when_unlocked()
        finally:
            connection.invalidate()  # its settings are for migrations only


def run_when_unlocked() -> None:
    for attempts_left in reversed(range(LOCK_ATTEMPTS)):
        try:
            run_migrations()
            return
        except DBAPIError as error:
            if not is_lock_timeout(error) or not attempts_left:
                raise
        time.sleep(LOCK_PAUSE)


def run_migrations() -> None:
    try:
        context.run_migrations()
    except CommandError:
        # The code may be an older release, all of whose migrations have been applied.
        require_revision()


run()
