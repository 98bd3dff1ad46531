"""The tables, as ORM models and as Core tables; in `order_aggregate`, `lifecycle` and `money`, the rules of orders.

`principal` has scopes and API keys, `order_id` ids and hashes, `webhook` also the rules for the URLs of endpoints.

There are no foreign keys. A child row is written in the statement that writes its order, and orders are never deleted,
so the check could never fail, and it would cost a create 8 µs a row. The primary keys of items, events, idempotency
keys and outbox rows begin with `order_id`, so that on a distributed PostgreSQL an order is stored on one shard.
`flask verify` finds orphaned rows.
"""

from sqlalchemy import Table

from app.db.engine import Base
from app.models.event import BrokerCursor, ChangeKey, FeedEntry, FeedHead, OrderEvent, OutboxEntry
from app.models.order import Erasure, Order, OrderItem
from app.models.principal import ApiKey
from app.models.search import OrderSearch, SearchHead, SearchTerm
from app.models.webhook import WebhookDelivery, WebhookEndpoint

__all__ = [
    "ApiKey",
    "BrokerCursor",
    "ChangeKey",
    "Erasure",
    "FeedEntry",
    "FeedHead",
    "Order",
    "OrderEvent",
    "OrderItem",
    "OrderSearch",
    "OutboxEntry",
    "SearchHead",
    "SearchTerm",
    "WebhookDelivery",
    "WebhookEndpoint",
]


def _table(model: type[Base]) -> Table:
    assert isinstance(model.__table__, Table)
    return model.__table__


# Core tables, for statements without the ORM.
ORDERS, ITEMS, EVENTS, OUTBOX = (_table(model) for model in (Order, OrderItem, OrderEvent, OutboxEntry))
FEED, FEED_HEAD, BROKER_CURSOR = _table(FeedEntry), _table(FeedHead), _table(BrokerCursor)
CHANGE_KEYS = _table(ChangeKey)
DELIVERIES = _table(WebhookDelivery)
SEARCH, SEARCH_TERMS, SEARCH_HEAD = (_table(model) for model in (OrderSearch, SearchTerm, SearchHead))
