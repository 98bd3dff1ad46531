"""What is stored."""

from app.models.event import OrderEvent, OutboxEntry
from app.models.order import Order, OrderItem

__all__ = ["Order", "OrderEvent", "OrderItem", "OutboxEntry"]
