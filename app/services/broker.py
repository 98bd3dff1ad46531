"""Publishing the feed to a message broker, as CloudEvents 1.0 in JSON: RabbitMQ and other brokers that kombu supports.

The events are published in the order of the feed, from a stored cursor that moves when the broker has confirmed them.
One worker publishes at a time, under a lease. After a crash or an error the next one begins at the cursor, so events
may be repeated, but none is left out, and no event is first published before an earlier one. That also holds if a
worker continues for a moment after its lease has ended: both publish from the cursor in the order of the feed.
"""

import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

import orjson
import structlog
from sqlalchemy import bindparam, or_, select, true, update

from app.config import StartupError
from app.db.engine import db, rfc3339
from app.db.statements import Statement, in_transaction, read_rows
from app.errors import CursorExpired
from app.models import BROKER_CURSOR, FEED, FEED_HEAD
from app.models.webhook import WITH_ORDER
from app.services.event_feed import FeedEvent, FeedFilter, list_events, read_ends, require_retained
from app.services.webhook_queue import event_data
from app.services.worker import SEQUENCING, Task

try:
    import kombu  # optional (requirements-broker.txt); it imports its parts when they are used
except ModuleNotFoundError:
    kombu = None

log = structlog.get_logger()

PAGE_MAX = 200  # events between two stores of the cursor
LEASE = timedelta(seconds=10)  # longer than _PUBLISH_SECONDS and the wait for the last confirmation
_LATEST = 2 * LEASE  # from now, for a valid lease: the clocks of two workers may differ by LEASE
_PUBLISH_SECONDS = 3.0  # seconds after which no further message of a page is sent
_CALL_SECONDS = 1.0
_RETRY_FIRST, _RETRY_MAX = 1.0, 30.0  # seconds between two attempts to reach the broker
_SEQUENCE_DIGITS = 19  # of the largest number in the feed
CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"  # CloudEvents AMQP binding §3.2, structured mode
ANSWER_SECONDS = 5.0  # for a connection, and for the confirmation of a message
_LOGIN_SECONDS = 15.0  # for a login, which kombu tries twice
_PERSISTENT = 2  # AMQP 0-9-1 §1.8: the message survives a restart of the broker
_REASON_MAX = 300  # characters

