"""Statements: running one that is compiled once, or several in a transaction, with retries; functions to build them;
NOTIFY and LISTEN.

The statement of a frequent request is built with SQLAlchemy Core, compiled once and executed on the driver's cursor.
The cursor takes 131 µs a request; Core's execution would add 320 µs, and an ORM session 1,100 µs.

A process that stores events notifies the workers, which would otherwise poll often. A notification only ends a wait
early. It can be lost, with its process or its connection, so workers also poll.
"""

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from typing import Any, TypeVar

import orjson
import psycopg
from flask import current_app
from flask.ctx import AppContext
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    ClauseElement,
    Column,
    ColumnElement,
    Executable,
    Integer,
    Row,
    Select,
    Text,
    UpdateBase,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
    text,
    true,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect, Engine, make_url
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from app.db.batching import PerApplication
from app.db.engine import (
    DATABASE_ERRORS,
    SQLITE_LOCK_TIMEOUT,
    TRANSACTION_POOLER,
    BoundedConnection,
    db,
    execute_when_unlocked,
    is_connection_unusable,
    is_lost_connection,
    is_transient,
)
from app.tracing import span, statement_span

Result = TypeVar("Result")

_RETRIES = 2
_BACKOFF = 0.05  # seconds before the first retry, at most; the jitter separates the transactions of one deadlock
# An attempt that took longer is not repeated. PostgreSQL detects a deadlock after 1 s. Waiting for an unresponsive
# server ends after 2 s or more, and a second wait would exceed the 10 s in which every request is answered.
_RETRY_WITHIN = 1.8  # seconds

_DIALECTS: dict[str, Dialect] = {
    "postgresql": postgresql.dialect(paramstyle="numeric_dollar"),  # type: ignore[no-untyped-call]
    "sqlite": sqlite.dialect(paramstyle="named"),
}

# SQL, the names of its positional parameters, and the values of its constant parameters.
_Compiled = tuple[str, tuple[str, ...], dict[str, Any]]

NOTIFY_PAUSE = 0.1  # seconds between two notifications of a process
_LISTEN_SECONDS = 0.5  # between two checks whether to stop
_LISTEN_AGAIN_AFTER = 1.0  # seconds, while the database does not answer
_NOTIFY_CHANNEL = "order_events"


def _always(_error: BaseException) -> bool:
    return True


def with_retry(work: Callable[[], Result], *, is_repeatable: Callable[[BaseException], bool] = _always) -> Result:
    """Run `work`, and run it again after a transient error: a lost connection, a deadlock, a read-only server.

    After a lost connection it is unknown whether a statement was executed. `is_repeatable` decides for an error whether
    the work may run again, as every read may. Raises the error of the last attempt.
    """
    for attempt in range(_RETRIES):
        started = time.monotonic()
        try:
            return work()
        except DATABASE_ERRORS as error:
            too_late = time.monotonic() - started > _RETRY_WITHIN
            if too_late or not is_transient(error) or not is_repeatable(error):
                raise
        time.sleep(random.uniform(0, _BACKOFF) * 2**attempt)  # nosec B311
    return work()


