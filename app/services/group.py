"""Work that is cheaper together than alone, shared by whoever asks for it at the same moment."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_PATIENCE = 0.1  # seconds that work may take until those who come meanwhile no longer wait for its end


class _Waiter(Generic[Item, Result]):
    """One caller: what it asks for, and what it is answered. All but `item` is guarded by the group's lock."""

    __slots__ = ("item", "turn", "answered", "leads", "began", "result", "error")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.turn = threading.Lock()  # held until there is an answer, or the lead is to be taken
        self.turn.acquire()
        self.answered = self.leads = False
        self.began = 0.0  # when its work as a leader began
        self.result: Result | None = None
        self.error: BaseException | None = None


class Group(Generic[Item, Result]):
    """Callers that ask while work is under way are served together by the next one: group commit, in one process.

    The first caller leads. It lets whoever is ready join, takes all that wait, does the work for all of them in one
    call, and passes the lead to the first that came meanwhile. There is no thread of its own, and no delay for a caller
    that is alone. Threads and greenlets alike may call.

    `work` is given the items in the order they came, at most `most` of them, and returns a result for each, in that
    order. What it raises is raised for all of them: where one item alone may be to blame, it must find out itself. It
    may see an item twice, when a leader was killed between its work and its answers; so it must be repeatable.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Result]], *, most: int) -> None:
        self._work = work
        self._most = most
        self._lock = threading.Lock()
        self._waiting: list[_Waiter[Item, Result]] = []
        self._leaders: list[_Waiter[Item, Result]] = []

    def call(self, item: Item) -> Result:
        """The result for the item. Raises what the work raised."""
        waiter = _Waiter[Item, Result](item)
        with self._lock:
            self._waiting.append(waiter)
            self._appoint_if_needed(waiter)
        try:
            waiter.turn.acquire()
            while not waiter.answered:
                self._lead(waiter)
        finally:
            self._leave(waiter)
        if waiter.error is not None:
            raise waiter.error
        return waiter.result  # type: ignore[return-value]

    def _lead(self, leader: _Waiter[Item, Result]) -> None:
        time.sleep(0)  # whoever is ready to join now, joins
        with self._lock:
            taken = self._waiting[: self._most]
            del self._waiting[: self._most]
            leader.began = time.monotonic()
        try:
            results: Sequence[Result | None] = self._work([waiter.item for waiter in taken])
            if len(results) != len(taken):
                raise RuntimeError(f"{len(results)} results for {len(taken)} items")
        except Exception as error:
            self._answer(taken, [None] * len(taken), error)
        except BaseException:  # this leader is being killed: the others go back to where they were, first in the line
            with self._lock:
                self._waiting[:0] = taken
            raise
        else:
            self._answer(taken, results, None)

    def _answer(
        self, waiters: Sequence[_Waiter[Item, Result]], results: Sequence[Result | None], error: Exception | None
    ) -> None:
        with self._lock:
            for waiter, result in zip(waiters, results, strict=True):
                waiter.result, waiter.error, waiter.answered = result, error, True
                if not waiter.leads:
                    waiter.turn.release()

    def _appoint_if_needed(self, waiter: _Waiter[Item, Result]) -> None:
        """Let the waiter lead where nobody does, or where all who do are stuck: more groups would be smaller ones."""
        now = time.monotonic()
        if not waiter.leads and all(now - leader.began > _PATIENCE for leader in self._leaders):
            waiter.leads, waiter.began = True, now
            self._leaders.append(waiter)
            waiter.turn.release()

    def _leave(self, waiter: _Waiter[Item, Result]) -> None:
        """Give up the lead, and the place in the line of a caller that was killed while it waited."""
        with self._lock:
            if not waiter.answered and waiter in self._waiting:
                self._waiting.remove(waiter)
            if waiter.leads:
                self._leaders.remove(waiter)
                if self._waiting:
                    self._appoint_if_needed(self._waiting[0])
