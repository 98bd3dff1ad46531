"""Workers die at any moment while endpoints are slow, fail and abort connections: every endpoint gets every event.

`make faults` kills workers ten times; KILLS=3 is the short form, `KILLS=20 EVENTS=10000` the long one.
"""

import os
import random
import sys
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from sqlalchemy import ColumnElement, Engine, Select, Table, create_engine, func, select

from app.models import DELIVERIES, EVENTS, FEED_HEAD, OUTBOX
from tests.faults.checks import SETTINGS
from tests.faults.traffic import Traffic
from tests.support.receivers import Answer, Received, accept, receiver
from tests.support.servers import GUNICORN, Server, free_port, running, running_worker, send_request, wait_until

KILLS = int(os.environ.get("KILLS", "10"))
EVENTS_MIN = int(os.environ.get("EVENTS", "0"))  # the clients go on until there are so many
LONGEST_RUN = 900  # seconds
FAILING_EVENTS = 40  # one in this many events fails once or twice
WEBHOOKS = SETTINGS | {"WEBHOOKS_ALLOW_PRIVATE": "1", "LOG_LEVEL": "info"}


def slow(_request: Received) -> int:
    time.sleep(random.uniform(0, 0.05))
    return 200


def failing(failure: int) -> Answer:
    """Fail the first one or two requests for some events: with a status, or 0 to abort the connection."""
    attempts: Counter[str] = Counter()

    def answer(request: Received) -> int:
        attempts[request.event_id] += 1
        number = int(sha256(request.event_id.encode()).hexdigest(), 16)
        fails = number % FAILING_EVENTS == 0 and attempts[request.event_id] <= 1 + number % 2
        return failure if fails else 200

    return answer


@dataclass
class Endpoint:
    """An endpoint and its events, in the order of arrival."""

    name: str
    answer: Answer
    id: str = ""
    secret: str = ""
    received: list[tuple[str, str, int]] = field(default_factory=list)  # webhook-id, order id and version

    def verify_and_answer(self, request: Received) -> Any:
        """Verify at once: the reference library refuses requests older than five minutes."""
        data = request.verify(self.secret)["data"]
        self.received.append((request.event_id, data["order_id"], data["version"]))
        return self.answer(request)

    def check(self, engine: Engine) -> None:
        """Assert that every event came with its own id, and the events of one order in sequence."""
        with engine.connect() as connection:
            rows = connection.execute(select(EVENTS.c.order_id, EVENTS.c.version)).all()
        events = {f"{row.order_id}:{row.version}" for row in rows}
        duplicates = len(self.received) - len(events)
        print(f"{self.name}: {len(events)} events, {duplicates} sent again. {self.lag(engine)}", file=sys.stderr)
        versions: dict[str, list[int]] = defaultdict(list)
        for event_id, order_id, version in self.received:
            assert event_id == f"{order_id}:{version}"
            versions[order_id].append(version)

        assert {event_id for event_id, *_ in self.received} == events
        assert {order_id: sorted(sent) for order_id, sent in versions.items()} == versions

    def lag(self, engine: Engine) -> str:
        """The times from an event's change to the response of the endpoint, including retries."""
        of_event = (EVENTS.c.order_id == DELIVERIES.c.order_id) & (EVENTS.c.version == DELIVERIES.c.version)
        query = select(DELIVERIES.c.finished_at, EVENTS.c.at).join(EVENTS, of_event)
        with engine.connect() as connection:
            rows = connection.execute(query.where(DELIVERIES.c.endpoint_id == self.id)).all()
        seconds = sorted((answered - happened).total_seconds() for answered, happened in rows)
        p50, p99 = (seconds[int(len(seconds) * share)] for share in (0.5, 0.99))
        return f"Delivered after {p50:.2f} s (median), {p99:.2f} s (p99)."


ANSWERS = {"fast": accept, "slow": slow, "500": failing(500), "dropped": failing(0)}


def test_every_endpoint_gets_every_event_in_order_while_workers_are_killed(url: str) -> None:
    port, engine, stack = free_port(), create_engine(url), ExitStack()

    def start_worker() -> Server:
        return stack.enter_context(running_worker(DATABASE_URL=url, **WEBHOOKS))

    with stack:
        stack.callback(engine.dispose)
        stack.enter_context(running(*GUNICORN, port=port, PORT=str(port), DATABASE_URL=url, **WEBHOOKS))
        endpoints = [Endpoint(name, answer) for name, answer in ANSWERS.items()]
        for endpoint in endpoints:
            receiving = stack.enter_context(receiver(endpoint.verify_and_answer))
            created = send_request(port, "POST", "/webhooks", {"url": receiving.url}).json
            endpoint.id, endpoint.secret = created["id"], created["secret"]
        workers = [start_worker(), start_worker()]
        started = time.monotonic()
        with Traffic(port, clients=4) as traffic:
            for _ in range(KILLS):
                time.sleep(random.uniform(0.1, 1))
                victim = workers.pop(random.randrange(len(workers)))
                victim.process.kill()
                victim.process.wait()
                workers.append(start_worker())
            wait_until(lambda: count(engine, EVENTS) >= EVENTS_MIN, seconds=LONGEST_RUN)
            traffic.stop()
        rate = count(engine, EVENTS) / (time.monotonic() - started)
        print(f"{rate:.0f} events/s for {len(endpoints)} endpoints, {KILLS} workers killed", file=sys.stderr)
        wait_until(lambda: count(engine, OUTBOX) == 0)
        total = scalar(engine, select(FEED_HEAD.c.seq)) * len(endpoints)
        wait_until(lambda: succeeded(engine) == total, seconds=LONGEST_RUN)

        for endpoint in endpoints:
            endpoint.check(engine)


def scalar(engine: Engine, query: Select[tuple[int]]) -> int:
    """The value of a query that neither waits for writers nor blocks them."""
    with engine.execution_options(read_only=True).connect() as connection:
        return connection.scalar(query) or 0


def count(engine: Engine, table: Table, *conditions: ColumnElement[bool]) -> int:
    return scalar(engine, select(func.count()).select_from(table).where(*conditions))


def succeeded(engine: Engine) -> int:
    return count(engine, DELIVERIES, DELIVERIES.c.status == "succeeded")
