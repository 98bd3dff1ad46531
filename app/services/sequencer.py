"""The sequencer: moves events from the outbox to the feed, prunes the feed, and renumbers it after a restore.

An event is in the outbox when its change is committed, so an event that is not there yet gets a later number. Numbers
are assigned in one transaction at a time, under the lock of the row of `feed_head`: whoever reads number n can read all
numbers before it. A database sequence would not do: its numbers become visible in the order of the commits, and a
reader that remembers the highest number it has seen misses lower ones that are committed later.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    Integer,
    Select,
    Tuple,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    select,
    text,
    tuple_,
    update,
)

from app.db.engine import db
from app.db.statement import Statement
from app.db.transactions import read_rows
from app.db.types import UUID
from app.models import BROKER_CURSOR, FEED, FEED_HEAD, OUTBOX, SEARCH_HEAD
from app.models.event import SEQ, FeedEntry
from app.models.order_id import LOWEST_ID, time_ago
from app.models.webhook import ENABLED, PENDING_LITERAL, WebhookDelivery, WebhookEndpoint

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
        remaining = [*of_endpoint, tuple_(*columns) >= _key(first)]
        following = select(*columns).where(*remaining).order_by(*columns).offset(_RENUMBER_MAX).limit(1)
        first = connection.execute(following).first()
        batch = remaining if first is None else [*remaining, tuple_(*columns) < _key(first)]
        connection.execute(update(WebhookDelivery).where(*batch).values(seq=WebhookDelivery.seq + added))


def _key(key: tuple[str, int]) -> Tuple:
    return tuple_(literal(key[0], UUID), literal(key[1], Integer))


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


def _pending(*columns: Any, limit: int) -> Select[Any]:
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
    rows = _pending(row, limit=SEQUENCE_MAX["postgresql"]).scalar_subquery()
    moved = delete(OUTBOX).where(row == func.any(func.array(rows))).returning(*OUTBOX.c).cte("moved")
    return _insert_numbered(moved)


def _sqlite_copy() -> Executable:
    return _insert_numbered(_pending(*OUTBOX.c, limit=SEQUENCE_MAX["sqlite"]).subquery("pending"))


_USE_INDEXES = text("SET LOCAL enable_seqscan = off")
_MOVE = _postgresql_move()
_COPY = _sqlite_copy()
_DELETE_COPIED = delete(OUTBOX).where(
    tuple_(OUTBOX.c.order_id, OUTBOX.c.version).in_(
        select(FEED.c.order_id, FEED.c.version).where(FEED.c.seq > bindparam("head", type_=SEQ))
    )
)
