"""Requests that are sent at the same time."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from werkzeug.test import TestResponse

Result = TypeVar("Result")


def run_concurrently(count: int, call: Callable[[int], Any]) -> list[Any]:
    """The results of call(0) … call(count - 1), started together, each in its own thread."""
    barrier = threading.Barrier(count)

    def run(i: int) -> Any:
        barrier.wait()
        return call(i)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count)))


@contextmanager
def repeatedly(call: Callable[[], Result], *, pause: float = 0) -> Iterator[list[Result]]:
    """Repeat a call in a thread until the block ends, with `pause` seconds between calls. Yields the results so far."""
    results: list[Result] = []
    stopping = threading.Event()

    def run() -> None:
        while not stopping.wait(pause):
            results.append(call())

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(run)
        try:
            yield results
        finally:
            stopping.set()
        running.result()


def retry_while_unavailable(send: Callable[[], TestResponse]) -> TestResponse:
    """The first response other than 503, which a service with too few connections may return for at most a minute."""
    deadline = time.monotonic() + 60
    while (response := send()).status_code == 503 and time.monotonic() < deadline:
        time.sleep(0.05)
    return response
