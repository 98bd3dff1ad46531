"""Batching: concurrent calls share one statement and, where they write, one commit (group commit)."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import gevent
from flask import Flask, current_app
from gevent import monkey

from app.tracing import current_span_context, link_to, span

Item = TypeVar("Item")
Result = TypeVar("Result")
Value = TypeVar("Value")

# Seconds that a leader waits for the previous batch. A batch that is stuck, for example behind a row lock, delays the
# next one no longer than this.
_PREVIOUS_BATCH_TIMEOUT = 0.1
_JOIN_TIMEOUT = 0.003  # seconds that a leader waits for other callers to join; an overloaded worker is never idle

# Batches by operation and size, for the metrics. A histogram here would cost a create 1.4 % more instructions.
BATCHES: Counter[tuple[str, int]] = Counter()


class BatchAbandoned(Exception):
    """The leader of the batch was killed. It is unknown whether the batch was executed."""


class _Batch(Generic[Item, Result]):
    """Items of one execution, then their results or its error; neither if its leader was killed."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.results: Sequence[Result] | None = None
        self.error: Exception | None = None
        self.finished: threading.Event | None = None  # for the callers that are not the leader; None without any
        self.caller_spans: list[Any] = []  # of these callers
        self.span: Any = None  # of the execution


class Batcher(Generic[Item, Result]):
    """Collects the items of concurrent callers into batches, and executes each batch with one call of `execute`.

    The first caller of a batch is its leader: it waits for the previous batch, gives other callers time to join, and
    executes. No thread is started, and a lone caller is not delayed. Threads and greenlets may call.

    `execute` receives at most `max_batch` items in the order of their calls, and returns their results in the same
    order. What it raises is raised for every caller of the batch. If a leader is killed, the items of its batch are
    executed again if `execute` is `repeatable`; otherwise BatchAbandoned is raised for the other callers.

    Batchers with the same `execution_lock` execute one at a time. If the callers of one batcher then call the other,
    the batches of both are fewer and larger.

    Batches of a named operation are counted in BATCHES.
    """

    def __init__(
        self,
        execute: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        max_batch: int,
        repeatable: bool = True,
        execution_lock: "threading.Lock | None" = None,  # a function at run time, which has no |
        operation: str = "",
    ) -> None:
        self._execute = execute
        self._max_batch = max_batch
        self._repeatable = repeatable
        self._execution_lock = execution_lock or threading.Lock()  # held by the leader that executes
        self._operation = operation
        self._has_greenlets = monkey.is_module_patched("time")
        self._join_lock = threading.Lock()  # guards _open_batch and the items of that batch
        self._open_batch: _Batch[Item, Result] | None = None

    def submit(self, item: Item) -> Result:
        """The result for the item. Raises what `execute` raised for its batch, and BatchAbandoned."""
        while True:
            batch, position = self._join(item)
            if batch.finished is None or position == 0:
                self._lead(batch)
            else:
                batch.finished.wait()
                link_to(batch.span)
            if batch.error is not None:
                raise batch.error
            if batch.results is not None:
                return batch.results[position]
            if not self._repeatable:  # the leader was killed
                raise BatchAbandoned

    def _join(self, item: Item) -> tuple[_Batch[Item, Result], int]:
        with self._join_lock:
            batch = self._open_batch
            if batch is None or len(batch.items) == self._max_batch:
                batch = self._open_batch = _Batch()
            else:
                batch.finished = batch.finished or threading.Event()
                if caller := current_span_context():
                    batch.caller_spans.append(caller)
            batch.items.append(item)
            return batch, len(batch.items) - 1

    def _lead(self, batch: _Batch[Item, Result]) -> None:
        acquired = False
        try:
            acquired = self._execution_lock.acquire(timeout=_PREVIOUS_BATCH_TIMEOUT)
            self.wait_for_callers()
            self._close(batch)
            if self._operation:
                BATCHES[self._operation, len(batch.items)] += 1
            with span("group commit", links=batch.caller_spans):
                batch.span = current_span_context()
                results = self._execute(batch.items)
            if len(results) != len(batch.items):
                raise RuntimeError(f"{len(results)} results for {len(batch.items)} items")
            batch.results = results
        except Exception as error:
            batch.error = error
        finally:
            if self._open_batch is batch:  # this greenlet was killed before it closed the batch
                self._close(batch)
            if acquired:
                self._execution_lock.release()
            if batch.finished is not None:
                batch.finished.set()

    def wait_for_callers(self) -> None:
        """Wait until no greenlet has anything to do, for at most _JOIN_TIMEOUT: others may be about to submit an item.

        With 16 connections, this makes 1.2 times as many creates a second. While SQLite executes, no greenlet can run.
        """
        if self._has_greenlets:
            with gevent.Timeout(_JOIN_TIMEOUT, False):
                gevent.idle()

    def _close(self, batch: _Batch[Item, Result]) -> None:
        """Accept no further items."""
        with self._join_lock:
            if self._open_batch is batch:
                self._open_batch = None


class PerApplication(Generic[Value]):
    """A value for each application, created at its first use: tests have several, with a database each."""

    def __init__(self, create: Callable[[], Value]) -> None:
        self._create = create

    def get(self) -> Value:
        """The value for the current application."""
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # documented by Flask
        extensions: dict[Any, Any] = app.extensions
        value: Value | None = extensions.get(self)
        return extensions.setdefault(self, self._create()) if value is None else value
