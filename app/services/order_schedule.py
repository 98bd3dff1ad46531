"""Changes of orders that time causes: holds end, orders become late, and pending orders expire.

`flask worker` and `flask orders expire` call these functions. Several processes may run them at once: an order that
changes at the same time is left to the next run.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Row, literal, select, tuple_

from app.db.errors import DATABASE_ERRORS, is_unavailable
from app.db.transactions import read_rows
from app.errors import ServiceError
from app.models import Order
from app.models.money import UNPAID
from app.models.order_aggregate import HOLDS_MAX
from app.models.order_id import EPOCH, LOWEST_ID, first_order_id, time_ago
from app.models.principal import Principal
from app.services.order_actions import ChangeRequest, apply_due_change, cancel_order
from app.services.order_document import StoredOrder

log = structlog.get_logger()

EXPIRY = Principal("system:expiry", frozenset())
SCHEDULE = Principal("system:schedule", frozenset())
_PAGE = 100  # orders


def apply_due_changes() -> Iterator[int]:
    """Release the holds that have ended, and mark orders as late whose `ship_by` has passed.

    Yields the number of changes of each page. Each commits by itself.
    """
    now = datetime.now(UTC)
    after: tuple[datetime, str] = (EPOCH, LOWEST_ID)
    while orders := _find_due(after=after, before=now):
        yield sum(_apply_due_changes(order.id) for order in orders)
        after = orders[-1].due_at, orders[-1].id


def _find_due(*, after: tuple[datetime, str], before: datetime) -> Sequence[Row[Any]]:
    """A page of the orders whose `due_at` has passed, after the position `after`."""
    position = literal(after[0], Order.due_at.type), literal(after[1], Order.id.type)
    query = select(Order.id, Order.due_at).where(tuple_(Order.due_at, Order.id) > tuple_(*position))
    query = query.where(Order.due_at <= before)
    return read_rows(query.order_by(Order.due_at, Order.id).limit(_PAGE))


def _apply_due_changes(order_id: str) -> int:
    """Make all changes of an order that are due, each as a version of its own, and return their number."""
    change = partial(apply_due_change, order_id, request=ChangeRequest(SCHEDULE))
    for count in range(HOLDS_MAX + 2):
        order = _attempt(order_id, change)
        if order is None or order.unchanged:
            return count
    return count


def _attempt(order_id: str, change: Callable[[], StoredOrder]) -> StoredOrder | None:
    """Make a change. Returns None if it failed: the next run repeats it, and it must not prevent those of other
    orders."""
    try:
        return change()
    except ServiceError:
        return None
    except Exception as error:
        if isinstance(error, DATABASE_ERRORS) and is_unavailable(error):
            raise
        log.error("scheduled change failed", order_id=order_id, exc_info=error)
        return None


def expire_orders(*, older_than: timedelta) -> Iterator[int]:
    """Cancel the pending orders that were created longer ago, and yield the number of each page.

    An order on hold, with a payment, or that was reopened is left as it is. Each cancellation commits by itself.
    """
    before = first_order_id(time_ago(older_than))
    last = LOWEST_ID
    while orders := find_expired(after=last, before=before):
        yield sum(_expire(order.id, order.version) for order in orders if not order.holds)
        last = orders[-1].id


def find_expired(*, after: str, before: str) -> Sequence[Row[Any]]:
    """A page of the pending orders between two ids that are unpaid and were never reopened."""
    query = select(Order.id, Order.version, Order.holds).where(Order.status == "pending")
    query = query.where(Order.payment_status == UNPAID)  # a cancellation refunds nothing
    query = query.where(Order.reopening.is_(None))  # it was reopened to be worked on, whatever its age
    query = query.where(Order.id > after, Order.id < before)
    return read_rows(query.order_by(Order.id).limit(_PAGE))


def _expire(order_id: str, version: int) -> bool:
    request = ChangeRequest(EXPIRY, expected_versions=frozenset({version}))
    return _attempt(order_id, partial(cancel_order, order_id, reason="expired", request=request)) is not None
