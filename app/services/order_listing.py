"""Listing orders: filters, keyset paging, and the queries. Lists return stored documents without parsing them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import accumulate, product
from typing import Any, NamedTuple, TypeVar

import orjson
from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    asc,
    bindparam,
    cast,
    desc,
    func,
    literal_column,
    select,
    tuple_,
    union_all,
)
from sqlalchemy import Text as SQLText
from sqlalchemy.orm import aliased

from app.db.statement import Statement, is_one_of, without_index
from app.db.types import UUID
from app.models import Order, OrderEvent, OrderItem
from app.models.fulfillment import NOT_RETURNED
from app.models.lifecycle import STATUSES
from app.models.money import UNPAID
from app.models.order_id import HIGHEST_ID, LOWEST_ID, first_order_id, hash_key, next_id, normalize_order_number
from app.models.principal import Principal
from app.services.order_document import visible_document
from app.services.order_queries import restrict_to_owner
from app.services.order_service import CREATE, VISIBLE_AFTER

Query = TypeVar("Query", bound=Select[*tuple[Any, ...]])

PAGE_LENGTH = 1024 * 1024  # characters; the worker keeps a page in memory while a slow client reads it


def complete_until() -> str:
    """The time up to which lists are complete (RFC 3339): every order created before it is already readable."""
    return _complete_until(int(time.time()))


@lru_cache(maxsize=1)
def _complete_until(second: int) -> str:
    return (datetime.fromtimestamp(second, UTC) - VISIBLE_AFTER).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Page:
    """Order documents, the id of the last one where more orders follow, and the time up to which lists are complete.

    `complete_until`: every order created before this time (RFC 3339) is already readable.
    """

    documents: list[str]
    next_after: str | None
    complete_until: str


def list_orders(filters: Mapping[str, Any], *, principal: Principal, limit: int, after: str | None = None) -> Page:
    """The principal's orders that match all filters, by time of creation, after the order with the id `after`.

    Filters: those of FILTERS, each a value or several; `idempotency_key` is that of the principal's own create. Also
    created_from (inclusive), created_to (exclusive) as aware times, and `sort`, created_at or -created_at. Keyset
    paging: every page costs the same. A page ends early where its documents would exceed PAGE_LENGTH.
    """
    complete = complete_until()
    selection = select_orders(filters, principal=principal)
    if selection is None:
        return Page([], None, complete)
    low, high = id_range(filters, after)
    rows = list_statement(selection.shape).rows(**selection.parameters, low=low, high=high, limit=limit + 1)
    documents = [document for _, document in rows[:limit]]
    if principal.customer_id is not None:
        documents = [visible_document(document, principal) for document in documents]
    documents = first_within_page(documents)
    more = len(rows) > len(documents)
    return Page(documents, rows[len(documents) - 1][0] if more else None, complete)


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
    """The orders to list: the shape of the query, and its parameters except `low`, `high` (`id_range`) and `limit`."""

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
    return Selection(Shape(names, leading, ranges, is_descending(filters)), parameters)


def _range_parameters(leading: Sequence[str], values: Mapping[str, list[str]]) -> tuple[dict[str, str], int]:
    """The parameters of the ranges of the index, and their number."""
    rows = list(product(*(values.get(name, STATUSES) for name in leading)))
    parameters = {f"{name}_{i}": value for i, row in enumerate(rows) for name, value in zip(leading, row, strict=True)}
    return parameters, len(rows)


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


def is_descending(filters: Mapping[str, Any]) -> bool:
    """Whether the sort is newest first."""
    return str(filters["sort"]).startswith("-")


def id_range(filters: Mapping[str, Any], after: str | None) -> tuple[str, str]:
    """The range of ids to list, the last excluded. An id begins with the time of creation."""
    created_from, created_to = filters.get("created_from"), filters.get("created_to")
    low = first_order_id(created_from) if created_from else LOWEST_ID
    high = first_order_id(created_to) if created_to else HIGHEST_ID
    if after and is_descending(filters):
        high = min(high, after)
    elif after:
        low = max(low, next_id(after))
    return low, high


def _parameter(name: str, kind: Any = SQLText) -> ColumnElement[Any]:
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
_SELECTIVE = {"number", "external_ref", "idempotency_key"}
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
_INDEXED = {"channel": Order.channel.is_not(None)} | {
    name: FILTER_INDEXES[name][0] != literal_column(f"'{value}'") for name, value in _NOT_INDEXED.items()
}


@lru_cache(maxsize=512)
def _leading_filters(indexed: frozenset[str]) -> tuple[str, ...]:
    """The filters that the leading filter's index serves; none where the primary key or a unique index does.

    `indexed` are the filters by values that the indexes contain.
    """
    lead = next((name for name in FILTER_INDEXES if name in indexed), None) if _SELECTIVE.isdisjoint(indexed) else None
    return () if lead is None else tuple(column.key for column in FILTER_INDEXES[lead][:-1])


# A scalar subquery: every plan reads the documents row by row, after the limit.
_CURRENT_DOCUMENT = (
    select(OrderEvent.snapshot)
    .where(OrderEvent.order_id == Order.id, OrderEvent.version == Order.version)
    .scalar_subquery()
)


@lru_cache(maxsize=512)  # all combinations of filters that clients use fit
def list_statement(shape: Shape) -> Statement:
    return Statement(list_query(shape))


def list_query(shape: Shape) -> Select[str, str]:
    """The query for the ids and documents of the orders of a `Selection`."""
    leading = shape.leading
    others = [condition for name, condition in FILTERS.items() if name in shape.filters and name not in leading]
    if leading == ("item_id",):
        return _in_range(_orders_with_item(others), leading, 0, descending=shape.descending)
    if shape.ranges == 1:
        orders = select(cast(Order.id, SQLText).label("id"), _CURRENT_DOCUMENT.label("document")).where(*others)
        return _in_range(orders, leading, 0, descending=shape.descending)
    ids = (
        _in_range(select(Order.id).where(*others), leading, i, descending=shape.descending).subquery()
        for i in range(shape.ranges)
    )
    merged = union_all(*map(select, ids)).subquery("merged")
    direction = desc if shape.descending else asc
    page = select(merged).order_by(direction(merged.c.id)).limit(_parameter("limit", Integer)).subquery("page")
    document = select(_CURRENT_DOCUMENT).where(Order.id == page.c.id).scalar_subquery()
    query = select(cast(page.c.id, SQLText).label("id"), cast(document, SQLText).label("document"))
    return query.order_by(direction(page.c.id))


def _in_range(query: Query, leading: Sequence[str], i: int, *, descending: bool) -> Query:
    """The query, limited to a range of the index of the leading filters, and sorted."""
    sort: tuple[Any, ...] = FILTER_INDEXES[leading[0]] if leading else (Order.id,)
    # Row comparison: (status, id) from (s, low) to (s, high) means status = s, and only the index on both columns has
    # this order. With "=", a generic plan scans a million orders for a rare status, which takes 900 ms.
    low, high = (
        tuple_(*(_parameter(f"{name}_{i}") for name in leading), _parameter(bound, UUID)) for bound in ("low", "high")
    )
    query = query.where(tuple_(*sort) >= low, tuple_(*sort) < high)
    query = query.where(*(_INDEXED[name] for name in leading if name in _INDEXED))
    return query.order_by(*map(desc if descending else asc, sort)).limit(_parameter("limit", Integer))


def _orders_with_item(others: list[ColumnElement[bool]]) -> Select[str, str]:
    """The orders with an item, each order once: an item may be on several lines."""
    # Scalar subqueries: with a join, a generic plan reads all orders of a popular item for one page, in 400 ms.
    of_line = Order.id == OrderItem.order_id
    document = select(_CURRENT_DOCUMENT).where(of_line).scalar_subquery()
    query = select(cast(OrderItem.order_id, SQLText).label("id"), cast(document, SQLText).label("document")).where(
        OrderItem.line == _line_of_item(OrderItem.item_id, OrderItem.order_id)
    )
    return query.where(select(Order.id).where(of_line, *others).scalar_subquery().is_not(None)) if others else query
