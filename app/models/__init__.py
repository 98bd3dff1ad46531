"""What is stored."""

from sqlalchemy import Table

from app.db.engine import Base
from app.models.api_key import ApiKey
from app.models.erasure import Erasure
from app.models.event import ChangeKey, OrderEvent, OutboxEntry
from app.models.order import Order
from app.models.order_item import Fulfillment, OrderItem, Return

__all__ = ["ApiKey", "ChangeKey", "Erasure", "Fulfillment", "Order", "OrderEvent", "OrderItem", "OutboxEntry", "Return"]


def _table(model: type[Base]) -> Table:
    assert isinstance(model.__table__, Table)
    return model.__table__


# The same as SQLAlchemy Core's tables.
ORDERS, ITEMS, EVENTS, OUTBOX = (_table(model) for model in (Order, OrderItem, OrderEvent, OutboxEntry))
FULFILLMENTS, RETURNS, CHANGE_KEYS = _table(Fulfillment), _table(Return), _table(ChangeKey)
