"""PostgreSQL connections: how they are opened, how long they wait for the server, and what each session is set to."""

import os
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
from psycopg.pq import PipelineStatus
from psycopg.waiting import Wait

from app.db.errors import UnsuitableDatabase

Result = TypeVar("Result")

log = structlog.get_logger()

ANSWER_WITHIN = 4.0  # seconds: one more than the statement timeout, by which a server that works has ended a statement
_CONNECT_WITHIN = 5.0  # seconds for all hosts of a URL together, and for their names to be resolved
_WAITS = {Wait.R: wait_read, Wait.W: wait_write, Wait.RW: wait_readwrite}

TRANSACTION_POOLER = "transaction"

# Limits that an operator may replace by PGOPTIONS or by ?options= of DATABASE_URL: gunicorn's own timeout does not
# bound a request under gevent, so the database's limits must.
LIMITS = {"statement_timeout": "3s", "lock_timeout": "2s", "idle_in_transaction_session_timeout": "5s"}
# To plan a list again for each set of values takes as long as to run it, and no value calls for another plan.
_PLANS = {"plan_cache_mode": "force_generic_plan"}
# What the service relies on, whatever the defaults of the database or the role are. `search_path` and
# `default_transaction_read_only` are the operator's. The first three are those that poolers keep for each client.
_FORMATS = {"DateStyle": "ISO", "TimeZone": "UTC", "standard_conforming_strings": "on"}
_ISOLATION = {"default_transaction_isolation": "read committed"}
# The kernel's own limits for a server that fell silent, 5 to 11 s; ANSWER_WITHIN comes before them.
_CONNECTION = {
    "connect_timeout": "2",
    "tcp_user_timeout": "5000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
}


class BoundedConnection(psycopg.Connection[Any]):
    """Gives a server up that does not answer: one that is stopped, or whose network lost it without a word.

    `answer_within` is the limit in seconds, longer where the operator allows a statement more time; None, for
    statements that may take any time, is no limit. Beyond it the driver's OperationalError is raised, and the
    connection is of no further use.
    """

    answer_within: float | None = ANSWER_WITHIN

    def wait(self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None) -> Result:
        """Go through the driver's steps, each of which may wait for the server."""
        return super().wait(gen, interval, self.answer_within if timeout is None else timeout)


class GreenConnection(BoundedConnection):
    """Waits in gevent's own loop.

    The driver asks gevent's imitation of poll(), which makes an event and a timer each time: of the 100 µs of a short
    statement these are 50.
    """

    def wait(self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None) -> Result:
        """Go through the driver's steps; each says for what it waits, and is told that it came."""
        if timeout is not None or self.pgconn.pipeline_status != PipelineStatus.OFF:  # where more is to be told
            return super().wait(gen, interval, timeout)
        try:
            wanted = next(gen)
            while True:
                _WAITS[wanted](self.pgconn.socket, self.answer_within)
                wanted = gen.send(wanted)  # Wait and Ready are the same bits
        except StopIteration as end:
            result: Result = end.value
            return result
        except TimeoutError:
            raise ConnectionTimeout(f"The database has not answered within {self.answer_within} seconds.") from None


def open_connection(*arguments: Any, **named: Any) -> BoundedConnection:
    """A new connection, in a gevent worker one that lets its other requests run.

    Raises psycopg.OperationalError, and ConnectionTimeout where a gevent worker has no connection within 5 seconds,
    whatever takes so long.
    """
    if not monkey.is_module_patched("socket"):
        return BoundedConnection.connect(*arguments, **named)
    with gevent.Timeout(_CONNECT_WITHIN, ConnectionTimeout("No connection within 5 seconds.")):
        return GreenConnection.connect(*arguments, **named)


def connect_arguments(query: Mapping[str, Any], *, pooler: str) -> dict[str, Any]:
    """The driver's arguments. What the URL's query or libpq's environment names comes before the defaults.

    A pooler in transaction mode gives each transaction another session: it takes no options, and what a session has
    prepared is not there the next time.
    """
    arguments: dict[str, Any] = {name: value for name, value in _CONNECTION.items() if name not in query}
    if "PGCONNECT_TIMEOUT" in os.environ:
        arguments.pop("connect_timeout", None)
    if "," in query.get("host", "") and not {"target_session_attrs", "PGTARGETSESSIONATTRS"} & {*query, *os.environ}:
        arguments["target_session_attrs"] = "read-write"  # of several servers the primary, whichever it is now
    arguments |= {"autocommit": True, "client_encoding": "UTF8", "fallback_application_name": "order-service"}
    if pooler == TRANSACTION_POOLER:
        return arguments | {"prepare_threshold": None}
    # The last of two settings of one name is the one that counts.
    given = os.environ.get("PGOPTIONS", ""), query.get("options", "")
    options = [_as_options(LIMITS | _PLANS), *given, _as_options(_FORMATS | _ISOLATION)]
    return arguments | {"prepare_threshold": 0, "options": " ".join(filter(None, options))}


def _as_options(settings: Mapping[str, str]) -> str:
    return " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in settings.items())


def explain_refusal(error: psycopg.OperationalError, *, pooled: bool) -> Exception:
    """What to raise for a connection that was refused: a pooler's refusal of our options says what to set."""
    if "unsupported startup parameter" not in str(error):  # PgBouncer's own words; it gives no code of its own
        return error
    if pooled:
        return UnsuitableDatabase("The pooler takes no options: remove PGOPTIONS, and ?options= from DATABASE_URL.")
    return UnsuitableDatabase("The database is behind a pooler that takes no options: set DATABASE_POOLER=transaction.")


def prepare_session(connection: BoundedConnection) -> None:
    """Check a new connection, and set behind a pooler what could not be set at its start.

    Raises UnsuitableDatabase for what the service cannot work with.
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
    # Zero, no limit of the server's, leaves the connection's own.
    longest = int(settings["statement_timeout"]) / 1000  # seconds
    connection.answer_within = max(ANSWER_WITHIN, longest + 1)
    if connection.prepare_threshold is None:  # behind a pooler
        for name, value in _FORMATS.items():
            connection.execute("SELECT set_config(%s, %s, false)", [name, value])
        _check_role(connection, settings)


def _check_role(connection: BoundedConnection, settings: Mapping[str, str]) -> None:
    """What a pooler does not keep for its clients, the role's own settings must say."""
    for name, value in _ISOLATION.items():
        if settings[name] != value:
            advice = _alter_role(connection, {name: value})
            raise UnsuitableDatabase(f"{name} is {settings[name]!r} behind the pooler: run {advice}.")
    missing = {name: value for name, value in LIMITS.items() if settings[name] == "0"}
    if missing:
        _warn_of_missing_limits(_alter_role(connection, missing))


@cache  # once in a process, not for each of its connections
def _warn_of_missing_limits(advice: str) -> None:
    log.warning("the database has no time limits behind the pooler", advice=advice)


def _alter_role(connection: BoundedConnection, settings: Mapping[str, str]) -> str:
    """The SQL that makes the settings those of the role; one statement for each."""
    return "; ".join(f"ALTER ROLE {connection.info.user} SET {name} = '{value}'" for name, value in settings.items())
