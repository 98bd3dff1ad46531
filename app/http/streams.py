"""Lists without an end: all orders that match, as they are read."""

import time
from collections.abc import Iterator

from flask import Response, request, stream_with_context

from app.http.arguments import JSON
from app.services.order_exports import as_csv, as_ndjson

NDJSON, CSV = "application/x-ndjson", "text/csv"
_CHUNK = 64 * 1024  # characters sent at once: a chunk a line would cost more than the lines


def preferred_stream() -> str | None:
    """The streamed media type that the request prefers to a page of JSON, or None."""
    if "Accept" not in request.headers:
        return None
    best = request.accept_mimetypes.best_match((JSON, NDJSON, CSV))
    return best if best in (NDJSON, CSV) else None


def stream_response(documents: Iterator[str], media_type: str) -> Response:
    """All the documents, in the media type. The first page is read before the answer starts, so that its faults are
    still told as a problem."""
    text = as_csv(_started(documents)) if media_type == CSV else as_ndjson(_started(documents))
    response = Response(stream_with_context(_chunks(text)), content_type=f"{media_type}; charset=utf-8")
    response.headers["Cache-Control"] = "private, no-store"
    response.headers["Vary"] = "Accept"
    return response


def _started(documents: Iterator[str]) -> Iterator[str]:
    first = next(documents, None)

    def rest() -> Iterator[str]:
        if first is not None:
            yield first
            yield from documents

    return rest()


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
