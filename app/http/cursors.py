"""Opaque cursors of lists, each bound to its list.

A cursor contains only a position; which orders a principal may see is decided by the SQL of the list. The binding is no
signature and need not be one: a forged cursor only changes where the client's own list starts.

At the ends of a list, both the cursor and the position are None.
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any
from uuid import UUID

import orjson

from app.db.types import read_timestamp, rfc3339
from app.errors import InvalidCursor
from app.services.order_search import SearchPosition

_BINDING_BYTES = 8
_VERSION_MAX = 2**31 - 1  # the largest integer of the column
_SEQ_MAX = 2**63 - 1
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)  # a number of the feed, as text; cursors are longer
_INVALID = "The cursor is damaged, or belongs to another list. Start again without a cursor."


def make_cursor(after: str | None, *, query: Mapping[str, Any]) -> str | None:
    """Return the cursor for the position after the order `after` in the list with these filters and this sort."""
    return None if after is None else _make(UUID(after).bytes, query)


def read_cursor(text: str | None, *, query: Mapping[str, Any]) -> str | None:
    """Return the order id in a cursor. Raises InvalidCursor if the cursor belongs to another query."""
    return None if text is None else str(UUID(bytes=_read(text, 16, query)))


def make_version_cursor(after: int | None, *, order_id: str) -> str | None:
    """Return the cursor for the position after a version in an order's history."""
    return None if after is None else _make(after.to_bytes(4), {"order_id": order_id})


def read_version_cursor(text: str | None, *, order_id: str) -> int | None:
    """Return the version in a cursor. Raises InvalidCursor if the cursor belongs to another order."""
    if text is None:
        return None
    version = int.from_bytes(_read(text, 4, {"order_id": order_id}))
    if version > _VERSION_MAX:
        raise InvalidCursor(_INVALID)
    return version


def make_feed_cursor(after: int, *, query: Mapping[str, Any]) -> str:
    """Return the cursor for the position after a number of the feed, read with these filters."""
    return _make(after.to_bytes(8), query)


def read_feed_cursor(text: str, *, query: Mapping[str, Any]) -> int:
    """Return the number in a cursor, or the text itself as a number. Raises InvalidCursor."""
    number = int(text) if _NUMBER.fullmatch(text) else int.from_bytes(_read(text, 8, query))
    if number > _SEQ_MAX:
        raise InvalidCursor(_INVALID)
    return number


def make_search_cursor(after: SearchPosition | None, *, query: Mapping[str, Any]) -> str | None:
    """Return the cursor for a position in a search with these filters and this sort."""
    if after is None:
        return None
    return _make(UUID(after.order_id).bytes + orjson.dumps(after.value), query)


def read_search_cursor(text: str | None, *, query: Mapping[str, Any]) -> SearchPosition | None:
    """Return the position in a cursor. Raises InvalidCursor if the cursor belongs to another query."""
    if text is None:
        return None
    position = _read(text, None, query)
    try:
        value: Any = orjson.loads(position[16:])
        order_id = str(UUID(bytes=position[:16]))
    except ValueError:
        raise InvalidCursor(_INVALID) from None
    if not _IS_VALUE[str(query["sort"]).removeprefix("-")](value):
        raise InvalidCursor(_INVALID)
    return SearchPosition(value, order_id)


def _is_time(value: Any) -> bool:
    """Whether a value is a time as the database compares it."""
    try:
        return isinstance(value, str) and rfc3339(read_timestamp(value)) == value
    except (ValueError, OverflowError):
        return False


# Whether a value is possible in the sort. The binding is no signature: a forged cursor may contain any value.
_IS_VALUE: dict[str, Callable[[Any], bool]] = {
    "created_at": lambda value: value is None,
    "updated_at": _is_time,
    "total": lambda value: type(value) is int and -1 <= value <= _SEQ_MAX,
}


def _make(position: bytes, query: Mapping[str, Any]) -> str:
    return urlsafe_b64encode(position + _binding(query)).decode()


def _read(text: str, length: int | None, query: Mapping[str, Any]) -> bytes:
    try:
        raw = urlsafe_b64decode(text)
    except (Base64Error, ValueError):
        raw = b""
    position, binding = raw[:-_BINDING_BYTES], raw[-_BINDING_BYTES:]
    if binding != _binding(query) or (length is not None and len(position) != length):
        raise InvalidCursor(_INVALID)
    return position


def _binding(query: Mapping[str, Any]) -> bytes:
    return blake2b(orjson.dumps(dict(query), option=orjson.OPT_SORT_KEYS), digest_size=_BINDING_BYTES).digest()
