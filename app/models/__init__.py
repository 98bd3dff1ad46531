"""What is stored."""

from app.models.api_key import ApiKey
from app.models.erasure import Erasure
from app.models.event import ChangeKey, OrderEvent, OutboxEntry
from app.models.order import Order
from app.models.order_item import Fulfillment, OrderItem, Return

__all__ = ["ApiKey", "ChangeKey", "Erasure", "Fulfillment", "Order", "OrderEvent", "OrderItem", "OutboxEntry", "Return"]
