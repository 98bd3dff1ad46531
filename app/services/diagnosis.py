"""The checks of `flask doctor`: whether this installation can lose or delay orders and events, or disclose data."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection, func, select, text
from sqlalchemy.engine import make_url

from app.config import RANDOM_KEY_PREFIX, available_cores, is_loopback
from app.db.engine import (
    DATABASE_ERRORS,
    UnsuitableDatabase,
    db,
    is_denied,
    is_file_unusable,
    is_lock_timeout,
    loggable_message,
    rfc3339,
)
from app.db.migrations import DatabaseState, SchemaMismatch, compatibility, database_state, require_revision
from app.db.statements import can_listen
from app.errors import pluralize
from app.models.webhook import DELETED, ENABLED, FAILING, GONE, WebhookEndpoint
from app.services.broker import find_login_failure, read_lag
from app.services.credentials import KeySetUnavailable, any_api_key, fetch_keys
from app.services.event_feed import oldest_pending, read_ends
from app.services.personal_data import find_waiting_erasures
from app.services.search_projection import read_search_seq

WORKER_NAME = "order-service-worker"  # application_name of the connections of `flask worker` to PostgreSQL

_CLOCK_MAX = 1.0  # seconds
_BROKER_SECONDS_MAX = 60.0  # as in the alert OrderBrokerBehind
_SEARCH_EVENTS_MAX = 1_000  # as in the alert OrderSearchBehind
_EVENT_AGE_MAX = 5.0  # seconds; a worker moves an event to the feed within 0.1 s
_ERASURE_MAX = timedelta(days=1)
_FREE_BYTES_MIN = 1024**3
_OLDEST_POSTGRESQL = 15  # the support of 14 ended in November 2026
# libpq tells no SQLSTATE of a refused connection; a server of another language gets the general advice.
_NO_CONNECTION_LEFT = re.compile("too many (clients|connections)|connection slots")
_GRANT = "Run GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public"
# The tables among :tables on which the role lacks a privilege, and the role. has_table_privilege with a list of
# privileges would return whether the role has any of them.
_DENIED = text(
    "SELECT name, quote_ident(current_user) AS role FROM unnest(CAST(:tables AS text[])) AS tables (name)"
    " WHERE EXISTS (SELECT 1 FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privileges (privilege)"
    " WHERE NOT has_table_privilege(to_regclass(quote_ident(name)), privilege)) ORDER BY name"
)


class Level(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found, and what to do about it."""

    level: Level
    topic: str
    text: str


def diagnose(config: Mapping[str, Any]) -> Iterator[Finding]:
    """All findings about the settings, the database and the background tasks. Raises DATABASE_ERRORS."""
    yield from _check_settings(config)
    file = _sqlite_file(config)
    if file is not None and not os.path.exists(file):  # connecting would create it
        yield Finding(
            Level.ERROR, "database", f"{file} does not exist. Run `flask db upgrade`, or correct DATABASE_URL."
        )
        return
    try:
        state = database_state()
    except DATABASE_ERRORS as error:
        yield _explain_failure(error, file)
        return
    with db.engine.execution_options(read_only=True).connect() as connection:
        is_sqlite = connection.dialect.name == "sqlite"
        yield from _check_sqlite(connection, config) if is_sqlite else _check_postgresql(connection, config)
        yield _check_clock(connection)
        yield from _check_writes(connection, state)
    try:
        require_revision()
    except SchemaMismatch as error:
        yield Finding(Level.ERROR, "migrations", str(error))
        return
    yield Finding(Level.OK, "migrations", "This code works with the schema of the database.")
    yield _check_credentials(config)
    yield _check_worker(config)
    yield _check_search()
    if config["BROKER_URL"]:
        yield _check_broker(config)
    yield from _check_webhooks()
    yield from _check_erasures()


def _check_settings(config: Mapping[str, Any]) -> Iterator[Finding]:
    if config["AUTH"] == "off":
        where = "every machine that reaches it" if config["AUTH_ALLOW_OPEN"] else "everybody on this machine"
        yield Finding(Level.WARNING, "settings", f"AUTH=off gives {where} full access. Remove it in production.")
    if config["SECRET_KEY"].startswith(RANDOM_KEY_PREFIX):
        yield Finding(
            Level.WARNING,
            "settings",
            "SECRET_KEY is not set: logs name a person differently after a restart, and webhook secrets are stored in "
            "plain text. Set it to the output of `openssl rand -hex 32` on all machines.",
        )
    if config["WEBHOOKS_ALLOW_PRIVATE"]:
        yield Finding(
            Level.WARNING,
            "settings",
            "WEBHOOKS_ALLOW_PRIVATE=1 lets webhooks reach machines of this network. Remove it in production.",
        )


