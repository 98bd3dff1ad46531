"""Ending orders that nobody confirmed."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from sqlalchemy import select

from app.db.transactions import read_rows
from app.errors import ServiceUnavailable
from app.models import Order
from app.models.order_id import LOWEST_ID, first_order_id
from app.models.principal import Principal
from app.services.order_actions import ChangeRequest, change_order

EXPIRY = Principal("system:expiry", frozenset())
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # no order is older
_BATCH = 100  # orders that are looked for at once


def expire_orders(*, older_than: timedelta) -> Iterator[int]:
    """Cancel the pending orders that were made longer ago than that, and yield how many at a time.

    Orders on hold wait for somebody, and are left alone. Doing it twice, or in two processes at once, does no harm.
    """
    now = datetime.now(UTC)
    before = first_order_id(now - min(older_than, now - EPOCH))
    last = LOWEST_ID
    while ids := _stale_orders(after=last, before=before):
        yield sum(map(_expire, ids))
        last = ids[-1]


def _stale_orders(*, after: str, before: str) -> list[str]:
    stale = Order.status == "pending", Order.hold.is_(None)
    query = select(Order.id).where(*stale, Order.id > after, Order.id < before)
    return [row.id for row in read_rows(query.order_by(Order.id).limit(_BATCH))]


def _expire(order_id: str) -> bool:
    stale = False

    def cancel_if_stale(order: Order, at: datetime) -> None:
        nonlocal stale
        stale = order.status == "pending" and order.hold is None  # it may have changed since the list was made
        if stale:
            order.cancel(reason="expired", note=None, at=at)

    try:
        change_order(order_id, cancel_if_stale, request=ChangeRequest("cancel", principal=EXPIRY))
    except ServiceUnavailable:  # somebody is at work on it: the next run will see
        return False
    return stale
