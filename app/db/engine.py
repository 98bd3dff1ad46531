"""The engine: Flask-SQLAlchemy and Flask-Migrate, the pool, connections, BEGIN, traces; then the types of columns, and
the classification of database errors: duplicate, lock timeout, lost connection, unavailable and others.

Connections to PostgreSQL give up on an unresponsive server, and wait in gevent's event loop. For SQLite: pragmas,
waiting for its lock, removing deleted data from its file.
"""

import os
import random
import sqlite3
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import gevent
import orjson
import psycopg
import structlog
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from gevent import monkey
from gevent.socket import wait_read, wait_readwrite, wait_write
from psycopg.abc import PQGen
from psycopg.errors import ConnectionTimeout
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.waiting import Wait
from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    DateTime,
    Dialect,
    Engine,
    MetaData,
    Pool,
    String,
    Text,
    cast,
    event,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from app.config import ROOT, StartupError
from app.tracing import add_span_event, is_tracing, statement_span

Result = TypeVar("Result")

log = structlog.get_logger()

TRANSACTION_POOLER = "transaction"  # value of DATABASE_POOLER

RESPONSE_TIMEOUT = 4.0  # seconds; one more than statement_timeout, so that a working server always responds in time
_CONNECT_TIMEOUT = 5.0  # seconds for all hosts of a URL together, including name resolution
_WAIT_FUNCTIONS = {Wait.R: wait_read, Wait.W: wait_write, Wait.RW: wait_readwrite}

# Operators can override these with PGOPTIONS or with ?options= in DATABASE_URL. They bound every request: gunicorn's
# own timeout does not, under gevent.
LIMITS = {"statement_timeout": "3s", "lock_timeout": "2s", "idle_in_transaction_session_timeout": "5s"}
# Planning a list for each set of values takes as long as running it, and the best plan is the same for all values.
_PLANS = {"plan_cache_mode": "force_generic_plan"}
# The service relies on these, so they override the defaults of the database and the role. Poolers keep _FORMATS for
# each client. `search_path` and `default_transaction_read_only` are left to the operator.
_FORMATS = {"DateStyle": "ISO", "TimeZone": "UTC", "standard_conforming_strings": "on"}
_ISOLATION = {"default_transaction_isolation": "read committed"}
# libpq's own limits detect an unresponsive server after 5 to 11 s. RESPONSE_TIMEOUT is shorter.
_LIBPQ_DEFAULTS = {
    "connect_timeout": "2",
    "tcp_user_timeout": "5000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
}

SQLITE_LOG_MAX = 64 * 1024**2  # bytes of the write-ahead log that are kept; 1,000 pages are usual
SQLITE_LOCK_TIMEOUT = 5.0  # seconds that a writer waits for the writer of another process
_LOCK_PAUSE_MIN, _LOCK_PAUSE_MAX = 0.001, 0.05  # seconds between two attempts to get SQLite's lock
_REWRITE_PAUSE = 0.1  # seconds between two attempts; other requests of this process run meanwhile
_REWRITE_BUSY_TIMEOUT = 50  # milliseconds; SQLite's wait blocks the whole worker, which may hold the lock itself

_SPAN = "statement_span"  # key in `Connection.info`: the span of the statement that is being executed


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
    return pool | {"connect_args": _connect_arguments(make_url(url).query, pooler=pooler)}


def _connect_arguments(query: Mapping[str, Any], *, pooler: str) -> dict[str, Any]:
    """The driver's arguments for a URL with the given query. The query and libpq's environment override the defaults.

    A pooler in transaction mode runs each transaction in another session. It accepts no options, and prepared
    statements do not work.
    """
    arguments: dict[str, Any] = {name: value for name, value in _LIBPQ_DEFAULTS.items() if name not in query}
    if "PGCONNECT_TIMEOUT" in os.environ:
        arguments.pop("connect_timeout", None)
    if "," in query.get("host", "") and not {"target_session_attrs", "PGTARGETSESSIONATTRS"} & {*query, *os.environ}:
        arguments["target_session_attrs"] = "read-write"  # of several hosts, connect to the primary
    arguments |= {"autocommit": True, "client_encoding": "UTF8", "fallback_application_name": "order-service"}
    if pooler == TRANSACTION_POOLER:
        return arguments | {"prepare_threshold": None}
    # If a setting occurs twice, the last one applies.
    operator_options = os.environ.get("PGOPTIONS", ""), query.get("options", "")
    options = [_as_options(LIMITS | _PLANS), *operator_options, _as_options(_FORMATS | _ISOLATION)]
    return arguments | {"prepare_threshold": 0, "options": " ".join(filter(None, options))}


