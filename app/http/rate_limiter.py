"""How often a principal may call: exact over all workers of a machine, for a few microseconds a request."""

import fcntl
import mmap
import os
import struct
import threading
import time
import weakref
from hashlib import blake2b

import structlog

from shared_files import reserve

log = structlog.get_logger()

_SLOT = struct.Struct("<Qd")  # the principal's hash, and its theoretical arrival time
_SLOTS = 65_536  # 1 MiB: far more principals than call in one minute
_PROBES = 16  # neighbours a principal may live in; were they all busy, the one that called longest ago would yield
_WINDOW = 60.0  # seconds: the budget is what a principal may do in them, at once or spread


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

    def take(self, principal: str, *, per_minute: int) -> tuple[int, float]:
        """Count one request against the budget of the last minute.

        Returns how many more would be let in now, and in how many seconds the next one will be: 0 unless this one is
        refused, in which case it is not counted.
        """
        # One clock for all processes of a machine, which nobody sets back.
        interval, now = _WINDOW / per_minute, time.monotonic()
        digest = blake2b(principal.encode(), digest_size=8).digest()
        home = int.from_bytes(digest[:4]) % _SLOTS
        owner = int.from_bytes(digest, "little") or 1
        with self._lock:
            if self._file is None:
                return self._take(owner, home, interval, now)
            fcntl.lockf(self._file, fcntl.LOCK_EX, _PROBES, home)
            try:
                return self._take(owner, home, interval, now)
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN, _PROBES, home)

    def _take(self, owner: int, home: int, interval: float, now: float) -> tuple[int, float]:
        start, end = home * _SLOT.size, (home + _PROBES) * _SLOT.size
        states = list(_SLOT.iter_unpack(self._memory[start:end]))
        own = next((place for place, state in enumerate(states) if state[0] == owner), None)
        place = min(range(_PROBES), key=lambda place: states[place][1]) if own is None else own
        arrival = max(now, states[place][1] if own is not None else now) + interval
        wait = arrival - now - _WINDOW
        if wait > 1e-6:
            return 0, wait
        _SLOT.pack_into(self._memory, start + place * _SLOT.size, owner, arrival)
        return int((now + _WINDOW - arrival) / interval + 1e-6), 0.0


def _reserved(path: str, size: int) -> bool:
    try:
        reserve(path, size)
        return True
    except OSError as error:
        log.warning("rate limits not shared", reason=error.strerror)
        return False
