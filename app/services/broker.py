"""Publishing the feed to a message broker, as CloudEvents 1.0 in JSON.

The events are published in the order of the feed, from a stored cursor that moves when the broker has confirmed them.
One worker publishes at a time, under a lease. After a crash or an error the next one begins at the cursor, so events
may come again, but none is left out, and no event comes for the first time before an earlier one. That also holds if a
worker goes on for a moment after its lease has ended: both publish in the order of the feed from the cursor.
"""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import structlog
from sqlalchemy import bindparam, or_, select, true, update

from app.db.engine import db
from app.db.statement import Statement
from app.db.transactions import in_transaction, read_rows
from app.db.types import rfc3339
from app.errors import CursorExpired
from app.models import BROKER_CURSOR, FEED, FEED_HEAD
from app.models.webhook import WITH_ORDER
from app.services.broker_connection import BrokerConnection, BrokerMessage
from app.services.event_feed import FeedEvent, FeedFilter, list_events, read_ends, require_retained
from app.services.webhook_queue import event_data
from app.services.worker import SEQUENCING, Task

log = structlog.get_logger()

PAGE_MAX = 200  # events between two stores of the cursor
LEASE = timedelta(seconds=10)  # longer than _PUBLISH_SECONDS and the last answer
_PUBLISH_SECONDS = 3.0  # after which no further message of a page is sent
_CALL_SECONDS = 1.0
_RETRY_FIRST, _RETRY_MAX = 1.0, 30.0  # seconds between two attempts to reach the broker
_SEQUENCE_DIGITS = 19  # of the largest number in the feed

_CURSOR = BROKER_CURSOR.c
_IS_FREE = or_(
    _CURSOR.lease.is_(None), _CURSOR.lease == bindparam("new_lease"), _CURSOR.leased_until <= bindparam("now")
)
# After a restore of the database the cursor may be beyond the end of the feed.
_ANY_PENDING = Statement(select(_CURSOR.seq).join(FEED_HEAD, FEED_HEAD.c.seq != _CURSOR.seq).where(_IS_FREE))
_TAKE = (
    update(BROKER_CURSOR)
    .where(_IS_FREE)
    .values(lease=bindparam("new_lease"), leased_until=bindparam("until"))
    .returning(_CURSOR.seq)
)
_STORE = (
    update(BROKER_CURSOR)
    .where(_CURSOR.lease == bindparam("of_lease"))
    .values(seq=bindparam("new_seq"), leased_until=bindparam("until"))
    .returning(_CURSOR.seq)
)
_FREE = update(BROKER_CURSOR).values(lease=None, leased_until=None)
_RELEASE = _FREE.where(_CURSOR.lease == bindparam("of_lease"))
_FIRST_PENDING = (
    select((FEED_HEAD.c.seq - _CURSOR.seq).label("events"), FEED.c.at)
    .select_from(BROKER_CURSOR)
    .join(FEED_HEAD, true())
    .outerjoin(FEED, FEED.c.seq == _CURSOR.seq + 1)
)


@dataclass(frozen=True, slots=True)
class BrokerLag:
    """How many events of the feed are not published yet, and the age of the first of them in seconds."""

    events: int
    seconds: float


def broker_tasks(config: Mapping[str, Any]) -> tuple[Task, ...]:
    """The task of a worker that publishes events, if there is a broker. Raises StartupError without its library."""
    if not config["BROKER_URL"]:
        return ()
    connection = BrokerConnection(config["BROKER_URL"], topic=config["BROKER_TOPIC"], options=config["BROKER_OPTIONS"])
    publisher = BrokerPublisher(
        connection, source=config["BROKER_SOURCE"], with_order=config["BROKER_PAYLOAD"] == WITH_ORDER
    )
    return (Task("broker", publisher.run, idle_pause=0.5, woken_by=SEQUENCING, finish=publisher.finish),)


