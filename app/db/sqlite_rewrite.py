"""Removing deleted and overwritten data from a SQLite file and its write-ahead log."""

import sqlite3
import time

from sqlalchemy import text

from app.db.engine import db
from app.db.transactions import read_rows

_ATTEMPTS = 5
_PAUSE = 0.1  # seconds between two attempts; other requests of this process run meanwhile
_BUSY_TIMEOUT = 50  # milliseconds; SQLite's wait blocks the whole worker, which may hold the lock itself


def file_size() -> int:
    """The size of the database in bytes, without its write-ahead log."""
    [row] = read_rows(text("SELECT page_count * page_size AS size FROM pragma_page_count, pragma_page_size"))
    return int(row.size)


def rewrite_file() -> bool:
    """Rewrite the database file (VACUUM) and truncate its write-ahead log. Returns False if that was not possible.

    `secure_delete` overwrites deleted rows, but not the copies that remain when SQLite moves rows between pages (five,
    after 150 of 600 orders were erased), and old pages remain in the log until it is truncated. VACUUM takes seconds a
    gigabyte, blocks this process and excludes all writers. It is not possible while other connections keep reading or
    writing.
    """
    pooled = db.engine.raw_connection()
    pooled.detach()  # keeps the changed busy_timeout out of the pool
    connection = pooled.dbapi_connection
    assert isinstance(connection, sqlite3.Connection)
    try:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT}")
        return _rewrite(connection)
    finally:
        connection.close()


def _rewrite(connection: sqlite3.Connection) -> bool:
    for attempt in range(_ATTEMPTS):
        time.sleep(_PAUSE if attempt else 0)
        # The log is truncated first: VACUUM writes to it, so while a reader prevents that, it would only grow.
        if _truncate_log(connection) and _vacuum(connection) and _truncate_log(connection):
            return True
    return False


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
