"""The database engine: Flask-SQLAlchemy and Flask-Migrate, the pool, and what every connection is set to."""

import random
import sqlite3
import time
import weakref
from typing import Any

import psycopg
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Dialect, Engine, MetaData, Pool, event
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase

from app.config import ROOT
from app.db.connection import connect_arguments, explain_refusal, open_connection, prepare_session

SQLITE_LOCK_TIMEOUT = 5.0  # seconds that a write waits for another process's
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05  # seconds between two tries


class Base(DeclarativeBase):
    """Base of all models. Constraint names are fixed, so that a later migration can name what it changes."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


db = SQLAlchemy(model_class=Base)
migrate = Migrate()


def init_app(app: Flask) -> None:
    """Bind the database and its migrations to the application."""
    config = app.config
    options = engine_options(
        config["DATABASE_URL"], pool_size=config["DATABASE_POOL_SIZE"], pooler=config["DATABASE_POOLER"]
    )
    config.update(SQLALCHEMY_DATABASE_URI=config["DATABASE_URL"], SQLALCHEMY_ENGINE_OPTIONS=options)
    db.init_app(app)
    _close_at_exit(app)
    migrate.init_app(app, db, directory=str(ROOT / "migrations"))


def _close_at_exit(app: Flask) -> None:
    """Close the application's connections when the process ends, or when the application is forgotten before.

    The last connection to SQLite writes the write-ahead log back, so that the file alone is the whole database.
    """
    with app.app_context():
        weakref.finalize(app, db.engine.dispose)


def engine_options(url: str, *, pool_size: int, pooler: str = "") -> dict[str, Any]:
    """Pool and driver settings for a database URL.

    Both drivers are left in autocommit, and a transaction is begun by name (below): the fast paths are single
    statements, and a BEGIN and COMMIT around each would cost two more round trips.
    """
    pool: dict[str, Any] = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": 2, "pool_use_lifo": True}
    pool["pool_reset_on_return"] = None  # _end_transaction below does it, where there is one to end
    pool["hide_parameters"] = True  # an error is logged, and they are personal data
    if url.startswith("sqlite"):
        # SQLite's own wait for a lock would stop the whole worker, so _execute_when_unlocked does it. A writer waits
        # with its connection: the others must not leave none to the readers.
        return pool | {"max_overflow": 100, "connect_args": {"isolation_level": None, "timeout": 0}}
    return pool | {"connect_args": connect_arguments(make_url(url).query, pooler=pooler)}


@event.listens_for(Engine, "do_connect")
def _connect(dialect: Dialect, _record: Any, arguments: Any, named: Any) -> Any:
    """A connection for PostgreSQL; None leaves it to the driver."""
    if dialect.name != "postgresql":
        return None
    try:
        return open_connection(*arguments, **named)
    except psycopg.OperationalError as error:
        raise explain_refusal(error, pooled=named["prepare_threshold"] is None) from None


@event.listens_for(Engine, "connect")
def _prepare_connection(connection: Any, _record: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        # FULL: with NORMAL a power cut takes acknowledged orders with it (the log is not synced at commit).
        # secure_delete, which is not every build's default: what a change or an erasure frees is overwritten.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            _execute_when_unlocked(connection, f"PRAGMA {pragma}", within=SQLITE_LOCK_TIMEOUT)
        return
    try:
        prepare_session(connection)
    except BaseException:
        connection.close()
        raise


def _execute_when_unlocked(connection: sqlite3.Connection, sql: str, *, within: float) -> None:
    """Try until no other process holds the lock, at most so many seconds; a worker's other requests go on meanwhile.

    Raises sqlite3.OperationalError (SQLITE_BUSY).
    """
    deadline, pause = time.monotonic() + within, _SHORTEST_PAUSE
    while True:
        try:
            connection.execute(sql)
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(random.uniform(0.5, 1) * pause)  # jitter  # nosec B311
        pause = min(2 * pause, _LONGEST_PAUSE)


@event.listens_for(Pool, "reset")
def _end_transaction(connection: Any, record: Any, _state: Any) -> None:
    # The pool would roll back every time, for 30 µs a request; the fast paths have no transaction.
    if isinstance(connection, sqlite3.Connection):
        in_transaction = connection.in_transaction
    else:
        status = connection.pgconn.transaction_status
        if status == TransactionStatus.UNKNOWN:  # broken: the server, if it is there, has ended the transaction
            record.invalidate()
            return
        in_transaction = status != TransactionStatus.IDLE
    if in_transaction:
        connection.rollback()


@event.listens_for(Engine, "begin")
def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    read_only = options.get("read_only", False)
    driver = connection.connection.dbapi_connection
    if not isinstance(driver, sqlite3.Connection):
        connection.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" if read_only else "BEGIN")
    elif read_only:
        driver.execute("BEGIN")
    else:
        # IMMEDIATE: a transaction that reads first and writes later cannot wait for another writer, it fails at once.
        _execute_when_unlocked(driver, "BEGIN IMMEDIATE", within=options.get("lock_timeout", SQLITE_LOCK_TIMEOUT))