class BrokerPublisher:
    """Publishes what is new in the feed, unless another worker does."""

    def __init__(self, connection: BrokerConnection, *, source: str, with_order: bool) -> None:
        self._connection = connection
        self._source, self._with_order = source, with_order
        self._lease = secrets.token_hex(16)
        self._failures = 0
        self._retry_at = 0.0

    def run(self) -> bool:
        """Publish events for about a second. Returns whether there were any and the broker has accepted them.

        While the broker does not answer, it is called at growing intervals. Raises DATABASE_ERRORS.
        """
        if time.monotonic() < self._retry_at or not self._any_pending():
            return False
        after = _take_lease(self._lease)
        deadline = time.monotonic() + _CALL_SECONDS
        published = False
        while after is not None and time.monotonic() < deadline:
            after = self._publish_page(after)
            published = published or after is not None
        return published

    def finish(self) -> None:
        """Close the connection, and let another worker go on at once."""
        self._connection.close()
        in_transaction(lambda: db.session.execute(_RELEASE, {"of_lease": self._lease}))

    def _any_pending(self) -> bool:
        return bool(_ANY_PENDING.rows(new_lease=self._lease, now=rfc3339(datetime.now(UTC))))

    def _publish_page(self, after: int) -> int | None:
        """Publish events after this number, and return the new one; None if there is nothing more to do now."""
        try:
            page = list_events(FeedFilter(), after=after, limit=PAGE_MAX)
        except CursorExpired:
            return self._move_to_retained(after)
        if not page.events:
            return None
        messages = [render_message(event, source=self._source, with_order=self._with_order) for event in page.events]
        try:
            count = self._connection.publish(messages, seconds=_PUBLISH_SECONDS)
        except Exception as error:  # of kombu, of the broker's library, of the network
            self._report_failure(error)
            return None
        self._report_success()
        seq = page.events[count - 1].seq
        return seq if _store_cursor(self._lease, seq) else None

    def _move_to_retained(self, after: int) -> int | None:
        """Go on where the feed begins, or where it ends after a restore of the database."""
        ends = read_ends()
        seq = min(max(after, ends.pruned_seq), ends.seq)
        log.warning("broker missed events", after=after, until=seq)
        return seq if _store_cursor(self._lease, seq) else None

    def _report_failure(self, error: Exception) -> None:
        if not self._failures:
            log.warning("broker unavailable", reason=self._connection.explain(error))
        self._retry_at = time.monotonic() + min(_RETRY_MAX, _RETRY_FIRST * 2.0 ** min(self._failures, 10))
        self._failures += 1

    def _report_success(self) -> None:
        if self._failures:
            log.info("broker available again")
        self._failures = 0


def render_message(event: FeedEvent, *, source: str, with_order: bool) -> BrokerMessage:
    """The event as a CloudEvent. Its data is that of webhooks: `thin`, or with the whole order."""
    document = orjson.loads(event.document)
    order, order_id = document["data"], document["order_id"]
    data = event_data(order, order_id=order_id, version=document["version"], seq=event.seq)
    if with_order:
        data["order"] = order
    cloud_event = {
        "specversion": "1.0",
        "id": document["id"],
        "source": source,
        "type": event.type,
        "subject": order_id,
        "time": document["at"],
        "datacontenttype": "application/json",
        # The extension wants strings that sort as the numbers do.
        "sequence": f"{event.seq:0{_SEQUENCE_DIGITS}}",
        "data": data,
    }
    return BrokerMessage(document["id"], event.type, order_id, orjson.dumps(cloud_event))


def replay(*, after: int) -> None:
    """Publish the events with higher numbers again, or leave out those up to `after`.

    Raises CursorExpired if the feed does not reach back that far, or ends before.
    """
    require_retained(after, read_ends())
    in_transaction(lambda: db.session.execute(_FREE.values(seq=after)))


def read_lag() -> BrokerLag:
    """How far the broker is behind the feed."""
    [row] = read_rows(_FIRST_PENDING)
    return BrokerLag(row.events, (datetime.now(UTC) - row.at).total_seconds() if row.at else 0.0)


def _take_lease(lease: str) -> int | None:
    """Take or keep the lease, and return the number up to which events are published; None if another worker has it."""
    now = datetime.now(UTC)
    values = {"new_lease": lease, "now": now, "until": now + LEASE}
    seq: int | None = in_transaction(lambda: db.session.scalar(_TAKE, values))
    return seq


def _store_cursor(lease: str, seq: int) -> bool:
    """Store how far events are published, and keep the lease. Returns False if another worker has it now."""
    values = {"of_lease": lease, "new_seq": seq, "until": datetime.now(UTC) + LEASE}
    return in_transaction(lambda: db.session.scalar(_STORE, values)) is not None
