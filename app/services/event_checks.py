"""Whether the events of an order form its history, agree with its columns, and have one position each in the feed.

An event is in the feed or in the outbox, in the order of the versions. Feed entries that were removed because of their
age (`app/services/sequencer.py`) are not reported.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, Row, func, select

from app.db.transactions import consistent_read
from app.db.types import read_timestamp, rfc3339
from app.models import FEED, FEED_HEAD
from app.models.erasure import scrub
from app.models.lifecycle import CREATED, IMPORTED
from app.models.money import InvalidPrices, order_totals, priced_lines, sum_payments
from app.models.order import CONTENT_TIMES
from app.models.order_id import hash_reference, is_alias
from app.services.change_checks import VersionChange, differing_members, is_allowed, wrong_members
from app.services.document_checks import Document, UnitCounts, VersionChecks, due_at, order_prices
from app.services.order_document import NOT_A_DOCUMENT, load_document, render_order
from app.services.order_inserts import NEW_ORDER_STATE
from app.services.order_service import content_columns, item_columns, order_fingerprint
from app.services.sequencer import IS_RETAINED

# The columns of `order_events` that are compared here.
EVENT_COLUMNS = ("version", "type", "actor", "request_id", "traceparent", "at", "snapshot")

_CLOCK_SKEW = timedelta(minutes=1)  # between the machine that dates an event and the one that dates its feed entry
_GAPS_MAX = 100  # gaps, and entries, that are reported


@dataclass(frozen=True, slots=True)
class OrderRow:
    """The columns of an order and those of its items, in the order of the lines."""

    columns: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]

    @property
    def id(self) -> str:
        return str(self.columns["id"])


def compare_events(
    order: OrderRow, log: Iterator[Row[Any]], *, alias: str | None, kept_since: datetime
) -> Iterator[str]:
    """The differences between the events of an order, given in the order of their versions, and the order.

    Two snapshots are in memory at a time. `alias` is that of a running erasure of the customer, which may have erased
    only some of the snapshots. `kept_since` is the time after which no event has been removed from the feed.
    """
    before: _Version | None = None
    feed_order, checks = FeedOrder(kept_since), VersionChecks()
    for event in log:
        yield from feed_order.verify(event)
        try:
            snapshot = load_document(event.snapshot)
            yield from _verify_snapshot(order, event, snapshot)
            differing = differing_members(before.snapshot, snapshot) if before else set(snapshot)
            for member in checks.inconsistent_members(snapshot, differing):
                yield f"{member} contradicts other members in the snapshot of version {event.version}"
            version = _Version(event, snapshot, checks.units(snapshot))
            if before is None:
                yield from _verify_first(order.columns, event, snapshot, alias=alias)
            else:
                yield from _verify_change(before, version, differing, alias=alias)
        except orjson.JSONDecodeError:
            yield f"the snapshot of version {event.version} is not JSON"
            return
        except NOT_A_DOCUMENT:
            yield f"the snapshot of version {event.version} is not the document of an order"
            return
        if before is not None and event.version != before.event.version + 1:
            yield f"version {event.version} follows version {before.event.version} in the log"
        before = version
    if before is not None:
        yield from _verify_tables(order, before.event, before.snapshot)


class _Version(NamedTuple):
    event: Row[Any]
    snapshot: Document
    units: UnitCounts


def _verify_snapshot(order: OrderRow, event: Row[Any], snapshot: Document) -> Iterator[str]:
    columns = event.order_id, event.version, rfc3339(event.at)
    members = snapshot["id"], snapshot["version"], snapshot["updated_at"]
    if members != columns:
        for name, member, column in zip(("id", "version", "updated_at"), members, columns, strict=True):
            if member != column:
                where = f"in the snapshot of version {event.version}"
                yield f"{name} is {_abbreviated(member)} {where}, {_abbreviated(column)} in its event"
    serialized, text = orjson.dumps(snapshot).decode(), event.snapshot
    if serialized != text and orjson.dumps(orjson.loads(text)).decode() != text:
        yield f"the snapshot of version {event.version} is not written as it was rendered"
    if is_alias(order.columns["customer_id"]):  # all snapshots are erased before the order is
        erased = {"customer_id": order.columns["customer_id"], "request_id": None, "traceparent": None}
        actual = {"customer_id": snapshot["customer_id"]}
        actual |= {"request_id": event.request_id, "traceparent": event.traceparent}
        for name in (name for name in erased if actual[name] != erased[name]):
            yield f"{name} is {_abbreviated(actual[name])} in version {event.version} of an erased order"


def _verify_first(order: Document, event: Row[Any], snapshot: Document, *, alias: str | None) -> Iterator[str]:
    """The first event, and the columns of the order that are derived from it."""
    if alias is not None and snapshot["customer_id"] == alias:
        return  # this snapshot is erased, and the order's row not yet
    if event.type != IMPORTED and (event.type, event.version, snapshot["status"]) != (CREATED, 1, "pending"):
        yield f"the log begins with {event.type} at version {event.version}"
    if event.type == CREATED:
        for name in (name for name, value in NEW_ORDER_STATE.items() if snapshot[name] != value):
            yield f"{name} is {_abbreviated(snapshot[name])} in version {event.version}, which is {event.type}"
    principal, key_hash, first_fingerprint = order["principal"], order["idempotency_key_hash"], order["fingerprint"]
    if principal != event.actor:
        yield f"principal is {principal!r} in the table, {event.actor!r} in the log"
    if key_hash is not None and key_hash[-4:] != order["id"][-4:]:
        yield "idempotency_key_hash is not the one that the id was made for"
    if first_fingerprint is None and is_alias(order["customer_id"]):
        return  # an erasure removes it; it may also have renamed the principal, and leaves the hash of the reference
    dates = {name: snapshot[name] and read_timestamp(snapshot[name]) for name in CONTENT_TIMES}
    if first_fingerprint != order_fingerprint(content_columns({**snapshot, **dates}), item_columns(snapshot)):
        yield "fingerprint is not that of the first version"
    if order["external_ref_hash"] != hash_reference(order["external_ref"], principal=principal):
        yield "external_ref_hash is not that of the principal's external_ref"


def _verify_change(before: _Version, version: _Version, differing: set[str], *, alias: str | None) -> Iterator[str]:
    """An event and its snapshot, compared with the version before."""
    event, old, new = version.event, before.snapshot, version.snapshot
    if alias is not None:
        old, new = scrub(old, alias=alias), scrub(new, alias=alias)
        differing = differing_members(old, new)
    if not is_allowed(event.type, old):
        yield f"version {event.version}, which is {event.type}, cannot follow version {old['version']}"
        return
    change = VersionChange(old, new, differing, before.units, version.units)
    for name in wrong_members(event.type, change, actor=event.actor):
        yield f"{name} in version {event.version} cannot result from {event.type}"


def _verify_tables(order: OrderRow, event: Row[Any], snapshot: Document) -> Iterator[str]:
    """The last snapshot, compared with what the tables render to, and with the columns that the document leaves out.

    The tables have no `allowed_actions`; those of the snapshot agree with its other members.
    """
    try:
        rendered = _render_tables(order, snapshot["allowed_actions"])
    except InvalidPrices as error:
        yield f"{' and '.join(error.messages)} in the tables do not add up"
        return
    except NOT_A_DOCUMENT as error:
        yield f"the tables do not render to the document of an order ({type(error).__name__}: {error})"
        return
    if rendered != event.snapshot:
        is_complete = orjson.loads(event.snapshot).keys() == snapshot.keys()
        yield from _compare_rendered(orjson.loads(rendered), snapshot, is_complete=is_complete)
    totals = snapshot["totals"] or {"total": None}
    for name, value in (("total", totals["total"]), ("due_at", due_at(snapshot, version=event.version))):
        if order.columns[name] != value:
            yield f"{name} is {_abbreviated(order.columns[name])} in the tables, {_abbreviated(value)} by the log"


def _compare_rendered(tables: Document, snapshot: Document, *, is_complete: bool) -> Iterator[str]:
    names = differing_members(tables, snapshot)
    for name in sorted(names):
        yield f"{name} is {_abbreviated(tables.get(name))} in the tables, {_abbreviated(snapshot.get(name))} in the log"
    if not names and is_complete:
        yield "the newest snapshot is not written as the tables render it"


def _render_tables(order: OrderRow, allowed_actions: Sequence[str]) -> str:
    columns, items = order.columns, order.items
    prices = order_prices(items, columns["adjustments"])
    payments = sum_payments(columns["payments"], columns["cancellations"])
    totals = order_totals(prices, items, is_cancelled=columns["status"] == "cancelled", payments=payments)
    derived = {"items": priced_lines(items, prices), "totals": totals, "allowed_actions": allowed_actions}
    return render_order({**columns, **derived})


def _abbreviated(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 80 else text[:79] + "…"


class FeedOrder:
    """Verifies that the feed and the outbox have the events of one order in the order of their versions.

    Events that were removed from the feed come first, then those in the feed, then those in the outbox. Events after
    the aware time `kept_since` have not been removed.
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
        position = math.inf if event.seq is None else event.seq
        if position < self._last:
            yield f"version {event.version} is in the feed before the version that precedes it"
        self._last = position


def feed_kept_since(connection: Connection) -> datetime:
    """The aware time after which no event has been removed from the feed yet."""
    if not connection.scalar(select(FEED_HEAD.c.pruned_seq)):
        return datetime.min.replace(tzinfo=UTC)
    oldest: datetime | None = connection.scalar(select(FEED.c.at).where(IS_RETAINED).order_by(FEED.c.seq).limit(1))
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
