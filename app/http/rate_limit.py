"""Each principal's share of the requests, told in the headers of draft-ietf-httpapi-ratelimit-headers; 429 beyond."""

import fcntl
import math
import mmap
import os
import struct
import threading
import time
import weakref
from hashlib import blake2b
from typing import NamedTuple

import structlog
from flask import Flask, Response, current_app, g

from app.errors import TooManyRequests
from app.models.principal import Principal
from shared_files import reserve


def init_app(app: Flask) -> None:
    """Prepare to count the requests of customers and of services, where they have a limit."""
    if app.config["AUTH"] == "required" and (app.config["RATE_LIMIT_CUSTOMERS"] or app.config["RATE_LIMIT_SERVICES"]):
        app.extensions["rate_limiter"] = RateLimiter(os.environ.get("RATE_LIMIT_FILE"))
        app.after_request(_tell)


def count(principal: Principal, *, cost: int = 1, counted: int = 0) -> None:
    """Count a request of the principal, or one that is worth `cost` of them, `counted` of which have been counted.

    Raises TooManyRequests beyond its share. A batch larger than the whole share is let in while all of it is left.
    """
    limiter: RateLimiter | None = current_app.extensions.get("rate_limiter")
    if limiter is None:
        return
    policy = "services" if principal.customer_id is None else "customers"
    limit = current_app.config[f"RATE_LIMIT_{policy.upper()}"]
    if limit == 0:
        return
    share = limiter.take(principal.id, per_minute=limit, cost=cost, counted=counted)
    g.rate_limit = {
        "RateLimit-Policy": f'"{policy}";q={limit};w=60',
        "RateLimit": f'"{policy}";r={share.left};t={math.ceil(share.next_one)}',
    }
    if share.wait:
        detail = f"More than {limit} requests per minute."
        if cost > 1:
            detail = f"The batch counts as {cost} requests; {share.left} of {limit} per minute are left."
        raise TooManyRequests(detail).with_headers(Retry_After=str(math.ceil(share.wait)))


def _tell(response: Response) -> Response:
    if "rate_limit" in g:
        response.headers.update(g.rate_limit)
    return response


log = structlog.get_logger()

_SLOT = struct.Struct("<Qd")  # the principal's hash, and its theoretical arrival time
_SLOTS = 65_536  # 1 MiB: far more principals than call in one minute
_PROBES = 16  # neighbours a principal may live in; were they all busy, the one that called longest ago would yield
_WINDOW = 60.0  # seconds: the budget is what a principal may do in them, at once or spread


class Share(NamedTuple):
    """What is left of a principal's budget: requests that would be let in now, the seconds to wait until what has been
    refused would be (0 unless it was), and the seconds until one more is let in."""

    left: int
    wait: float
    next_one: float


class RateLimiter:
    """A leaky bucket for each principal (the generic cell rate algorithm, ITU-T I.371), in memory that workers share.

    The state of a principal is one number. The workers of a machine map the same file; a database or Redis would cost a
    round trip for each request, and be one more thing that can fail. Across machines, each counts for itself.
    """

    def __init__(self, path: str | None = None) -> None:
        """Map the file that the workers share; without a path, or where there is no space for a file, count for this
        process alone."""
        size = (_SLOTS + _PROBES) * _SLOT.size
        self._lock = threading.Lock()  # between threads; the file's lock is between processes
        self._file: int | None = None
        if path is None or not _reserved(path, size):
            self._memory = mmap.mmap(-1, size)
            return
        self._file = os.open(path, os.O_RDWR)
        weakref.finalize(self, os.close, self._file)
        self._memory = mmap.mmap(self._file, size)

    def take(self, principal: str, *, per_minute: int, cost: int = 1, counted: int = 0) -> Share:
        """Count `cost` requests against the budget of the last minute, of which `counted` have been counted before.

        They are let in together or not at all; what is refused is not counted. More than a whole budget is let in only
        while all of it is left, and the rest is owed: nothing else is let in until it is paid off.
        """
        # One clock for all processes of a machine, which nobody sets back.
        now, charge = time.monotonic(), _Charge(_WINDOW / per_minute, cost, counted)
        digest = blake2b(principal.encode(), digest_size=8).digest()
        home = int.from_bytes(digest[:4]) % _SLOTS
        owner = int.from_bytes(digest, "little") or 1
        with self._lock:
            if self._file is None:
                return self._take(owner, home, charge, now)
            fcntl.lockf(self._file, fcntl.LOCK_EX, _PROBES, home)
            try:
                return self._take(owner, home, charge, now)
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN, _PROBES, home)

    def _take(self, owner: int, home: int, charge: "_Charge", now: float) -> Share:
        start, end = home * _SLOT.size, (home + _PROBES) * _SLOT.size
        states = list(_SLOT.iter_unpack(self._memory[start:end]))
        own = next((place for place, state in enumerate(states) if state[0] == owner), None)
        place = min(range(_PROBES), key=lambda place: states[place][1]) if own is None else own
        arrival, share = charge.apply(states[place][1] if own is not None else now, now)
        _SLOT.pack_into(self._memory, start + place * _SLOT.size, owner, arrival)
        return share


class _Charge(NamedTuple):
    """So many requests at once, at an interval of so many seconds each."""

    interval: float
    cost: int
    counted: int

    def apply(self, arrival: float, now: float) -> tuple[float, Share]:
        """The theoretical arrival time afterwards, and what is left then."""
        before = max(now, arrival - self.counted * self.interval)
        wait = before + min(self.cost * self.interval, _WINDOW) - now - _WINDOW
        refused = wait > 1e-6
        after = before if refused else before + self.cost * self.interval
        room = now + _WINDOW - after  # seconds; below 0 where something is owed
        left = max(int(room / self.interval + 1e-6), 0)
        next_one = self.interval if left else self.interval - room
        return after, Share(left, wait if refused else 0.0, next_one)


def _reserved(path: str, size: int) -> bool:
    try:
        reserve(path, size)
        return True
    except OSError as error:
        log.warning("rate limits not shared", reason=error.strerror)
        return False
