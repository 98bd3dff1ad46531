"""Opaque cursors, each bound to the list it came from.

A cursor holds a position and nothing else: what a principal may see is decided by the SQL of the list it is used for.
The binding is not a signature, and need not be: whoever forges a cursor chooses where their own list begins.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any
from uuid import UUID

import orjson

from app.errors import InvalidCursor

_BINDING_BYTES = 8
_VERSION_MAX = 2**31 - 1  # what the database holds
_NOT_OF_THIS_LIST = "The cursor is damaged, or belongs to another list. Start again without a cursor."


def make_cursor(after: str, *, query: Mapping[str, Any]) -> str:
    """A cursor that goes on behind the order `after` in the list that `query` (filters and sort) describes."""
    return _make(UUID(after).bytes, query)


def read_cursor(text: str, *, query: Mapping[str, Any]) -> str:
    """The order id in a cursor. Raises InvalidCursor unless it was made for the same query."""
    return str(UUID(bytes=_read(text, 16, query)))


def make_version_cursor(after: int, *, order_id: str) -> str:
    """A cursor that goes on behind a version in an order's history."""
    return _make(after.to_bytes(4), {"order_id": order_id})


def read_version_cursor(text: str, *, order_id: str) -> int:
    """The version in a cursor. Raises InvalidCursor unless it was made for the same order."""
    version = int.from_bytes(_read(text, 4, {"order_id": order_id}))
    if version > _VERSION_MAX:
        raise InvalidCursor(_NOT_OF_THIS_LIST)
    return version


def _make(position: bytes, query: Mapping[str, Any]) -> str:
    return urlsafe_b64encode(position + _binding(query)).decode()


def _read(text: str, length: int, query: Mapping[str, Any]) -> bytes:
    try:
        raw = urlsafe_b64decode(text)
    except (Base64Error, ValueError):
        raw = b""
    if len(raw) != length + _BINDING_BYTES or raw[length:] != _binding(query):
        raise InvalidCursor(_NOT_OF_THIS_LIST)
    return raw[:length]


def _binding(query: Mapping[str, Any]) -> bytes:
    return blake2b(orjson.dumps(dict(query), option=orjson.OPT_SORT_KEYS), digest_size=_BINDING_BYTES).digest()
