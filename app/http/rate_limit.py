"""Rate limits of principals: exact over all workers of a machine, a few microseconds a request.

Responses state them in the headers of draft-ietf-httpapi-ratelimit-headers; a request beyond them is answered 429.
"""

import fcntl
import math
import mmap
import os
import struct
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, NamedTuple

import structlog
from flask import Flask, Response, current_app, g

from app.errors import ServiceUnavailable, TooManyRequests, pluralize
from app.http.requests import current_globals, current_request, with_pauses
from app.models.principal import Principal
from app.schemas.base import StrictSchema
from app.schemas.order import BatchInSchema
from shared_files import reserve

log = structlog.get_logger()

_SLOT = struct.Struct("<Qd")  # a principal's hash, and its theoretical arrival time
_SLOTS = 65_536  # 1 MiB: far more than there are principals that send requests within a minute
_PROBES = 16  # slots searched for a principal; if all are occupied, the principal that has been idle longest is evicted
_BODY_PART = StrictSchema.MAX_BODY_SIZE  # bytes: only the body of a batch is larger
_BODY_PARTS_MAX = BatchInSchema.MAX_BODY_SIZE // _BODY_PART  # a larger body is refused without reading it
_LARGE_LENGTH = len(str(_BODY_PART))  # digits of a Content-Length that may exceed a part
_WINDOW = 60.0  # seconds: the quota may be used within them at once or spread
CUSTOMER_SHARE = 4  # a customer may have a quarter of MAX_REQUESTS_IN_PROGRESS, a service all but a quarter


