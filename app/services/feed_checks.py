"""Whether each event has its one place in the feed or the outbox, in the order of the versions, and no number is lost.

The feed entries that are removed for their age (`app/services/sequencer.py`) are no differences.
"""

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, func, select

from app.db.transactions import consistent_read
from app.models import FEED, FEED_HEAD

_CLOCK_SKEW = timedelta(minutes=1)  # between the machine that dates an event and the one that dates its feed entry
_GAPS_MAX = 100  # gaps, and entries, that are reported


class FeedOrder:
    """The places of the events of one order, in the order of the versions.

    Those that are removed from the feed come first, then those in the feed, then those in the outbox. Events after the
    aware time `kept_since` have not been removed.
    """

    def __init__(self, kept_since: datetime) -> None:
        self._kept_since = kept_since
        self._last = -math.inf  # the highest number in the feed so far; infinity if it was the outbox

    def verify(self, event: Row[Any]) -> Iterator[str]:
        """The differences of the next event, a row with `seq` and `outbox_version`."""
        if event.seq is None and event.outbox_version is None:
            if self._last > -math.inf or event.at > self._kept_since:
                yield f"version {event.version} is neither in the outbox nor in the feed"
            return
        if event.seq is not None and event.outbox_version is not None:
            yield f"version {event.version} is both in the outbox and in the feed"
        place = math.inf if event.seq is None else event.seq
        if place < self._last:
            yield f"version {event.version} is in the feed before the version that precedes it"
        self._last = place


def feed_kept_since(connection: Connection) -> datetime:
    """The aware time after which no event has been removed from the feed yet."""
    if not connection.scalar(select(FEED_HEAD.c.pruned_seq)):
        return datetime.min.replace(tzinfo=UTC)
    oldest: datetime | None = connection.scalar(select(FEED.c.at).order_by(FEED.c.seq).limit(1))
    return datetime.max.replace(tzinfo=UTC) if oldest is None else oldest + _CLOCK_SKEW


def verify_feed_numbers() -> list[str]:
    """The differences between the numbers in the feed and those that `feed_head` says it has."""
    with consistent_read(statement_timeout=None) as session:
        connection = session.connection()
        head = connection.execute(select(FEED_HEAD.c.seq, FEED_HEAD.c.pruned_seq)).first()
        if head is None:
            return ["feed: feed_head has no row"]
        numbers = select(func.count(), func.min(FEED.c.seq), func.max(FEED.c.seq))
        count, lowest, highest = connection.execute(numbers).one()
        first, last = head.pruned_seq + 1, head.seq
        if count == last - head.pruned_seq and (count == 0 or (lowest, highest) == (first, last)):
            return []
        return list(_wrong_numbers(connection, first, last))


def _wrong_numbers(connection: Connection, first: int, last: int) -> Iterator[str]:
    previous = func.lag(FEED.c.seq, 1, first - 1).over(order_by=FEED.c.seq).label("previous")
    expected = select(FEED.c.seq, previous).where(FEED.c.seq.between(first, last)).subquery()
    gaps = select(expected.c.previous + 1, expected.c.seq - 1).where(expected.c.seq > expected.c.previous + 1)
    for start, end in connection.execute(gaps.order_by(expected.c.seq).limit(_GAPS_MAX)):
        yield f"feed: there are no entries {start} to {end}"
    highest = connection.scalar(select(func.max(FEED.c.seq)).where(FEED.c.seq.between(first, last))) or first - 1
    if highest < last:
        yield f"feed: there are no entries {highest + 1} to {last}"
    others = select(FEED.c.seq).where(~FEED.c.seq.between(first, last)).order_by(FEED.c.seq).limit(_GAPS_MAX)
    for seq in connection.execute(others).scalars():
        yield f"feed: there is an entry {seq}, but feed_head has {first} to {last}"