def _as_options(settings: Mapping[str, str]) -> str:
    return " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in settings.items())


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that gives up on an unresponsive server.

    `response_timeout` is the limit in seconds for each response; None means no limit. After it, psycopg's
    OperationalError is raised and the connection cannot be used any more.
    """

    response_timeout: float | None = RESPONSE_TIMEOUT

    def wait(self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None) -> Result:
        """Run the driver's generator, waiting for the server where it yields."""
        return super().wait(gen, interval, self.response_timeout if timeout is None else timeout)


class GeventConnection(BoundedConnection):
    """A connection that waits in gevent's event loop.

    The driver's own `wait` calls gevent's poll(), which creates an event and a timer at each call: 50 µs of the 100 µs
    that a short statement takes.
    """

    def wait(self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None) -> Result:
        """Run the driver's generator, waiting for the server where it yields."""
        if timeout is not None or self.pgconn.pipeline_status != PipelineStatus.OFF:
            return super().wait(gen, interval, timeout)
        try:
            state = next(gen)
            while True:
                _WAIT_FUNCTIONS[state](self.pgconn.socket, self.response_timeout)
                state = gen.send(state)  # Wait and Ready have the same values
        except StopIteration as end:
            result: Result = end.value
            return result
        except TimeoutError:
            raise ConnectionTimeout(f"The database has not responded for {self.response_timeout} seconds.") from None


@event.listens_for(Engine, "do_connect")
def _connect(dialect: Dialect, _record: Any, arguments: Any, keywords: Any) -> Any:
    """Open PostgreSQL connections with `_open_connection`; None lets SQLAlchemy open SQLite's."""
    if dialect.name != "postgresql":
        _create_file(arguments[0])
        return None
    try:
        return _open_connection(*arguments, **keywords)
    except psycopg.OperationalError as error:
        raise _explain_refusal(error, pooled=keywords["prepare_threshold"] is None) from None


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


def _open_connection(*arguments: Any, **keywords: Any) -> BoundedConnection:
    """Connect to the server; in a gevent worker, other requests run meanwhile.

    Raises psycopg.OperationalError; in a gevent worker, ConnectionTimeout after 5 seconds.
    """
    if not monkey.is_module_patched("socket"):
        return BoundedConnection.connect(*arguments, **keywords)
    with gevent.Timeout(_CONNECT_TIMEOUT, ConnectionTimeout(f"No connection within {_CONNECT_TIMEOUT} seconds.")):
        return GeventConnection.connect(*arguments, **keywords)


def _explain_refusal(error: psycopg.OperationalError, *, pooled: bool) -> Exception:
    """The exception to raise for a refused connection: if a pooler refuses the options, one that says what to set."""
    if "unsupported startup parameter" not in str(error):  # PgBouncer's message; there is no SQLSTATE for it
        return error
    if pooled:
        return UnsuitableDatabase("The pooler accepts no options: remove PGOPTIONS, and ?options= from DATABASE_URL.")
    return UnsuitableDatabase("A pooler refuses the service's options: set DATABASE_POOLER=transaction.")


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
        _prepare_session(connection)
    except BaseException:
        connection.close()
        raise


def _prepare_session(connection: BoundedConnection) -> None:
    """Check a new connection and, behind a pooler, apply the settings that it does not accept at connection start.

    Raises UnsuitableDatabase.
    """
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise UnsuitableDatabase(
            f"The database's encoding is {encoding}, which cannot store every order. Create a database with "
            "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0."
        )
    names = [*LIMITS, *_ISOLATION]
    rows = connection.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [names]).fetchall()
    settings: dict[str, str] = dict(rows)
    statement_timeout = int(settings["statement_timeout"]) / 1000  # seconds; 0 is no limit, and ours remains
    connection.response_timeout = max(RESPONSE_TIMEOUT, statement_timeout + 1)
    if connection.prepare_threshold is None:  # behind a pooler
        for name, value in _FORMATS.items():
            connection.execute("SELECT set_config(%s, %s, false)", [name, value])
        _check_role(connection, settings)


def _check_role(connection: BoundedConnection, settings: Mapping[str, str]) -> None:
    """Check the settings that a pooler does not keep for each client, so that they must be set for the role."""
    for name, value in _ISOLATION.items():
        if settings[name] != value:
            advice = _alter_role(connection, {name: value})
            raise UnsuitableDatabase(f"{name} is {settings[name]!r} behind the pooler: run {advice}.")
    missing = {name: value for name, value in LIMITS.items() if settings[name] == "0"}
    if missing:
        _warn_of_missing_limits(_alter_role(connection, missing))


