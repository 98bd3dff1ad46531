"""The log: what happened to every order, and what is still to be put in the feed."""

from datetime import datetime

from sqlalchemy import Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db.engine import Base
from app.db.types import UUID, Document, Timestamp
from app.models.order import HASH_LENGTH
from app.models.principal import PRINCIPAL_MAX


class OrderEvent(Base):
    """One change of one order, written in the change's own transaction and never updated.

    `snapshot` is the order as it was after the change, as the bytes every reader gets.
    """

    __tablename__ = "order_events"

    order_id: Mapped[str] = mapped_column(UUID, primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(String(32))
    actor: Mapped[str] = mapped_column(String(PRINCIPAL_MAX))
    at: Mapped[datetime] = mapped_column(Timestamp)
    snapshot: Mapped[str] = mapped_column(Document)


CHANGE_KEYS_MAX = 20_000  # of one order: each of its 10,000 versions, and as many requests that changed nothing


class ChangeKey(Base):
    """An idempotency key that was used for a change of an order, kept as long as the order is.

    `version` is the one that the request was answered with: the change's own, or the current one where nothing changed.
    `key_hash` is a hash of (principal, action, key). An erasure takes the fingerprint of the body away, and leaves the
    rest. A creation's key is a column of the order.
    """

    __tablename__ = "change_keys"

    order_id: Mapped[str] = mapped_column(UUID, primary_key=True)
    key_hash: Mapped[str] = mapped_column(String(HASH_LENGTH), primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    fingerprint: Mapped[str | None] = mapped_column(String(HASH_LENGTH))


class OutboxEntry(Base):
    """An event that has no place in the feed yet; the sequencer moves it there."""

    __tablename__ = "outbox"

    order_id: Mapped[str] = mapped_column(UUID, primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(Timestamp)
