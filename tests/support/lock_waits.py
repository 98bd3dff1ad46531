"""Whether a request waits for a lock of the database."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import psycopg
import pytest

from tests.support.postgres import libpq_url

_WAITING = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'order-service' AND wait_event_type = 'Lock'"


@contextmanager
def observed_lock_waits(database_url: str) -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether a request of this process waits for a lock, or on SQLite has waited.

    On SQLite, requests of this process wait with `time.sleep` between their attempts.
    """
    if not database_url.startswith("sqlite"):
        with psycopg.connect(libpq_url(database_url), autocommit=True) as observer:
            yield lambda: observer.execute(_WAITING).fetchone() is not None
        return
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        time.sleep(seconds)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("app.db.engine.time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
        yield lambda: bool(pauses)
