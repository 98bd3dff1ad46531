"""The tables of the database under test."""

from flask import Flask
from sqlalchemy import update

from app.db.engine import db
from app.models.event import FeedHead


def delete_all_rows(app: Flask) -> None:
    """Make the database as the migrations leave it: empty, with a feed that begins at 1."""
    with app.app_context(), db.engine.begin() as connection:
        for table in reversed(db.metadata.sorted_tables):
            if table is not FeedHead.__table__:
                connection.execute(table.delete())
        connection.execute(update(FeedHead).values(seq=0, pruned_seq=0))
