"""Applications that are created once for each database and closed at the end."""

import threading
from contextlib import ExitStack
from typing import Self

import flask_migrate
from flask import Flask

from app import create_app
from app.db.engine import db
from tests.support.credentials import app_with_auth
from tests.support.databases import MIGRATIONS


class Applications:
    """The applications by database; their connections are closed at the end of the block."""

    def __init__(self) -> None:
        self._migrated: dict[str, Flask] = {}
        self._secure: dict[str, Flask] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def migrated(self, database_url: str) -> Flask:
        """The application without authentication. The first call migrates the database."""
        if database_url not in self._migrated:
            app = create_app({"DATABASE_URL": database_url, "AUTH": "off", "TESTING": True})
            self._stack.callback(close_connections, app)
            with app.app_context():
                flask_migrate.upgrade(directory=MIGRATIONS)
            self._migrated[database_url] = app
        return self._migrated[database_url]

    def secure(self, database_url: str) -> Flask:
        """The application with AUTH=required, on a migrated database."""
        if database_url not in self._secure:
            self._secure[database_url] = self._stack.enter_context(app_with_auth(database_url))
        return self._secure[database_url]


def close_connections(app: Flask) -> None:
    """Close the pool: an open connection at exit is a warning, thus an error."""
    wait_for_notifiers()
    with app.app_context():
        db.engine.dispose()


def wait_for_notifiers() -> None:
    """Wait until no thread uses a connection for a notification."""
    for thread in threading.enumerate():
        if thread.name == "notifier":
            thread.join()
