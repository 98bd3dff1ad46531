"""Reading orders: one, with an earlier version or its history; lists; exports of all orders that match a filter.

Concurrent requests for an order share one statement, as in a group commit: one round trip and one plan for all of them.
The history is the events, each with the changes from the version before. The changes are not stored: they are made when
the history is read, from the documents that the reader may see.

Here, too, is the condition that a principal sees only their own orders: `owned_by` and `restrict_to_owner`.

Lists are paged by keyset. They return stored documents without parsing them, except for a customer. An export is NDJSON
or CSV, in constant memory.
"""

import csv
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import accumulate, product
from threading import Semaphore
from typing import Any, NamedTuple, TypeVar

import jsonpatch
import orjson
from sqlalchemy import (
    ColumnElement,
    Integer,
    Row,
    Select,
    Subquery,
    Text,
    and_,
    asc,
    bindparam,
    case,
    cast,
    column,
    desc,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import aliased
from sqlalchemy.pool import QueuePool

from app.db.batching import Batcher, PerApplication
from app.db.engine import UUID, db, read_timestamp, rfc3339
from app.db.statements import Lookup, Statement, consistent_read, is_one_of, rows_within, with_retry, without_index
from app.errors import OrderNotFound
from app.models import Order, OrderEvent, OrderItem
from app.models.lifecycle import NOT_RETURNED, STATUSES
from app.models.money import UNPAID
from app.models.order_aggregate import StoredOrder, load_document, visible_actor, visible_document, visible_order
from app.models.order_id import (
    CREATE,
    HIGHEST_ID,
    LOWEST_ID,
    first_order_id,
    hash_key,
    hash_reference,
    next_id,
    normalize_order_number,
    parse_uuid,
)
from app.models.principal import Principal

Query = TypeVar("Query", bound=Select[*tuple[Any, ...]])

GROUP_READ_MAX = 100  # orders in one statement
HISTORY_PAGE_BYTES = 1024 * 1024

# The version and the document of an order.
Snapshot = tuple[int, str]

ORDER_KEY_COLUMNS = (column("id", UUID), column("customer_id", Text), column("channels", Text))  # of an `OrderKey`

# The time after `created_at` by which every order is readable. The statement runs after `created_at`; it fails after 10
# s, storing its orders one by one after another 5 s, and the first order of a batch's statement waits for the previous
# statement. The rest is for clocks that differ between machines.
VISIBLE_AFTER = timedelta(seconds=60)
PAGE_LENGTH = 1024 * 1024  # characters; the worker keeps a page in memory while a slow client reads it

_UNIQUE_FILTERS = {"number", "external_ref", "idempotency_key"}
# Filters of which one of several values may match.
_MULTIPLE_VALUES = {"channel", "status", "fulfillment_status", "payment_status", "return_status"}

# The filters whose index has the sort. The first of those given leads: its index is scanned from the cursor, and
# the other conditions are checked for each order. Several values are several ranges of the index, each with the sort,
# and so are all statuses of a channel: a rare channel is found as fast as a rare status of a common channel.
FILTER_INDEXES: dict[str, tuple[Any, ...]] = {
    "customer_id": (Order.customer_id, Order.id),
    "item_id": (OrderItem.item_id, OrderItem.order_id),
    "channel": (Order.channel, Order.status, Order.id),
    "status": (Order.status, Order.id),
    "fulfillment_status": (Order.fulfillment_status, Order.id),
    "payment_status": (Order.payment_status, Order.id),
    "return_status": (Order.return_status, Order.id),
}
# The values that partial indexes leave out, so that they cost a new order nothing. A filter by such a value does not
# lead.
_NOT_INDEXED = {"payment_status": UNPAID, "return_status": NOT_RETURNED}
# The conditions of the partial indexes, as these state them: without them no plan uses the index.
_INDEX_CONDITIONS = {"channel": Order.channel.is_not(None)} | {
    name: FILTER_INDEXES[name][0] != literal_column(f"'{value}'") for name, value in _NOT_INDEXED.items()
}

# A scalar subquery: every plan reads the documents row by row, after the limit.
_CURRENT_DOCUMENT = (
    select(OrderEvent.snapshot)
    .where(OrderEvent.order_id == Order.id, OrderEvent.version == Order.version)
    .scalar_subquery()
)

# The size of a page, which an export keeps in memory while a slow client reads it.
EXPORT_PAGE, EXPORT_PAGE_BYTES = 500, 256 * 1024  # orders, bytes
_FIRST_EXPORT_PAGE = 16  # orders
_EXPORT_WAIT_SECONDS = 10  # seconds that a page waits for a connection while other exports use theirs
_EXPORT_PAGE_SECONDS = 30  # a request has 3; where few orders match, a page may scan the whole table

BYTE_ORDER_MARK = "\ufeff"

# Where a formula can begin: at the start of a cell, and after a character that is a list separator elsewhere (`;`
# in much of Europe, a tab), since quotes do not protect it there. Possessive, so it takes linear time.
_FORMULA_START = re.compile(r"(?:^|[;\t\r\n])[;\"'\s]*+([=+\-@＝＋－＠]?)")
_CSV_ORDER_COLUMNS = (
    "id", "number", "customer_id", "external_ref", "channel", "status", "fulfillment_status",
    "payment_status", "return_status", "currency", "version", "created_at", "updated_at", "note",
)  # fmt: skip
_CSV_TOTAL_COLUMNS = ("items", "adjustments", "cancelled", "total", "paid", "refunded", "due")
_CSV_ITEM_COLUMNS = (
    "line", "item_id", "title", "quantity", "unit_price", "discount", "total", "cancelled", "fulfilled", "returned"
)  # fmt: skip
# The names of columns in the header, where they are not those of the members.
_CSV_TOTAL_NAMES = {"items": "items_total", "adjustments": "adjustments_total", "cancelled": "cancelled_total"}
_CSV_ITEM_NAMES = {"total": "line_total"}


@dataclass(slots=True)
class OrderKey:
    """The order `id`, if the principal has access to it, at `version`. None stands for the current version."""

    id: str
    principal: Principal
    version: int | None


def find_snapshot(key: OrderKey) -> Snapshot | None:
    """Find an order, in one statement with those of concurrent requests."""
    return _SNAPSHOT_READS.get().submit(key)


def get_order(order_id: str, *, principal: Principal, version: int | None = None) -> StoredOrder:
    """The current order, or the order at `version` (1 or more). Raises OrderNotFound, even if another owner has it."""
    parsed_id = parse_order_id(order_id)
    snapshot = find_snapshot(OrderKey(parsed_id, principal, version))
    if snapshot is not None:
        return visible_order(StoredOrder(parsed_id, *snapshot), principal)
    if version is not None and (current := find_snapshot(OrderKey(parsed_id, principal, None))):
        raise OrderNotFound(f"Order {parsed_id} has no version {version}: it is at version {current[0]}.")
    raise order_not_found(order_id)


def get_order_by_reference(external_ref: str, *, principal: Principal) -> StoredOrder:
    """The current order with an external reference of the principal's own. Raises OrderNotFound.

    The reference belongs to the principal that created the order: the same one of another principal is not found. An
    erasure keeps references, so the order is found after it as well, except by the customer, who no longer owns it.
    """
    ref_hash = hash_reference(external_ref, principal=principal.id)
    keys = {"external_ref": external_ref, "external_ref_hash": ref_hash}
    rows = _BY_REFERENCE.rows(**keys, **owner_values(principal))
    if not rows:
        raise OrderNotFound("You have no order with this external_ref.")
    return visible_order(StoredOrder(*rows[0]), principal)


def parse_order_id(order_id: str) -> str:
    """The id in its canonical form. Raises OrderNotFound if it is not a UUID."""
    parsed_id = parse_uuid(order_id)
    if parsed_id is None:
        raise order_not_found(order_id)
    return parsed_id


def order_not_found(order_id: str) -> OrderNotFound:
    """The error for an order that does not exist or has another owner."""
    return OrderNotFound(f"Order {order_id[:64]} was not found.")


def owned_by(customer_id: ColumnElement[Any], channels: ColumnElement[Any]) -> ColumnElement[bool]:
    """The owner predicate: orders of the customer only, and of the channels, a JSON array, only; NULL admits any.

    Every statement that reads one order for a principal has it, with the values of `owner_values`. An order is changed
    only after such a read.
    """
    return and_(
        or_(customer_id.is_(None), Order.customer_id == customer_id),
        or_(channels.is_(None), is_one_of(Order.channel, channels)),
    )


def owner_parameters() -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """The parameters `customer_id` and `channels` of a statement, for `owned_by`."""
    return cast(bindparam("customer_id"), Text), cast(bindparam("channels"), Text)


def owner_values(principal: Principal) -> dict[str, str | None]:
    """The values of `owner_parameters`."""
    channels = None if principal.channels is None else orjson.dumps(sorted(principal.channels)).decode()
    return {"customer_id": principal.customer_id, "channels": channels}


def restrict_to_owner(values: dict[str, list[Any]], principal: Principal) -> None:
    """The owner predicate of lists and searches: limit the filters by customer and by channel, which indexes serve.

    `values` are those of each filter. A filter without values remains if no order can match.
    """
    if principal.customer_id is not None:
        _restrict(values, "customer_id", {principal.customer_id})
    if principal.channels is not None:
        _restrict(values, "channel", principal.channels)


def _restrict(values: dict[str, list[Any]], name: str, allowed: Set[str]) -> None:
    """Limit a filter to the values that are allowed."""
    values[name] = [value for value in values.get(name, sorted(allowed)) if value in allowed]


def _find_snapshots(keys: Sequence[OrderKey]) -> Sequence[Snapshot | None]:
    return SNAPSHOTS.rows([{"id": key.id, "version": key.version, **owner_values(key.principal)} for key in keys])


def _select_snapshot(key: Subquery) -> Select[int, str]:
    order = and_(Order.id == key.c.id, owned_by(key.c.customer_id, key.c.channels))
    version = func.coalesce(key.c.version, Order.version)
    event = and_(OrderEvent.order_id == Order.id, OrderEvent.version == version)
    return select(OrderEvent.version, OrderEvent.snapshot).select_from(OrderEvent).join(Order, event).where(order)


def _reference_statement() -> Statement:
    names = "external_ref", "external_ref_hash"
    own = (Order.__table__.c[name] == bindparam(name, type_=Text) for name in names)
    query = select(cast(Order.id, Text), Order.version, _CURRENT_DOCUMENT)
    return Statement(query.where(*own, owned_by(*owner_parameters())))


SNAPSHOTS = Lookup([*ORDER_KEY_COLUMNS, column("version", Integer)], _select_snapshot)
_BY_REFERENCE = _reference_statement()
_SNAPSHOT_READS = PerApplication(lambda: Batcher[OrderKey, Snapshot | None](_find_snapshots, max_batch=GROUP_READ_MAX))


@dataclass(frozen=True, slots=True)
class EventRow:
    """A row of `_HISTORY`.

    `snapshot_before` is set in the first row only: for each other row, it is the snapshot of the preceding row.
    """

    version: int
    type: str
    actor: str
    request_id: str | None
    snapshot: str
    at: datetime | str
    snapshot_before: str | None
    current_version: int
    bytes_so_far: int


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Event documents, rendered as they are read, and the version of the last one where more events follow.

    `size` is that of the orders in them, in bytes.
    """

    events: Iterator[str]
    next_after: int | None
    size: int


def list_history(order_id: str, *, principal: Principal, after: int, limit: int) -> HistoryPage:
    """Up to `limit` events after the version `after`, oldest first. Raises OrderNotFound.

    A page ends early where its documents would exceed HISTORY_PAGE_BYTES.
    """
    parsed_id = parse_order_id(order_id)
    events = find_events(parsed_id, principal=principal, after=after, limit=limit, page_bytes=HISTORY_PAGE_BYTES)
    # At least one event follows the cursors we issue. A forged one may be beyond the last: check that the order exists.
    if not events and not (after and find_snapshot(OrderKey(parsed_id, principal, None))):
        raise order_not_found(order_id)
    size = events[-1].bytes_so_far if events else 0
    return HistoryPage(render_events(parsed_id, events, principal=principal), next_after(events), size)


def find_events(order_id: str, *, principal: Principal, after: int, limit: int, page_bytes: int) -> list[EventRow]:
    """Up to `limit` events of an order of the principal's after the version `after`.

    The last one is the first whose document exceeds `page_bytes` together with those before it.
    """
    parameters = {"id": order_id, "after": after, "limit": limit, "page_bytes": page_bytes}
    return [EventRow(*row) for row in _HISTORY.rows(**parameters, **owner_values(principal))]


def next_after(events: Sequence[EventRow]) -> int | None:
    """The version after which the next page of events begins; None if no event follows."""
    return events[-1].version if events and events[-1].version < events[-1].current_version else None


def json_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The JSON Patch (RFC 6902) from one order document to another, by add, remove and replace.

    There is no move: an operation states the new value, and equal numbers in two members are unrelated.
    """
    # Only what differs: comparing all members would take ten times as long.
    old = {name: value for name, value in before.items() if name not in after or after[name] != value}
    new = {name: value for name, value in after.items() if name not in before or before[name] != value}
    patch = jsonpatch.JsonPatch.from_diff(old, new, optimization=False, dumps=_to_json)
    operations: list[dict[str, Any]] = patch.patch
    return operations


def _to_json(value: Any) -> str:
    """The JSON text that jsonpatch compares values by; with the standard library's, a patch takes twice the time."""
    return orjson.dumps(value).decode()


def render_events(order_id: str, events: Sequence[EventRow], *, principal: Principal) -> Iterator[str]:
    """The documents of consecutive events, as the principal may see them."""
    before: dict[str, Any] | None = None
    for event in events:
        if event.snapshot_before is not None:
            before = orjson.loads(visible_document(event.snapshot_before, principal))
        document = visible_document(event.snapshot, principal)
        after = orjson.loads(document)
        changes = None if before is None else json_patch(before, after)
        yield _render_event(order_id, event, principal, document=document, changes=changes)
        before = after


def _render_event(
    order_id: str, event: EventRow, principal: Principal, *, document: str, changes: list[dict[str, Any]] | None
) -> str:
    """The event document. Its id names order and version, since each version is one event."""
    own = principal.customer_id is None or event.actor == principal.id
    return orjson.dumps(
        {
            "id": f"{order_id}:{event.version}",
            "type": event.type,
            "order_id": order_id,
            "version": event.version,
            "actor": visible_actor(event.actor, principal),
            "request_id": event.request_id if own else None,
            "at": rfc3339(read_timestamp(event.at)),
            "changes": changes,
            "data": orjson.Fragment(document),
        }
    ).decode()


def _history_statement() -> Statement:
    before, after = aliased(OrderEvent), bindparam("after", type_=Integer)
    snapshot_before = select(before.snapshot).where(
        before.order_id == bindparam("id", type_=UUID), before.version == after
    )
    query = (
        select(OrderEvent.version, OrderEvent.type, OrderEvent.actor, OrderEvent.request_id, OrderEvent.snapshot)
        .add_columns(OrderEvent.at)
        .add_columns(
            case((OrderEvent.version == after + 1, snapshot_before.scalar_subquery())).label("snapshot_before")
        )
        .add_columns(Order.version.label("current_version"))
        .join(Order, Order.id == OrderEvent.order_id)
        .where(OrderEvent.order_id == bindparam("id", type_=UUID), owned_by(*owner_parameters()))
        .where(OrderEvent.version > after)
        .order_by(OrderEvent.version)
        .limit(bindparam("limit", type_=Integer))
    )
    size = bindparam("page_bytes", type_=Integer)
    return Statement(rows_within(query, position="version", document="snapshot", size=size, descending=False))


_HISTORY = _history_statement()


@dataclass(frozen=True, slots=True)
class OrderPage:
    """Order documents, the id of the last one where more orders follow, and the time up to which lists are complete.

    `complete_until`: every order created before this time (RFC 3339) is already readable.
    """

    documents: list[str]
    next_after: str | None
    complete_until: str


def list_orders(filters: Mapping[str, Any], *, principal: Principal, limit: int, after: str | None = None) -> OrderPage:
    """The principal's orders that match all filters, by time of creation, after the order with the id `after`.

    Filters: those of FILTERS, each a value or several; `idempotency_key` is that of the principal's own create. Also
    created_from (inclusive), created_to (exclusive) as aware times, and `sort`, created_at or -created_at. Keyset
    paging: every page costs the same. A page ends early where its documents would exceed PAGE_LENGTH.
    """
    complete = complete_until()
    selection = select_orders(filters, principal=principal)
    if selection is None:
        return OrderPage([], None, complete)
    low, high = _id_range(filters, after)
    rows = list_statement(selection.shape).rows(**selection.parameters, low=low, high=high, limit=limit + 1)
    documents = [document for _, document in rows[:limit]]
    if principal.customer_id is not None:
        documents = [visible_document(document, principal) for document in documents]
    documents = first_within_page(documents)
    more = len(rows) > len(documents)
    return OrderPage(documents, rows[len(documents) - 1][0] if more else None, complete)


def complete_until() -> str:
    """The time up to which lists are complete (RFC 3339): every order created before it is already readable."""
    return _complete_until(int(time.time()))


@lru_cache(maxsize=1)
def _complete_until(second: int) -> str:
    return (datetime.fromtimestamp(second, UTC) - VISIBLE_AFTER).isoformat().replace("+00:00", "Z")


def first_within_page(documents: list[str]) -> list[str]:
    """The documents that begin within the first PAGE_LENGTH characters."""
    if sum(map(len, documents)) <= PAGE_LENGTH:
        return documents
    return documents[: sum(begin < PAGE_LENGTH for begin in accumulate(map(len, documents), initial=0))]


class Shape(NamedTuple):  # created for each list, in half the time of a dataclass
    """What the SQL of a list depends on: the names of the filters, those that the index of the list serves, the number
    of its ranges, and the sort."""

    filters: frozenset[str]
    leading: tuple[str, ...]
    ranges: int
    descending: bool


class Selection(NamedTuple):
    """The orders to list: the shape of the query, and its parameters except `low`, `high` (`_id_range`) and `limit`."""

    shape: Shape
    parameters: dict[str, str]


def select_orders(filters: Mapping[str, Any], *, principal: Principal) -> Selection | None:
    """The principal's orders that match all filters; None if no order can match."""
    values = _filter_values(filters, principal)
    if values is None:
        return None
    names = frozenset(values)
    not_indexed = {name for name, value in _NOT_INDEXED.items() if value in values.get(name, ())}
    leading = _leading_filters(names - not_indexed)
    parameters, ranges = _range_parameters(leading, values) if leading else ({}, 1)
    for name in names.difference(leading):
        parameters[name] = orjson.dumps(values[name]).decode() if name in _MULTIPLE_VALUES else values[name][0]
    return Selection(Shape(names, leading, ranges, _is_descending(filters)), parameters)


def _filter_values(filters: Mapping[str, Any], principal: Principal) -> dict[str, list[str]] | None:
    """The values of each filter; None if no order can match."""
    values = {name: [value] if isinstance(value, str) else value for name, value in filters.items() if name in FILTERS}
    if "number" in values:
        values["number"] = [normalize_order_number(values["number"][0])]
    if "idempotency_key" in values:
        [key] = values["idempotency_key"]
        values["idempotency_key"] = [hash_key(key, principal=principal.id, operation=CREATE)]
    restrict_to_owner(values, principal)
    return values if all(values.values()) else None


@lru_cache(maxsize=512)
def _leading_filters(indexed: frozenset[str]) -> tuple[str, ...]:
    """The filters that the leading filter's index serves; none where the primary key or a unique index does.

    `indexed` are the filters by values that the indexes contain.
    """
    lead = (
        next((name for name in FILTER_INDEXES if name in indexed), None)
        if _UNIQUE_FILTERS.isdisjoint(indexed)
        else None
    )
    return () if lead is None else tuple(column.key for column in FILTER_INDEXES[lead][:-1])


def _range_parameters(leading: Sequence[str], values: Mapping[str, list[str]]) -> tuple[dict[str, str], int]:
    """The parameters of the ranges of the index, and their number."""
    rows = list(product(*(values.get(name, STATUSES) for name in leading)))
    parameters = {f"{name}_{i}": value for i, row in enumerate(rows) for name, value in zip(leading, row, strict=True)}
    return parameters, len(rows)


def _is_descending(filters: Mapping[str, Any]) -> bool:
    """Whether the sort is newest first."""
    return str(filters["sort"]).startswith("-")


def _id_range(filters: Mapping[str, Any], after: str | None) -> tuple[str, str]:
    """The range of ids to list, the last excluded. An id begins with the time of creation."""
    created_from, created_to = filters.get("created_from"), filters.get("created_to")
    low = first_order_id(created_from) if created_from else LOWEST_ID
    high = first_order_id(created_to) if created_to else HIGHEST_ID
    if after and _is_descending(filters):
        high = min(high, after)
    elif after:
        low = max(low, next_id(after))
    return low, high


def _parameter(name: str, kind: Any = Text) -> ColumnElement[Any]:
    return bindparam(name, type_=kind)


def _line_of_item(item_id: Any, order_id: Any) -> ColumnElement[int]:
    """The first line with the item in the order, or NULL; a scalar subquery, which is never planned as a join."""
    item = aliased(OrderItem)
    return select(func.min(item.line)).where(item.order_id == order_id, item.item_id == item_id).scalar_subquery()


def _is_any_of(column: Any, name: str) -> ColumnElement[bool]:
    """Whether the column has one of the filter's values; no index serves it."""
    return is_one_of(without_index(column), _parameter(name))


# The conditions of the filters. Number, reference and key select at most one order for each principal. The index that
# serves a list is that of the leading filter (FILTER_INDEXES): the conditions of all others are written without one.
FILTERS: dict[str, ColumnElement[bool]] = {
    "number": Order.number == _parameter("number"),
    "external_ref": Order.external_ref == _parameter("external_ref"),
    "idempotency_key": Order.idempotency_key_hash == _parameter("idempotency_key"),
    "customer_id": without_index(Order.customer_id) == _parameter("customer_id"),
    "item_id": _line_of_item(_parameter("item_id"), Order.id).is_not(None),
    "channel": _is_any_of(Order.channel, "channel"),
    "status": _is_any_of(Order.status, "status"),
    "fulfillment_status": _is_any_of(Order.fulfillment_status, "fulfillment_status"),
    "payment_status": _is_any_of(Order.payment_status, "payment_status"),
    "return_status": _is_any_of(Order.return_status, "return_status"),
}


@lru_cache(maxsize=512)  # all combinations of filters that clients use fit
def list_statement(shape: Shape) -> Statement:
    return Statement(list_query(shape))


def list_query(shape: Shape) -> Select[str, str]:
    """The query for the ids and documents of the orders of a `Selection`."""
    leading = shape.leading
    others = [condition for name, condition in FILTERS.items() if name in shape.filters and name not in leading]
    if leading == ("item_id",):
        return _in_index_range(_orders_with_item(others), leading, 0, descending=shape.descending)
    if shape.ranges == 1:
        orders = select(cast(Order.id, Text).label("id"), _CURRENT_DOCUMENT.label("document")).where(*others)
        return _in_index_range(orders, leading, 0, descending=shape.descending)
    ids = (
        _in_index_range(select(Order.id).where(*others), leading, i, descending=shape.descending).subquery()
        for i in range(shape.ranges)
    )
    merged = union_all(*map(select, ids)).subquery("merged")
    direction = desc if shape.descending else asc
    page = select(merged).order_by(direction(merged.c.id)).limit(_parameter("limit", Integer)).subquery("page")
    document = select(_CURRENT_DOCUMENT).where(Order.id == page.c.id).scalar_subquery()
    query = select(cast(page.c.id, Text).label("id"), cast(document, Text).label("document"))
    return query.order_by(direction(page.c.id))


def _in_index_range(query: Query, leading: Sequence[str], i: int, *, descending: bool) -> Query:
    """The query, limited to a range of the index of the leading filters, and sorted."""
    sort: tuple[Any, ...] = FILTER_INDEXES[leading[0]] if leading else (Order.id,)
    # Row comparison: (status, id) from (s, low) to (s, high) means status = s, and only the index on both columns has
    # this order. With "=", a generic plan scans a million orders for a rare status, which takes 900 ms.
    low, high = (
        tuple_(*(_parameter(f"{name}_{i}") for name in leading), _parameter(bound, UUID)) for bound in ("low", "high")
    )
    query = query.where(tuple_(*sort) >= low, tuple_(*sort) < high)
    query = query.where(*(_INDEX_CONDITIONS[name] for name in leading if name in _INDEX_CONDITIONS))
    return query.order_by(*map(desc if descending else asc, sort)).limit(_parameter("limit", Integer))


def _orders_with_item(others: list[ColumnElement[bool]]) -> Select[str, str]:
    """The orders with an item, each order once: an item may be on several lines."""
    # Scalar subqueries: with a join, a generic plan reads all orders of a popular item for one page, in 400 ms.
    of_line = Order.id == OrderItem.order_id
    document = select(_CURRENT_DOCUMENT).where(of_line).scalar_subquery()
    query = select(cast(OrderItem.order_id, Text).label("id"), cast(document, Text).label("document")).where(
        OrderItem.line == _line_of_item(OrderItem.item_id, OrderItem.order_id)
    )
    return query.where(select(Order.id).where(of_line, *others).scalar_subquery().is_not(None)) if others else query


def stream_orders(
    filters: Mapping[str, Any],
    *,
    principal: Principal,
    limit: int | None = None,
    after: str | None = None,
) -> Iterator[str]:
    """The documents of all orders that match, at most `limit`, after the order with the id `after`.

    Filters as in `list_orders`. Every order that existed at the start is yielded exactly once. Orders are read page by
    page: each page is a transaction of its own, committed before its first document is yielded, and holds at most
    EXPORT_PAGE_BYTES and one document.
    """
    selection = select_orders(filters, principal=principal)
    remaining, size = sys.maxsize if limit is None else limit, _FIRST_EXPORT_PAGE
    while selection is not None and remaining > 0:
        low, high = _id_range(filters, after)
        size = min(size, EXPORT_PAGE, remaining)
        rows = read_export_page(selection, low=low, high=high, limit=size)
        for _, document, _ in rows:
            yield visible_document(document, principal)
        if not rows or (len(rows) < size and rows[-1].bytes_so_far < EXPORT_PAGE_BYTES):
            return
        after, remaining = rows[-1].id, remaining - len(rows)
        size = 2 * len(rows)  # the database reads the sizes of all these documents, so request no more than may fit


def read_export_page(selection: Selection, **bounds: Any) -> Sequence[Row[*tuple[Any, ...]]]:
    query, parameters = _export_page_query(selection.shape), {**selection.parameters, **bounds}

    def read() -> Sequence[Row[*tuple[Any, ...]]]:
        with consistent_read(statement_timeout=_EXPORT_PAGE_SECONDS) as session:
            return session.execute(query, parameters).all()

    with export_connection():
        return with_retry(read)


@contextmanager
def export_connection() -> Iterator[None]:
    """Wait for one of the connections that exports share, and hold it. Raises PoolTimeout if none becomes free."""
    connections = EXPORT_CONNECTIONS.get()
    if not connections.acquire(timeout=_EXPORT_WAIT_SECONDS):
        raise PoolTimeout("No database connection for exports became free in time.")
    try:
        yield
    finally:
        connections.release()


@lru_cache(maxsize=512)  # all combinations of filters that clients use fit
def _export_page_query(shape: Shape) -> Any:
    return rows_within(
        list_query(shape), position="id", document="document", size=EXPORT_PAGE_BYTES, descending=shape.descending
    )


# Exports share half of the connections, and leave the other half to other requests.
EXPORT_CONNECTIONS = PerApplication(lambda: Semaphore(_export_connections()))


def _export_connections() -> int:
    pool = db.engine.pool
    return max(1, pool.size() // 2) if isinstance(pool, QueuePool) else 1


def as_ndjson(documents: Iterable[str]) -> Iterator[str]:
    """One document a line."""
    for document in documents:
        yield document + "\n"


def as_csv(documents: Iterable[str]) -> Iterator[str]:
    """One row for each item of each order, with the order's columns repeated (RFC 4180).

    A cell that a spreadsheet would read as a formula is prefixed with an apostrophe, for any list separator.
    """
    to_text = csv.writer(_Echo()).writerow
    totals_header = [_CSV_TOTAL_NAMES.get(name, name) for name in _CSV_TOTAL_COLUMNS]
    yield to_text(
        [*_CSV_ORDER_COLUMNS, *totals_header, *(_CSV_ITEM_NAMES.get(name, name) for name in _CSV_ITEM_COLUMNS)]
    )
    for document in documents:
        order = load_document(document)
        totals = order["totals"] or {}
        start = [_without_formula(order[name]) for name in _CSV_ORDER_COLUMNS] + [
            totals.get(name) for name in _CSV_TOTAL_COLUMNS
        ]
        for item in order["items"]:
            yield to_text([*start, *(_without_formula(item[name]) for name in _CSV_ITEM_COLUMNS)])


class _Echo:
    """The file of `csv.writer`: `writerow` returns what `write` returns, the row as text."""

    def write(self, text: str) -> str:
        """Return the text instead of writing it."""
        return text


def _without_formula(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    text = _FORMULA_START.sub(lambda start: f"{start[0][:-1]}'{start[1]}" if start[1] else start[0], cell)
    return f"'{text}" if text.startswith(("\t", "\r", "\n")) else text
