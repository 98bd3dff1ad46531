"""Ids, order numbers, and hashes of keys and bodies. The application makes all ids: there are no database sequences."""

import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

import orjson

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # without I, L, O and U, which are easily misread
_PAIRS = [first + second for first in _CROCKFORD for second in _CROCKFORD]
# An order number as it is stored: a date, and Crockford base 32.
NUMBER_PATTERN = r"[0-9]{6}-[0-9A-HJKMNP-TV-Z]{8}\Z"

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # the earliest time that an id can hold
_MICROSECOND = timedelta(microseconds=1)
_RANDOM_BITS = 46
LOWEST_ID, HIGHEST_ID = "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

ALIAS_PREFIX = "erased-"  # of a customer id; reserved, so that requests with such a customer_id are refused
CREATE = "create"  # the operation of the idempotency keys of new orders


def new_order_id(
    at: datetime,
    *,
    key_hash: str | None,
    randbits: Callable[[int], int] = secrets.randbits,
) -> str:
    """A UUIDv7 (RFC 9562 §5.7) for an order created at `at`, an aware time.

    The 12 bits after the milliseconds contain the microseconds (§6.2, method 3), so ids sort exactly as `created_at`
    does and the primary key is the index for time. The last 16 bits are those of the key's hash, or random without a
    key: on a distributed database all attempts with one key reach one shard, which can enforce its uniqueness. Pass
    `randbits` for reproducible sample data only; ids must not be predictable.
    """
    tail = int(key_hash[-4:], 16) if key_hash is not None else randbits(16)
    return _to_text(_time_bits(at) | randbits(_RANDOM_BITS) << 16 | tail)


def hash_key(key: str, *, principal: str, operation: str) -> str:
    """The hash of an idempotency key, 32 hexadecimal digits. Each principal and operation has keys of its own."""
    return blake2b(f"{principal}\0{operation}\0{key}".encode(), digest_size=16).hexdigest()


def hash_reference(external_ref: str | None, *, principal: str) -> str | None:
    """The hash of an external reference of the principal. In a batch it replaces the key of an order without one."""
    return None if external_ref is None else hash_key(external_ref, principal=principal, operation="external_ref")


def fingerprint(content: Any) -> str:
    """A hash of a validated body in canonical form, with sorted members: the JSON's spelling does not matter."""
    return blake2b(orjson.dumps(content, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def new_id(at: datetime) -> str:
    """A random UUIDv7 for anything other than an order, created at `at`, an aware time."""
    return _to_text(_time_bits(at) | secrets.randbits(_RANDOM_BITS + 16))


def first_order_id(at: datetime) -> str:
    """The smallest id of an order created at `at`: `id >= first_order_id(t)` is equivalent to `created_at >= t`."""
    return _to_text(_time_bits(at))


def time_ago(age: timedelta) -> datetime:
    """The time that is `age` before now, not before 1970: an id has no earlier one."""
    now = datetime.now(UTC)
    return now - min(age, now - EPOCH)


def next_id(order_id: str) -> str:
    """The next larger id; the largest id is its own successor."""
    return _to_text(min(_to_integer(order_id) + 1, 2**128 - 1))


def order_number(order_id: str, at: datetime) -> str:
    """The human-readable order number: UTC date and 40 random bits of the id in Crockford base 32, `261122-7QK4MZ8D`.

    A sequence would be a bottleneck, and would disclose the number of orders a day.
    """
    bits = _to_integer(order_id) >> (16 + _RANDOM_BITS - 40)
    digits = _PAIRS[bits >> 30 & 1023] + _PAIRS[bits >> 20 & 1023] + _PAIRS[bits >> 10 & 1023] + _PAIRS[bits & 1023]
    return f"{at.year % 100:02}{at.month:02}{at.day:02}-{digits}"  # strftime takes three times as long


def normalize_order_number(text: str) -> str:
    """The stored form of an order number as a person typed it: in upper case, with O, I and L read as 0 and 1."""
    return text.strip().upper().translate(str.maketrans("OIL", "011"))


def new_alias() -> str:
    """A random customer id to replace the id of a customer whose personal data is erased."""
    return f"{ALIAS_PREFIX}{secrets.token_hex(8)}"


def is_alias(customer_id: str) -> bool:
    """Whether the customer id is the alias of a customer whose personal data was erased."""
    return customer_id.startswith(ALIAS_PREFIX)


def parse_uuid(text: str) -> str | None:
    """The canonical text of a UUID written with dashes, or None."""
    return text.lower() if _UUID.fullmatch(text) else None


def _time_bits(at: datetime) -> int:
    milliseconds, microseconds = divmod((at - EPOCH) // _MICROSECOND, 1000)
    return milliseconds << 80 | 7 << 76 | (microseconds * 4096 // 1000) << 64 | 2 << 62


def _to_integer(order_id: str) -> int:
    return int(order_id.replace("-", ""), 16)


def _to_text(value: int) -> str:
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
