"""The messages that the service sends to PostgreSQL."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flask import Flask

from app.db.engine import db
from app.services import order_storage
from tests.support.applications import wait_for_notifiers


def messages_sent(app: Flask, call: Callable[[], Any], file: Path) -> list[str]:
    """The protocol messages that the next pooled connection sends during the call; libpq records them in the file.

    Messages of NOTIFY, which is sent in the background after the commit, are omitted.
    """
    wait_for_notifiers()
    with app.app_context():
        pooled = db.engine.raw_connection()
    pgconn = pooled.dbapi_connection.pgconn
    pooled.close()  # the pool is last in, first out, so the call gets this connection
    with file.open("w") as trace:
        pgconn.trace(trace.fileno())
        with patch.object(order_storage, "notify_workers"), patch.object(order_storage, "notify_workers"):
            call()
        pgconn.untrace()
    lines = (line.split("\t") for line in file.read_text().splitlines() if "\t" in line)  # SQL spans several lines
    return [message for _time, direction, _length, message, *_ in lines if direction == "F"]
