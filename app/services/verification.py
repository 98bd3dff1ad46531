"""`flask verify`: compares the tables with the events, in ranges of ids that several processes can share; finds rows
without an order, and checks erasures and the numbers of the feed.

The last event's snapshot must be what the tables render to. The events of an order must form its history, and have one
position each in the feed or in the outbox, in the order of the versions; feed entries that were removed because of
their age are not reported. Two snapshots must differ as the event of the later one can make them: the derived members
agree with the records in each (`document_checks`), so a change is correct if the records are, and if no other member
has changed than those that such an event changes. The rules of each type of event are at the end.

Rows are read with Core: an ORM session would take twice the time of all checks.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import orjson
from sqlalchemy import (
    JSON,
    ColumnElement,
    CompoundSelect,
    Connection,
    Integer,
    Row,
    ScalarSelect,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    func,
    literal,
    null,
    select,
    union_all,
)

from app.db.engine import read_timestamp, rfc3339
from app.db.statements import consistent_read, octet_length
from app.models import (
    EVENTS,
    FEED,
    FEED_HEAD,
    ITEMS,
    ORDERS,
    OUTBOX,
    ChangeKey,
    Erasure,
    FeedEntry,
    Order,
    OrderEvent,
    OrderItem,
    OutboxEntry,
)
from app.models.lifecycle import (
    ACTIONS,
    CREATED,
    ERASED,
    EXPECTED,
    IMPORTED,
    LATE,
    OPEN,
    PARTIALLY_CANCELLED,
    RECEIVED,
    REJECTED,
    RETURN_EXPECTED,
    SHIPPED,
)
from app.models.money import InvalidPrices, order_totals, priced_lines, sum_payments, waived_amount
from app.models.order import CONTENT, CONTENT_TIMES, CONTENT_WHILE_PENDING, DONE, scrub
from app.models.order_aggregate import NOT_A_DOCUMENT, load_document, render_order
from app.models.order_id import HIGHEST_ID, LOWEST_ID, first_order_id, hash_reference, is_alias
from app.services.document_checks import Document, UnitCounts, VersionChecks, due_at, may_be_late, order_prices
from app.services.event_feed import IS_RETAINED
from app.services.order_service import content_columns, item_columns, order_fingerprint
from app.services.order_storage import NEW_ORDER_STATE
from app.services.search_projection import SearchQueries, compare_search

RANGE_SIZE = 500  # orders in memory at once
RANGE_BYTES = 8 * 1024**2  # of their documents, and one more order: parsed, they take several times as much memory
_EVENTS_PAGE = 250  # events in memory at once
_ERASURES_PAGE = 200  # erasures in memory at once
_CLOCK_SKEW = timedelta(minutes=1)  # between the machine that dates an event and the one that dates its feed entry
_GAPS_MAX = 100  # gaps, and entries, that are reported


@dataclass(frozen=True, slots=True)
class OrderRange:
    """The orders whose ids are greater than `after` and at most `last`; `size` was their number when the range was
    determined."""

    after: str
    last: str
    size: int


@dataclass(frozen=True, slots=True)
class RangeResult:
    """How many orders of a range were verified, and the differences that were found."""

    orders: OrderRange
    verified: int
    differences: list[str]


def count_orders() -> int:
    """The number of orders."""
    with consistent_read(statement_timeout=None) as session:
        return session.scalar(select(func.count()).select_from(Order)) or 0


def order_ranges() -> Iterator[OrderRange]:
    """All ids, in ranges of up to RANGE_SIZE orders. Each range is determined when it is requested."""
    after, last = LOWEST_ID, ""
    while last != HIGHEST_ID:
        with consistent_read(statement_timeout=None) as session:
            ids = session.execute(_first_ids(after)).all()
        is_last = len(ids) < RANGE_SIZE and (not ids or len(ids) == ids[-1].listed)
        last = HIGHEST_ID if is_last else ids[-1].id
        yield OrderRange(after, last, len(ids))
        after = last


def _first_ids(after: str) -> Select[Any]:
    """The next orders whose documents have less than RANGE_BYTES together before the last one, and how many of the next
    RANGE_SIZE orders there are."""
    document = select(octet_length(cast(OrderEvent.snapshot, Text))).where(
        OrderEvent.order_id == Order.id, OrderEvent.version == Order.version
    )
    length = func.coalesce(document.scalar_subquery(), 0).label("length")  # 0: the event is missing
    orders = select(Order.id, length).where(Order.id > after).order_by(Order.id).limit(RANGE_SIZE).subquery()
    total = func.sum(orders.c.length).over(order_by=orders.c.id)
    sized = select(orders.c.id, (total - orders.c.length).label("before"), func.count().over().label("listed"))
    ranged = sized.subquery()
    return select(ranged.c.id, ranged.c.listed).where(ranged.c.before < RANGE_BYTES).order_by(ranged.c.id)


def verify_range(orders: OrderRange, *, since: datetime | None = None) -> RangeResult:
    """Verify the orders of a range, or those of them that were created or changed since an aware time.

    Everything is read from one snapshot of the database, so that concurrent changes are not reported. Rows without an
    order are searched too; with `since`, only in ranges with ids that were created since then.
    """
    with consistent_read(statement_timeout=None) as session:
        connection = session.connection()
        selection = OrderSelection(_IN_RANGE, {"after": orders.after, "last": orders.last})
        if since is None:
            verified, differences = _compare_all(connection, selection)
        else:
            verified, differences = _compare_changed_orders(connection, selection, since)
        if since is None or orders.last >= first_order_id(since):
            differences += _find_orphans(connection, selection.parameters)
    return RangeResult(orders, verified, differences)


# JSON columns and ids are read as text: orjson parses faster than the drivers' parsers.
_JSON_COLUMNS = tuple(name for name, column in ORDERS.c.items() if isinstance(column.type, JSON))
_ORDER_COLUMNS = tuple(cast(c, Text).label(c.name) if c.name in ("id", *_JSON_COLUMNS) else c for c in ORDERS.c)
_ITEM_COLUMNS = tuple(cast(c, Text).label(c.name) if c.name == "order_id" else c for c in ITEMS.c)
_EVENT_COLUMNS = (
    cast(EVENTS.c.order_id, Text).label("order_id"),
    *(EVENTS.c[name] for name in ("version", "type", "actor", "request_id", "traceparent", "at", "snapshot")),
)
_ALIASES = select(Erasure.customer_id, Erasure.alias).where(Erasure.customer_id.is_not(None))

Condition = Callable[[Any], ColumnElement[bool]]  # on a column of order ids


@dataclass(frozen=True, slots=True)
class OrderRow:
    """The columns of an order and those of its items, in the order of the lines."""

    columns: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]

    @property
    def id(self) -> str:
        return str(self.columns["id"])


def _in_range(column: Any) -> ColumnElement[bool]:
    condition: ColumnElement[bool] = (column > bindparam("after")) & (column <= bindparam("last"))
    return condition


def _select_events(condition: Condition) -> Select[Any]:
    """The events of the orders, each with its place in the outbox and in the feed."""

    # Subqueries: the planner expects one event in a range, and would join by comparing all rows with each other.
    def of_event(table: Table, column: str) -> ScalarSelect[Any]:
        same_event = (table.c.order_id == EVENTS.c.order_id) & (table.c.version == EVENTS.c.version)
        return select(table.c[column]).where(same_event).scalar_subquery()

    positions = of_event(OUTBOX, "version").label("outbox_version"), of_event(FEED, "seq").label("seq")
    events = select(*_EVENT_COLUMNS, *positions).where(condition(EVENTS.c.order_id))
    return events.order_by(EVENTS.c.order_id, EVENTS.c.version)


def _select_orphans() -> CompoundSelect[Any]:
    """Order id, table and version of orphans in a range of ids; the version is NULL for rows without an order."""
    queries = []
    # The range is repeated inside NOT EXISTS, or the planner reads half of that table.
    for model in (OrderItem, OrderEvent, ChangeKey, OutboxEntry, FeedEntry):
        order = select(Order).where(Order.id == model.order_id, _in_range(Order.id)).exists()
        rows = select(model.order_id, literal(model.__tablename__), cast(null(), Integer))
        queries.append(rows.where(_in_range(model.order_id), ~order).distinct())
    for model, table in ((OutboxEntry, "the outbox"), (FeedEntry, "the feed"), (ChangeKey, "a key")):
        of_event = (OrderEvent.order_id == model.order_id) & (OrderEvent.version == model.version)
        event = select(OrderEvent).where(of_event, _in_range(OrderEvent.order_id)).exists()
        entries = select(model.order_id, literal(table), model.version)
        queries.append(entries.where(_in_range(model.order_id), ~event))
    return union_all(*queries)


class Queries:
    """The queries about orders whose ids meet a condition, built once: that takes as long as verifying several
    orders."""

    def __init__(self, condition: Condition) -> None:
        self.ids = select(cast(ORDERS.c.id, Text)).where(condition(ORDERS.c.id)).order_by(ORDERS.c.id)
        self.orders = select(*_ORDER_COLUMNS).where(condition(ORDERS.c.id)).order_by(ORDERS.c.id)
        self.items = select(*_ITEM_COLUMNS).where(condition(ITEMS.c.order_id)).order_by(ITEMS.c.order_id, ITEMS.c.line)
        self.events = _select_events(condition)
        self.search = SearchQueries(condition)


@dataclass(frozen=True, slots=True)
class OrderSelection:
    """The orders to compare: queries with the parameters of their condition."""

    queries: Queries
    parameters: Mapping[str, Any]


_IN_RANGE = Queries(_in_range)
_BY_ID = Queries(lambda column: column.in_(bindparam("ids", expanding=True)))
_ORPHANS = _select_orphans()


def _compare_changed_orders(connection: Connection, orders: OrderSelection, since: datetime) -> tuple[int, list[str]]:
    changed = orders.queries.ids.where(ORDERS.c.updated_at >= since)
    ids = connection.execute(changed, orders.parameters).scalars().all()
    return _compare_all(connection, OrderSelection(_BY_ID, {"ids": ids})) if ids else (0, [])


def _compare_all(connection: Connection, selection: OrderSelection) -> tuple[int, list[str]]:
    """The number of orders, and their differences, those of the search included."""
    count, differences = _compare_orders(connection, selection)
    # Orders that cannot be read are already reported, and the search cannot be computed from them.
    return count, differences or list(compare_search(connection, selection.queries.search, selection.parameters))


def _compare_orders(connection: Connection, selection: OrderSelection) -> tuple[int, list[str]]:
    """The number of orders, and their differences. If a value cannot be read, the orders are read one by one."""
    try:
        orders = list(_read_orders(connection, selection))
        return len(orders), list(_compare_with_events(connection, orders, selection))
    except ValueError:  # SQLite stores any text as a time or as JSON
        ids = connection.execute(selection.queries.ids, selection.parameters).scalars().all()
        return len(ids), [line for order_id in ids for line in _compare_one(connection, order_id)]


def _compare_one(connection: Connection, order_id: str) -> list[str]:
    selection = OrderSelection(_BY_ID, {"ids": [order_id]})
    try:
        return list(_compare_with_events(connection, list(_read_orders(connection, selection)), selection))
    except ValueError as error:
        return [f"order {order_id}: a value in one of its rows cannot be read ({type(error).__name__})"]


def _read_orders(connection: Connection, selection: OrderSelection) -> Iterator[OrderRow]:
    items = _read_dicts(connection, selection.queries.items, selection.parameters)
    by_order = {order_id: list(rows) for order_id, rows in groupby(items, itemgetter("order_id"))}
    for columns in _read_dicts(connection, selection.queries.orders, selection.parameters):
        for name in _JSON_COLUMNS:
            if columns[name] is not None:
                columns[name] = orjson.loads(columns[name])
        yield OrderRow(columns, by_order.get(columns["id"], []))


def _read_dicts(connection: Connection, query: Select[Any], parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    result = connection.execute(query, parameters)
    names = tuple(result.keys())
    return (dict(zip(names, row, strict=True)) for row in result)  # mappings take twice the time


def _compare_with_events(
    connection: Connection, orders: Sequence[OrderRow], selection: OrderSelection
) -> Iterator[str]:
    aliases: dict[str | None, str] = dict(connection.execute(_ALIASES).all())
    kept_since = _feed_kept_since(connection)
    events = selection.queries.events.execution_options(yield_per=_EVENTS_PAGE)
    with connection.execute(events, selection.parameters) as rows:
        logs: Iterator[tuple[str, Iterator[Row[Any]]]] = groupby(rows, attrgetter("order_id"))
        log_id, log = next(logs, ("", iter(())))
        for order in orders:
            while log_id and log_id < order.id:  # these events are without an order
                log_id, log = next(logs, ("", iter(())))
            if log_id == order.id:
                alias = aliases.get(order.columns["customer_id"])
                for difference in compare_events(order, log, alias=alias, kept_since=kept_since):
                    yield f"order {order.id}: {difference}"
                log_id, log = next(logs, ("", iter(())))
            else:
                yield f"order {order.id}: there is no event in the log"


def compare_events(
    order: OrderRow, log: Iterator[Row[Any]], *, alias: str | None, kept_since: datetime
) -> Iterator[str]:
    """The differences between the events of an order, given in the order of their versions, and the order.

    Two snapshots are in memory at a time. `alias` is that of a running erasure of the customer, which may have erased
    only some of the snapshots. `kept_since` is the time after which no event has been removed from the feed.
    """
    before: _Version | None = None
    feed_order, checks = _FeedOrder(kept_since), VersionChecks()
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
    if not _is_allowed(event.type, old):
        yield f"version {event.version}, which is {event.type}, cannot follow version {old['version']}"
        return
    change = _VersionChange(old, new, differing, before.units, version.units)
    for name in _wrong_members(event.type, change, actor=event.actor):
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


class _FeedOrder:
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


def _feed_kept_since(connection: Connection) -> datetime:
    """The aware time after which no event has been removed from the feed yet."""
    if not connection.scalar(select(FEED_HEAD.c.pruned_seq)):
        return datetime.min.replace(tzinfo=UTC)
    oldest: datetime | None = connection.scalar(select(FEED.c.at).where(IS_RETAINED).order_by(FEED.c.seq).limit(1))
    return datetime.max.replace(tzinfo=UTC) if oldest is None else oldest + _CLOCK_SKEW


def _find_orphans(connection: Connection, orders: Mapping[str, Any]) -> Iterator[str]:
    """Rows without an order; and entries of the outbox and the feed, and keys, without an event."""
    for order_id, table, version in connection.execute(_ORPHANS, orders):
        if version is None:
            yield f"order {order_id}: there is no such order, but there are rows of it in {table}"
        else:
            yield f"order {order_id}: {table} has version {version}, but there is no such event"


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


def verify_erasures() -> Iterator[list[str]]:
    """Verify all erasures, and yield the differences of each page."""
    last = LOWEST_ID
    count = select(func.count()).where(Order.customer_id == Erasure.alias).scalar_subquery()
    while True:
        with consistent_read(statement_timeout=None) as session:
            query = select(Erasure, count).where(Erasure.id > last).order_by(Erasure.id).limit(_ERASURES_PAGE)
            rows = session.execute(query).all()
            yield [difference for row in rows for difference in _compare_erasure(*row)]
        if len(rows) < _ERASURES_PAGE:
            return
        last = rows[-1][0].id


def _compare_erasure(erasure: Erasure, count: int) -> Iterator[str]:
    name = f"erasure {erasure.id}"
    if erasure.orders != count:
        yield f"{name}: orders is {erasure.orders}, but {count} have its alias"
    if erasure.status == DONE and (erasure.customer_id is not None or erasure.finished_at is None):
        yield f"{name}: it is done, but still has a customer_id, or no finished_at"


_RecordCheck = Callable[[Document, Document], Iterator[str]]  # yields the members that are wrong

_ACTION_BY_EVENT = {action.event: name for name, action in ACTIONS.items()} | {
    PARTIALLY_CANCELLED: "cancel",
    RETURN_EXPECTED: "return",
}
_MONEY = {"totals", "payment_status"}
_WHILE_PENDING = {*CONTENT_WHILE_PENDING, *_MONEY}
_CANCELLATION = {"status", "holds", "cancellations", "adjustments", "items", "fulfillment_status", "late", *_MONEY}
_DELIVERY = {"status", "fulfillments", "items", "fulfillment_status", "return_status", "late"}
_RETURN = {"returns", "items", "return_status"}
# The members that an event may change, besides _ALWAYS_CHANGING.
_CHANGEABLE: dict[str, set[str]] = {
    "order.updated": {*CONTENT, "late", *_WHILE_PENDING},
    "order.confirmed": {"status"},
    "order.cancelled": _CANCELLATION,
    PARTIALLY_CANCELLED: _CANCELLATION,
    "order.held": {"holds"},
    "order.released": {"holds"},
    "order.fulfilled": _DELIVERY,
    "order.fulfillment_updated": _DELIVERY,
    "order.completed": {"status", "late"},
    "order.returned": _RETURN,
    RETURN_EXPECTED: {"returns"},
    "order.return_received": _RETURN,
    "order.return_rejected": {"returns"},
    "order.payment_recorded": {"payments", *_MONEY},
    "order.reopened": {"status", "reopening", "cancellations", "items", "fulfillment_status", *_MONEY},
    LATE: {"late"},
    ERASED: set(),  # an erasure removes data from all snapshots, including earlier ones
}
_ALWAYS_CHANGING = {"version", "allowed_actions", "updated_at"}
# The members of items that an event may change; an update while the order is pending may change all of them.
_PRICES = {"discount", "total"}  # of new adjustments
_CHANGEABLE_OF_ITEMS = {
    "order.cancelled": {"cancelled", *_PRICES},
    PARTIALLY_CANCELLED: {"cancelled", *_PRICES},
    "order.fulfilled": {"fulfilled"},
    "order.fulfillment_updated": {"fulfilled"},
    "order.returned": {"returned"},
    "order.return_received": {"returned"},
    "order.reopened": {"cancelled"},
}


class _VersionChange(NamedTuple):
    """Two versions of an order document that follow each other, the names of the members that differ, and the units."""

    before: Document
    after: Document
    differing: set[str]
    units_before: UnitCounts
    units: UnitCounts


def _wrong_members(event_type: str, change: _VersionChange, *, actor: str) -> list[str]:
    """The names of the members whose change an event of this type, by this actor, cannot have made.

    The new values of members that the event may set freely are not checked: they are stored nowhere else. Raises
    KeyError, TypeError or ValueError if a version is not an order document.
    """
    before, after, differing = change.before, change.after, change.differing
    changeable = _CHANGEABLE[event_type]
    if event_type == "order.updated" and before["status"] != "pending":
        changeable = changeable - _WHILE_PENDING
    wrong = differing - changeable - _ALWAYS_CHANGING
    if "items" in differing and event_type in _CHANGEABLE_OF_ITEMS:
        changing = _CHANGEABLE_OF_ITEMS[event_type]
        items_before, items_after = (
            [{n: i[n] for n in i if n not in changing} for i in version["items"]] for version in (before, after)
        )
        if items_before != items_after:
            wrong.add("items")
    if record_check := _RECORD_CHECKS.get(event_type):
        wrong.update(record_check(before, after))
    if event_type == "order.held" and not _is_held_by(actor, after):
        wrong.add("holds")
    if event_type != LATE and not _keeps_lateness(event_type, change):
        wrong.add("late")
    if event_type in _ACTION_BY_EVENT and after["status"] != _expected_status(event_type, change):
        wrong.add("status")
    return sorted(wrong)


def differing_members(document: Document, other: Document) -> set[str]:
    """The names of the members that differ in two documents, or that only one of them has."""
    if document.keys() == other.keys():  # which all documents have: takes half of the time
        return {name for name, value in document.items() if other[name] != value}
    return {name for name in document.keys() | other.keys() if document.get(name) != other.get(name)}


def _is_allowed(event_type: str, before: Document) -> bool:
    """Whether an event of this type can follow the version `before`."""
    if event_type in (ERASED, LATE):
        return (before["status"] in OPEN) == (event_type == LATE)
    return _ACTION_BY_EVENT.get(event_type) in before["allowed_actions"]


def _expected_status(event_type: str, change: _VersionChange) -> str:
    """The status that the action leads to; an order whose last open unit is cancelled or fulfilled ends."""
    action, status = _ACTION_BY_EVENT[event_type], str(change.before["status"])
    if action == "reopen":
        return "pending" if status == "cancelled" else "confirmed"
    if action == "track":
        is_reopened = status == "completed" and change.units.open and not change.units_before.open
        return "confirmed" if is_reopened else status
    if action in ("cancel", "fulfill") and not change.units.open:
        return "completed" if change.units.all_fulfilled else "cancelled"
    return ACTIONS[action].to_status or status


def _keeps_lateness(event_type: str, change: _VersionChange) -> bool:
    """Whether `late` is as before. An order without open units is not late; a new `ship_by` may end lateness."""
    is_late, after = change.after["late"], change.after
    expected = change.before["late"] and may_be_late(after, change.units)
    return is_late is expected or (event_type == "order.updated" and is_late is False)


def _is_held_by(actor: str, order: Document) -> bool:
    """Whether the actor has placed the hold of this version. An erasure renames the actors of the customer."""
    at = order["updated_at"]
    return is_alias(order["customer_id"]) or any(
        (hold["placed_by"], hold["placed_at"]) == (actor, at) for hold in order["holds"]
    )


def _added_record(name: str, **members: Any) -> _RecordCheck:
    """The check that one record with these members was added at the time of the event."""

    def check(before: Document, after: Document) -> Iterator[str]:
        *past, new = after[name] or [{}]
        expected = members | {"created_at": after["updated_at"]}
        if past != before[name] or {**new, **expected} != new:
            yield name

    return check


def _changed_record(name: str, *changing: str, **members: Any) -> _RecordCheck:
    """The check that one record has changed, in these members only, and has `members` now."""

    def check(before: Document, after: Document) -> Iterator[str]:
        pairs = [(old, new) for old, new in zip(before[name], after[name], strict=False) if old != new]
        if len(before[name]) != len(after[name]) or len(pairs) != 1:
            yield name
            return
        [(old, new)] = pairs
        if {**old, **{member: new[member] for member in changing}} != new or {**new, **members} != new:
            yield name

    return check


def _check_delivery_event(before: Document, after: Document) -> Iterator[str]:
    """One fulfillment has another tracking, or one event more. An erasure has removed both trackings."""
    if is_alias(after["customer_id"]) and after["fulfillments"] == before["fulfillments"]:
        return
    yield from _changed_record("fulfillments", "status", "events", "tracking")(before, after)
    for old, new in zip(before["fulfillments"], after["fulfillments"], strict=False):
        if old["events"] != new["events"] and (
            old["events"] != new["events"][:-1] or old["tracking"] != new["tracking"]
        ):
            yield "fulfillments"


def _check_cancellation(before: Document, after: Document) -> Iterator[str]:
    """One cancellation was added; the holds of an order that has ended are released."""
    yield from _added_record("cancellations", reopened_at=None)(before, after)
    if after["holds"] != (before["holds"] if after["status"] in OPEN else []):
        yield "holds"


def _check_hold(before: Document, after: Document) -> Iterator[str]:
    """One hold was added at the end, or replaced another one with the same handle."""
    past, new = {hold["handle"]: hold for hold in before["holds"]}, {hold["handle"]: hold for hold in after["holds"]}
    changed = [hold for handle, hold in new.items() if past.get(handle) != hold]
    handles = list(past | new)
    if len(changed) != 1 or list(new) != handles or changed[0]["placed_at"] != after["updated_at"]:
        yield "holds"


def _check_payment(before: Document, after: Document) -> Iterator[str]:
    """One payment was added, of which as much is waived as follows from the version before."""
    yield from _added_record("payments")(before, after)
    sums, total = sum_payments(before["payments"], before["cancellations"]), before["totals"]["total"]
    for new in after["payments"][-1:]:
        if new["waived"] != waived_amount(new["type"], new["amount"], sums, total=total):
            yield "payments"


def _check_release(before: Document, after: Document) -> Iterator[str]:
    """One hold was removed."""
    remaining = [hold for hold in before["holds"] if hold in after["holds"]]
    if remaining != after["holds"] or len(remaining) != len(before["holds"]) - 1:
        yield "holds"


def _check_reopening(before: Document, after: Document) -> Iterator[str]:
    """The units of a cancelled order are open again since the event."""
    reopening, at = after["reopening"], after["updated_at"]
    if reopening is None or (reopening["from_status"], reopening["at"]) != (before["status"], at):
        yield "reopening"
    reopened = before["cancellations"]
    if before["status"] == "cancelled":
        reopened = [{**record, "reopened_at": record["reopened_at"] or at} for record in reopened]
    if after["cancellations"] != reopened:
        yield "cancellations"


def _check_lateness(before: Document, after: Document) -> Iterator[str]:
    """The date to ship by has passed, for the first time."""
    if before["late"] or not after["late"] or after["ship_by"] is None or after["ship_by"] > after["updated_at"]:
        yield "late"


_RECORD_CHECKS: dict[str, _RecordCheck] = {
    "order.cancelled": _check_cancellation,
    PARTIALLY_CANCELLED: _check_cancellation,
    "order.held": _check_hold,
    "order.released": _check_release,
    "order.fulfilled": _added_record("fulfillments", status=SHIPPED, events=[]),
    "order.fulfillment_updated": _check_delivery_event,
    "order.returned": _added_record("returns", status=RECEIVED),
    RETURN_EXPECTED: _added_record("returns", status=EXPECTED),
    "order.return_received": _changed_record("returns", "status", status=RECEIVED),
    "order.return_rejected": _changed_record("returns", "status", status=REJECTED),
    "order.payment_recorded": _check_payment,
    "order.reopened": _check_reopening,
    LATE: _check_lateness,
}