@cache  # one warning a process, not one a connection
def _warn_of_missing_limits(advice: str) -> None:
    log.warning("the database has no time limits behind the pooler", advice=advice)


def _alter_role(connection: BoundedConnection, settings: Mapping[str, str]) -> str:
    """SQL that gives the role these settings, one statement each."""
    return "; ".join(f"ALTER ROLE {connection.info.user} SET {name} = '{value}'" for name, value in settings.items())


def execute_when_unlocked(
    connection: sqlite3.Connection, sql: str, parameters: Mapping[str, Any] | None = None, *, timeout: float
) -> sqlite3.Cursor:
    """Execute `sql` once no other process holds SQLite's lock. Other requests of the worker run meanwhile.

    Raises sqlite3.OperationalError (SQLITE_BUSY) after `timeout` seconds.
    """
    deadline, pause = time.monotonic() + timeout, _LOCK_PAUSE_MIN
    while True:
        try:
            return connection.execute(sql, parameters or {})
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(random.uniform(0.5, 1) * pause)  # nosec B311
        pause = min(2 * pause, _LOCK_PAUSE_MAX)


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


@event.listens_for(Pool, "reset")
def _roll_back_open_transaction(connection: Any, record: Any, _state: Any) -> None:
    # pool_reset_on_return would roll back every time, which costs 30 µs a request; most requests open no transaction.
    if isinstance(connection, sqlite3.Connection):
        in_transaction = connection.in_transaction
    else:
        status = connection.pgconn.transaction_status
        if status == TransactionStatus.UNKNOWN:  # the connection is broken, and the server has rolled back
            if record is not None:  # one that was detached from the pool is closed anyway
                record.invalidate()
            return
        in_transaction = status != TransactionStatus.IDLE
    if in_transaction:
        connection.rollback()


@event.listens_for(Engine, "handle_error")
def _invalidate_connections(context: ExceptionContext) -> None:
    # SQLAlchemy then discards this connection and all that the pool opened before: the same failure has ended them too,
    # and after a failover none of them leads to the new primary.
    if is_connection_unusable(context.original_exception):
        context.is_disconnect = True
        # The connections of a process share what SQLite has opened for reading only, until all are closed.
        if is_file_unusable(context.original_exception) and context.engine is not None:
            context.engine.dispose()


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


# In Python, ids are lower-case text with dashes. PostgreSQL stores 16 bytes, SQLite the text.
UUID = String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")

# None is SQL's NULL, never JSON's null.
JSON_VALUE = JSON(none_as_null=True)


def rfc3339(moment: datetime) -> str:
    """RFC 3339 text of an aware UTC time, with six fractional digits and Z, so that it sorts by time."""
    # isoformat takes five times as many instructions.
    text = orjson.dumps(moment, option=orjson.OPT_UTC_Z).decode()[1:-1]
    return text if moment.microsecond else text.replace("Z", ".000000Z")


def read_timestamp(stored: datetime | str) -> datetime:
    """A stored time in UTC: RFC 3339 text in SQLite and in order documents, otherwise timestamptz."""
    moment = datetime.fromisoformat(stored) if isinstance(stored, str) else stored
    return moment.astimezone(UTC)


