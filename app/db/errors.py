"""Classification of database errors: duplicate, lock timeout, lost connection, unavailable and others."""

import sqlite3

import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm.exc import StaleDataError

from app.config import StartupError


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