class Statement:
    """A statement that is a transaction of its own.

    Parameters are passed to the driver unchanged: text, integers, None. The statement is repeated after a transient
    error (`with_retry`). After a lost connection it is unknown whether it was executed; then it is repeated only if it
    is `repeatable`.
    """

    def __init__(self, statement: ClauseElement, *, repeatable: bool = True) -> None:
        self._statement = statement
        self._repeatable = repeatable
        self._writes = isinstance(statement, UpdateBase)
        self._compiled: dict[str, _Compiled] = {}

    def rows(self, **parameters: Any) -> list[tuple[Any, ...]]:
        """Execute the statement, with retries, and return all rows. Raises `DATABASE_ERRORS`."""
        return with_retry(lambda: self.execute(parameters), is_repeatable=self._is_repeatable)

    def _is_repeatable(self, error: BaseException) -> bool:
        return self._repeatable or not is_lost_connection(error)

    def sql(self, dialect: str) -> str:
        """The SQL text, with numbered (PostgreSQL) or named (SQLite) parameters."""
        return self._compile(dialect)[0]

    def execute(self, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Execute the statement once, without a retry."""
        engine = db.engine
        dialect = engine.dialect.name
        compiled = self._compiled.get(dialect) or self._compile(dialect)
        with statement_span(compiled[0], dialect):
            return self._execute(engine, compiled, parameters)

    def _execute(self, engine: Engine, compiled: _Compiled, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        sql, names, constants = compiled
        values = constants | parameters
        pool, pooled = engine.pool, engine.raw_connection()
        try:
            connection = pooled.dbapi_connection
            if isinstance(connection, psycopg.Connection):
                return psycopg.RawCursor(connection).execute(sql, [values[name] for name in names]).fetchall()
            assert isinstance(connection, sqlite3.Connection)
            if self._writes:
                return execute_when_unlocked(connection, sql, values, timeout=SQLITE_LOCK_TIMEOUT).fetchall()
            return connection.execute(sql, values).fetchall()
        except DATABASE_ERRORS as error:
            if is_connection_unusable(error):
                pooled.invalidate(error)
                if engine.pool is pool:  # otherwise another request has replaced the pool already
                    engine.dispose()
            raise
        finally:
            if engine.pool is not pool:  # nothing would close a connection of a pool that has been replaced
                pooled.detach()
            pooled.close()

    def _compile(self, dialect: str) -> _Compiled:
        compiled = self._statement.compile(dialect=_DIALECTS[dialect])
        assert isinstance(compiled, SQLCompiler)
        self._compiled[dialect] = compiled.string, tuple(compiled.positiontup or ()), compiled.params
        return self._compiled[dialect]


class Lookup:
    """One statement that finds the row of each of several keys.

    A key is an object with the typed columns `members`; all keys are one JSON parameter. `find` builds the query for
    the row of one key, from a table with these columns. It must find at most one row, by unique keys.
    """

    def __init__(self, members: Sequence[Any], find: Callable[[Any], Select[*tuple[Any, ...]]]) -> None:
        columns = [*members, column("position", Integer)]
        self.statements = {
            "postgresql": _lookup_on_postgresql(columns, find),
            "sqlite": _lookup_on_sqlite(columns, find),
        }

    def rows(self, keys: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...] | None]:
        """The row of each key, or None. Raises `DATABASE_ERRORS`."""
        batch = orjson.dumps([{**key, "position": i} for i, key in enumerate(keys)]).decode()
        by_position = {row[-1]: row[:-1] for row in self.statements[db.engine.dialect.name].rows(keys=batch)}
        return [by_position.get(i) for i in range(len(keys))]


def _lookup_on_postgresql(columns: Sequence[Any], find: Callable[[Any], Select[*tuple[Any, ...]]]) -> Statement:
    rows = json_rows(cast(bindparam("keys", type_=Text), JSON), "rows", *columns)
    keys = select(*rows.c).subquery("keys")
    # LATERAL: a lookup by primary key for each key. A join is planned as a scan while the table is small, and that plan
    # is kept when it has grown.
    row = find(keys).limit(literal_column("1")).lateral("row")
    return Statement(select(*row.c, keys.c.position).select_from(keys).join(row, true()))


def _lookup_on_sqlite(columns: Sequence[Any], find: Callable[[Any], Select[*tuple[Any, ...]]]) -> Statement:
    rows = func.json_each(bindparam("keys", type_=Text)).table_valued("value", name="rows")
    members = (func.json_extract(rows.c.value, f"$.{member.name}").label(member.name) for member in columns)
    keys = select(*members).subquery("keys")
    return Statement(find(keys).add_columns(keys.c.position))


def in_transaction(work: Callable[[], Result]) -> Result:
    """Run `work` in one transaction of `db.session`, and commit it.

    A transaction that the database aborts is repeated. A COMMIT whose connection is lost is not: it is unknown whether
    it was executed, and the caller must check.
    """
    committing = False

    def attempt() -> Result:
        nonlocal committing
        committing = False
        with span("transaction"), db.session.begin():
            result = work()
            db.session.flush()  # so that only the COMMIT itself remains
            committing = True
        return result

    return with_retry(attempt, is_repeatable=lambda error: not (committing and is_lost_connection(error)))


def read_rows(query: Executable) -> Sequence[Row[Any]]:
    """The rows of a query, read in a read-only transaction of its own, with the time limits of a request.

    It waits for no writer's lock. It ends with COMMIT: after a ROLLBACK psycopg forgets the prepared statements of the
    connection.
    """

    def read() -> Sequence[Row[Any]]:
        with db.engine.execution_options(read_only=True).begin() as connection:
            return connection.execute(query).all()

    return with_retry(read)


@contextmanager
def consistent_read(*, statement_timeout: int | None) -> Iterator[Session]:
    """A read-only session that sees one snapshot of the database. It takes no lock that a writer waits for.

    `statement_timeout` is the limit of one statement in seconds, in place of the one that requests have. None, no
    limit, is for commands only: they wait for an unresponsive server indefinitely.
    """
    with Session(db.engine.execution_options(read_only=True)) as session:
        connection = session.connection().connection.dbapi_connection
        if not isinstance(connection, BoundedConnection):
            yield session
            return
        session.execute(text(f"SET LOCAL statement_timeout = {1000 * (statement_timeout or 0)}"))
        default_timeout = connection.response_timeout
        connection.response_timeout = None if statement_timeout is None else statement_timeout + 1
        try:
            yield session
        finally:
            connection.response_timeout = default_timeout


def json_rows(source: Any, name: str, *columns: Any) -> Any:
    """A JSON array of objects as a table with the given typed columns (PostgreSQL's json_to_recordset)."""
    return func.json_to_recordset(source).table_valued(*columns).render_derived(name=name, with_types=True)


def typed_columns(columns: Iterable[Column[Any]]) -> list[Any]:
    """The names and types of a table's columns, for `json_rows`."""
    return [column(c.name, c.type) for c in columns]


def rows_within(
    query: Select[*tuple[Any, ...]], *, position: str, document: str, size: int | ColumnElement[int], descending: bool
) -> Any:
    """The first rows of `query`, limited by the total length of their documents.

    `position` names the column that the query is sorted by, `document` the one whose bytes are counted. A row is
    returned if the documents before it have less than `size` bytes together, so the first row always is. The column
    `bytes_so_far`, the total up to and including the row, is added.
    """
    listed = query.subquery("listed")
    sort = listed.c[position].desc() if descending else listed.c[position]
    length = octet_length(cast(listed.c[document], Text))
    bytes_so_far = func.sum(length).over(order_by=sort, rows=(None, 0)).cast(BigInteger).label("bytes_so_far")
    sized = select(*listed.c, bytes_so_far, length.label("length")).subquery("sized")
    columns = [column for column in sized.c if column.name != "length"]
    order = sized.c[position].desc() if descending else sized.c[position]
    return select(*columns).where(sized.c.bytes_so_far - sized.c.length < size).order_by(order)


def without_index(column: Any) -> ColumnElement[str]:
    """The text column concatenated with '', an expression that no index can serve.

    It makes the planner use the index of another condition, independent of its statistics.
    """
    expression: ColumnElement[str] = column.concat(literal_column("''"))
    return expression


class octet_length(GenericFunction[int]):  # noqa: N801 (SQL's name)
    """The length of a text in bytes of UTF-8. PostgreSQL knows it without reading a TOASTed text."""

    type = Integer()
    inherit_cache = True


@compiles(octet_length, "sqlite")  # SQLite has octet_length since 3.43
def _octet_length_on_sqlite(function: octet_length, compiler: SQLCompiler, **options: Any) -> str:
    return f"length(CAST({compiler.process(function.clauses, **options)} AS BLOB))"


class is_one_of(GenericFunction[bool]):  # noqa: N801 (like SQL's functions)
    """Whether a text is one of the strings of a JSON array, given as text. NULL for a text that is NULL."""

    type = Boolean()
    inherit_cache = True


@compiles(is_one_of, "postgresql")
def _is_one_of_on_postgresql(function: is_one_of, compiler: SQLCompiler, **options: Any) -> str:
    value, array = (compiler.process(clause, **options) for clause in function.clauses)
    # An array, not IN: the planner would make a join of that.
    return f"({value} = ANY (ARRAY(SELECT json_array_elements_text(CAST({array} AS JSON)))))"


@compiles(is_one_of, "sqlite")
def _is_one_of_on_sqlite(function: is_one_of, compiler: SQLCompiler, **options: Any) -> str:
    value, array = (compiler.process(clause, **options) for clause in function.clauses)
    # Compiled SQL, no values. Not an f-string: bandit would warn of each of its parts.
    return "({} IN (SELECT value FROM json_each({})))".format(value, array)  # nosec B608


class is_like_any(GenericFunction[bool]):  # noqa: N801 (like SQL's functions)
    """Whether a text matches one of the LIKE patterns of a JSON array, given as text."""

    type = Boolean()
    inherit_cache = True


@compiles(is_like_any, "postgresql")
def _is_like_any_on_postgresql(function: is_like_any, compiler: SQLCompiler, **options: Any) -> str:
    value, array = (compiler.process(clause, **options) for clause in function.clauses)
    return f"({value} LIKE ANY (ARRAY(SELECT json_array_elements_text(CAST({array} AS JSON)))))"


@compiles(is_like_any, "sqlite")
def _is_like_any_on_sqlite(function: is_like_any, compiler: SQLCompiler, **options: Any) -> str:
    value, array = (compiler.process(clause, **options) for clause in function.clauses)
    return "EXISTS (SELECT 1 FROM json_each({}) AS pattern WHERE {} LIKE pattern.value)".format(array, value)  # nosec B608


def notify_workers() -> None:
    """Wake the workers that listen, since events have been stored. For PostgreSQL only. Raises nothing."""
    _NOTIFIERS.get().notify()


# Nobody waits for the notification, and its transaction changes nothing: it need not be flushed to disk.
_NOTIFY = Statement(select(func.set_config("synchronous_commit", "off", true()), func.pg_notify(_NOTIFY_CHANNEL, "")))


class _Notifier:
    """Notifies the listeners in the background, at most once in NOTIFY_PAUSE.

    Not in the transaction of the change: PostgreSQL commits transactions that notify one at a time, each with its flush
    to disk.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending = False
        self._running = False
        self._next = 0.0  # the earliest time of the next notification, as time.monotonic()

    def notify(self) -> None:
        with self._lock:
            self._pending = True
            if self._running:
                return
            self._running = True
        try:
            threading.Thread(target=self._run, args=[current_app.app_context()], name="notifier", daemon=True).start()
        except RuntimeError:  # no further thread can start. The events are stored, and the workers poll
            self._running = False

    def _run(self, context: AppContext) -> None:
        try:
            with context:
                while self._running:
                    time.sleep(max(self._next - time.monotonic(), 0))
                    self._pending = False  # before NOTIFY: an event that is stored from here on requests another one
                    with suppress(*DATABASE_ERRORS):  # the workers poll
                        _NOTIFY.rows()
                    self._next = time.monotonic() + NOTIFY_PAUSE
                    with self._lock:
                        self._running = self._pending
        except BaseException:
            self._running = False  # the next event starts another thread
            raise


_NOTIFIERS = PerApplication(_Notifier)


def can_listen(config: Mapping[str, Any]) -> bool:
    """Whether the database can notify: SQLite cannot, nor can PostgreSQL behind a pooler in transaction mode."""
    name = make_url(config["DATABASE_URL"]).get_backend_name()
    return name == "postgresql" and config["DATABASE_POOLER"] != TRANSACTION_POOLER


@contextmanager
def listening(wake: Callable[[], None], *, context: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """Call `wake` at each notification, and whenever some may have been missed, from a thread with a connection of its
    own.

    `context` makes the database available to the thread. While the database does not answer, nothing is called.
    """
    stopping = threading.Event()

    def run() -> None:
        with context():
            while not stopping.is_set():
                with suppress(*DATABASE_ERRORS):  # the worker's tasks get the same error, and log it
                    _listen(wake, stopping)
                stopping.wait(_LISTEN_AGAIN_AFTER)

    thread = threading.Thread(target=run, name="listener", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _listen(wake: Callable[[], None], stopping: threading.Event) -> None:
    pooled = db.engine.raw_connection()
    pooled.detach()  # so that it takes none of the tasks' connections
    with closing(pooled):
        connection = pooled.dbapi_connection
        assert isinstance(connection, psycopg.Connection)
        connection.execute(f"LISTEN {_NOTIFY_CHANNEL}")  # in autocommit mode, at once
        wake()  # for what was stored before
        while not stopping.is_set():
            for _ in connection.notifies(timeout=_LISTEN_SECONDS, stop_after=1):
                wake()