def init_app(app: Flask) -> None:
    """Count the requests of customers and services, if either has a limit, and those in progress of each principal.

    The slow requests of one principal would otherwise reach MAX_REQUESTS_IN_PROGRESS, and everybody else be refused.
    """
    config = app.config
    if config["AUTH"] == "off":
        return
    if limit := config["MAX_REQUESTS_IN_PROGRESS"]:
        share = max(1, limit // CUSTOMER_SHARE)
        app.extensions["request_slots"] = Slots(
            "request", customers=share, services=max(1, limit - share), total=sys.maxsize, retry_after=1
        )
        app.teardown_request(lambda _: leave())
    if config["RATE_LIMIT_CUSTOMERS"] or config["RATE_LIMIT_SERVICES"]:
        app.extensions["rate_limiter"] = RateLimiter(os.environ.get("RATE_LIMIT_FILE"))
        app.after_request(_add_headers)


def count(principal: Principal) -> None:
    """Count a request that begins, as one for each 64 KiB of its body: a batch that is refused or not valid is parsed.

    Raises TooManyRequests beyond the limit.
    """
    _count(principal, cost=_size(), counted=0)


def counted_entries(principal: Principal, entries: Sequence[Any]) -> Iterator[Any]:
    """Count a request that has begun as one for each of its entries instead. Returns the entries, with pauses for other
    requests.

    Raises TooManyRequests beyond the limit. A batch larger than the whole quota is accepted while none of the quota is
    used.
    """
    _count(principal, cost=len(entries), counted=_size())
    return with_pauses(entries)


def _size() -> int:
    """Return the size of the request's body in parts of _BODY_PART, 1 to _BODY_PARTS_MAX.

    A body without a Content-Length counts as one part: nginx receives it, and sends its length.
    """
    request = current_request()
    if len(request.environ.get("CONTENT_LENGTH", "")) < _LARGE_LENGTH:
        return 1
    length = request.content_length or 0  # None if it is malformed, which `flask run` accepts
    return max(1, min(-(-length // _BODY_PART), _BODY_PARTS_MAX))


def _count(principal: Principal, *, cost: int, counted: int) -> None:
    """Count a request of the principal as `cost` requests, `counted` of which have been counted before."""
    limiter: RateLimiter | None = current_app.extensions.get("rate_limiter")
    if limiter is None:
        return
    policy = "services" if principal.customer_id is None else "customers"
    limit = current_app.config[f"RATE_LIMIT_{policy.upper()}"]
    if limit == 0:
        return
    quota = limiter.count(principal.id, per_minute=limit, cost=cost, counted=counted)
    g.rate_limit = {
        "RateLimit-Policy": f'"{policy}";q={limit};w=60',
        "RateLimit": f'"{policy}";r={quota.remaining};t={math.ceil(quota.reset)}',
    }
    if quota.retry_after:
        detail = f"More than {pluralize(limit, 'request')} per minute. Wait for Retry-After seconds."
        if cost > 1:
            detail = f"The request counts as {cost}; {quota.remaining} of {limit} per minute remain."
        raise TooManyRequests(detail).with_headers(Retry_After=str(math.ceil(quota.retry_after)))


class Slots:
    """Limits what is in progress in this process: per customer, per service, and in total."""

    def __init__(self, noun: str, *, customers: int, services: int, total: int, retry_after: int) -> None:
        self.occupied_count = 0
        self._noun = noun
        self._customers, self._services, self._total = customers, services, total
        self._retry_after = str(retry_after)  # seconds
        self._by_principal: dict[str, int] = {}
        self._lock = threading.Lock()

    def enter(self, principal: Principal) -> None:
        """Occupy a slot, to be left later. Raises TooManyRequests, or ServiceUnavailable at the total limit."""
        limit = self._services if principal.customer_id is None else self._customers
        with self._lock:
            occupied = self._by_principal.get(principal.id, 0)
            if occupied >= limit:
                caller = "service" if principal.customer_id is None else "customer"
                detail = f"This {caller} has {pluralize(limit, self._noun)} in progress. Wait until one of them ends."
                raise TooManyRequests(detail).with_headers(Retry_After=self._retry_after)
            if self.occupied_count >= self._total:
                detail = f"Too many {self._noun}s are in progress. Send the request again later."
                raise ServiceUnavailable(detail).with_headers(Retry_After=self._retry_after)
            self._by_principal[principal.id] = occupied + 1
            self.occupied_count += 1

    def leave(self, principal: Principal) -> None:
        """Free a slot of the principal."""
        with self._lock:
            self.occupied_count -= 1
            if self._by_principal[principal.id] == 1:
                del self._by_principal[principal.id]
            else:
                self._by_principal[principal.id] -= 1

    @contextmanager
    def occupied(self, principal: Principal) -> Iterator[None]:
        """Occupy a slot for the block. Raises what `enter` raises."""
        self.enter(principal)
        try:
            yield
        finally:
            self.leave(principal)


def enter(slots: Slots, principal: Principal) -> None:
    """Begin a request. Raises TooManyRequests if the principal has too many in progress."""
    slots.enter(principal)
    current_globals().occupied_slots = slots


def leave() -> None:
    """End a request: its response (maybe a stream) begins, or it waits for events. Repeated calls are ignored."""
    context = current_globals()
    slots: Slots | None = context.pop("occupied_slots", None)
    if slots is not None:
        slots.leave(context.principal)


def _add_headers(response: Response) -> Response:
    if "rate_limit" in g:
        response.headers.update(g.rate_limit)
    return response


class Quota(NamedTuple):
    """A principal's quota after a request."""

    remaining: int  # requests that would be accepted now
    retry_after: float  # seconds until the refused request would be accepted; 0 if it was accepted
    reset: float  # seconds until one more request is accepted


class RateLimiter:
    """A leaky bucket for each principal (generic cell rate algorithm, ITU-T I.371), in memory shared by the workers.

    The state of a principal is one number in a file that the workers of a machine map. A database or Redis would cost a
    round trip a request, and could fail. Each machine counts for itself.
    """

    def __init__(self, path: str | None = None) -> None:
        """Map the shared file. Without a path, or without space for the file, this process counts for itself."""
        size = (_SLOTS + _PROBES) * _SLOT.size
        self._lock = threading.Lock()  # between threads; the lock of the file is between processes
        self._file: int | None = None
        if path is None or not _reserved(path, size):
            self._memory = mmap.mmap(-1, size)
            return
        self._file = os.open(path, os.O_RDWR)
        weakref.finalize(self, os.close, self._file)
        self._memory = mmap.mmap(self._file, size)

    def count(self, principal: str, *, per_minute: int, cost: int = 1, counted: int = 0) -> Quota:
        """Count `cost` requests, `counted` of which have been counted before, if all of them are within the limit.

        Of a refused request, only what has been counted before stays counted. More requests than a whole quota are
        accepted only while none of it is used, and no other request is until the excess has been made up.
        """
        # time.monotonic() is one clock for all processes of a machine, and is never set back.
        now, charge = time.monotonic(), _Charge(_WINDOW / per_minute, cost, counted)
        digest = blake2b(principal.encode(), digest_size=8).digest()
        first_slot = int.from_bytes(digest[:4]) % _SLOTS
        owner = int.from_bytes(digest, "little") or 1
        with self._lock:
            if self._file is None:
                return self._apply(charge, owner, first_slot, now)
            fcntl.lockf(self._file, fcntl.LOCK_EX, _PROBES, first_slot)
            try:
                return self._apply(charge, owner, first_slot, now)
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN, _PROBES, first_slot)

    def _apply(self, charge: "_Charge", owner: int, first_slot: int, now: float) -> Quota:
        start, end = first_slot * _SLOT.size, (first_slot + _PROBES) * _SLOT.size
        slots = list(_SLOT.iter_unpack(self._memory[start:end]))
        own = next((i for i, slot in enumerate(slots) if slot[0] == owner), None)
        i = min(range(_PROBES), key=lambda i: slots[i][1]) if own is None else own
        arrival, quota = charge.apply(slots[i][1] if own is not None else now, now)
        _SLOT.pack_into(self._memory, start + i * _SLOT.size, owner, arrival)
        return quota


class _Charge(NamedTuple):
    """`cost` requests at once, one of which is allowed each `interval` seconds."""

    interval: float
    cost: int
    counted: int  # requests of the cost that are in the arrival time already

    def apply(self, arrival: float, now: float) -> tuple[float, Quota]:
        """Return the theoretical arrival time and the quota after the charge."""
        uncharged = max(now, arrival - self.counted * self.interval)
        required = (
            now + _WINDOW - min(self.cost * self.interval, _WINDOW)
        )  # the latest arrival time at which it is accepted
        if uncharged - required <= 1e-6:
            after, retry_after = uncharged + self.cost * self.interval, 0.0
        else:
            after = max(now, arrival)
            retry_after = after - required
        available = now + _WINDOW - after  # seconds; negative for an excess
        remaining = max(int(available / self.interval + 1e-6), 0)
        reset = self.interval if remaining else self.interval - available
        return after, Quota(remaining, retry_after, reset)


def _reserved(path: str, size: int) -> bool:
    try:
        reserve(path, size)
        return True
    except OSError as error:
        log.warning("rate limits not shared", reason=error.strerror)
        return False
