"""Reading the feed: all events of all orders, each with a number, without gaps."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Integer, Select, Text, and_, bindparam, cast, literal_column, or_, select, true

from app.db.batching import Batcher, PerApplication
from app.db.engine import db
from app.db.errors import DATABASE_ERRORS, DatabaseError
from app.db.statement import Statement, is_one_of, rows_within
from app.db.types import UUID, read_timestamp, rfc3339
from app.errors import CursorExpired
from app.models import FEED_HEAD
from app.models.event import SEQ, FeedEntry, OrderEvent
from app.models.order import Order

FEED_PAGE_BYTES = 1024 * 1024
SCAN_MAX = 5_000  # entries that one page looks at for those that match its filters
_GROUP_MAX = 10_000  # more than there are waiting requests in a process


@dataclass(frozen=True, slots=True)
class FeedFilter:
    """Which events to read. None stands for any."""

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

    def matches(self, *, event_type: str, channel: str | None, order_id: str) -> bool:
        """Whether an event matches."""
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
    """Events, and the number up to which the feed has been read, also where no event matched.

    `more`: the feed went on after that number when the page was read.
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
    [row] = _HEAD.rows()
    return FeedEnds(*row)


def list_events(filters: FeedFilter, *, after: int, limit: int) -> FeedPage:
    """Up to `limit` events with higher numbers than `after` that match the filters, in their order.

    A page ends early where its documents would exceed FEED_PAGE_BYTES, or after SCAN_MAX entries of the feed. Requests
    for the same page at the same time share one read. Raises CursorExpired.
    """
    page = _READS.get().submit(_PageKey(filters, after, limit))
    if isinstance(page, Exception):
        raise page
    return page


def _read_pages(keys: Sequence[_PageKey]) -> list[FeedPage | CursorExpired | DatabaseError]:
    """The pages of concurrent requests, each read once. An error concerns its own page only."""
    pages: dict[_PageKey, FeedPage | CursorExpired | DatabaseError] = {}
    for key in keys:
        if key not in pages:
            try:
                pages[key] = _read_page(key.filters, after=key.after, limit=key.limit)
            except (CursorExpired, *DATABASE_ERRORS) as error:
                pages[key] = error
    return [pages[key] for key in keys]


def _read_page(filters: FeedFilter, *, after: int, limit: int) -> FeedPage:
    head = read_ends()
    require_retained(after, head)
    if after == head.seq:
        return FeedPage([], after, more=False)
    of_order = filters.order_id is not None
    upto = head.seq if filters.matches_all or of_order else min(head.seq, after + SCAN_MAX)
    statement = (_OF_ORDER if of_order else _OF_ALL)[db.engine.dialect.name]
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
    return FeedPage([_event(*row) for row in rows], next_after, more=next_after < head.seq)


def require_retained(after: int, head: FeedEnds) -> None:
    """Raise CursorExpired unless all entries after this number exist."""
    if after < head.pruned_seq:
        raise CursorExpired(
            f"The events up to number {head.pruned_seq} have been removed from the feed. List the orders to know their "
            f"current state, then go on with after={head.pruned_seq}.",
            oldest_after=head.pruned_seq,
        )
    if after > head.seq:
        raise CursorExpired(
            f"The feed ends at number {head.seq}, so the database is an older one, probably restored from a backup. "
            f"List the orders to know their current state, then go on with after={head.seq}.",
            oldest_after=head.pruned_seq,
        )


def _event(
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


def _statement(*, of_order: bool, lateral: bool) -> Statement:
    columns = (
        OrderEvent.type, OrderEvent.actor, OrderEvent.request_id, OrderEvent.at, OrderEvent.snapshot
    )  # fmt: skip
    of_entry = and_(OrderEvent.order_id == FeedEntry.order_id, OrderEvent.version == FeedEntry.version)
    channel = select(Order.channel).where(Order.id == FeedEntry.order_id).scalar_subquery()
    entry: tuple[Any, ...] = (FeedEntry.seq, cast(FeedEntry.order_id, Text).label("order_id"), FeedEntry.version)
    query: Select[*tuple[Any, ...]]
    if lateral:  # a lookup by primary key for each entry: the plan for a small table is kept when it has grown
        event = select(*columns).where(of_entry).limit(literal_column("1")).lateral("event")
        query = select(*entry, *event.c).select_from(FeedEntry).join(event, true())
        query = query.where(_is_admitted(event.c.type, "types"))
    else:
        query = select(*entry, *columns).select_from(FeedEntry).join(OrderEvent, of_entry)
        query = query.where(_is_admitted(OrderEvent.type, "types"))
    query = query.where(_is_admitted(channel, "channels"))
    seq: Any = FeedEntry.seq
    if of_order:
        # By the index of the order: its events have the order of their versions. "+ 0" keeps the planner from reading
        # the feed by numbers.
        query = query.where(FeedEntry.order_id == bindparam("order_id", type_=UUID))
        seq = FeedEntry.seq + literal_column("0")
    query = query.where(seq > bindparam("after", type_=SEQ), seq <= bindparam("upto", type_=SEQ))
    query = query.order_by(FeedEntry.version if of_order else FeedEntry.seq).limit(bindparam("limit", type_=Integer))
    return Statement(rows_within(query, position="seq", document="snapshot", size=FEED_PAGE_BYTES, descending=False))


_HEAD = Statement(select(FEED_HEAD.c.seq, FEED_HEAD.c.pruned_seq))
_OF_ALL = {name: _statement(of_order=False, lateral=name == "postgresql") for name in ("postgresql", "sqlite")}
_OF_ORDER = {name: _statement(of_order=True, lateral=name == "postgresql") for name in ("postgresql", "sqlite")}
_READS = PerApplication(
    lambda: Batcher[_PageKey, FeedPage | CursorExpired | DatabaseError](_read_pages, max_batch=_GROUP_MAX)
)