def _explain_failure(error: BaseException, file: str | None) -> Finding:
    if file is not None and is_file_unusable(error):
        return Finding(Level.ERROR, "database", _file_advice(file))
    if isinstance(error, UnsuitableDatabase):
        return Finding(Level.ERROR, "database", str(error))  # which says what to do
    if is_denied(error):
        return Finding(Level.ERROR, "database", f"{loggable_message(error)}. {_GRANT} TO the role of DATABASE_URL.")
    reason, advice = loggable_message(error), "Check DATABASE_URL and the server."
    if is_lock_timeout(error):
        advice = "Another session keeps a table locked, perhaps a migration: pg_stat_activity shows its statement."
    elif _NO_CONNECTION_LEFT.search(reason):
        advice = "Lower DATABASE_POOL_SIZE of its machines, or raise max_connections of the server."
    return Finding(Level.ERROR, "database", f"It does not respond: {reason}. {advice}")


def _file_advice(file: str) -> str:
    return (
        f"This user cannot write to {file} or to its directory. Let the user of the service write to both, and to the "
        f"files {file}-wal and {file}-shm if they exist, on a file system that is mounted for writing."
    )


def _check_writes(connection: Connection, state: DatabaseState) -> Iterator[Finding]:
    """Whether orders can be stored: not on a standby, with a read-only file, or without the privileges."""
    if connection.dialect.name == "sqlite":
        if state.read_only:
            yield Finding(Level.ERROR, "database", _file_advice(connection.engine.url.database or ""))
        return
    if connection.scalar(text("SELECT pg_is_in_recovery()")):
        yield Finding(
            Level.ERROR,
            "database",
            "The server is a standby, which stores nothing. Point DATABASE_URL at the primary.",
        )
    elif state.read_only:
        yield Finding(
            Level.ERROR,
            "database",
            "default_transaction_read_only is on, so nothing can be stored. Point DATABASE_URL at the primary, or set "
            "it to off for the server, the database, and the role.",
        )
    denied = connection.execute(_DENIED, {"tables": sorted(db.metadata.tables.keys() - {compatibility.name})}).all()
    if denied:
        tables, role = ", ".join(row.name for row in denied), denied[0].role
        yield Finding(Level.ERROR, "database", f"{role} may not read and write {tables}. {_GRANT} TO {role}.")


def _check_postgresql(connection: Connection, config: Mapping[str, Any]) -> Iterator[Finding]:
    rows = connection.execute(text("SELECT name, setting FROM pg_settings"))
    settings = {name: setting for name, setting in rows}
    major = int(settings["server_version_num"]) // 10_000
    if major < _OLDEST_POSTGRESQL:
        yield Finding(Level.WARNING, "database", f"PostgreSQL {major} is no longer supported. Upgrade it.")
    else:
        yield Finding(Level.OK, "database", f"PostgreSQL {settings['server_version']}")
    yield from _check_durability(settings)
    yield from _check_archive(connection)
    yield from _check_tls(connection, config)
    yield _check_connections(connection, settings, config)
    invalid = connection.scalars(text("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid")).all()
    for name in invalid:
        yield Finding(Level.ERROR, "database", f"The index {name} is not valid. Run REINDEX INDEX CONCURRENTLY {name}.")


def _check_durability(settings: Mapping[str, str]) -> Iterator[Finding]:
    losing = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
    lost = [name for name, value in losing.items() if settings[name] == value]
    for name in lost:
        yield Finding(
            Level.ERROR,
            "durability",
            f"{name} is off: a crash loses orders that were acknowledged. Run ALTER SYSTEM SET {name} = on, and SELECT "
            "pg_reload_conf().",
        )
    if settings["wal_level"] == "minimal" or settings["archive_mode"] == "off":
        yield Finding(
            Level.WARNING,
            "durability",
            "archive_mode is off: a restore can recover only the last backup, not what came after it. Set archive_mode "
            "and archive_command, and restart the server.",
        )
    if not lost:
        yield Finding(Level.OK, "durability", "What was acknowledged survives a crash of the database.")


