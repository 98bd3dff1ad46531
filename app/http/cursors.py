"""Opaque cursors, each bound to the list it came from."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any
from uuid import UUID

import orjson

from app.errors import InvalidCursor

_ID_BYTES, _BINDING_BYTES = 16, 8


def make_cursor(after: str, *, query: Mapping[str, Any]) -> str:
    """A cursor that goes on behind the order `after` in the list that `query` (filters and sort) describes."""
    return urlsafe_b64encode(UUID(after).bytes + _binding(query)).decode()


def read_cursor(text: str, *, query: Mapping[str, Any]) -> str:
    """The order id in a cursor. Raises InvalidCursor unless it was made for the same query."""
    try:
        raw = urlsafe_b64decode(text)
    except (Base64Error, ValueError):
        raw = b""
    if len(raw) != _ID_BYTES + _BINDING_BYTES or raw[_ID_BYTES:] != _binding(query):
        raise InvalidCursor("The cursor was made for other filters or another sort, or is damaged.")
    return str(UUID(bytes=raw[:_ID_BYTES]))


def _binding(query: Mapping[str, Any]) -> bytes:
    return blake2b(orjson.dumps(dict(query), option=orjson.OPT_SORT_KEYS), digest_size=_BINDING_BYTES).digest()
