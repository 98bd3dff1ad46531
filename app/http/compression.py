"""Content coding: gzip for lists, exports, pages and metrics, where the client accepts it.

A single order is never compressed. Its strong entity tag, which `If-Match` needs, stands for one sequence of bytes; a
proxy that compresses must make the tag weak, so nginx leaves it to the service, which knows what it answers. Nothing
secret that a browser adds by itself (a cookie, a token) is in any response, so its length tells nothing (BREACH).
"""

import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache

from flask import Response
from werkzeug.datastructures import Accept
from werkzeug.http import parse_accept_header

from app.event_loop import let_others_run
from app.http.application import current_request

CODING = "gzip"
MIN_SIZE = 1_400  # bytes: what fits into one packet arrives no sooner when it is smaller
_FAST, _SMALL = 1, 6  # zlib levels: 64 KiB of orders take 0.2 ms to a ninth, or 0.5 ms to a tenth of their size
_PIECE = 64 * 1024  # bytes compressed before the worker's other requests go on


def gzip_accepted() -> bool:
    """Whether the request prefers gzip to no coding (RFC 9110 §12.5.3)."""
    header: str | None = current_request().environ.get("HTTP_ACCEPT_ENCODING")
    return header is not None and _prefers_gzip(header)


@lru_cache(maxsize=256)  # clients send few different ones
def _prefers_gzip(header: str) -> bool:
    qualities = {coding.lower(): quality for coding, quality in parse_accept_header(header, Accept)}
    named = [qualities[coding] for coding in ("gzip", "x-gzip") if coding in qualities]
    quality = max(named, default=qualities.get("*", 0))
    return quality > 0 and quality >= qualities.get("identity", 0)


def compress(response: Response) -> Response:
    """The response, compressed if that is accepted and pays. It must not have an entity tag."""
    response.vary.add("Accept-Encoding")
    if not gzip_accepted():
        return response
    if response.is_streamed:
        response.response = _gzip_stream(response.response)
        response.headers["Content-Encoding"] = CODING
    elif len(body := response.get_data()) >= MIN_SIZE:
        response.set_data(gzip(body))
        response.headers["Content-Encoding"] = CODING
    return response


def gzip(body: bytes, *, level: int = _FAST) -> bytes:
    """The body, compressed; the same bytes each time."""
    compressor = zlib.compressobj(level, wbits=31)  # 31: with gzip's header, which names no time
    parts = [compressor.compress(body[:_PIECE])]
    for start in range(_PIECE, len(body), _PIECE):
        let_others_run()
        parts.append(compressor.compress(body[start : start + _PIECE]))
    return b"".join((*parts, compressor.flush()))


@lru_cache(maxsize=128)  # more than the service has pages and assets
def gzip_of_page(body: bytes) -> bytes:
    """A page's body, compressed once for all its readers."""
    return gzip(body, level=_SMALL)


def _gzip_stream(parts: Iterable[str] | Iterable[bytes]) -> Iterator[bytes]:
    """The parts, each complete for its reader: none waits in the compressor for the next."""
    compressor = zlib.compressobj(_FAST, wbits=31)
    try:
        for part in parts:
            data = compressor.compress(part.encode() if isinstance(part, str) else part)
            yield data + compressor.flush(zlib.Z_SYNC_FLUSH)
        yield compressor.flush()
    finally:
        if hasattr(parts, "close"):
            parts.close()
