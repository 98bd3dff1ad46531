"""Which media type a request prefers (RFC 9110 §12.5.1)."""

from collections.abc import Sequence

from flask import Request
from werkzeug.http import parse_list_header, parse_options_header

from app.errors import NotAcceptable


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
        raise NotAcceptable(f"This resource is available as {' or '.join(offered)}.").with_headers(Vary="Accept")
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
