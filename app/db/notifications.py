"""PostgreSQL's NOTIFY and LISTEN: processes that store events wake the workers, which would otherwise poll often.

A notification only ends a wait early. It can be lost, with its process or its connection, so workers also poll.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from typing import Any

import psycopg
from flask import current_app
from flask.ctx import AppContext
from sqlalchemy import func, select, true
from sqlalchemy.engine import make_url

from app.db.batching import PerApplication
from app.db.connection import TRANSACTION_POOLER
from app.db.engine import db
from app.db.errors import DATABASE_ERRORS
from app.db.statement import Statement

NOTIFY_PAUSE = 0.1  # seconds between two notifications of a process
_LISTEN_SECONDS = 0.5  # between two checks whether to stop
_RETRY_AFTER = 1.0  # seconds, while the database does not answer
_CHANNEL = "order_events"
# Nobody waits for the notification, and its transaction changes nothing: it need not be flushed to disk.
_NOTIFY = Statement(select(func.set_config("synchronous_commit", "off", true()), func.pg_notify(_CHANNEL, "")))


class _Notifier:
    """Notifies the listeners in the background, at most once in NOTIFY_PAUSE.

    Not in the transaction of the change: PostgreSQL commits transactions that notify one at a time, each with its flush
    to disk.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending = False
        self._running = False
        self._next = 0.0  # the earliest time of the next notification, as time.monotonic()

    def notify(self) -> None:
        with self._lock:
            self._pending = True
            if self._running:
                return
            self._running = True
        try:
            threading.Thread(target=self._run, args=[current_app.app_context()], name="notifier", daemon=True).start()
        except RuntimeError:  # no further thread can start. The events are stored, and the workers poll
            self._running = False

    def _run(self, context: AppContext) -> None:
        try:
            with context:
                while self._running:
                    time.sleep(max(self._next - time.monotonic(), 0))
                    self._pending = False  # before NOTIFY: an event that is stored from here on requests another one
                    with suppress(*DATABASE_ERRORS):  # the workers poll
                        _NOTIFY.rows()
                    self._next = time.monotonic() + NOTIFY_PAUSE
                    with self._lock:
                        self._running = self._pending
        except BaseException:
            self._running = False  # the next event starts another thread
            raise


_NOTIFIERS = PerApplication(_Notifier)


def notify_workers() -> None:
    """Wake the workers that listen, since events have been stored. For PostgreSQL only. Raises nothing."""
    _NOTIFIERS.get().notify()


def can_listen(config: Mapping[str, Any]) -> bool:
    """Whether the database can notify: SQLite cannot, nor can PostgreSQL behind a pooler in transaction mode."""
    name = make_url(config["DATABASE_URL"]).get_backend_name()
    return name == "postgresql" and config["DATABASE_POOLER"] != TRANSACTION_POOLER


@contextmanager
def listening(wake: Callable[[], None], *, context: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """Call `wake` at each notification, and whenever some may have been missed, from a thread with a connection of its
    own.

    `context` makes the database available to the thread. While the database does not answer, nothing is called.
    """
    stopping = threading.Event()

    def run() -> None:
        with context():
            while not stopping.is_set():
                with suppress(*DATABASE_ERRORS):  # the worker's tasks get the same error, and log it
                    _listen(wake, stopping)
                stopping.wait(_RETRY_AFTER)

    thread = threading.Thread(target=run, name="listener", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _listen(wake: Callable[[], None], stopping: threading.Event) -> None:
    pooled = db.engine.raw_connection()
    pooled.detach()  # so that it takes none of the tasks' connections
    with closing(pooled):
        connection = pooled.dbapi_connection
        assert isinstance(connection, psycopg.Connection)
        connection.execute(f"LISTEN {_CHANNEL}")  # in autocommit mode, at once
        wake()  # for what was stored before
        while not stopping.is_set():
            for _ in connection.notifies(timeout=_LISTEN_SECONDS, stop_after=1):
                wake()
