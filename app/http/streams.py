"""Exports: all orders that match, sent as they are read."""

import time
from collections.abc import Iterator

from flask import Response, request, stream_with_context

from app.errors import InvalidRequest
from app.http.compression import compress
from app.http.negotiation import preferred_media_type
from app.services.order_exports import BYTE_ORDER_MARK, as_csv, as_ndjson

NDJSON, CSV = "application/x-ndjson", "text/csv"
EXPORT_MEDIA_TYPES = (NDJSON, CSV, "application/ndjson", "application/jsonl")  # the last two name NDJSON as well
_FORMATS = {"ndjson": NDJSON, "csv": CSV}
_CHUNK = 64 * 1024  # characters sent at once: a chunk a line would cost more than the lines


def export_media_type(format_name: str | None, *, byte_order_mark: bool) -> str:
    """The media type of an export: that of the `format` parameter, else the one that `Accept` prefers.

    Raises NotAcceptable, and InvalidRequest for a byte order mark in NDJSON.
    """
    media_type = _FORMATS[format_name] if format_name else preferred_media_type(request, EXPORT_MEDIA_TYPES)
    if byte_order_mark and media_type != CSV:
        fault = {"parameter": "bom", "detail": "Only CSV can begin with a byte order mark."}
        raise InvalidRequest("Parameters are not valid.", errors=[fault])
    return media_type


def export_response(
    documents: Iterator[str], media_type: str, *, byte_order_mark: bool, negotiated: bool
) -> Response:
    """All the documents, in the media type; `negotiated` tells caches that it depends on `Accept`.

    The first page is read before the response starts, so that its faults are still answered with a problem.
    """
    text = as_csv(_started(documents)) if media_type == CSV else as_ndjson(_started(documents))
    if byte_order_mark:
        text = _preceded(BYTE_ORDER_MARK, text)
    response = Response(stream_with_context(_chunks(text)), content_type=f"{media_type}; charset=utf-8")
    response.headers["Cache-Control"] = "private, no-store"
    if negotiated:
        response.vary.add("Accept")
    return compress(response)


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
            time.sleep(0)  # the worker's other requests; neither SQLite nor a fast reader would let them in
    yield "".join(held)
