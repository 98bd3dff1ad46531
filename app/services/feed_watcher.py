"""Waking requests that wait for events: one poll of the feed for all of them in a process."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import structlog
from sqlalchemy import Text, bindparam, cast, select

from app.db.errors import loggable_message
from app.db.statement import Statement
from app.models.event import SEQ, FeedEntry, OrderEvent
from app.models.order import Order
from app.services.event_feed import FeedFilter, read_ends

log = structlog.get_logger()

_POLL = 0.05  # seconds; a poll is one query for a single row
_RETRY_AFTER = 1.0  # seconds, while the database does not answer
_MATCH_MAX = 1_000  # new events that are compared with the filters; for more, everybody is woken
_WAKE_AT_ONCE = 20  # requests, before the other requests of the process have their turn
_PAUSE = 1e-6  # seconds (app/http/requests.py)


class Subscription:
    """A request that waits for events."""

    def __init__(self, watcher: "FeedWatcher", filters: FeedFilter) -> None:
        self.filters = filters
        self._watcher = watcher
        self._closed = False
        self._woken = threading.Event()

    @property
    def is_closed(self) -> bool:
        """Whether there is nothing to wait for: the client is gone, or the process is stopping."""
        return self._closed or self._watcher.is_stopping()

    def reset(self) -> None:
        """Forget earlier events. Call it before the events are read that `wait` is to follow."""
        self._woken.clear()

    def wait(self, seconds: float) -> int | None:
        """Wait for an event that matches, for so many seconds. Returns None if there may be one.

        Otherwise the number up to which no event has matched since `reset`; 0 if that is not known.
        """
        if self._woken.wait(seconds):
            return None
        head = self._watcher.head
        return None if self._woken.is_set() else head

    def close(self) -> None:
        """Make `wait` return, since the client is gone."""
        self._closed = True
        self.wake()

    def wake(self) -> None:
        """Make `wait` return."""
        self._woken.set()


class FeedWatcher:
    """Polls the feed while there are subscriptions, and wakes those for which there is an event.

    `context` makes the database available to a thread. `head` is the number up to which all subscriptions have been
    compared with the feed; 0 if that is not known.
    """

    def __init__(self, context: Callable[[], AbstractContextManager[object]]) -> None:
        self.head = 0
        self.is_stopping: Callable[[], bool] = lambda: False
        self._context = context
        self._lock = threading.Lock()
        # By the order's id if that is the only filter, since there are many of them.
        self._subscriptions: dict[FeedFilter | str, set[Subscription]] = {}
        self._running = False

    @contextmanager
    def subscribed(self, filters: FeedFilter) -> Iterator[Subscription]:
        """Watch for events that match the filters."""
        subscription = Subscription(self, filters)
        key = filters.only_order_id or filters
        with self._lock:
            self._subscriptions.setdefault(key, set()).add(subscription)
            if not self._running:
                self._running = True
                threading.Thread(target=self._watch, name="feed watcher", daemon=True).start()
        try:
            yield subscription
        finally:
            with self._lock:
                self._subscriptions[key].remove(subscription)
                if not self._subscriptions[key]:
                    del self._subscriptions[key]

    def _watch(self) -> None:
        failed = False
        with self._context():
            while not self._stop_if_idle():
                try:
                    self._poll()
                    failed = False
                except Exception as error:  # the thread must go on
                    if not failed:
                        log.warning("feed cannot be read", error=type(error).__name__, reason=loggable_message(error))
                    failed = True
                if self.is_stopping():
                    self._wake(self._all())
                time.sleep(_RETRY_AFTER if failed else _POLL)

    def _stop_if_idle(self) -> bool:
        """Whether nobody waits: then the thread ends, and the next subscription starts another one."""
        with self._lock:
            if not self._subscriptions:
                self._running = False
                self.head = 0
            return not self._running

    def _poll(self) -> None:
        """Wake the subscriptions for which there are new events."""
        before, head = self.head, read_ends().seq
        if head == before:
            return
        # At first it is not known which events the subscriptions have read. A feed that has become shorter is another.
        if before == 0 or not 0 < head - before <= _MATCH_MAX:
            self._wake(self._all())
        else:
            self._wake(self._matching(before, head))
        self.head = head

    def _all(self) -> list[Subscription]:
        with self._lock:
            return [subscription for group in self._subscriptions.values() for subscription in group]

    def _matching(self, after: int, upto: int) -> list[Subscription]:
        with self._lock:
            filters = [key for key in self._subscriptions if isinstance(key, FeedFilter)]
            any_order = len(filters) < len(self._subscriptions)
        some = [one for one in filters if not one.matches_all]
        rows = (_EVENTS if some else _ORDERS).rows(after=after, upto=upto) if some or any_order else []
        matching: set[FeedFilter | str] = {order_id for order_id, *_ in rows}
        matching |= {one for one in filters if one.matches_all or any(_matches(one, row) for row in rows)}
        with self._lock:
            return [subscription for key in matching for subscription in self._subscriptions.get(key, ())]

    def _wake(self, subscriptions: Iterable[Subscription]) -> None:
        for number, subscription in enumerate(subscriptions, start=1):
            subscription.wake()
            if number % _WAKE_AT_ONCE == 0:
                time.sleep(_PAUSE)


def _matches(filters: FeedFilter, row: tuple[Any, ...]) -> bool:
    order_id, event_type, channel = row
    return filters.matches(event_type=event_type, channel=channel, order_id=order_id)


_order_id = cast(FeedEntry.order_id, Text).label("order_id")
_new = (FeedEntry.seq > bindparam("after", type_=SEQ), FeedEntry.seq <= bindparam("upto", type_=SEQ))
_type = (
    select(OrderEvent.type)
    .where(OrderEvent.order_id == FeedEntry.order_id, OrderEvent.version == FeedEntry.version)
    .scalar_subquery()
)
_channel = select(Order.channel).where(Order.id == FeedEntry.order_id).scalar_subquery()
_ORDERS = Statement(select(_order_id).where(*_new))
_EVENTS = Statement(select(_order_id, _type.label("type"), _channel.label("channel")).where(*_new))