class Timestamp(TypeDecorator[datetime]):
    """An aware UTC time with microseconds: timestamptz on PostgreSQL, RFC 3339 text on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(String(27) if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        return rfc3339(value) if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return None if value is None else read_timestamp(value)


class JSONText(UserDefinedType[str]):
    """A JSON document that is stored and read as text, byte for byte.

    PostgreSQL's `json` preserves the text, which `jsonb` does not, and can be queried.
    """

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "JSON"

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return cast(column, Text)


class UnsuitableDatabase(StartupError):
    """The server that answers has settings or an encoding that the service cannot work with.

    At start-up it ends the process. Later, after a failover or a change of the role, requests are answered 503.
    """


# SQLSTATE codes (PostgreSQL documentation, appendix A).
_TRANSIENT = {"40001", "40P01", "53300"}  # serialization failure, deadlock, too many connections
# Connection ended by an administrator, a crash, a time limit.
_CONNECTION_ENDED = {"57P01", "57P02", "57P03", "57P05", "25P03", "25P04"}
_READ_ONLY = "25006"
_DENIED = "42501"  # a privilege is missing
_LOCK_TIMEOUT = "55P03"
_DUPLICATE = "23505"
_OVERLOAD = {"57014", "53100", "53200"}  # statement timeout, disk full, out of memory: a retry would not help

DatabaseError = psycopg.Error | sqlite3.Error | DBAPIError | PoolTimeout | StaleDataError | UnsuitableDatabase
DATABASE_ERRORS = (psycopg.Error, sqlite3.Error, DBAPIError, PoolTimeout, StaleDataError, UnsuitableDatabase)
UNUSABLE_FILE = (
    "The file of DATABASE_URL cannot be used: does its directory exist, and may this user write to the file and to the "
    "directory?"
)


def is_lock_timeout(error: BaseException) -> bool:
    """Whether another writer held the lock of a row (PostgreSQL) or of the file (SQLite) for too long."""
    return is_file_locked(error) or getattr(_driver_error(error), "sqlstate", None) == _LOCK_TIMEOUT


def is_duplicate(error: BaseException) -> bool:
    """Whether another row has the same unique key."""
    error = _driver_error(error)
    if isinstance(error, sqlite3.IntegrityError):
        return error.sqlite_errorcode in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
    return getattr(error, "sqlstate", None) == _DUPLICATE


def is_transient(error: BaseException) -> bool:
    """Whether an immediate retry may succeed: after a deadlock, a version conflict, a lost connection, a read-only
    server (the next connection may reach the primary), or while SQLite's file is locked."""
    if isinstance(error, StaleDataError) or is_connection_unusable(error) or is_file_locked(error):
        return True
    return getattr(_driver_error(error), "sqlstate", None) in _TRANSIENT


def is_file_locked(error: BaseException) -> bool:
    """Whether another process held SQLite's lock for too long."""
    return _sqlite_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_file_unusable(error: BaseException) -> bool:
    """Whether SQLite could not open its file, usually because the directory does not exist, or may not write to it."""
    return _sqlite_code(error) in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)


def is_lost_connection(error: BaseException) -> bool:
    """Whether the connection broke or timed out: it is unknown whether the statement was executed."""
    error = _driver_error(error)
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError)
    return error.sqlstate.startswith("08") or error.sqlstate in _CONNECTION_ENDED


def is_read_only(error: BaseException) -> bool:
    """Whether the server is read-only: a standby, or the former primary after a failover. Nothing is stored."""
    return getattr(_driver_error(error), "sqlstate", None) == _READ_ONLY


def is_denied(error: BaseException) -> bool:
    """Whether the role of the connection lacks a privilege on a table."""
    return getattr(_driver_error(error), "sqlstate", None) == _DENIED


def is_connection_unusable(error: BaseException) -> bool:
    """Whether this connection and all older ones have to be discarded.

    SQLite's, too: one that has opened a read-only file cannot write to it, even when the file is made writable.
    """
    return is_lost_connection(error) or is_read_only(error) or is_file_unusable(error)


def is_unavailable(error: BaseException) -> bool:
    """Whether the failure is temporary: the database is unreachable, locked, too slow, full, read-only, or
    unsuitable."""
    if isinstance(error, (PoolTimeout, UnsuitableDatabase)) or is_lock_timeout(error) or is_transient(error):
        return True
    if _sqlite_code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR) or is_file_unusable(error):
        return True
    if is_denied(error):
        return True
    return getattr(_driver_error(error), "sqlstate", None) in _OVERLOAD


def loggable_message(error: BaseException) -> str:
    """The error's message without personal data; empty if the message may contain some.

    PostgreSQL quotes the row after the first line, and values in the first line of data exceptions (class 22). SQLite
    quotes search expressions in errors without a more specific code. Errors from elsewhere may quote anything.
    """
    if not isinstance(error, DATABASE_ERRORS):
        return ""
    driver_error = _driver_error(error)
    message = str(driver_error).partition("\n")[0]
    if (getattr(driver_error, "sqlstate", None) or "").startswith("22"):
        return ""
    if _sqlite_code(error) == sqlite3.SQLITE_ERROR and not message.startswith("no such table"):
        return ""
    return message


def _sqlite_code(error: BaseException) -> int:
    """SQLite's primary result code; 0 for all other errors."""
    return getattr(_driver_error(error), "sqlite_errorcode", 0) & 0xFF


def _driver_error(error: BaseException) -> BaseException:
    return error.orig if isinstance(error, DBAPIError) and error.orig else error
