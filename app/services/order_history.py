"""What happened to an order."""

from dataclasses import dataclass
from datetime import datetime
from functools import cache

from sqlalchemy import Integer, Text, bindparam, cast, select

from app.db.pages import rows_within
from app.db.statement import Statement
from app.db.types import UUID, read_timestamp
from app.errors import OrderNotFound
from app.models import Order, OrderEvent
from app.models.order_id import parse_uuid
from app.models.principal import Principal
from app.services.customer_view import visible_actor, visible_document

_PAGE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Event:
    """One change of an order, with the order as it was after it."""

    order_id: str
    version: int
    type: str
    actor: str
    snapshot: str
    at: datetime


def list_history(order_id: str, *, principal: Principal, after: int, limit: int) -> tuple[list[Event], bool]:
    """Up to `limit` events behind the version `after`, oldest first, and whether more follow. Raises OrderNotFound.

    There are fewer where their documents would come to more than _PAGE_BYTES.
    """
    known_id = parse_uuid(order_id)
    owner = {} if principal.customer_id is None else {"owner": principal.customer_id}
    rows = _history_statement(bool(owner)).rows(id=known_id, after=after, limit=limit, **owner) if known_id else []
    if not rows and (after == 0 or known_id is None):
        raise OrderNotFound(f"There is no order {order_id[:64]}.")
    events = [
        Event(
            order_id,
            version,
            kind,
            visible_actor(actor, principal),
            visible_document(snapshot, principal),
            read_timestamp(at),
        )
        for order_id, version, kind, actor, snapshot, at, _, _ in rows
    ]
    return events, any(version < current for _, version, *_, current, _ in rows[-1:])


@cache
def _history_statement(own: bool) -> Statement:
    query = (
        select(
            cast(OrderEvent.order_id, Text),
            OrderEvent.version,
            OrderEvent.type,
            OrderEvent.actor,
            OrderEvent.snapshot,
            OrderEvent.at,
            Order.version.label("current_version"),
        )
        .join(Order, Order.id == OrderEvent.order_id)
        .where(
            OrderEvent.order_id == bindparam("id", type_=UUID), OrderEvent.version > bindparam("after", type_=Integer)
        )
    )
    if own:
        query = query.where(Order.customer_id == bindparam("owner", type_=Text))
    query = query.order_by(OrderEvent.version).limit(bindparam("limit", type_=Integer))
    return Statement(rows_within(query, position="version", document="snapshot", size=_PAGE_BYTES, descending=False))
