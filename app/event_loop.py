"""Sharing a worker: its event loop serves a thousand clients, and long work must let them in."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

# Seconds. With 0 only those run that are ready already: the loop does not look for new events until a thousand of them
# have run, and eight clients that send batches held everybody else up for seconds.
_PAUSE = 1e-6
_LONGEST_STRETCH = 0.002  # seconds


def let_others_run() -> None:
    """Let the worker's other requests run, also those that are just arriving."""
    time.sleep(_PAUSE)


def in_stretches(items: Iterable[Item]) -> Iterator[Item]:
    """The items; the worker's other requests run whenever working on them has taken 2 ms."""
    pause = 0.0
    for item in items:
        if time.monotonic() >= pause:
            let_others_run()
            pause = time.monotonic() + _LONGEST_STRETCH
        yield item
