"""The feed: all events of all orders, each with a number, without gaps. Reading it, waiting for events, filling it.

Requests call `list_events`, or wait with a `FeedWatcher`: one poll of the feed wakes all requests of a process that
wait.

The sequencer, at the end, moves events from the outbox to the feed, prunes the feed, and renumbers it after a restore.
An event is in the outbox when its change is committed, so an event that is not there yet gets a later number. Numbers
are assigned in one transaction at a time, under the lock of the row of `feed_head`: whoever reads number n can read all
numbers before it. A database sequence would not do: its numbers become visible in the order of the commits, and a
reader that remembers the highest number it has seen misses lower ones that are committed later.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

import orjson
import structlog
from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    Integer,
    Select,
    Text,
    Tuple,
    and_,
    bindparam,
    cast,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    text,
    true,
    tuple_,
    update,
)

from app.db.batching import Batcher, PerApplication
from app.db.engine import DATABASE_ERRORS, UUID, DatabaseError, db, loggable_message, read_timestamp, rfc3339
from app.db.statements import Statement, is_one_of, read_rows, rows_within
from app.errors import CursorExpired
from app.models import BROKER_CURSOR, FEED, FEED_HEAD, OUTBOX, SEARCH_HEAD
from app.models.event import SEQ, FeedEntry, OrderEvent
from app.models.order import Order
from app.models.order_id import LOWEST_ID, time_ago
from app.models.webhook import ENABLED, PENDING_LITERAL, WebhookDelivery, WebhookEndpoint

log = structlog.get_logger()

FEED_PAGE_BYTES = 1024 * 1024
SCAN_MAX = 5_000  # entries that are compared with the filters for one page
_GROUP_MAX = 10_000  # more than there are waiting requests in a process
_POLL_PAUSE = 0.05  # seconds; a poll is one query for a single row
_RETRY_AFTER = 1.0  # seconds, while the database does not answer
_MATCH_MAX = 1_000  # new events that are compared with the filters; if there are more, all subscriptions are woken
_WAKE_AT_ONCE = 20  # requests that are woken before the other requests of the process can run
_WAKE_PAUSE = 1e-6  # seconds, so that other requests run (`_PAUSE` of app/http/requests.py)

_READ_HEAD = Statement(select(FEED_HEAD.c.seq, FEED_HEAD.c.pruned_seq))

_ENTRY_ORDER_ID = cast(FeedEntry.order_id, Text).label("order_id")
_IS_NEW = (FeedEntry.seq > bindparam("after", type_=SEQ), FeedEntry.seq <= bindparam("upto", type_=SEQ))
_ENTRY_TYPE = (
    select(OrderEvent.type)
    .where(OrderEvent.order_id == FeedEntry.order_id, OrderEvent.version == FeedEntry.version)
    .scalar_subquery()
)
_ENTRY_CHANNEL = select(Order.channel).where(Order.id == FeedEntry.order_id).scalar_subquery()
_NEW_ORDER_IDS = Statement(select(_ENTRY_ORDER_ID).where(*_IS_NEW))
_NEW_EVENTS = Statement(
    select(_ENTRY_ORDER_ID, _ENTRY_TYPE.label("type"), _ENTRY_CHANNEL.label("channel")).where(*_IS_NEW)
)

# Events in one transaction. On SQLite, whose writers wait meanwhile, it takes about 10 ms.
SEQUENCE_MAX = {"postgresql": 5_000, "sqlite": 1_000}
_PRUNE_MAX = 5_000  # entries in one transaction
_RENUMBER_MAX = 5_000  # entries in one statement, within its time limit
# More events than there can be between a backup and the restore. Clients read numbers up to 2^53 exactly.
_RENUMBER_STEP = 1_000_000_000

_ANY_PENDING = Statement(select(exists(select(OUTBOX.c.order_id))))
# For queries that begin with the first entry. During a long transaction of others, such as a dump, the index keeps the
# removed entries, and a query without this condition reads over all of them.
IS_RETAINED: ColumnElement[bool] = FeedEntry.seq > select(FEED_HEAD.c.pruned_seq).scalar_subquery()
_LAST_QUEUED = select(func.min(WebhookEndpoint.last_seq)).where(WebhookEndpoint.status == ENABLED)
# SKIP LOCKED: if another sequencer is at work, it numbers the pending events.
_LOCK_HEAD = select(FEED_HEAD.c.seq, FEED_HEAD.c.pruned_seq).with_for_update(skip_locked=True)

_USE_INDEXES = text("SET LOCAL enable_seqscan = off")


@dataclass(frozen=True, slots=True)
class FeedFilter:
    """Which events to read. None means all."""

    types: frozenset[str] | None = None
    channels: frozenset[str] | None = None
    order_id: str | None = None

    @property
    def matches_all(self) -> bool:
        """Whether every event matches."""
        return self.types is None and self.channels is None and self.order_id is None

    @property
    def only_order_id(self) -> str | None:
        """The order's id if there is no other filter."""
        return self.order_id if self.types is None and self.channels is None else None

    def matches(self, order_id: str, event_type: str, channel: str | None) -> bool:
        """Whether an event matches, given as a row of `_NEW_EVENTS`."""
        return (
            (self.types is None or event_type in self.types)
            and (self.channels is None or channel in self.channels)
            and (self.order_id is None or order_id == self.order_id)
        )


