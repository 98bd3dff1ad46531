"""The log: what happened to every order, and what is still to be put in the feed."""

from datetime import datetime

from sqlalchemy import Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from app.extensions import Base
from app.models.order import IDEMPOTENCY_KEY_MAX, PRINCIPAL_MAX
from app.models.types import UUID, Document, Timestamp


class OrderEvent(Base):
    """One change of one order, written in the change's own transaction and never updated.

    `snapshot` is the order as it was after the change, as the bytes every reader gets. An action's idempotency key
    lives here, for as long as the order does; a creation's lives on the order.
    """

    __tablename__ = "order_events"

    order_id: Mapped[str] = mapped_column(UUID, primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(String(32))
    actor: Mapped[str] = mapped_column(String(PRINCIPAL_MAX))
    at: Mapped[datetime] = mapped_column(Timestamp)
    idempotency_key: Mapped[str | None] = mapped_column(String(IDEMPOTENCY_KEY_MAX))
    fingerprint: Mapped[str | None] = mapped_column(String(32))
    snapshot: Mapped[str] = mapped_column(Document)

    __table_args__ = (
        Index(
            "uq_order_events_order_id_actor_type_idempotency_key",
            order_id,
            actor,
            type,
            idempotency_key,
            unique=True,
            postgresql_where=idempotency_key.is_not(None),
            sqlite_where=idempotency_key.is_not(None),
        ),
    )


class OutboxEntry(Base):
    """An event that has no place in the feed yet; the sequencer moves it there."""

    __tablename__ = "outbox"

    order_id: Mapped[str] = mapped_column(UUID, primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(Timestamp)
