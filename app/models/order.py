"""The table of orders."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Index, Integer, String, Text, false, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.engine import Base
from app.db.types import JSON_VALUE, UUID, Timestamp
from app.models.fulfillment import FULFILLMENT_STATUSES, NOT_RETURNED, RETURN_STATUSES
from app.models.lifecycle import STATUSES
from app.models.money import PAYMENT_STATUSES, UNPAID
from app.models.order_item import ID_MAX
from app.models.principal import PRINCIPAL_MAX

IDEMPOTENCY_KEY_MAX = 255  # characters, as in Stripe's API
NUMBER_LENGTH = 15
HASH_LENGTH = 32  # hexadecimal digits
EMPTY_LIST = text("'[]'")
# The members of an order that its caller sets, besides its items: those that never change, and those that PATCH
# changes. Some of the latter can change only while the order is pending, and some are times.
IMMUTABLE_CONTENT = ("customer_id", "channel")
# With the value of a member that is absent: in a request, or in a document that was stored before the member existed.
CONTENT: dict[str, Any] = {
    "external_ref": None,
    "currency": None,
    "adjustments": [],
    "ship_by": None,
    "deliver_by": None,
    "related_orders": [],
    "tags": [],
    "shipping_address": None,
    "billing_address": None,
    "note": None,
    "metadata": {},
}
CONTENT_TIMES = ("ship_by", "deliver_by")
# The members that actions set, with their values in a new order, or in a document from before the member existed.
RECORDS: dict[str, Any] = {
    "holds": [],
    "payments": [],
    "fulfillments": [],
    "returns": [],
    "cancellations": [],
    "reopening": None,
}
CONTENT_WHILE_PENDING = ("items", "adjustments", "currency")


class Order(Base):
    """A row of `orders`, for queries; `app.models.order_aggregate` makes the transitions.

    The idempotency key and the owner of the external reference are stored as hashes of (principal, key) and (principal,
    reference). An erasure changes the principal and deletes the fingerprint, but keeps both hashes.

    Holds, payments, cancellations, fulfillments and returns are stored as the document shows them.
    """

    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(UUID, primary_key=True)
    number: Mapped[str] = mapped_column(String(NUMBER_LENGTH))
    principal: Mapped[str] = mapped_column(String(PRINCIPAL_MAX))
    customer_id: Mapped[str] = mapped_column(String(ID_MAX))
    external_ref: Mapped[str | None] = mapped_column(String(ID_MAX))
    external_ref_hash: Mapped[str | None] = mapped_column(String(HASH_LENGTH))
    idempotency_key_hash: Mapped[str | None] = mapped_column(String(HASH_LENGTH))
    fingerprint: Mapped[str | None] = mapped_column(String(HASH_LENGTH))
    channel: Mapped[str | None] = mapped_column(String(ID_MAX))
    status: Mapped[str] = mapped_column(String(16))
    fulfillment_status: Mapped[str] = mapped_column(String(16), server_default="unfulfilled")
    payment_status: Mapped[str] = mapped_column(String(20), server_default=UNPAID)
    return_status: Mapped[str] = mapped_column(String(16), server_default=NOT_RETURNED)
    currency: Mapped[str | None] = mapped_column(String(3))
    adjustments: Mapped[list[dict[str, Any]]] = mapped_column(JSON_VALUE)
    total: Mapped[int | None] = mapped_column(BigInteger)
    holds: Mapped[list[dict[str, Any]]] = mapped_column(JSON_VALUE, server_default=EMPTY_LIST)
    payments: Mapped[list[dict[str, Any]]] = mapped_column(JSON_VALUE, server_default=EMPTY_LIST)
    fulfillments: Mapped[list[dict[str, Any]]] = mapped_column(JSON_VALUE, server_default=EMPTY_LIST)
    returns: Mapped[list[dict[str, Any]]] = mapped_column(JSON_VALUE, server_default=EMPTY_LIST)
    cancellations: Mapped[list[dict[str, Any]]] = mapped_column(JSON_VALUE, server_default=EMPTY_LIST)
    reopening: Mapped[dict[str, Any] | None] = mapped_column(JSON_VALUE)
    ship_by: Mapped[datetime | None] = mapped_column(Timestamp)
    deliver_by: Mapped[datetime | None] = mapped_column(Timestamp)
    late: Mapped[bool] = mapped_column(Boolean, server_default=false())
    related_orders: Mapped[list[dict[str, str]]] = mapped_column(JSON_VALUE)
    tags: Mapped[list[str]] = mapped_column(JSON_VALUE)
    shipping_address: Mapped[dict[str, str] | None] = mapped_column(JSON_VALUE)
    billing_address: Mapped[dict[str, str] | None] = mapped_column(JSON_VALUE)
    note: Mapped[str | None] = mapped_column(Text)
    metadata_: Mapped[dict[str, str]] = mapped_column("metadata", JSON_VALUE)
    due_at: Mapped[datetime | None] = mapped_column(Timestamp)
    version: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(Timestamp)
    updated_at: Mapped[datetime] = mapped_column(Timestamp)

    # Ids sort by time of creation, as lists do, so each index of a filter ends with the id.
    __table_args__ = (
        Index("uq_orders_number", number, unique=True),
        Index(
            "uq_orders_idempotency_key_hash",
            idempotency_key_hash,
            unique=True,
            postgresql_where=idempotency_key_hash.is_not(None),
            sqlite_where=idempotency_key_hash.is_not(None),
        ),
        # external_ref comes first to serve the filter; the hash makes it unique for each principal.
        Index(
            "uq_orders_external_ref_external_ref_hash",
            external_ref,
            external_ref_hash,
            unique=True,
            postgresql_where=external_ref.is_not(None),
            sqlite_where=external_ref.is_not(None),
        ),
        Index("ix_orders_customer_id_id", customer_id, id),
        # Serves the filter by channel, with and without one by status.
        Index(
            "ix_orders_channel_status_id",
            channel,
            status,
            id,
            postgresql_where=channel.is_not(None),
            sqlite_where=channel.is_not(None),
        ),
        Index("ix_orders_status_id", status, id),
        Index("ix_orders_fulfillment_status_id", fulfillment_status, id),
        # Partial indexes: a new order without dates, holds, payments and returns has no entry in them.
        Index(
            "ix_orders_payment_status_id",
            payment_status,
            id,
            postgresql_where=payment_status != UNPAID,
            sqlite_where=payment_status != UNPAID,
        ),
        Index(
            "ix_orders_return_status_id",
            return_status,
            id,
            postgresql_where=return_status != NOT_RETURNED,
            sqlite_where=return_status != NOT_RETURNED,
        ),
        Index("ix_orders_due_at", due_at, postgresql_where=due_at.is_not(None), sqlite_where=due_at.is_not(None)),
        CheckConstraint(status.in_(STATUSES), name="status"),
        CheckConstraint(fulfillment_status.in_(FULFILLMENT_STATUSES), name="fulfillment_status"),
        CheckConstraint(payment_status.in_(PAYMENT_STATUSES), name="payment_status"),
        CheckConstraint(return_status.in_(RETURN_STATUSES), name="return_status"),
    )
