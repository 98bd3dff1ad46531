"""Orders and their line items, as they are stored.

There are no foreign keys. A child is written in the statement that writes its order, orders are never deleted, and each
check would cost a create 8 µs a row; `order_id` leads every child's key, so that an order lives whole on one shard.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.extensions import Base
from app.models.types import JSON_VALUE, UUID, Timestamp

STATUSES = ("pending", "confirmed", "completed", "cancelled")
FULFILLMENT_STATUSES = ("unfulfilled", "partial", "fulfilled")

ID_MAX = 64  # characters of any id a caller chooses: a UUID with a prefix fits
PRINCIPAL_MAX = 128
IDEMPOTENCY_KEY_MAX = 255  # the ceiling that the well-known payment APIs have
NUMBER_LENGTH = 15


class Order(Base):
    """An order. Totals, both statuses and the version are computed by the service and stored, to be filtered by."""

    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(UUID, primary_key=True)
    number: Mapped[str] = mapped_column(String(NUMBER_LENGTH))
    principal: Mapped[str] = mapped_column(String(PRINCIPAL_MAX))
    customer_id: Mapped[str] = mapped_column(String(ID_MAX))
    external_ref: Mapped[str | None] = mapped_column(String(ID_MAX))
    idempotency_key: Mapped[str | None] = mapped_column(String(IDEMPOTENCY_KEY_MAX))
    fingerprint: Mapped[str | None] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(16))
    fulfillment_status: Mapped[str] = mapped_column(String(16))
    hold: Mapped[dict[str, Any] | None] = mapped_column(JSON_VALUE)
    currency: Mapped[str | None] = mapped_column(String(3))
    adjustments: Mapped[list[dict[str, Any]]] = mapped_column(JSON_VALUE)
    items_total: Mapped[int | None] = mapped_column(BigInteger)
    adjustments_total: Mapped[int | None] = mapped_column(BigInteger)
    shipping_address: Mapped[dict[str, str] | None] = mapped_column(JSON_VALUE)
    billing_address: Mapped[dict[str, str] | None] = mapped_column(JSON_VALUE)
    note: Mapped[str | None] = mapped_column(Text)
    metadata_: Mapped[dict[str, str]] = mapped_column("metadata", JSON_VALUE)
    cancellation: Mapped[dict[str, Any] | None] = mapped_column(JSON_VALUE)
    version: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(Timestamp)
    updated_at: Mapped[datetime] = mapped_column(Timestamp)

    # The id sorts as the time of creation does, so it ends each index as the sort of every list.
    __table_args__ = (
        Index("uq_orders_number", number, unique=True),
        Index(
            "uq_orders_principal_idempotency_key",
            principal,
            idempotency_key,
            unique=True,
            postgresql_where=idempotency_key.is_not(None),
            sqlite_where=idempotency_key.is_not(None),
        ),
        # The reference leads: the filter by it does not always name a principal.
        Index(
            "uq_orders_external_ref_principal",
            external_ref,
            principal,
            unique=True,
            postgresql_where=external_ref.is_not(None),
            sqlite_where=external_ref.is_not(None),
        ),
        Index("ix_orders_customer_id_id", customer_id, id),
        Index("ix_orders_status_id", status, id),
        Index("ix_orders_fulfillment_status_id", fulfillment_status, id),
        CheckConstraint(status.in_(STATUSES), name="status"),
        CheckConstraint(fulfillment_status.in_(FULFILLMENT_STATUSES), name="fulfillment_status"),
    )


class OrderItem(Base):
    """One line of an order. `line` counts from 1 in the caller's order and never changes."""

    __tablename__ = "order_items"

    order_id: Mapped[str] = mapped_column(UUID, primary_key=True)
    line: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    item_id: Mapped[str] = mapped_column(String(ID_MAX))
    quantity: Mapped[int] = mapped_column(Integer)
    unit_price: Mapped[int | None] = mapped_column(BigInteger)
    fulfilled: Mapped[int] = mapped_column(Integer)
    returned: Mapped[int] = mapped_column(Integer)

    __table_args__ = (
        Index("ix_order_items_item_id_order_id", item_id, order_id),
        CheckConstraint("0 <= returned AND returned <= fulfilled AND fulfilled <= quantity", name="quantities"),
    )
