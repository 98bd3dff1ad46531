"""Listing orders: filters, keyset paging, and the queries. Lists return stored documents without parsing them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import accumulate
from typing import Any

from sqlalchemy import ColumnElement, Integer, Select, asc, bindparam, cast, desc, func, select, tuple_
from sqlalchemy import Text as SQLText
from sqlalchemy.orm import aliased

from app.db.statement import Statement, without_index
from app.db.types import UUID
from app.models import Order, OrderEvent, OrderItem
from app.models.order_id import HIGHEST_ID, LOWEST_ID, first_order_id, next_id, normalize_order_number
from app.models.principal import Principal
from app.services.order_document import visible_document
from app.services.order_service import VISIBLE_AFTER

PAGE_LENGTH = 1024 * 1024  # characters; the worker keeps a page in memory while a slow client reads it


def complete_until() -> str:
    """The time up to which lists are complete: every order created before it is readable by now. RFC 3339."""
    return _complete_until(int(time.time()))


@lru_cache(maxsize=1)
def _complete_until(second: int) -> str:
    return (datetime.fromtimestamp(second, UTC) - VISIBLE_AFTER).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Page:
    """Order documents, the id of the last one where more orders follow, and the time up to which lists are complete.

    `complete_until`: every order created before this time (RFC 3339) is readable by now.
    """

    documents: list[str]
    next_after: str | None
    complete_until: str


def list_orders(filters: Mapping[str, Any], *, principal: Principal, limit: int, after: str | None = None) -> Page:
    """The principal's orders that match all filters, by time of creation, after the order with the id `after`.

    Filters: customer_id, status, fulfillment_status, number, external_ref, item_id, and created_from (inclusive),
    created_to (exclusive) as aware times; and `sort`, created_at or -created_at. Keyset paging: every page costs the
    same. A page ends early where its documents would exceed PAGE_LENGTH.
    """
    complete, descending = complete_until(), is_descending(filters)
    values = filter_values(filters, principal=principal)
    if values is None:
        return Page([], None, complete)
    low, high = id_range(filters, after)
    statement = list_statement(frozenset(values), descending)
    rows = statement.rows(**values, low=low, high=high, limit=limit + 1)
    documents = [document for _, document in rows[:limit]]
    if principal.customer_id is not None:
        documents = [visible_document(document, principal) for document in documents]
    if sum(map(len, documents)) > PAGE_LENGTH:
        documents = documents[: _count_within(PAGE_LENGTH, documents)]
    more = len(rows) > len(documents)
    return Page(documents, rows[len(documents) - 1][0] if more else None, complete)


def _count_within(length: int, documents: Sequence[str]) -> int:
    """The number of documents that begin within the first `length` characters."""
    return sum(begin < length for begin in accumulate(map(len, documents), initial=0))


def filter_values(filters: Mapping[str, Any], *, principal: Principal) -> dict[str, Any] | None:
    """The parameters of a list query; None where no order can match.

    For a customer the owner predicate is the filter by customer_id, whose index serves the list.
    """
    values = {name: value for name, value in filters.items() if name in FILTERS}
    if principal.customer_id is not None:
        if values.setdefault("customer_id", principal.customer_id) != principal.customer_id:
            return None
    if "number" in values:
        values["number"] = normalize_order_number(values["number"])
    return values


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


# The conditions of the filters. Number and reference select at most one order for each principal. The index that serves
# a list is the leading filter's (LEADS), so the conditions of all other filters are written without one.
FILTERS: dict[str, ColumnElement[bool]] = {
    "number": Order.number == _parameter("number"),
    "external_ref": Order.external_ref == _parameter("external_ref"),
    "customer_id": without_index(Order.customer_id) == _parameter("customer_id"),
    "item_id": _line_of_item(_parameter("item_id"), Order.id).is_not(None),
    "status": without_index(Order.status) == _parameter("status"),
    "fulfillment_status": without_index(Order.fulfillment_status) == _parameter("fulfillment_status"),
}
_SELECTIVE = {"number", "external_ref"}

# The filters whose index has the sort. The first of those given leads: its index is scanned from the cursor, and
# the other conditions are checked for each order.
LEADS: dict[str, tuple[Any, Any]] = {
    "customer_id": (Order.customer_id, Order.id),
    "item_id": (OrderItem.item_id, OrderItem.order_id),
    "status": (Order.status, Order.id),
    "fulfillment_status": (Order.fulfillment_status, Order.id),
}

# A scalar subquery: every plan reads the documents row by row, after the limit.
_CURRENT_DOCUMENT = (
    select(OrderEvent.snapshot)
    .where(OrderEvent.order_id == Order.id, OrderEvent.version == Order.version)
    .scalar_subquery()
)


@lru_cache(maxsize=256)  # every combination of filters and sort fits
def list_statement(given: frozenset[str], descending: bool) -> Statement:
    return Statement(list_query(given, descending))


def list_query(given: frozenset[str], descending: bool) -> Select[str, str]:
    """The query for the ids and documents of the orders that match the filters `given` by name.

    Its parameters are `filter_values`, `low` and `high` (`id_range`), and `limit`.
    """
    lead = next((name for name in LEADS if name in given), None) if given.isdisjoint(_SELECTIVE) else None
    others = [condition for name, condition in FILTERS.items() if name in given and name != lead]
    orders = select(cast(Order.id, SQLText).label("id"), _CURRENT_DOCUMENT.label("document"))
    query = _orders_with_item(others) if lead == "item_id" else orders.where(*others)
    if lead is None:
        sort: tuple[Any, ...] = (Order.id,)
        query = query.where(Order.id >= _parameter("low", UUID), Order.id < _parameter("high", UUID))
    else:
        # Row comparison: (status, id) from (s, low) to (s, high) means status = s, and only the index on both columns
        # has this order. With "=", a generic plan scans a million orders for a rare status, which takes 900 ms.
        sort = LEADS[lead]
        low, high = (tuple_(_parameter(lead), _parameter(bound, UUID)) for bound in ("low", "high"))
        query = query.where(tuple_(*sort) >= low, tuple_(*sort) < high)
    direction = desc if descending else asc
    return query.order_by(*map(direction, sort)).limit(_parameter("limit", Integer))


def _orders_with_item(others: list[ColumnElement[bool]]) -> Select[str, str]:
    """The orders with an item, each order once: an item may be on several lines."""
    # Scalar subqueries: with a join, a generic plan reads all orders of a popular item for one page, in 400 ms.
    of_line = Order.id == OrderItem.order_id
    document = select(_CURRENT_DOCUMENT).where(of_line).scalar_subquery()
    query = select(cast(OrderItem.order_id, SQLText).label("id"), cast(document, SQLText).label("document")).where(
        OrderItem.line == _line_of_item(OrderItem.item_id, OrderItem.order_id)
    )
    return query.where(select(Order.id).where(of_line, *others).scalar_subquery().is_not(None)) if others else query
