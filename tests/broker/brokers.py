"""Brokers for the tests: running servers, and consumers that read from them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import kombu
import orjson

from tests.broker.servers import BrokerServer, rabbitmq, redis

TOPIC = "order-events"
BROKERS = {"amqp": rabbitmq, "redis": redis}


@dataclass
class Broker:
    """A running broker; `kind` is the scheme of its URLs."""

    kind: str
    server: BrokerServer

    @property
    def url(self) -> str:
        return f"{self.kind}://{'guest:guest@' if self.kind == 'amqp' else ''}127.0.0.1:{self.server.port}/"

    def bind(self) -> None:
        """Declare an empty queue for the events."""
        with self._queue() as queue:
            queue.declare()
            queue.purge()

    def unbind(self) -> None:
        """Leave the events without a queue."""
        with self._queue() as queue:
            queue.delete()

    def messages(self) -> list[Any]:
        """Take all messages from the queue."""
        with self._queue() as queue:
            taken = []
            while (message := queue.get(no_ack=True)) is not None:
                taken.append(message)
            return taken

    def events(self) -> list[dict[str, Any]]:
        """Take all events from the queue."""
        return [orjson.loads(message.body) for message in self.messages()]

    @contextmanager
    def _queue(self) -> Iterator[Any]:
        with kombu.Connection(self.url) as connection:
            if self.kind == "amqp":
                exchange = kombu.Exchange(TOPIC, type="topic", durable=True)
                yield kombu.Queue("consumer", exchange, routing_key="#", durable=True)(connection.channel())
            else:
                yield kombu.Queue(TOPIC)(connection.channel())
