"""Export responses: all orders that match, streamed page by page."""

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import structlog
from flask import Flask, Response, current_app, stream_with_context

from app.db.errors import DATABASE_ERRORS, loggable_message
from app.errors import InvalidRequest, ServiceError
from app.http.auth import require_unchanged
from app.http.content_negotiation import compress, preferred_media_type
from app.http.rate_limit import Slots
from app.http.requests import yield_to_other_requests
from app.models.principal import Principal
from app.schemas.strict_json import INVALID_PARAMETERS
from app.services.order_export import BYTE_ORDER_MARK, as_csv, as_ndjson

NDJSON, CSV = "application/x-ndjson", "text/csv"
EXPORT_MEDIA_TYPES = (NDJSON, CSV, "application/ndjson", "application/jsonl")  # the last two are names of NDJSON, too
_FORMATS = {"ndjson": NDJSON, "csv": CSV}
_CHUNK = 64 * 1024  # characters sent at once: one chunk for each line would cost more than the lines
_RETRY_AFTER = 5  # seconds

log = structlog.get_logger()


class ExportAborted(ConnectionAbortedError):
    """Aborts a response that has started: servers close the connection without the last chunk of the body, so the
    client knows that the export is incomplete (RFC 9112 §8)."""


def init_app(app: Flask) -> None:
    """Limit the concurrent exports of each principal in this process."""
    limit = app.config["EXPORT_STREAMS"]
    app.extensions["export_slots"] = Slots(
        "export", customers=limit, services=limit, total=sys.maxsize, retry_after=_RETRY_AFTER
    )


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
        media_type = _FORMATS[format_name] if format_name else preferred_media_type(EXPORT_MEDIA_TYPES)
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
        documents = _in_slot(documents, principal)
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


def _in_slot(documents: Iterator[str], principal: Principal) -> Iterator[str]:
    """Occupy a slot until the documents end or the server closes the generator."""
    with current_app.extensions["export_slots"].occupied(principal):
        yield from documents


def _chunks(lines: Iterator[str]) -> Iterator[str]:
    """Join lines to chunks of at least _CHUNK characters; at least one chunk, which may be empty."""
    chunk: list[str] = []
    size = 0
    for line in lines:
        chunk.append(line)
        size += len(line)
        if size >= _CHUNK:
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
