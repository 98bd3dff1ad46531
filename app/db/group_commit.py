"""Work that is cheaper together than alone, shared by whoever asks for it at the same moment."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Engine

from app.db.engine import db

Item = TypeVar("Item")
Result = TypeVar("Result")
Thing = TypeVar("Thing")

_PATIENCE = 0.1  # seconds that work may take until those who come meanwhile no longer wait for its end


class _Batch(Generic[Item, Result]):
    """Items that go into one call, and what came of it: results, an error, or neither where its leader was killed."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.results: Sequence[Result] | None = None
        self.error: Exception | None = None
        self.over = threading.Event()


class GroupCommit(Generic[Item, Result]):
    """Callers that ask while work is under way are served together by the next call: group commit, in one process.

    The first caller of a batch leads it. It waits for the batch before it to end, lets whoever is ready join, and does
    the work for all of them in one call. There is no thread of its own, and no delay for a caller that is alone.
    Threads and greenlets alike may call.

    `work` is given the items in the order they came, at most `most` of them, and returns a result for each, in that
    order. What it raises is raised for all of them: where one item alone may be to blame, it must find out itself. It
    may see an item twice, when a leader was killed between its work and its answers; so it must be repeatable.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Result]], *, most: int) -> None:
        self._work = work
        self._most = most
        self._turn = threading.Lock()  # held by the leader that works
        self._joining = threading.Lock()  # guards what follows, and the items of a batch that can be joined
        self._open: _Batch[Item, Result] | None = None

    def call(self, item: Item) -> Result:
        """The result for the item. Raises what the work raised."""
        while True:
            batch, place = self._join(item)
            if place == 0:
                self._lead(batch)
            else:
                batch.over.wait()
            if batch.error is not None:
                raise batch.error
            if batch.results is not None:
                return batch.results[place]
            # The leader was killed: the others try again.

    def _join(self, item: Item) -> tuple[_Batch[Item, Result], int]:
        with self._joining:
            batch = self._open
            if batch is None or len(batch.items) == self._most:
                batch = self._open = _Batch()
            batch.items.append(item)
            return batch, len(batch.items) - 1

    def _lead(self, batch: _Batch[Item, Result]) -> None:
        in_turn = False
        try:
            in_turn = self._turn.acquire(timeout=_PATIENCE)  # out of turn where the one before is stuck
            time.sleep(0)  # whoever is ready to join now, joins; while SQLite works, nobody in this process can
            self._close(batch)
            results = self._work(batch.items)
            if len(results) != len(batch.items):
                raise RuntimeError(f"{len(results)} results for {len(batch.items)} items")
            batch.results = results
        except Exception as error:
            batch.error = error
        finally:  # also where this leader is being killed
            self._close(batch)
            if in_turn:
                self._turn.release()
            batch.over.set()

    def _close(self, batch: _Batch[Item, Result]) -> None:
        """Let nobody join any more."""
        with self._joining:
            if self._open is batch:
                self._open = None


class PerDatabase(Generic[Thing]):
    """Makes the thing when it is first asked for, and forgets it with the database's engine."""

    def __init__(self, make: Callable[[], Thing]) -> None:
        self._make = make
        self._things: WeakKeyDictionary[Engine, Thing] = WeakKeyDictionary()

    def get(self) -> Thing:
        """The current application's."""
        engine = db.engine
        thing = self._things.get(engine)
        return self._things.setdefault(engine, self._make()) if thing is None else thing
