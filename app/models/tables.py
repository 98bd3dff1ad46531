"""The tables of an order as SQLAlchemy Core sees them, and JSON as one more."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Column, Table, column, func

from app.db.engine import Base
from app.models.event import ChangeKey, OrderEvent, OutboxEntry
from app.models.order import Order
from app.models.order_item import Fulfillment, OrderItem, Return


def _table(model: type[Base]) -> Table:
    assert isinstance(model.__table__, Table)
    return model.__table__


ORDERS, ITEMS, EVENTS, OUTBOX = (_table(model) for model in (Order, OrderItem, OrderEvent, OutboxEntry))
FULFILLMENTS, RETURNS, CHANGE_KEYS = _table(Fulfillment), _table(Return), _table(ChangeKey)


def json_row(source: Any, name: str, *columns: Any) -> Any:
    """A JSON object, as a table of one row with the given typed columns (PostgreSQL)."""
    return func.json_to_record(source).table_valued(*columns).render_derived(name=name, with_types=True)


def json_rows(source: Any, name: str, *columns: Any) -> Any:
    """A JSON array of objects, as a table with the given typed columns (PostgreSQL)."""
    return func.json_to_recordset(source).table_valued(*columns).render_derived(name=name, with_types=True)


def typed(columns: Iterable[Column[Any]]) -> list[Any]:
    """The names and types of a table's columns."""
    return [column(c.name, c.type) for c in columns]
