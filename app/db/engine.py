"""The database engine: Flask-SQLAlchemy, Flask-Migrate, the connection pool, SQLite's pragmas, and BEGIN."""

import os
import random
import sqlite3
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Connection, Dialect, Engine, MetaData, event
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.orm import DeclarativeBase

from app.config import ROOT
from app.db.connection import connect_arguments, explain_refusal, open_connection, prepare_session
from app.db.errors import is_file_unusable
from app.tracing import add_span_event, is_tracing, statement_span

SQLITE_LOG_MAX = 64 * 1024**2  # bytes of the write-ahead log that are kept; 1,000 pages are usual
SQLITE_LOCK_TIMEOUT = 5.0  # seconds that a writer waits for the writer of another process
_MIN_PAUSE, _MAX_PAUSE = 0.001, 0.05  # seconds between two attempts to get SQLite's lock
_SPAN = "statement_span"  # key in `Connection.info`: the span of the statement that is being executed
_REWRITE_PAUSE = 0.1  # seconds between two attempts; other requests of this process run meanwhile
_REWRITE_BUSY_TIMEOUT = 50  # milliseconds; SQLite's wait blocks the whole worker, which may hold the lock itself


class Base(DeclarativeBase):
    """Base of all models. The naming convention gives every constraint a name that migrations can refer to."""

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
    """Set up Flask-SQLAlchemy and Flask-Migrate for the application."""
    config = app.config
    options = engine_options(
        config["DATABASE_URL"], pool_size=config["DATABASE_POOL_SIZE"], pooler=config["DATABASE_POOLER"]
    )
    config.update(SQLALCHEMY_DATABASE_URI=config["DATABASE_URL"], SQLALCHEMY_ENGINE_OPTIONS=options)
    db.init_app(app)
    _close_at_exit(app)
    if is_tracing():
        with app.app_context():
            _trace_statements(db.engine)
    migrate.init_app(app, db, directory=str(ROOT / "migrations"))


def _close_at_exit(app: Flask) -> None:
    """Close the application's connections when the process ends, or when the application is garbage-collected.

    The last connection to SQLite checkpoints the write-ahead log and removes it.
    """
    with app.app_context():
        weakref.finalize(app, db.engine.dispose)


def engine_options(url: str, *, pool_size: int, pooler: str = "") -> dict[str, Any]:
    """Pool and driver settings for a database URL.

    Both drivers are in autocommit mode: most requests are a single statement, and a BEGIN and a COMMIT would cost two
    more round trips. `_begin_transaction` begins a transaction explicitly where there are several statements.
    """
    pool: dict[str, Any] = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": 2, "pool_use_lifo": True}
    pool["pool_reset_on_return"] = None  # _roll_back_open_transaction replaces it
    pool["hide_parameters"] = True  # errors are logged, and parameters contain personal data
    if url.startswith("sqlite"):
        # timeout 0: SQLite's own wait for a lock would block the whole worker; execute_when_unlocked waits instead.
        # Writers hold a connection while they wait, so the overflow keeps connections available to readers.
        return pool | {"max_overflow": 100, "connect_args": {"isolation_level": None, "timeout": 0}}
    return pool | {"connect_args": connect_arguments(make_url(url).query, pooler=pooler)}


@event.listens_for(Engine, "do_connect")
def _connect(dialect: Dialect, _record: Any, arguments: Any, keywords: Any) -> Any:
    """Open PostgreSQL connections with `open_connection`; None lets SQLAlchemy open SQLite's."""
    if dialect.name != "postgresql":
        _create_file(arguments[0])
        return None
    try:
        return open_connection(*arguments, **keywords)
    except psycopg.OperationalError as error:
        raise explain_refusal(error, pooled=keywords["prepare_threshold"] is None) from None


def _create_file(path: str) -> None:
    """Create SQLite's file, if it does not exist, for its owner only: it contains personal data and secrets.

    SQLite gives the files beside it the same permissions.
    """
    if path.startswith("file:"):
        uri = urlsplit(path)
        path = "" if "mode=" in uri.query else unquote(uri.path)  # the mode says whether SQLite may create it
    if os.path.isabs(path):  # not in memory
        with suppress(OSError):  # the file exists, or SQLite reports the error
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))


