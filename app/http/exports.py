"""Exports: all orders that match, sent as they are read."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from flask import Flask, Response, current_app, request, stream_with_context

from app.db.errors import DATABASE_ERRORS
from app.errors import InvalidRequest, TooManyRequests
from app.http.application import let_others_run
from app.http.content_negotiation import compress, preferred_media_type
from app.models.principal import Principal
from app.schemas.strict_json import INVALID_PARAMETERS
from app.services.order_export import BYTE_ORDER_MARK, as_csv, as_ndjson

NDJSON, CSV = "application/x-ndjson", "text/csv"
EXPORT_MEDIA_TYPES = (NDJSON, CSV, "application/ndjson", "application/jsonl")  # the last two name NDJSON as well
_FORMATS = {"ndjson": NDJSON, "csv": CSV}
_CHUNK = 64 * 1024  # characters sent at once: a chunk a line would cost more than the lines
_RETRY_AFTER = 5  # seconds until a refused export may be tried again

log = structlog.get_logger()


class ExportBrokenOff(ConnectionAbortedError):
    """Ends a response that has begun: servers close the connection, without the last chunk of the body, so that the
    client knows that it has not got everything (RFC 9112 §8)."""


class ExportSlots:
    """How many exports each principal is reading in this process, and no more than `most` of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def occupied(self, principal: Principal) -> Iterator[None]:
        """One export of the principal. Raises TooManyRequests where there is no slot left."""
        with self._lock:
            if self._running[principal.id] >= self._most:
                detail = f"{self._most} exports of this principal are already running. Wait until one has finished."
                raise TooManyRequests(detail).with_headers(Retry_After=str(_RETRY_AFTER))
            self._running[principal.id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= Counter([principal.id])  # what comes down to zero is removed


def init_app(app: Flask) -> None:
    """Prepare to count the exports."""
    app.extensions["export_slots"] = ExportSlots(app.config["EXPORT_STREAMS"])


def export_media_type(format_name: str | None, *, byte_order_mark: bool) -> str:
    """The media type of an export: that of the `format` parameter, else the one that `Accept` prefers.

    Raises NotAcceptable, and InvalidRequest for a byte order mark in NDJSON.
    """
    media_type = _FORMATS[format_name] if format_name else preferred_media_type(request, EXPORT_MEDIA_TYPES)
    if byte_order_mark and media_type != CSV:
        fault = {"parameter": "bom", "detail": "Only a CSV export can have a byte order mark. Use format=csv."}
        raise InvalidRequest(INVALID_PARAMETERS, errors=[fault])
    return media_type


def export_response(
    documents: Iterator[str], media_type: str, *, principal: Principal, byte_order_mark: bool, negotiated: bool
) -> Response:
    """All the documents, in the media type; `negotiated` tells caches that it depends on `Accept`.

    The first page is read before the response starts, so that its faults are still answered with a problem; so is
    TooManyRequests, where the principal reads too many exports already.
    """
    started = _started(_in_slot(documents, principal))
    text = as_csv(started) if media_type == CSV else as_ndjson(started)
    if byte_order_mark:
        text = _preceded(BYTE_ORDER_MARK, text)
    chunks = _broken_off(_chunks(text), seconds=current_app.config["EXPORT_SECONDS"])
    response = Response(stream_with_context(chunks), content_type=f"{media_type}; charset=utf-8")
    response.headers["Cache-Control"] = "private, no-store"
    if negotiated:
        response.vary.add("Accept")
    return compress(response)


def _in_slot(documents: Iterator[str], principal: Principal) -> Iterator[str]:
    """The documents. The slot is given back with the generator: at its end, or when the server drops it."""
    with current_app.extensions["export_slots"].occupied(principal):
        yield from documents


def _started(documents: Iterator[str]) -> Iterator[str]:
    first = next(documents, None)

    def rest() -> Iterator[str]:
        if first is not None:
            yield first
            yield from documents

    return rest()


def _preceded(mark: str, lines: Iterator[str]) -> Iterator[str]:
    yield mark
    yield from lines


def _chunks(lines: Iterator[str]) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= _CHUNK:
            yield "".join(held)
            held, size = [], 0
            let_others_run()  # neither SQLite nor a fast reader would let them in
    yield "".join(held)


def _broken_off(chunks: Iterator[str], *, seconds: int) -> Iterator[str]:
    """The chunks, until so many seconds have passed or the database fails. Raises ExportBrokenOff then."""
    deadline = time.monotonic() + seconds
    try:
        for chunk in chunks:
            if time.monotonic() >= deadline:
                log.warning("export broken off", reason=f"not read within {seconds} seconds")
                raise ExportBrokenOff
            yield chunk
    except DATABASE_ERRORS as error:
        log.warning("export broken off", error=type(error).__name__, reason=str(error).partition("\n")[0])
        raise ExportBrokenOff from error
