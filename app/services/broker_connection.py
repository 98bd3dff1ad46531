"""A connection to the message broker, through kombu: RabbitMQ and other AMQP brokers, Redis, SQS, Kafka.

kombu is an extra (requirements-broker.txt). It imports its parts when they are used, so `import kombu` costs nothing.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog

from app.config import StartupError

try:
    import kombu
except ModuleNotFoundError:
    kombu = None

log = structlog.get_logger()

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"  # CloudEvents AMQP binding §3.2, structured mode
ANSWER_SECONDS = 5.0  # for a connection, and for the answer to a message
_PERSISTENT = 2  # AMQP 0-9-1 §1.8: the message survives a restart of the broker
_REASON_MAX = 300  # characters


@dataclass(frozen=True, slots=True)
class BrokerMessage:
    """An event as it is published: `body` is the CloudEvent."""

    id: str
    type: str
    order_id: str
    body: bytes


class BrokerConnection:
    """A connection that is opened when it is needed. It belongs to one thread.

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

    def publish(self, messages: Sequence[BrokerMessage], *, seconds: float) -> int:
        """Publish messages in their order until the time has passed, and return how many the broker has accepted.

        Raises an exception of the broker's library if it is unknown which of them were accepted. The next call opens a
        new connection then.
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

    def close(self) -> None:
        """Close the connection, whether or not the broker answers."""
        connection, self._connection, self._producer = self._connection, None, None
        self._failures.clear()
        if connection is not None:
            with suppress(Exception):
                connection.close()

    def explain(self, error: Exception) -> str:
        """Why the broker could not be reached, in one line without the password."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        password = urlsplit(self._url).password
        for text in (password, unquote(password)) if password else ():
            reason = reason.replace(text, "…")
        return reason[:_REASON_MAX]

    def _transport_options(self) -> dict[str, Any]:
        """Options of kombu's transports: confirmations, and no wait without an end. Each transport reads its own."""
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
        self._connection = kombu.Connection(
            self._url, connect_timeout=ANSWER_SECONDS, transport_options=dict(self._options)
        )
        self._connection.connect()
        channel = self._connection.channel()
        if self._is_amqp:
            exchange = kombu.Exchange(self._topic, type="topic", durable=True)
            exchange(channel).declare()
            producer = kombu.Producer(channel, exchange, auto_declare=False, on_return=self._on_return)
        else:
            kombu.Queue(self._topic, channel=channel).declare()
            producer = kombu.Producer(channel)
        self._producer = producer
        return producer

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
        """Called by Kafka's library when a message was accepted, or was given up."""
        if error is not None:
            self._failures.append(str(error))
