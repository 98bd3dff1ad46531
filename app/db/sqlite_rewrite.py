"""Freeing a SQLite database of what was deleted or overwritten in it."""

import sqlite3
import time

from app.db.engine import db

_TRIES = 5
_PAUSE = 0.1  # seconds between two tries, in which other requests of this process go on
_BUSY_TIMEOUT = 50  # milliseconds; a longer wait would stop the whole worker, and with it whom it waits for


def rewrite_file(largest: float) -> bool:
    """Rewrite the database's file and empty its write-ahead log; whether it was done.

    `secure_delete` overwrites what is deleted, but not the copies that are left where rows were moved between pages
    (150 erased orders of 600 left five), and old pages stay in the log until it is truncated. It takes seconds a
    gigabyte, in which this process does nothing else and no process writes. It is not done where the file has more than
    `largest` bytes, or where others keep reading or writing.
    """
    pooled = db.engine.raw_connection()
    pooled.detach()  # its setting below is not for the pool, and a Connection would put it into a transaction
    connection = pooled.dbapi_connection
    assert isinstance(connection, sqlite3.Connection)
    try:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT}")
        return _size(connection) <= largest and _rewrite(connection)
    finally:
        connection.close()


def _rewrite(connection: sqlite3.Connection) -> bool:
    for attempt in range(_TRIES):
        time.sleep(_PAUSE if attempt else 0)
        # Tried first: while a reader keeps the log from being emptied, rewriting the file would only make it longer.
        if _empty_log(connection) and _vacuum(connection) and _empty_log(connection):
            return True
    return False


def _size(connection: sqlite3.Connection) -> int:
    pages, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    return int(pages * size)


def _vacuum(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("VACUUM").fetchall()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise
        return False
    return True


def _empty_log(connection: sqlite3.Connection) -> bool:
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy
