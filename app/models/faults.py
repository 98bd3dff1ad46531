"""What a database error means: the few kinds that the service answers in its own way."""

import sqlite3

import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm.exc import StaleDataError

# PostgreSQL's error codes, appendix A: serialization failure, deadlock, and the ways a connection ends.
_TRANSIENT = {"40001", "40P01", "57P01", "57P02", "57P03", "53300"}
_LOCK_TIMEOUT = "55P03"
_DUPLICATE = "23505"
_OVERLOAD = {"57014", "53100", "53200"}  # statement timeout, disk full, out of memory: another try would not help

Fault = psycopg.Error | sqlite3.Error | DBAPIError | PoolTimeout | StaleDataError
FAULTS = (psycopg.Error, sqlite3.Error, DBAPIError, PoolTimeout, StaleDataError)


def is_lock_timeout(error: BaseException) -> bool:
    """Whether another writer held a row (PostgreSQL) or the file (SQLite) for too long."""
    error = _driver_error(error)
    if isinstance(error, sqlite3.OperationalError):
        return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return getattr(error, "sqlstate", None) == _LOCK_TIMEOUT


def is_duplicate(error: BaseException) -> bool:
    """Whether another row has the same unique key."""
    error = _driver_error(error)
    if isinstance(error, sqlite3.IntegrityError):
        return error.sqlite_errorcode in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
    return getattr(error, "sqlstate", None) == _DUPLICATE


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may well succeed at once: a deadlock's victim, a version
    that another writer took first, or a lost connection."""
    if isinstance(error, StaleDataError):
        return True
    error = _driver_error(error)
    if not isinstance(error, psycopg.Error):
        return False
    return error.sqlstate in _TRANSIENT or is_lost_connection(error)


def is_lost_connection(error: BaseException) -> bool:
    """Whether the connection broke, so that nobody knows if the statement was carried out."""
    error = _driver_error(error)
    if not isinstance(error, psycopg.OperationalError):
        return False
    return error.sqlstate is None or error.sqlstate.startswith("08") or error.sqlstate in ("57P01", "57P02", "57P03")


def is_unavailable(error: BaseException) -> bool:
    """Whether the database could not answer now, but may later: away, locked, too slow, full."""
    if isinstance(error, PoolTimeout) or is_lock_timeout(error) or is_transient(error):
        return True
    error = _driver_error(error)
    if isinstance(error, sqlite3.OperationalError):
        return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
    return getattr(error, "sqlstate", None) in _OVERLOAD


def drop_details(error: Fault) -> Fault:
    """The same error with the first line of its message only: below it PostgreSQL quotes the row, and personal data."""
    for part in {error, _driver_error(error)}:
        part.args = (str(error).partition("\n")[0],)
    return error


def _driver_error(error: BaseException) -> BaseException:
    return error.orig if isinstance(error, DBAPIError) and error.orig else error
