"""Connections: opening those to PostgreSQL, their time limits and session settings, and their return to the pool."""

import os
import sqlite3
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

import gevent
import psycopg
import structlog
from gevent import monkey
from gevent.socket import wait_read, wait_readwrite, wait_write
from psycopg.abc import PQGen
from psycopg.errors import ConnectionTimeout
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.waiting import Wait
from sqlalchemy import Engine, Pool, event
from sqlalchemy.engine import ExceptionContext

from app.db.errors import UnsuitableDatabase, is_connection_unusable, is_file_unusable

Result = TypeVar("Result")

log = structlog.get_logger()

RESPONSE_TIMEOUT = 4.0  # seconds; one more than statement_timeout, so that a working server always responds in time
_CONNECT_TIMEOUT = 5.0  # seconds for all hosts of a URL together, including name resolution
_WAIT_FUNCTIONS = {Wait.R: wait_read, Wait.W: wait_write, Wait.RW: wait_readwrite}

TRANSACTION_POOLER = "transaction"  # value of DATABASE_POOLER

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


def open_connection(*arguments: Any, **keywords: Any) -> BoundedConnection:
    """Connect to the server; in a gevent worker, other requests run meanwhile.

    Raises psycopg.OperationalError; in a gevent worker, ConnectionTimeout after 5 seconds.
    """
    if not monkey.is_module_patched("socket"):
        return BoundedConnection.connect(*arguments, **keywords)
    with gevent.Timeout(_CONNECT_TIMEOUT, ConnectionTimeout(f"No connection within {_CONNECT_TIMEOUT} seconds.")):
        return GeventConnection.connect(*arguments, **keywords)


def connect_arguments(query: Mapping[str, Any], *, pooler: str) -> dict[str, Any]:
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


def explain_refusal(error: psycopg.OperationalError, *, pooled: bool) -> Exception:
    """The exception to raise for a refused connection: if a pooler refuses the options, one that says what to set."""
    if "unsupported startup parameter" not in str(error):  # PgBouncer's message; there is no SQLSTATE for it
        return error
    if pooled:
        return UnsuitableDatabase("The pooler accepts no options: remove PGOPTIONS, and ?options= from DATABASE_URL.")
    return UnsuitableDatabase("A pooler refuses the service's options: set DATABASE_POOLER=transaction.")


def prepare_session(connection: BoundedConnection) -> None:
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