def _check_archive(connection: Connection) -> Iterator[Finding]:
    failed = text(
        "SELECT last_failed_wal FROM pg_stat_archiver"
        " WHERE last_failed_time > coalesce(last_archived_time, '-infinity')"
    )
    for wal_file in connection.scalars(failed):
        yield Finding(
            Level.ERROR,
            "durability",
            f"archive_command fails for {wal_file}: the write-ahead log fills the disk of the database, and a restore "
            "cannot recover what came since. The server's log says why.",
        )


def _check_tls(connection: Connection, config: Mapping[str, Any]) -> Iterator[Finding]:
    host = make_url(config["DATABASE_URL"]).host or ""
    encrypted = connection.scalar(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
    if host and not is_loopback(host) and host != "localhost" and not encrypted:
        yield Finding(
            Level.WARNING,
            "database",
            "The connection to the database is not encrypted. Add ?sslmode=verify-full to DATABASE_URL.",
        )


def _check_connections(connection: Connection, settings: Mapping[str, str], config: Mapping[str, Any]) -> Finding:
    pool_size, listens = config["DATABASE_POOL_SIZE"], can_listen(config)
    web_workers = config["WEB_CONCURRENCY"] or available_cores()  # as in gunicorn.conf.py
    reserved = int(settings["superuser_reserved_connections"]) + int(settings.get("reserved_connections", 0))
    allowed = int(settings["max_connections"]) - reserved
    needed = (2 * web_workers + 1) * pool_size + listens
    used = connection.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"))
    numbers = (
        f"This machine opens up to {needed} connections: {pluralize(web_workers, 'web worker')}, twice during a "
        f"reload, and flask worker, {pool_size} each{', and one that listens' if listens else ''}. The server allows "
        f"{allowed}; in use: {used}."
    )
    if needed > allowed:
        return Finding(
            Level.ERROR, "connections", f"{numbers} Lower DATABASE_POOL_SIZE, or raise max_connections of the server."
        )
    return Finding(Level.OK, "connections", numbers)


def _check_sqlite(connection: Connection, config: Mapping[str, Any]) -> Iterator[Finding]:
    journal = connection.scalar(text("PRAGMA journal_mode"))
    synchronous = connection.scalar(text("PRAGMA synchronous"))
    version = connection.scalar(select(func.sqlite_version()))
    yield Finding(Level.OK, "database", f"SQLite {version}. More than one machine needs PostgreSQL.")
    if journal != "wal" or synchronous < 2:
        yield Finding(
            Level.ERROR,
            "durability",
            f"journal_mode is {journal}, synchronous is {synchronous}: the file system does not allow a write-ahead "
            "log. Move the file of DATABASE_URL to a local disk.",
        )
    else:
        yield Finding(Level.OK, "durability", "What was acknowledged survives a power failure.")
    free = shutil.disk_usage(_sqlite_file(config) or ".").free
    if free < _FREE_BYTES_MIN:
        yield Finding(Level.ERROR, "database", f"The disk has {free // 1024**2} MiB left. Make room for new orders.")


def _sqlite_file(config: Mapping[str, Any]) -> str | None:
    url = make_url(config["DATABASE_URL"])
    return url.database if url.drivername == "sqlite" else None


def _check_clock(connection: Connection) -> Finding:
    if connection.dialect.name == "sqlite":
        return Finding(Level.OK, "clock", "The database uses the clock of this machine.")
    before = datetime.now(UTC)
    database_time: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    local_time = before + (datetime.now(UTC) - before) / 2
    seconds = abs((database_time - local_time).total_seconds())
    if seconds > _CLOCK_MAX:
        return Finding(
            Level.WARNING,
            "clock",
            f"The clocks of this machine and the database differ by {seconds:.1f} s, and so do the times of orders. "
            "Synchronize both by NTP.",
        )
    return Finding(Level.OK, "clock", f"The clocks of this machine and the database differ by {seconds:.3f} s.")


def _check_credentials(config: Mapping[str, Any]) -> Finding:
    if config["AUTH"] != "off" and config["JWT_JWKS_URL"]:
        try:
            fetch_keys(config["JWT_JWKS_URL"])
        except KeySetUnavailable as error:
            return Finding(
                Level.ERROR,
                "access",
                f"Tokens cannot be verified: no key set from JWT_JWKS_URL ({error}). Correct it, or let this machine "
                "reach the issuer.",
            )
    tokens = config["JWT_JWKS_URL"] or config["JWT_PUBLIC_KEY"]
    if config["AUTH"] == "off" or tokens or any_api_key():
        return Finding(Level.OK, "access", "Callers can be authenticated.")
    return Finding(
        Level.WARNING,
        "access",
        "Nobody has access: there is no valid API key, and neither JWT_JWKS_URL nor JWT_PUBLIC_KEY is set. Run "
        "`flask api-keys create`.",
    )


def _check_worker(config: Mapping[str, Any]) -> Finding:
    since = oldest_pending()
    seconds = (datetime.now(UTC) - since).total_seconds() if since else 0.0
    if seconds > _EVENT_AGE_MAX:
        return Finding(
            Level.ERROR,
            "worker",
            f"An event has been waiting in the outbox for {seconds:,.0f} s. Start `flask worker`.",
        )
    # Behind a pooler, clients share connections and their names; the URL and the environment may set other names.
    url = make_url(config["DATABASE_URL"])
    renamed = config["DATABASE_POOLER"] or "application_name" in url.query or "PGAPPNAME" in os.environ
    if url.get_backend_name() == "postgresql" and not renamed and not _worker_connections():
        return Finding(Level.ERROR, "worker", "No `flask worker` is connected to the database. Start one.")
    return Finding(Level.OK, "worker", f"No event is waiting. The feed ends at {read_ends().seq:,}.")


def _worker_connections() -> int:
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = :name AND datname = current_database()"
    )
    return int(db.session.execute(query, {"name": WORKER_NAME}).scalar_one())


