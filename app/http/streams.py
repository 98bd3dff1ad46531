"""Responses that last: requests that wait for events, event streams, and exports, in this order.

An event stream consists of Server-Sent Events (WHATWG HTML §9.2). An export is streamed page by page.
"""

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import structlog
from flask import Flask, Response, current_app, stream_with_context

from app.db.engine import DATABASE_ERRORS, loggable_message
from app.errors import InvalidRequest, ServiceError
from app.http.auth import require_unchanged
from app.http.rate_limit import Slots, leave
from app.http.requests import current_request, yield_to_other_requests
from app.http.responses import compress, preferred_media_type
from app.models.principal import Principal
from app.schemas.base import INVALID_PARAMETERS
from app.services.event_feed import FeedFilter, FeedWatcher, Subscription
from app.services.order_queries import BYTE_ORDER_MARK, as_csv, as_ndjson

log = structlog.get_logger()

EVENT_STREAM = "text/event-stream"
WATCH_CLOSING = "order_service.watch_closing"  # WSGI environment key of our server (gunicorn_worker.py)
HEARTBEAT = 15.0  # seconds without an event, after which a comment shows that both ends are still connected
STREAM_PAGE = 100  # events that a stream reads at once

_RECONNECT = 1_000, 4_000  # milliseconds: clients do not reconnect all at once when a server stops
_DATABASE_PAUSE = 1.0  # seconds between two reads while the database does not answer
_BUSY_SECONDS = 5  # in Retry-After, while too many streams or exports are running
_READERS = 3  # streams of single orders that read at the same time: thousands connect again after a reload

NDJSON, CSV = "application/x-ndjson", "text/csv"
EXPORT_MEDIA_TYPES = (NDJSON, CSV, "application/ndjson", "application/jsonl")  # the last two are names of NDJSON, too
_EXPORT_FORMATS = {"ndjson": NDJSON, "csv": CSV}
EXPORT_CHUNK = 64 * 1024  # characters sent at once: one chunk for each line would cost more than the lines


def init_app(app: Flask) -> None:
    """Set up the event streams of this process, and limit the exports of each principal in it."""
    app.extensions["event_streams"] = EventStreams(app)
    exports = app.config["EXPORT_STREAMS"]
    app.extensions["export_slots"] = Slots(
        "export", customers=exports, services=exports, total=sys.maxsize, retry_after=_BUSY_SECONDS
    )


class StreamEvent(NamedTuple):
    """An event in a stream. `id` is what a client sends as `Last-Event-ID` to continue after it."""

    id: int
    type: str
    document: str


class StreamPage(NamedTuple):
    """Events, the id to continue after, and whether more events already follow."""

    events: list[StreamEvent]
    next_after: int
    more: bool


@dataclass(frozen=True, slots=True)
class EventSource:
    """The events to stream: `read` returns the page after an id.

    `of_feed`: ids are numbers of the feed. A reader can continue after events that do not match its filters, and
    readers at the same position share one read.
    """

    filters: FeedFilter
    read: Callable[[int], StreamPage]
    of_feed: bool


class EventStreams:
    """The streams of this process. A server sets `watcher.is_stopping`, so that they end when it stops."""

    def __init__(self, app: Flask) -> None:
        config = app.config
        self.watcher = FeedWatcher(app.app_context)
        limit, customer_limit = config["EVENT_STREAMS"], config["EVENT_STREAMS_CUSTOMERS"]
        self.slots = Slots(
            "event stream", customers=customer_limit, services=sys.maxsize, total=limit, retry_after=_BUSY_SECONDS
        )
        self._reading = threading.Semaphore(_READERS)

    @contextmanager
    def subscribed(self, filters: FeedFilter, principal: Principal) -> Iterator[Subscription]:
        """Occupy a slot and watch the feed. Raises TooManyRequests or ServiceUnavailable."""
        with self.slots.occupied(principal), self.watcher.subscribed(filters) as subscription:
            leave()
            if watch_closing := current_request().environ.get(WATCH_CLOSING):
                watch_closing(subscription.close)
            yield subscription

    def read(self, source: EventSource, after: int) -> StreamPage:
        """Read a page. At most _READERS streams of single orders read at a time, so that other requests get a
        connection."""
        if source.of_feed:
            return source.read(after)
        with self._reading:
            return source.read(after)


def last_event_id() -> str | None:
    """Return the id of the last event that the client has received, or None."""
    return current_request().headers.get("Last-Event-ID") or None


def wait_for_page(source: EventSource, *, after: int, principal: Principal, seconds: int) -> StreamPage:
    """Return the next page with an event, or an empty one after `seconds`.

    Raises what reading raises, TooManyRequests and ServiceUnavailable.
    """
    if not seconds:
        return source.read(after)
    deadline, streams = time.monotonic() + seconds, _streams()
    with streams.subscribed(source.filters, principal) as subscription:
        while True:
            subscription.reset()
            page = streams.read(source, after)
            remaining = deadline - time.monotonic()
            if page.events or page.more or remaining <= 0 or subscription.is_closed:
                return page
            after = page.next_after
            checked = subscription.wait(remaining)
            if checked is not None:
                return StreamPage([], max(after, checked), more=False)


def stream_response(source: EventSource, *, after: int, principal: Principal) -> Response:
    """Return a stream of all events after an id, which ends when the client or the server closes it.

    The first page is read before the response starts, so that its errors are answered with a problem.
    """
    frames = _frames(source, after, principal)
    response = Response(stream_with_context(_with_first(next(frames), frames)), mimetype=EVENT_STREAM)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"  # nginx passes each event on at once
    response.vary.update(("Accept", "Authorization"))
    return response


