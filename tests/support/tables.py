"""The tables of the database under test."""

from flask import Flask
from sqlalchemy import func, select, update

from app.db.engine import db
from app.models import FEED
from app.models.event import FeedHead


def delete_all_rows(app: Flask) -> None:
    """Make the database as the migrations leave it: empty, with a feed that begins at 1."""
    with app.app_context(), db.engine.begin() as connection:
        for table in reversed(db.metadata.sorted_tables):
            if table is not FeedHead.__table__:
                connection.execute(table.delete())
        connection.execute(update(FeedHead).values(seq=0, pruned_seq=0))


def events_in_feed(app: Flask) -> int:
    """The number of events that the sequencer has moved to the feed."""
    with app.app_context(), db.engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(FEED)) or 0