@event.listens_for(Engine, "connect")
def _prepare_connection(connection: Any, _record: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        # synchronous=NORMAL does not sync the log at commit, so a power failure would lose acknowledged orders.
        # secure_delete, which not every build has by default, overwrites what a change or an erasure deletes.
        # The log grows during a long read, such as an export, and without a limit it would never be truncated.
        limit = f"journal_size_limit={SQLITE_LOG_MAX}"
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON", limit):
            execute_when_unlocked(connection, f"PRAGMA {pragma}", timeout=SQLITE_LOCK_TIMEOUT)
        return
    try:
        prepare_session(connection)
    except BaseException:
        connection.close()
        raise


def execute_when_unlocked(
    connection: sqlite3.Connection, sql: str, parameters: Mapping[str, Any] | None = None, *, timeout: float
) -> sqlite3.Cursor:
    """Execute `sql` once no other process holds SQLite's lock. Other requests of the worker run meanwhile.

    Raises sqlite3.OperationalError (SQLITE_BUSY) after `timeout` seconds.
    """
    deadline, pause = time.monotonic() + timeout, _MIN_PAUSE
    while True:
        try:
            return connection.execute(sql, parameters or {})
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(random.uniform(0.5, 1) * pause)  # nosec B311
        pause = min(2 * pause, _MAX_PAUSE)


def is_autocommit(connection: Connection) -> bool:
    """Whether statements run outside transactions, as CREATE INDEX CONCURRENTLY must."""
    return connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"


@event.listens_for(Engine, "begin")
def _begin_transaction(connection: Connection) -> None:
    options = connection.get_execution_options()
    read_only = options.get("read_only", False)
    driver = connection.connection.dbapi_connection
    if is_autocommit(connection):
        return
    if not isinstance(driver, sqlite3.Connection):
        connection.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" if read_only else "BEGIN")
    elif read_only:
        driver.execute("BEGIN")
    else:
        # IMMEDIATE waits for other writers here. A deferred transaction that writes after it has read cannot wait, and
        # fails at once with SQLITE_BUSY.
        try:
            execute_when_unlocked(driver, "BEGIN IMMEDIATE", timeout=options.get("lock_timeout", SQLITE_LOCK_TIMEOUT))
        except sqlite3.OperationalError as error:
            if is_file_unusable(error):
                connection.invalidate()
                connection.engine.dispose()
            raise


def _trace_statements(engine: Engine) -> None:
    """Start a span for each statement that SQLAlchemy executes, and note the COMMIT of a transaction."""
    event.listen(engine, "before_cursor_execute", _start_span)
    event.listen(engine, "after_cursor_execute", _end_span)
    event.listen(engine, "handle_error", _end_failed_span)
    event.listen(engine, "commit", lambda _connection: add_span_event("COMMIT"))


def _start_span(connection: Connection, _cursor: Any, sql: str, *_: Any) -> None:
    stack = connection.info[_SPAN] = ExitStack()
    stack.enter_context(statement_span(sql, connection.dialect.name))


def _end_span(connection: Connection, *_: Any) -> None:
    connection.info.pop(_SPAN).close()


def _end_failed_span(context: ExceptionContext) -> None:
    if context.connection is not None and (stack := context.connection.info.pop(_SPAN, None)):
        error = context.original_exception
        stack.__exit__(type(error), error, error.__traceback__)


def rewrite_sqlite_file(*, seconds: float) -> bool:
    """Rewrite the database file (VACUUM) and truncate its write-ahead log. Returns False if that was not possible.

    `secure_delete` overwrites deleted rows, but not the copies that remain when SQLite moves rows between pages (five,
    after 150 of 600 orders were erased), and old pages remain in the log until it is truncated. VACUUM takes seconds a
    gigabyte, blocks this process and excludes all writers. It is not possible while other connections keep reading or
    writing, nor is the truncation, also while another process copies the log into the file after a VACUUM. Each is
    tried for `seconds`.
    """
    pooled = db.engine.raw_connection()
    pooled.detach()  # keeps the changed busy_timeout out of the pool
    connection = pooled.dbapi_connection
    assert isinstance(connection, sqlite3.Connection)
    # The log is truncated first: VACUUM writes to it, so while a reader prevents that, it would only grow.
    steps = _truncate_log, _vacuum, _truncate_log
    try:
        connection.execute(f"PRAGMA busy_timeout = {_REWRITE_BUSY_TIMEOUT}")
        return all(_try_for(seconds, step, connection) for step in steps)
    finally:
        connection.close()


def _try_for(seconds: float, step: Callable[[sqlite3.Connection], bool], connection: sqlite3.Connection) -> bool:
    deadline = time.monotonic() + seconds
    while not step(connection):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_REWRITE_PAUSE)
    return True


def _vacuum(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("VACUUM").fetchall()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise
        return False
    return True


def _truncate_log(connection: sqlite3.Connection) -> bool:
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy
