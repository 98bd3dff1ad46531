"""The tables of the database under test."""

import sqlite3

import psycopg
from flask import Flask
from sqlalchemy import func, select

from app.db.engine import db
from app.models import BROKER_CURSOR, FEED, FEED_HEAD, SEARCH_HEAD

POSITIONS = (FEED_HEAD, SEARCH_HEAD, BROKER_CURSOR)  # tables of one row, which the migrations insert

EMPTIED = [table.name for table in reversed(db.metadata.sorted_tables) if table not in POSITIONS]
DELETE_ALL_ROWS = ";\n".join(
    [
        *(f"DELETE FROM {name}" for name in EMPTIED),
        "UPDATE feed_head SET seq = 0, pruned_seq = 0 WHERE seq <> 0 OR pruned_seq <> 0",
        "UPDATE search_head SET seq = 0 WHERE seq <> 0",
        "UPDATE broker_cursor SET seq = 0, lease = NULL WHERE seq <> 0 OR lease IS NOT NULL",
    ]
)


def delete_all_rows(app: Flask) -> None:
    """Restore the state after the migrations: an empty database, with a feed that begins at 1.

    It sends one script to the driver, which takes a tenth of the time of single statements: almost every test uses it.
    """
    with app.app_context(), db.engine.connect() as connection:
        driver = connection.connection.driver_connection
        if isinstance(driver, sqlite3.Connection):
            driver.executescript(f"BEGIN IMMEDIATE;\n{DELETE_ALL_ROWS};\nCOMMIT")
        else:
            assert isinstance(driver, psycopg.Connection)
            driver.execute(DELETE_ALL_ROWS, prepare=False)
            driver.commit()


def events_in_feed(app: Flask) -> int:
    """The number of events that the sequencer has moved to the feed."""
    with app.app_context(), db.engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(FEED)) or 0