def _check_search() -> Finding:
    seq = read_search_seq()  # first: it follows the feed
    events = read_ends().seq - seq
    if events < 0:
        return Finding(
            Level.ERROR,
            "search",
            f"The search is {pluralize(-events, 'event')} ahead of the feed, which was probably restored without it. "
            "Start `flask worker`, then run `flask search rebuild`.",
        )
    lag = f"The search is {pluralize(events, 'event')} behind the feed."
    if events > _SEARCH_EVENTS_MAX:
        return Finding(
            Level.WARNING, "search", f"{lag} The log of `flask worker` says what fails; if nothing does, wait."
        )
    return Finding(Level.OK, "search", lag)


def _check_broker(config: Mapping[str, Any]) -> Finding:
    behind = read_lag()
    lag = f"The message broker is {pluralize(behind.events, 'event')} and {behind.seconds:,.0f} s behind the feed."
    if failure := find_login_failure(config):
        return Finding(Level.ERROR, "broker", f"`flask worker` cannot publish events. {failure} {lag}")
    if behind.seconds > _BROKER_SECONDS_MAX:
        return Finding(Level.ERROR, "broker", f"{lag} The log of `flask worker` says why.")
    return Finding(Level.OK, "broker", lag)


def _check_webhooks() -> Iterator[Finding]:
    endpoints = db.session.scalars(select(WebhookEndpoint).where(WebhookEndpoint.status != DELETED)).all()
    for endpoint in endpoints:
        host = urlsplit(endpoint.url).netloc  # the rest of a URL may be a secret, and people pass reports on
        advice = f"`GET /webhooks/{endpoint.id}/deliveries` shows its responses."
        if endpoint.disabled_reason in (GONE, FAILING):
            advice = f"{advice} Repair it, enable it, and replay the failed deliveries."
            yield Finding(Level.ERROR, "webhooks", f"{host} receives no events: it was disabled. {advice}")
        elif endpoint.failing_since is not None:
            since = rfc3339(endpoint.failing_since)
            yield Finding(Level.WARNING, "webhooks", f"{host} has failed since {since}. {advice}")
    yield Finding(Level.OK, "webhooks", f"Enabled: {sum(endpoint.status == ENABLED for endpoint in endpoints)}.")


def _check_erasures() -> Iterator[Finding]:
    waiting = find_waiting_erasures(older_than=_ERASURE_MAX)
    for erasure_id, order_id in waiting:
        since = f"Erasure {erasure_id} has not been done for more than a day"
        text = f"{since}. Run `flask privacy resume`."
        if order_id is not None:
            text = f"{since}: the customer's order {order_id} is open. Complete or cancel it."
        yield Finding(Level.WARNING, "erasures", text)
    if not waiting:
        yield Finding(Level.OK, "erasures", "No erasure of personal data is overdue.")