def _with_first(first: str, frames: Iterator[str]) -> Iterator[str]:
    """Closing this generator closes the frames, which `itertools.chain` would not."""
    yield first
    yield from frames


def _frames(source: EventSource, after: int, principal: Principal) -> Iterator[str]:
    """The text of the stream. It ends if the client must connect again: the credentials or the order are no longer
    valid."""
    streams = _streams()
    with streams.subscribed(source.filters, principal) as subscription:
        subscription.reset()
        page = streams.read(source, after)
        # A client that began with `latest` continues at this id if it is disconnected before the first event.
        position = "" if page.events else f"id: {page.next_after}\n"
        yield f"retry: {random.randint(*_RECONNECT)}\n{position}\n{_render_events(page)}"  # nosec B311
        try:
            yield from _following_frames(source, page, principal, subscription)
        except ServiceError as error:
            log.info("event stream ended", reason=error.slug)


def _following_frames(
    source: EventSource, page: StreamPage, principal: Principal, subscription: Subscription
) -> Iterator[str]:
    after, more, authorized_at = page.next_after, page.more, time.monotonic()
    while not subscription.is_closed:
        checked = None if more else subscription.wait(HEARTBEAT)
        if subscription.is_closed:
            return
        if time.monotonic() - authorized_at >= HEARTBEAT:
            require_unchanged(principal)
            authorized_at = time.monotonic()
        if checked is not None:
            after = max(after, checked) if source.of_feed else after
            yield f":\nid: {after}\n\n"
            continue
        subscription.reset()
        try:
            page = _streams().read(source, after)
        except DATABASE_ERRORS:  # the watcher of the feed logs it once
            yield ":\n\n"
            time.sleep(_DATABASE_PAUSE)
            more = True
            continue
        after, more = page.next_after, page.more
        if page.events:
            yield _render_events(page)
        if more:
            yield_to_other_requests()


def _render_events(page: StreamPage) -> str:
    return "".join(f"id: {event.id}\nevent: {event.type}\ndata: {event.document}\n\n" for event in page.events)


def _streams() -> EventStreams:
    streams: EventStreams = current_app.extensions["event_streams"]
    return streams


class ExportAborted(ConnectionAbortedError):
    """Aborts a response that has started: servers close the connection without the last chunk of the body, so the
    client knows that the export is incomplete (RFC 9112 §8)."""


@dataclass(frozen=True, slots=True)
class Export:
    """The form of an export. `negotiated`: the media type depends on `Accept`."""

    media_type: str
    byte_order_mark: bool = False
    negotiated: bool = False

    @classmethod
    def requested(cls, format_name: str | None, *, byte_order_mark: bool) -> "Export":
        """Return the export in the format of the `format` parameter, or else in the one preferred by `Accept`.

        Raises NotAcceptable, and InvalidRequest for a byte order mark in NDJSON.
        """
        media_type = _EXPORT_FORMATS[format_name] if format_name else preferred_media_type(EXPORT_MEDIA_TYPES)
        if byte_order_mark and media_type != CSV:
            error = {"parameter": "bom", "detail": "Only a CSV export can have a byte order mark. Use format=csv."}
            raise InvalidRequest(INVALID_PARAMETERS, errors=[error])
        return cls(media_type, byte_order_mark, negotiated=format_name is None)

    def response(
        self, documents: Iterator[str], *, principal: Principal, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Return a stream of the documents.

        The first chunk is read before the response starts, so that its errors are answered with a problem. Raises
        TooManyRequests if too many exports of the principal are running.
        """
        documents = _in_export_slot(documents, principal)
        lines = as_csv(documents) if self.media_type == CSV else as_ndjson(documents)
        chunks = _chunks(chain([BYTE_ORDER_MARK], lines) if self.byte_order_mark else lines)
        stream = _abort_on_errors(
            next(chunks), chunks, principal=principal, seconds=current_app.config["EXPORT_SECONDS"]
        )
        response = Response(stream_with_context(stream), content_type=f"{self.media_type}; charset=utf-8")
        response.headers.update({"Cache-Control": "private, no-store", **(headers or {})})
        if self.negotiated:
            response.vary.add("Accept")
        return compress(response)


def _in_export_slot(documents: Iterator[str], principal: Principal) -> Iterator[str]:
    """Occupy a slot until the documents end or the server closes the generator."""
    with current_app.extensions["export_slots"].occupied(principal):
        yield from documents


def _chunks(lines: Iterator[str]) -> Iterator[str]:
    """Join lines to chunks of at least EXPORT_CHUNK characters; at least one chunk, which may be empty."""
    chunk: list[str] = []
    size = 0
    for line in lines:
        chunk.append(line)
        size += len(line)
        if size >= EXPORT_CHUNK:
            yield "".join(chunk)
            chunk, size = [], 0
            yield_to_other_requests()  # neither SQLite nor sending to a fast client yields to other requests
    yield "".join(chunk)


def _abort_on_errors(first: str, chunks: Iterator[str], *, principal: Principal, seconds: int) -> Iterator[str]:
    """Yield the first chunk and the others. Raises ExportAborted on a database error, after `seconds`, and when the
    credentials are no longer valid."""
    deadline = time.monotonic() + seconds
    yield first
    try:
        for chunk in chunks:
            if time.monotonic() >= deadline:
                log.warning("export aborted", reason=f"not read within {seconds} seconds")
                raise ExportAborted
            require_unchanged(principal)
            yield chunk
    except ServiceError as error:
        log.warning("export aborted", reason=error.reason or error.detail)
        raise ExportAborted from error
    except DATABASE_ERRORS as error:
        log.warning("export aborted", error=type(error).__name__, reason=loggable_message(error))
        raise ExportAborted from error
