"""Workers die at any moment while orders are created and changed: every event is once in the feed, in order.

`make faults` kills workers ten times; KILLS=3 is the short form, `KILLS=20 EVENTS=10000` the long one.
"""

import os
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

from sqlalchemy import Engine, create_engine, func, literal, select, tuple_

from app.models import EVENTS, FEED, FEED_HEAD, OUTBOX
from tests.faults.checks import SETTINGS
from tests.faults.traffic import Traffic
from tests.support.servers import GUNICORN, Server, free_port, running, running_worker, send_request, wait_until

KILLS = int(os.environ.get("KILLS", "10"))
EVENTS_MIN = int(os.environ.get("EVENTS", "0"))  # the clients go on until there are so many
LONGEST_RUN = 900  # seconds
CLIENTS = 4
Key = tuple[str, int]  # order id and version


class Reader:
    """Calls `read` repeatedly until it is stopped, and then until there is nothing more."""

    def __init__(self, read: Callable[[], list[Any]]) -> None:
        self.found: list[Any] = []
        self._read = read
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            found = self._read()
            self.found += found
            if not found and self._stopping.is_set():
                return
            time.sleep(0.002)


def feed_reader(port: int) -> Callable[[], list[Any]]:
    """Reads the feed as a client does, page by page."""
    cursor = ""

    def read() -> list[Any]:
        nonlocal cursor
        page = send_request(port, "GET", f"/events?limit=100&wait=1{cursor}").json
        cursor = f"&after={page['next_cursor']}"
        events: list[Any] = page["events"]
        return events

    return read


def reader_by_time(engine: Engine) -> Callable[[], list[Any]]:
    """Reads events by their time, after the last one seen: the design that the feed avoids."""
    position = EVENTS.c.at, EVENTS.c.order_id, EVENTS.c.version
    last: tuple[Any, ...] | None = None

    def read() -> list[Any]:
        nonlocal last
        query = select(*position).order_by(*position)
        if last is not None:
            values = [literal(value, column.type) for value, column in zip(last, position, strict=True)]
            query = query.where(tuple_(*position) > tuple_(*values))
        with engine.connect() as connection:
            rows = [tuple(row) for row in connection.execute(query)]
        if rows:
            last = rows[-1]
        return [(order_id, version) for _, order_id, version in rows]

    return read


def scalar(engine: Engine, query: Any) -> Any:
    """The value of a query that neither waits for writers nor blocks them."""
    with engine.execution_options(read_only=engine.dialect.name == "sqlite").connect() as connection:
        return connection.scalar(query)


def kill_a_worker(workers: list[Server], start: Callable[[], Server]) -> None:
    victim = workers.pop(random.randrange(len(workers)))
    victim.process.kill()
    victim.process.wait()
    workers.append(start())


def test_every_event_is_in_the_feed_exactly_once_although_workers_are_killed(url: str) -> None:
    port, engine, stack = free_port(), create_engine(url), ExitStack()

    def start_worker() -> Server:
        return stack.enter_context(running_worker(DATABASE_URL=url, **SETTINGS | {"LOG_LEVEL": "info"}))

    with stack:
        stack.callback(engine.dispose)
        stack.enter_context(running(*GUNICORN, port=port, PORT=str(port), DATABASE_URL=url, **SETTINGS))
        workers = [start_worker(), start_worker()]
        reader = stack.enter_context(Reader(feed_reader(port)))
        naive = stack.enter_context(Reader(reader_by_time(engine)))
        started = time.monotonic()
        with Traffic(port, clients=CLIENTS) as traffic:
            for _ in range(KILLS):
                time.sleep(random.uniform(0.1, 1))
                kill_a_worker(workers, start_worker)
            of_log = select(func.count()).select_from(EVENTS)
            wait_until(lambda: scalar(engine, of_log) >= EVENTS_MIN, seconds=LONGEST_RUN)
            traffic.stop()
        seconds = time.monotonic() - started
        wait_until(lambda: scalar(engine, select(func.count()).select_from(OUTBOX)) == 0)
        total = scalar(engine, select(FEED_HEAD.c.seq))
        wait_until(lambda: len(reader.found) >= total, seconds=LONGEST_RUN)

        check_feed(reader.found, engine)
        missed = len(all_events(engine) - set(naive.found))
        print(
            f"{total} events, {total / seconds:.0f}/s; a reader by time missed {missed}. {lag(engine)}", file=sys.stderr
        )


def all_events(engine: Engine) -> set[Key]:
    with engine.connect() as connection:
        return {tuple(row) for row in connection.execute(select(EVENTS.c.order_id, EVENTS.c.version))}


def check_feed(events: list[dict[str, Any]], engine: Engine) -> None:
    """Assert that the reader got each event once, without gaps, and those of each order in sequence."""
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    counts = Counter((event["order_id"], event["version"]) for event in events)
    assert counts.keys() == all_events(engine) and set(counts.values()) == {1}
    versions = defaultdict(list)
    for event in events:
        versions[event["order_id"]].append(event["version"])
    assert all(found == list(range(1, len(found) + 1)) for found in versions.values())


def lag(engine: Engine) -> str:
    """The times that events took from their change to the feed."""
    of_entry = (EVENTS.c.order_id == FEED.c.order_id) & (EVENTS.c.version == FEED.c.version)
    with engine.connect() as connection:
        rows = connection.execute(select(FEED.c.at, EVENTS.c.at).join(EVENTS, of_entry))
        seconds = sorted((numbered - happened).total_seconds() for numbered, happened in rows)
    p50, p99 = (1000 * seconds[int(len(seconds) * share)] for share in (0.5, 0.99))
    return f"In the feed after {p50:.0f} ms (median), {p99:.0f} ms (p99)."
