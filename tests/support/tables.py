"""The tables of the database under test."""

from flask import Flask
from sqlalchemy import func, select

from app.db.engine import db
from app.models import FEED
from app.models.event import FeedHead


def delete_all_rows(app: Flask) -> None:
    """Make the database as the migrations leave it: empty, with a feed that begins at 1."""
    emptied = [table.name for table in reversed(db.metadata.sorted_tables) if table is not FeedHead.__table__]
    # A statement that changes no row leaves SQLite without a reason to wait for the disk.
    reset = "UPDATE feed_head SET seq = 0, pruned_seq = 0 WHERE seq <> 0 OR pruned_seq <> 0"
    statements = [*(f"DELETE FROM {name}" for name in emptied), reset]
    with app.app_context(), db.engine.begin() as connection:
        for statement in statements:  # as text, which takes a third of the CPU time; almost every test waits for it
            connection.exec_driver_sql(statement)


def events_in_feed(app: Flask) -> int:
    """The number of events that the sequencer has moved to the feed."""
    with app.app_context(), db.engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(FEED)) or 0
