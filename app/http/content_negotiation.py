"""Which media type a request prefers (RFC 9110 §12.5.1)."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from flask import Request, Response
from werkzeug.datastructures import Accept
from werkzeug.http import parse_accept_header, parse_list_header, parse_options_header

from app.errors import NotAcceptable
from app.http.application import current_request, let_others_run


def preferred_media_type(request: Request, offered: Sequence[str]) -> str:
    """The offered media type that the request's `Accept` prefers, the first of several equal ones.

    Parameters other than `q`, such as a charset, do not matter. Raises NotAcceptable where none is accepted.
    """
    header = request.headers.get("Accept", "")
    if not header.strip():
        return offered[0]
    qualities = _qualities(header)
    best = max(offered, key=lambda media_type: _quality(media_type, qualities))
    if not _quality(best, qualities):
        raise NotAcceptable(
            f"This resource is available as {' or '.join(offered)}. Send one of them in Accept."
        ).with_headers(Vary="Accept")
    return best


def _qualities(header: str) -> dict[str, float]:
    qualities: dict[str, float] = {}
    for item in parse_list_header(header):
        media_range, parameters = parse_options_header(item)
        try:
            quality = float(parameters.get("q", "1"))  # ".2", as Java sends it, is a number too
        except ValueError:
            continue
        if 0 <= quality <= 1:
            name = media_range.lower()
            qualities[name] = max(quality, qualities.get(name, 0))
    return qualities


def _quality(media_type: str, qualities: dict[str, float]) -> float:
    """That of the most specific range that matches."""
    ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((qualities[name] for name in ranges if name in qualities), 0)


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
