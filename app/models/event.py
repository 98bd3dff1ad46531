"""Events, the idempotency keys of changes, and the outbox."""

from datetime import datetime

from sqlalchemy import Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db.engine import Base
from app.db.types import UUID, Document, Timestamp
from app.models.order import HASH_LENGTH
from app.models.principal import PRINCIPAL_MAX


class OrderEvent(Base):
    """One change of one order, written in the transaction of the change and never updated, except by an erasure.

    `snapshot` is the order document after the change, byte for byte as responses contain it.
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
    """An idempotency key of a change, kept as long as the order. The key of a create is a column of the order.

    `version` is the version in the response: the new one, or the current one if the request changed nothing. `key_hash`
    is a hash of (principal, action, key). An erasure deletes the fingerprint of the body and keeps the rest.
    """

    __tablename__ = "change_keys"

    order_id: Mapped[str] = mapped_column(UUID, primary_key=True)
    key_hash: Mapped[str] = mapped_column(String(HASH_LENGTH), primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    fingerprint: Mapped[str | None] = mapped_column(String(HASH_LENGTH))


class OutboxEntry(Base):
    """An event that is not in the feed yet. The sequencer will move it there."""

    __tablename__ = "outbox"

    order_id: Mapped[str] = mapped_column(UUID, primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(Timestamp)
