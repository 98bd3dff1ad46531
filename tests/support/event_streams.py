"""Event streams, read like a client does."""

import http.client
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from flask import Flask

from app.services.event_feed import sequence_events
from tests.support.servers import TIMEOUT

ACCEPT = {"Accept": "text/event-stream"}


@dataclass(frozen=True)
class ReceivedEvent:
    """An event of a stream, or a comment if it has no data."""

    id: str | None
    type: str | None
    data: Any


def number_events(app: Flask) -> None:
    """Move all events to the feed, as the worker does."""
    with app.app_context():
        while sequence_events():
            pass


def parse_event_stream(lines: Iterator[str]) -> Iterator[ReceivedEvent]:
    """The events and comments of a stream (WHATWG HTML §9.2.6)."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif fields:
            data = json.loads(fields["data"]) if "data" in fields else None
            yield ReceivedEvent(fields.get("id"), fields.get("event"), data)
            fields = {}


def without_comments(events: Iterator[ReceivedEvent]) -> Iterator[ReceivedEvent]:
    """Yield events without comments. Fails if none comes within TIMEOUT seconds: heartbeats would continue forever."""
    deadline = time.monotonic() + TIMEOUT
    for event in events:
        if event.data is not None:
            yield event
            deadline = time.monotonic() + TIMEOUT
        assert time.monotonic() < deadline, f"no event within {TIMEOUT} seconds, only heartbeats"


@contextmanager
def open_stream(port: int, path: str, headers: Mapping[str, str] | None = None) -> Iterator[Iterator[ReceivedEvent]]:
    """The events of a stream of a running server, without comments; they end when the server ends the stream."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)) as connection:
        connection.request("GET", path, headers=ACCEPT | dict(headers or {}))
        response = connection.getresponse()
        assert response.status == 200, response.read()
        lines = (line.decode().rstrip("\n") for line in iter(response.readline, b""))
        yield without_comments(parse_event_stream(lines))