@dataclass(frozen=True, slots=True)
class FeedEnds:
    """The last number of the feed, and the last one whose entry has been removed."""

    seq: int
    pruned_seq: int


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """An event with its document, rendered as JSON."""

    seq: int
    type: str
    document: str


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Events, and the number up to which the feed has been read, even if no event matched.

    `more` states whether the feed continued after that number when the page was read.
    """

    events: list[FeedEvent]
    next_after: int
    more: bool


@dataclass(frozen=True, slots=True)
class _PageKey:
    filters: FeedFilter
    after: int
    limit: int


def read_ends() -> FeedEnds:
    """The ends of the feed."""
    [row] = _READ_HEAD.rows()
    return FeedEnds(*row)


def list_events(filters: FeedFilter, *, after: int, limit: int) -> FeedPage:
    """Up to `limit` events with higher numbers than `after` that match the filters, in their order.

    A page ends early where its documents would exceed FEED_PAGE_BYTES, or after SCAN_MAX entries of the feed. Requests
    for the same page at the same time share one read. Raises CursorExpired.
    """
    page = _PAGE_READS.get().submit(_PageKey(filters, after, limit))
    if isinstance(page, Exception):
        raise page
    return page


def _read_pages(keys: Sequence[_PageKey]) -> list[FeedPage | CursorExpired | DatabaseError]:
    """The pages of concurrent requests, each read once, those near the end of the feed first: they are the smallest.

    A database error also ends the pages that are not read yet: while the database does not respond, each further read
    would wait for as long as the one before.
    """
    pages: dict[_PageKey, FeedPage | CursorExpired | DatabaseError] = {}
    failure: DatabaseError | None = None
    for key in sorted(set(keys), key=attrgetter("after"), reverse=True):
        try:
            pages[key] = failure or _read_page(key.filters, after=key.after, limit=key.limit)
        except CursorExpired as error:
            pages[key] = error
        except DATABASE_ERRORS as error:
            pages[key] = failure = error
    return [pages[key] for key in keys]


def _read_page(filters: FeedFilter, *, after: int, limit: int) -> FeedPage:
    head = read_ends()
    require_retained(after, head)
    if after == head.seq:
        return FeedPage([], after, more=False)
    of_order = filters.order_id is not None
    upto = head.seq if filters.matches_all or of_order else min(head.seq, after + SCAN_MAX)
    statement = (_EVENTS_OF_ORDER if of_order else _ALL_EVENTS)[db.engine.dialect.name]
    rows = statement.rows(
        after=after,
        upto=upto,
        limit=limit,
        types=_json_array(filters.types),
        channels=_json_array(filters.channels),
        **({"order_id": filters.order_id} if of_order else {}),
    )
    require_retained(after, read_ends())  # entries may have been removed before the page was read
    complete = len(rows) < limit and (not rows or rows[-1][-1] < FEED_PAGE_BYTES)
    next_after = upto if complete else rows[-1][0]
    return FeedPage([_feed_event(*row) for row in rows], next_after, more=next_after < head.seq)


def require_retained(after: int, head: FeedEnds) -> None:
    """Raise CursorExpired unless all entries after this number exist."""
    if after < head.pruned_seq:
        raise CursorExpired(
            f"The events up to number {head.pruned_seq} have been removed from the feed. List the orders to know their "
            f"current state, then continue with after={head.pruned_seq}.",
            oldest_after=head.pruned_seq,
        )
    if after > head.seq:
        raise CursorExpired(
            f"The feed ends at number {head.seq}, so the database is an older one, probably restored from a backup. "
            f"List the orders to know their current state, then continue with after={head.seq}.",
            oldest_after=head.pruned_seq,
        )


def _feed_event(
    seq: int, order_id: str, version: int, event_type: str, actor: str, request_id: str | None, at: datetime | str,
    snapshot: str, _bytes_so_far: int,
) -> FeedEvent:  # fmt: skip
    document = orjson.dumps(
        {
            "id": f"{order_id}:{version}",
            "seq": seq,
            "type": event_type,
            "order_id": order_id,
            "version": version,
            "actor": actor,
            "request_id": request_id,
            "at": rfc3339(read_timestamp(at)),
            "data": orjson.Fragment(snapshot),
        }
    )
    return FeedEvent(seq, event_type, document.decode())


def _json_array(values: frozenset[str] | None) -> str | None:
    return None if values is None else orjson.dumps(sorted(values)).decode()


def _is_admitted(column: Any, name: str) -> ColumnElement[bool]:
    parameter = cast(bindparam(name), Text)
    return or_(parameter.is_(None), is_one_of(column, parameter))


def _events_statement(*, of_order: bool, lateral: bool) -> Statement:
    columns = (
        OrderEvent.type, OrderEvent.actor, OrderEvent.request_id, OrderEvent.at, OrderEvent.snapshot
    )  # fmt: skip
    of_entry = and_(OrderEvent.order_id == FeedEntry.order_id, OrderEvent.version == FeedEntry.version)
    entry: tuple[Any, ...] = (FeedEntry.seq, _ENTRY_ORDER_ID, FeedEntry.version)
    query: Select[*tuple[Any, ...]]
    if lateral:  # a lookup by primary key for each entry: the plan for a small table is kept when it has grown
        event = select(*columns).where(of_entry).limit(literal_column("1")).lateral("event")
        query = select(*entry, *event.c).select_from(FeedEntry).join(event, true())
        query = query.where(_is_admitted(event.c.type, "types"))
    else:
        query = select(*entry, *columns).select_from(FeedEntry).join(OrderEvent, of_entry)
        query = query.where(_is_admitted(OrderEvent.type, "types"))
    query = query.where(_is_admitted(_ENTRY_CHANNEL, "channels"))
    seq: Any = FeedEntry.seq
    if of_order:
        # By the index of the order: its events are in the order of their versions. "+ 0" keeps the planner from reading
        # the feed by numbers.
        query = query.where(FeedEntry.order_id == bindparam("order_id", type_=UUID))
        seq = FeedEntry.seq + literal_column("0")
    query = query.where(seq > bindparam("after", type_=SEQ), seq <= bindparam("upto", type_=SEQ))
    query = query.order_by(FeedEntry.version if of_order else FeedEntry.seq).limit(bindparam("limit", type_=Integer))
    return Statement(rows_within(query, position="seq", document="snapshot", size=FEED_PAGE_BYTES, descending=False))


_ALL_EVENTS = {
    name: _events_statement(of_order=False, lateral=name == "postgresql") for name in ("postgresql", "sqlite")
}
_EVENTS_OF_ORDER = {
    name: _events_statement(of_order=True, lateral=name == "postgresql") for name in ("postgresql", "sqlite")
}
_PAGE_READS = PerApplication(
    lambda: Batcher[_PageKey, FeedPage | CursorExpired | DatabaseError](_read_pages, max_batch=_GROUP_MAX)
)


class Subscription:
    """A request that waits for events."""

    def __init__(self, watcher: "FeedWatcher", filters: FeedFilter) -> None:
        self.filters = filters
        self._watcher = watcher
        self._closed = False
        self._woken = threading.Event()

    @property
    def is_closed(self) -> bool:
        """Whether to stop waiting: the client has closed the connection, or the process is stopping."""
        return self._closed or self._watcher.is_stopping()

    def reset(self) -> None:
        """Forget earlier events. Call this before reading the events after which to `wait`."""
        self._woken.clear()

    def wait(self, seconds: float) -> int | None:
        """Wait up to `seconds` for an event that matches. Returns None if there may be one.

        Otherwise the number up to which no event has matched since `reset`; 0 if that is not known.
        """
        if self._woken.wait(seconds):
            return None
        head = self._watcher.head
        return None if self._woken.is_set() else head

    def close(self) -> None:
        """Make `wait` return: the client has closed the connection."""
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
            if not self._running:
                threading.Thread(target=self._watch, name="feed watcher", daemon=True).start()
                self._running = True  # the thread waits for the lock
            self._subscriptions.setdefault(key, set()).add(subscription)
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
                except Exception as error:  # the thread must continue
                    if not failed:
                        log.warning("feed cannot be read", error=type(error).__name__, reason=loggable_message(error))
                    failed = True
                if self.is_stopping():
                    self._wake(self._all())
                time.sleep(_RETRY_AFTER if failed else _POLL_PAUSE)

    def _stop_if_idle(self) -> bool:
        """Whether there are no subscriptions: then the thread ends, and the next subscription starts another one."""
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
        # At first it is not known which events the subscriptions have read. A feed that has become shorter was
        # restored.
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
        reads_types = any(not key.matches_all for key in filters)
        rows = (
            (_NEW_EVENTS if reads_types else _NEW_ORDER_IDS).rows(after=after, upto=upto)
            if reads_types or any_order
            else []
        )
        matching: set[FeedFilter | str] = {order_id for order_id, *_ in rows}
        matching |= {key for key in filters if key.matches_all or any(key.matches(*row) for row in rows)}
        with self._lock:
            return [subscription for key in matching for subscription in self._subscriptions.get(key, ())]

    def _wake(self, subscriptions: Iterable[Subscription]) -> None:
        for number, subscription in enumerate(subscriptions, start=1):
            subscription.wake()
            if number % _WAKE_AT_ONCE == 0:
                time.sleep(_WAKE_PAUSE)


def sequence_events() -> bool:
    """Move pending events to the feed, a limited number at a time. Returns whether there were any.

    An order's events keep their order. Events of different orders are numbered roughly in the order in which they
    happened. Any number of processes may call this at once. Raises DATABASE_ERRORS; then everything or nothing has been
    moved.
    """
    [[pending]] = _ANY_PENDING.rows()
    if not pending:
        return False
    with db.engine.begin() as connection:
        head = connection.execute(_LOCK_HEAD).first()
        if head is None:
            return False
        count = _move_events(connection, head.seq)
        if count:
            connection.execute(update(FEED_HEAD).values(seq=head.seq + count))
        return count > 0


def _move_events(connection: Connection, head: int) -> int:
    values = {"head": head, "now": datetime.now(UTC)}
    if connection.dialect.name == "postgresql":
        # The outbox is empty most of the time. A plan made for an empty table scans all of it, and is kept when it has
        # grown.
        connection.execute(_USE_INDEXES)
        return connection.execute(_MOVE, values).rowcount
    count = connection.execute(_COPY, values).rowcount
    connection.execute(_DELETE_COPIED, values)
    return count


def _pending_events(*columns: Any, limit: int) -> Select[Any]:
    """The first pending events by order and version, so that no event precedes an earlier one of its order."""
    key = OUTBOX.c.order_id, OUTBOX.c.version
    return select(*columns).select_from(OUTBOX).order_by(*key).limit(limit)


def _insert_numbered(source: Any) -> Executable:
    """INSERT … SELECT of the feed entries for the outbox rows of `source`.

    The clocks of two machines may differ, so a version counts as no earlier than the previous one.
    """
    latest = func.max(source.c.at).over(partition_by=source.c.order_id, order_by=source.c.version)
    events = select(source.c.order_id, source.c.version, latest.label("latest")).subquery("events")
    number = func.row_number().over(order_by=(events.c.latest, events.c.order_id, events.c.version))
    entries = select(
        bindparam("head", type_=SEQ) + number,
        events.c.order_id,
        events.c.version,
        bindparam("now", type_=FEED.c.at.type),
    )
    columns = ["seq", "order_id", "version", "at"]
    return insert(FEED).from_select(columns, entries).execution_options(preserve_rowcount=True)


def _postgresql_move() -> Executable:
    row: ColumnElement[Any] = literal_column("ctid")  # the row's physical location
    rows = _pending_events(row, limit=SEQUENCE_MAX["postgresql"]).scalar_subquery()
    moved = delete(OUTBOX).where(row == func.any(func.array(rows))).returning(*OUTBOX.c).cte("moved")
    return _insert_numbered(moved)


def _sqlite_copy() -> Executable:
    return _insert_numbered(_pending_events(*OUTBOX.c, limit=SEQUENCE_MAX["sqlite"]).subquery("pending"))


_MOVE = _postgresql_move()
_COPY = _sqlite_copy()

_DELETE_COPIED = delete(OUTBOX).where(
    tuple_(OUTBOX.c.order_id, OUTBOX.c.version).in_(
        select(FEED.c.order_id, FEED.c.version).where(FEED.c.seq > bindparam("head", type_=SEQ))
    )
)


def oldest_pending() -> datetime | None:
    """The time since which the oldest event in the outbox has been waiting for a number; None if the outbox is
    empty."""
    [row] = read_rows(select(func.min(OUTBOX.c.at).label("at")))
    at: datetime | None = row.at
    return at


def prune_feed(*, older_than: timedelta, published: bool = False) -> int:
    """Remove a batch of feed entries that were numbered longer ago, and return their number: 0 if none remain.

    The events and their snapshots are kept. So are entries that the search does not reflect yet, that are still to be
    queued for a webhook and, with `published`, still to be published to the broker.
    """
    oldest = time_ago(older_than)
    first = read_rows(select(FeedEntry.at).where(IS_RETAINED).order_by(FeedEntry.seq).limit(1))
    if not first or first[0].at >= oldest:
        return 0
    with db.engine.begin() as connection:
        head = connection.execute(_LOCK_HEAD.with_for_update()).one()
        batch = (
            select(FeedEntry.seq, FeedEntry.at)
            .where(FeedEntry.seq > head.pruned_seq)
            .order_by(FeedEntry.seq)
            .limit(_PRUNE_MAX)
            .subquery()
        )
        # An entry that is too young is kept, and so are all after it: the clocks of two machines may differ.
        first_kept = connection.scalar(select(func.min(batch.c.seq)).where(batch.c.at >= oldest))
        last = connection.scalar(select(func.max(batch.c.seq)))
        if last is None:  # another process has removed it
            return 0
        webhook_seq = connection.scalar(_LAST_QUEUED)  # None without webhooks
        broker_seq = connection.scalar(select(BROKER_CURSOR.c.seq)) if published else None
        search_seq = connection.scalar(select(SEARCH_HEAD.c.seq))
        pruned = min(
            n for n in (last, first_kept and first_kept - 1, webhook_seq, broker_seq, search_seq) if n is not None
        )
        if pruned <= head.pruned_seq:
            return 0
        connection.execute(delete(FeedEntry).where(FeedEntry.seq > head.pruned_seq, FeedEntry.seq <= pruned))
        connection.execute(update(FEED_HEAD).values(pruned_seq=pruned))
        return int(pruned - head.pruned_seq)


def renumber_feed() -> int:
    """Renumber all entries of the feed, in the same order, and return the number added to each.

    After a restore to an earlier time, the numbers assigned since then are free again, and a reader whose cursor has
    one of them would miss the events that get them next. The new numbers are higher than any cursor, so each reader
    gets a 410 that says where to continue. Webhooks, the search and the broker continue where they were. One
    transaction.
    """
    with db.engine.begin() as connection:
        head = connection.execute(_LOCK_HEAD.with_for_update()).one()
        added: int = ((head.seq - head.pruned_seq) // _RENUMBER_STEP + 2) * _RENUMBER_STEP
        for first in range(head.pruned_seq + 1, head.seq + 1, _RENUMBER_MAX):
            batch = FEED.c.seq.between(first, min(first + _RENUMBER_MAX - 1, head.seq))
            connection.execute(update(FEED).where(batch).values(seq=FEED.c.seq + added))
        connection.execute(update(FEED_HEAD).values(seq=head.seq + added, pruned_seq=head.pruned_seq + added))
        # Before their deliveries, and in the order in which a worker locks them.
        endpoints = select(WebhookEndpoint.id).order_by(WebhookEndpoint.id).with_for_update()
        endpoint_ids = connection.scalars(endpoints).all()
        for position in (SEARCH_HEAD.c.seq, BROKER_CURSOR.c.seq, WebhookEndpoint.__table__.c.last_seq):
            connection.execute(update(position.table).values({position: position + added}))
        for endpoint_id in endpoint_ids:
            _renumber_deliveries(connection, endpoint_id, added)
        return added


def _renumber_deliveries(connection: Connection, endpoint_id: str, added: int) -> None:
    """Renumber the pending deliveries of an endpoint. An endpoint that was down for days has millions."""
    columns = WebhookDelivery.order_id, WebhookDelivery.version
    of_endpoint = WebhookDelivery.endpoint_id == endpoint_id, WebhookDelivery.status == PENDING_LITERAL
    first: Any = (LOWEST_ID, 0)
    while first is not None:
        remaining = [*of_endpoint, tuple_(*columns) >= _delivery_key(first)]
        following = select(*columns).where(*remaining).order_by(*columns).offset(_RENUMBER_MAX).limit(1)
        first = connection.execute(following).first()
        batch = remaining if first is None else [*remaining, tuple_(*columns) < _delivery_key(first)]
        connection.execute(update(WebhookDelivery).where(*batch).values(seq=WebhookDelivery.seq + added))


def _delivery_key(key: tuple[str, int]) -> Tuple:
    return tuple_(literal(key[0], UUID), literal(key[1], Integer))
