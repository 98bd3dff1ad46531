"""Reading orders: single ones, versions of them, and lists. What is read are stored documents, never parsed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Integer
from sqlalchemy import Text as SQLText
from sqlalchemy import bindparam, cast, exists, select

from app.errors import OrderNotFound
from app.models import Order, OrderEvent, OrderItem
from app.models.identifiers import first_order_id, parse_uuid, read_order_number
from app.models.statement import Statement
from app.models.types import UUID
from app.services.order_service import StoredOrder


def get_order(order_id: str, *, version: int | None = None) -> StoredOrder:
    """The order now, or as it was at `version` (from 1). Raises OrderNotFound."""
    known_id = parse_uuid(order_id)
    if known_id is not None:
        if version is None:
            rows = _GET_CURRENT.rows(id=known_id)
        else:
            rows = _GET_VERSION.rows(id=known_id, version=version)
        for found_version, document in rows:
            return StoredOrder(known_id, found_version, document)
    which = f"version {version} of order" if version else "order"
    raise OrderNotFound(f"There is no {which} {order_id[:64]}.")


@dataclass(frozen=True, slots=True)
class Page:
    """Stored documents, and the id of the last one where more follow."""

    documents: list[str]
    next_after: str | None


def list_orders(filters: Mapping[str, Any], *, descending: bool, limit: int, after: str | None) -> Page:
    """The orders that match all filters, by time of creation, from just behind the id `after`.

    Filters: customer_id, status, fulfillment_status, number, external_ref, item_id, and created_from (inclusive),
    created_to (exclusive) as aware times. It costs the same at any depth: no offset, no count.
    """
    parameters = {name: _STORED_FORM.get(name, str)(value) for name, value in filters.items()}
    if after is not None:
        parameters["after"] = after
    statement = _list_statement(frozenset(parameters), descending)
    rows = statement.rows(**parameters, limit=limit + 1)
    more = len(rows) > limit
    return Page([document for _, document in rows[:limit]], rows[limit - 1][0] if more else None)


_STORED_FORM: dict[str, Callable[[Any], str]] = {
    "created_from": first_order_id,
    "created_to": first_order_id,
    "number": read_order_number,
}


def _parameter(name: str, kind: Any = SQLText) -> ColumnElement[Any]:
    return bindparam(name, type_=kind)


_FILTERS: dict[str, ColumnElement[bool]] = {
    "customer_id": Order.customer_id == _parameter("customer_id"),
    "status": Order.status == _parameter("status"),
    "fulfillment_status": Order.fulfillment_status == _parameter("fulfillment_status"),
    "number": Order.number == _parameter("number"),
    "external_ref": Order.external_ref == _parameter("external_ref"),
    "item_id": exists().where(OrderItem.order_id == Order.id, OrderItem.item_id == _parameter("item_id")),
    # The id begins with the time of creation: a range of time is a range of the primary key.
    "created_from": Order.id >= _parameter("created_from", UUID),
    "created_to": Order.id < _parameter("created_to", UUID),
}

# A scalar subquery, so that every plan looks the documents up row by row, after the limit.
_CURRENT_DOCUMENT = (
    select(OrderEvent.snapshot)
    .where(OrderEvent.order_id == Order.id, OrderEvent.version == Order.version)
    .scalar_subquery()
)

_GET_CURRENT = Statement(
    select(OrderEvent.version, OrderEvent.snapshot).join(
        Order, (Order.id == OrderEvent.order_id) & (Order.version == OrderEvent.version)
    ).where(Order.id == _parameter("id", UUID))
)  # fmt: skip
_GET_VERSION = Statement(
    select(OrderEvent.version, OrderEvent.snapshot).where(
        OrderEvent.order_id == _parameter("id", UUID), OrderEvent.version == _parameter("version", Integer)
    )
)


@lru_cache(maxsize=1024)  # every combination of filters, sort and cursor fits
def _list_statement(given: frozenset[str], descending: bool) -> Statement:
    query = select(cast(Order.id, SQLText), _CURRENT_DOCUMENT).where(
        *(condition for name, condition in _FILTERS.items() if name in given)
    )
    if "after" in given:
        after = _parameter("after", UUID)
        query = query.where(Order.id < after if descending else Order.id > after)
    order = Order.id.desc() if descending else Order.id.asc()
    return Statement(query.order_by(order).limit(_parameter("limit", Integer)))