_CURSOR = BROKER_CURSOR.c
# A lease that ends later than any that is acquired now was acquired by a clock that was ahead: it may last for hours.
_IS_FREE = or_(
    _CURSOR.lease.is_(None),
    _CURSOR.lease == bindparam("new_lease"),
    _CURSOR.leased_until <= bindparam("now"),
    _CURSOR.leased_until > bindparam("latest"),
)
# After a restore of the database the cursor may be beyond the end of the feed.
_ANY_PENDING = Statement(select(_CURSOR.seq).join(FEED_HEAD, FEED_HEAD.c.seq != _CURSOR.seq).where(_IS_FREE))
_ACQUIRE = (
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
_CLEAR_LEASE = update(BROKER_CURSOR).values(lease=None, leased_until=None)
_RELEASE = _CLEAR_LEASE.where(_CURSOR.lease == bindparam("of_lease"))
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
    publisher = BrokerPublisher(
        BrokerConnection.from_config(config),
        source=config["BROKER_SOURCE"],
        with_order=config["BROKER_PAYLOAD"] == WITH_ORDER,
    )
    return (Task("broker", publisher.run, idle_pause=0.5, woken_by=SEQUENCING, finish=publisher.finish),)


@dataclass(frozen=True, slots=True)
class BrokerMessage:
    """An event as it is published: `body` is the CloudEvent."""

    id: str
    type: str
    order_id: str
    body: bytes


class BrokerConnection:
    """A connection through kombu that is opened when it is needed. It belongs to one thread.

    On AMQP, messages go to the exchange `topic` with their type as routing key. On other brokers, they go to the queue
    of that name, which consumers share.
    """

    def __init__(self, url: str, *, topic: str, options: Mapping[str, Any]) -> None:
        """Raises StartupError if kombu or the broker's library is not installed."""
        self._url, self._topic = url, topic
        self._is_amqp = urlsplit(url).scheme in ("amqp", "amqps")
        self._failures: list[str] = []  # that Kafka's library has reported
        self._reported_unroutable = False
        self._options = self._transport_options() | dict(options)
        self._connection: Any = None
        self._producer: Any = None
        if kombu is None:
            raise StartupError("BROKER_URL is set, but kombu is missing: run `pip install -r requirements-broker.txt`.")
        try:
            assert kombu.Connection(url).transport
        except ImportError as error:
            raise StartupError(
                f"BROKER_URL needs a library that is missing ({error}): run `pip install -r requirements-broker.txt`."
            ) from None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "BrokerConnection":
        """The connection of the settings. Raises StartupError as the constructor does."""
        return cls(config["BROKER_URL"], topic=config["BROKER_TOPIC"], options=config["BROKER_OPTIONS"])

    def publish(self, messages: Sequence[BrokerMessage], *, seconds: float) -> int:
        """Publish messages in their order until the time has passed, and return how many the broker has accepted.

        Raises an exception of the broker's library if it is unknown which of them were accepted. In that case, the next
        call opens a new connection.
        """
        deadline = time.monotonic() + seconds
        count = 0
        try:
            producer = self._open()
            with producer.batch():  # a pipeline on Redis; elsewhere each message waits for its confirmation
                for message in messages:
                    self._publish(producer, message)
                    count += 1
                    if time.monotonic() > deadline:
                        break
            if self._failures:
                raise ConnectionError(self._failures[0])
        except Exception:
            self.close()
            raise
        return count

    def log_in(self) -> None:
        """Open a connection, and close it. Raises an exception of the broker's library if the broker refuses it."""
        try:
            self._connect()
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection, even if the broker does not respond."""
        connection, self._connection, self._producer = self._connection, None, None
        self._failures.clear()
        if connection is not None:
            with suppress(Exception):
                connection.close()

    def explain(self, error: BaseException) -> str:
        """Why the broker could not be reached, in one line without the password."""
        while error.__cause__ is not None:  # kombu's own error of a pipeline says only that it failed
            error = error.__cause__
        reason = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        password = urlsplit(self._url).password
        for text in (password, unquote(password)) if password else ():
            reason = reason.replace(text, "…")
        return reason[:_REASON_MAX]

    def _transport_options(self) -> dict[str, Any]:
        """Options of kombu's transports: confirmations, and a limit for each wait. Each transport reads its own."""
        return {
            "confirm_publish": True,
            "read_timeout": ANSWER_SECONDS,
            "write_timeout": ANSWER_SECONDS,
            "socket_timeout": ANSWER_SECONDS,
            "socket_connect_timeout": ANSWER_SECONDS,
            "kafka_common_config": {"log_level": 0},  # of syslog: its library would log each attempt to connect
            "kafka_producer_config": {
                "message.timeout.ms": round(1000 * ANSWER_SECONDS),
                "enable.idempotence": True,
                "on_delivery": self._on_delivery,
            },
        }

    def _open(self) -> Any:
        if self._producer is not None:
            return self._producer
        self._reported_unroutable = False  # the broker may have lost its queues since
        channel = self._connect()
        if self._is_amqp:
            exchange = kombu.Exchange(self._topic, type="topic", durable=True)
            exchange(channel).declare()
            producer = kombu.Producer(channel, exchange, auto_declare=False, on_return=self._on_return)
        else:
            kombu.Queue(self._topic, channel=channel).declare()
            producer = kombu.Producer(channel)
        self._producer = producer
        return producer

    def _connect(self) -> Any:
        self._connection = kombu.Connection(
            self._url, connect_timeout=ANSWER_SECONDS, transport_options=dict(self._options)
        )
        self._connection.connect()
        return self._connection.channel()

    def _publish(self, producer: Any, message: BrokerMessage) -> None:
        if self._is_amqp:
            addressing = {"routing_key": message.type, "mandatory": True, "confirm_timeout": ANSWER_SECONDS}
        else:  # the further properties are for FIFO queues of SQS
            addressing = {
                "routing_key": self._topic,
                "MessageGroupId": message.order_id,
                "MessageDeduplicationId": message.id,
            }
        producer.publish(
            message.body,
            content_type=CONTENT_TYPE,
            content_encoding="utf-8",
            delivery_mode=_PERSISTENT,
            message_id=message.id,
            **addressing,
        )

    def _on_return(self, _error: Exception, _exchange: str, routing_key: str, _message: object) -> None:
        """Called when the exchange has no queue for a message."""
        if not self._reported_unroutable:
            self._reported_unroutable = True
            log.warning("broker dropped an event: no queue is bound", exchange=self._topic, routing_key=routing_key)

    def _on_delivery(self, error: object, _message: object) -> None:
        """Called by Kafka's library when a message was accepted or has failed."""
        if error is not None:
            self._failures.append(str(error))


class BrokerPublisher:
    """Publishes new events of the feed, unless another worker does."""

    def __init__(self, connection: BrokerConnection, *, source: str, with_order: bool) -> None:
        self._connection = connection
        self._source, self._with_order = source, with_order
        self._lease = secrets.token_hex(16)
        self._failures = 0
        self._retry_at = 0.0

    def run(self) -> bool:
        """Publish events for about a second. Returns whether there were any and the broker has accepted them.

        While the broker does not respond, the attempts are made at growing intervals. Raises DATABASE_ERRORS.
        """
        if time.monotonic() < self._retry_at or not self._any_pending():
            return False
        after = _acquire_lease(self._lease)
        deadline = time.monotonic() + _CALL_SECONDS
        published = False
        while after is not None and time.monotonic() < deadline:
            after = self._publish_page(after)
            published = published or after is not None
        return published

    def finish(self) -> None:
        """Close the connection, and release the lease, so that another worker can continue at once."""
        self._connection.close()
        in_transaction(lambda: db.session.execute(_RELEASE, {"of_lease": self._lease}))

    def _any_pending(self) -> bool:
        now = datetime.now(UTC)
        return bool(_ANY_PENDING.rows(new_lease=self._lease, now=rfc3339(now), latest=rfc3339(now + _LATEST)))

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
        except Exception as error:  # from kombu, the broker's library or the network
            self._report_failure(error)
            return None
        self._report_success()
        seq = page.events[count - 1].seq
        return seq if _store_cursor(self._lease, seq) else None

    def _move_to_retained(self, after: int) -> int | None:
        """Continue at the beginning of the feed or, after a restore of the database, at its end."""
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
        # The sequence extension of CloudEvents requires strings that sort as the numbers do.
        "sequence": f"{event.seq:0{_SEQUENCE_DIGITS}}",
        "data": data,
    }
    return BrokerMessage(document["id"], event.type, order_id, orjson.dumps(cloud_event))


