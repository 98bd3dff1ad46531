"""`flask verify`: compares the tables with the events, in ranges of ids that several processes can share.

The last event's snapshot must be what the tables render to; `event_checks` compares each event with the one before, and
`document_checks` the members of a snapshot with each other. Rows are read with Core: an ORM session would take twice
the time of all checks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any

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

from app.db.statement import octet_length
from app.db.transactions import consistent_read
from app.models import (
    EVENTS,
    FEED,
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
from app.models.erasure import DONE
from app.models.order_id import HIGHEST_ID, LOWEST_ID, first_order_id
from app.services.event_checks import EVENT_COLUMNS, OrderRow, compare_events, feed_kept_since
from app.services.search_checks import SearchQueries, compare_search

RANGE_SIZE = 500  # orders in memory at once
RANGE_BYTES = 8 * 1024**2  # of their documents, and one more order: parsed, they take several times as much memory
_EVENTS_PAGE = 250  # events in memory at once
_ERASURES_PAGE = 200

# JSON columns and ids are read as text: orjson parses faster than the drivers' parsers.
_JSON_COLUMNS = tuple(name for name, column in ORDERS.c.items() if isinstance(column.type, JSON))
_ORDER = tuple(cast(c, Text).label(c.name) if c.name in ("id", *_JSON_COLUMNS) else c for c in ORDERS.c)
_ITEM = tuple(cast(c, Text).label(c.name) if c.name == "order_id" else c for c in ITEMS.c)
_EVENT = (cast(EVENTS.c.order_id, Text).label("order_id"), *(EVENTS.c[name] for name in EVENT_COLUMNS))
Condition = Callable[[Any], ColumnElement[bool]]  # on a column of order ids
_ALIASES = select(Erasure.customer_id, Erasure.alias).where(Erasure.customer_id.is_not(None))


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
    events = select(*_EVENT, *positions).where(condition(EVENTS.c.order_id))
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
        self.orders = select(*_ORDER).where(condition(ORDERS.c.id)).order_by(ORDERS.c.id)
        self.items = select(*_ITEM).where(condition(ITEMS.c.order_id)).order_by(ITEMS.c.order_id, ITEMS.c.line)
        self.events = _select_events(condition)
        self.search = SearchQueries(condition)


_IN_RANGE = Queries(_in_range)
_BY_ID = Queries(lambda column: column.in_(bindparam("ids", expanding=True)))
_ORPHANS = _select_orphans()


@dataclass(frozen=True, slots=True)
class OrderSelection:
    """The orders to compare: queries with the parameters of their condition."""

    queries: Queries
    parameters: Mapping[str, Any]


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
    kept_since = feed_kept_since(connection)
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


def _find_orphans(connection: Connection, orders: Mapping[str, Any]) -> Iterator[str]:
    """Rows without an order; and entries of the outbox and the feed, and keys, without an event."""
    for order_id, table, version in connection.execute(_ORPHANS, orders):
        if version is None:
            yield f"order {order_id}: there is no such order, but there are rows of it in {table}"
        else:
            yield f"order {order_id}: {table} has version {version}, but there is no such event"


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
