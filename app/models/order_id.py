"""Ids and numbers, made here and never by the database."""

import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import blake2b

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # no I, L, O, U: they are misread
_PAIRS = [first + second for first in _CROCKFORD for second in _CROCKFORD]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_RANDOM_BITS = 46
LOWEST_ID, HIGHEST_ID = "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def new_order_id(
    at: datetime,
    *,
    key_hash: str | None,
    randbits: Callable[[int], int] = secrets.randbits,
) -> str:
    """A UUIDv7 (RFC 9562 §5.7) for an order made at `at`, an aware time.

    The 12 bits after the milliseconds hold the rest of the microsecond (§6.2, method 3), so that ids sort exactly as
    `created_at` does and the primary key is the index for time. The last 16 bits are those of the key's hash, random
    where there is no key: all attempts under one key then fall on one shard, where its unique constraint can live.
    Another `randbits` is for sample data that is to come out the same again: ids must not be guessed from one another.
    """
    tail = int(key_hash[-4:], 16) if key_hash is not None else randbits(16)
    return _uuid(_time_bits(at) | randbits(_RANDOM_BITS) << 16 | tail)


def hash_key(key: str, *, principal: str, operation: str) -> str:
    """A key as it is stored: 32 hexadecimal digits, which survive an erasure. Each operation has keys of its own."""
    return blake2b(f"{principal}\0{operation}\0{key}".encode(), digest_size=16).hexdigest()


def hash_reference(external_ref: str | None, *, principal: str) -> str | None:
    """An external reference as its creator's own. In a batch it stands for the key of an order without one."""
    return None if external_ref is None else hash_key(external_ref, principal=principal, operation="external_ref")


def new_id(at: datetime) -> str:
    """A random UUIDv7 for anything else that is made at `at`, an aware time."""
    return _uuid(_time_bits(at) | secrets.randbits(_RANDOM_BITS + 16))


def first_order_id(at: datetime) -> str:
    """The smallest id that an order made at `at` can have: `id >= first_order_id(t)` is `created_at >= t`."""
    return _uuid(_time_bits(at))


def next_id(order_id: str) -> str:
    """The smallest id behind the given one; behind the highest there is none, and it is its own."""
    return _uuid(min(_number(order_id) + 1, 2**128 - 1))


def order_number(order_id: str, at: datetime) -> str:
    """The number for people: the UTC date and 40 of the id's random bits as Crockford base 32, `261122-7QK4MZ8D`.

    A sequence would be a bottleneck, and would tell a competitor the day's sales.
    """
    bits = _number(order_id) >> (16 + _RANDOM_BITS - 40)
    digits = "".join(_PAIRS[bits >> shift & 1023] for shift in (30, 20, 10, 0))
    return f"{at.year % 100:02}{at.month:02}{at.day:02}-{digits}"  # strftime takes three times as long


def read_order_number(text: str) -> str:
    """A number as a person may have typed it, in the form it is stored in: case and look-alikes do not matter."""
    return text.strip().upper().translate(str.maketrans("OIL", "011"))


def parse_uuid(text: str) -> str | None:
    """The canonical text of a UUID written with dashes, or None."""
    return text.lower() if _UUID.fullmatch(text) else None


def _time_bits(at: datetime) -> int:
    milliseconds, microseconds = divmod((at - _EPOCH) // _MICROSECOND, 1000)
    return milliseconds << 80 | 7 << 76 | (microseconds * 4096 // 1000) << 64 | 2 << 62


def _number(order_id: str) -> int:
    return int(order_id.replace("-", ""), 16)


def _uuid(value: int) -> str:
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