def replay(*, after: int) -> None:
    """Publish the events with higher numbers again, or leave out those up to `after`.

    Raises CursorExpired if the feed does not reach back that far, or ends before.
    """
    require_retained(after, read_ends())
    in_transaction(lambda: db.session.execute(_CLEAR_LEASE.values(seq=after)))


def read_lag() -> BrokerLag:
    """How far the broker is behind the feed."""
    [row] = read_rows(_FIRST_PENDING)
    return BrokerLag(row.events, (datetime.now(UTC) - row.at).total_seconds() if row.at else 0.0)


def find_login_failure(config: Mapping[str, Any]) -> str | None:
    """Log in to the broker. Returns in one line, without secrets, why that fails; None if it succeeds.

    In a thread of its own, because not every library limits how long it resolves a name, and how often it retries.
    """
    try:
        connection = BrokerConnection.from_config(config)
    except StartupError as error:
        return str(error)
    failure: str | None = f"It has not answered a login for {_LOGIN_SECONDS:.0f} s. Check BROKER_URL and the broker."

    def log_in() -> None:
        nonlocal failure
        try:
            connection.log_in()
        except Exception as error:  # from kombu, the broker's library or the network
            failure = f"A login fails ({connection.explain(error)}). Check BROKER_URL and the broker."
        else:
            failure = None

    thread = threading.Thread(target=log_in, daemon=True)
    thread.start()
    thread.join(_LOGIN_SECONDS)
    return failure


def _acquire_lease(lease: str) -> int | None:
    """Acquire or extend the lease, and return the number up to which events are published.

    None if another worker has the lease.
    """
    now = datetime.now(UTC)
    values = {"new_lease": lease, "now": now, "latest": now + _LATEST, "until": now + LEASE}
    seq: int | None = in_transaction(lambda: db.session.scalar(_ACQUIRE, values))
    return seq


def _store_cursor(lease: str, seq: int) -> bool:
    """Store how far events are published, and keep the lease. Returns False if another worker has it now."""
    values = {"of_lease": lease, "new_seq": seq, "until": datetime.now(UTC) + LEASE}
    return in_transaction(lambda: db.session.scalar(_STORE, values)) is not None
