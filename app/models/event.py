"""Events, the idempotency keys of changes, the outbox and the feed."""

from datetime import datetime

from sqlalchemy import BigInteger, Boolean, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db.engine import UUID, Base, JSONText, Timestamp
from app.models.order import HASH_LENGTH
from app.models.principal import PRINCIPAL_MAX
from app.tracing import TRACEPARENT_MAX

REQUEST_ID_MAX = 128  # characters; clients may choose the id of a request


class OrderEvent(Base):
    """One change of one order, written in the transaction of the change and never updated, except by an erasure.

    `snapshot` is the order document after the change, byte for byte as responses contain it. `request_id` is the id of
    the request that caused the change, as in the logs; None for a change by a command, and after an erasure, because a
    client may have chosen an id that is personal data. `traceparent` is its span (W3C Trace Context §3.2), if it was
    traced, for the spans of deliveries.
    """

    __tablename__ = "order_events"

    order_id: Mapped[str] = mapped_column(UUID, primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(String(32))
    actor: Mapped[str] = mapped_column(String(PRINCIPAL_MAX))
    request_id: Mapped[str | None] = mapped_column(String(REQUEST_ID_MAX))
    traceparent: Mapped[str | None] = mapped_column(String(TRACEPARENT_MAX))
    at: Mapped[datetime] = mapped_column(Timestamp)
    snapshot: Mapped[str] = mapped_column(JSONText)


CHANGE_KEYS_MAX = 20_000  # of one order: each of its 10,000 versions, and as many requests that changed nothing


class ChangeKey(Base):
    """An idempotency key of a change; it is never deleted. The key of a create is a column of the order.

    `version` is the version in the response: the new one, or the current one if the request changed nothing. `key_hash`
    is a hash of (principal, action, key). `changed` states whether the request changed the order. An erasure deletes
    the fingerprint of the body and keeps the rest.
    """

    __tablename__ = "change_keys"

    order_id: Mapped[str] = mapped_column(UUID, primary_key=True)
    key_hash: Mapped[str] = mapped_column(String(HASH_LENGTH), primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    changed: Mapped[bool] = mapped_column(Boolean)
    fingerprint: Mapped[str | None] = mapped_column(String(HASH_LENGTH))


class OutboxEntry(Base):
    """An event that is not in the feed yet. The sequencer moves it there (app/services/event_feed.py).

    `at` is when the event happened; for an imported order, when it was imported.
    """

    __tablename__ = "outbox"

    order_id: Mapped[str] = mapped_column(UUID, primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(Timestamp)


# SQLite numbers the rows of a table by an INTEGER PRIMARY KEY, and needs no second index for it.
SEQ = BigInteger().with_variant(Integer, "sqlite")


class FeedEntry(Base):
    """The position of an event in the feed. Everything else about the event is in `order_events`.

    `at` is when the sequencer numbered the event; the event itself happened before.
    """

    __tablename__ = "feed"

    seq: Mapped[int] = mapped_column(SEQ, primary_key=True, autoincrement=False)
    order_id: Mapped[str] = mapped_column(UUID)
    version: Mapped[int] = mapped_column(Integer)
    at: Mapped[datetime] = mapped_column(Timestamp)

    __table_args__ = (Index("uq_feed_order_id_version", order_id, version, unique=True),)


class FeedHead(Base):
    """The one row whose lock makes sequencers take turns.

    `seq` is the last number assigned, `pruned_seq` the last whose entry has been removed: the feed has an entry for
    each number after `pruned_seq` up to `seq`.
    """

    __tablename__ = "feed_head"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(BigInteger)
    pruned_seq: Mapped[int] = mapped_column(BigInteger)


class BrokerCursor(Base):
    """The one row that says how far the feed has been published to the message broker.

    Everything up to `seq` has been accepted by the broker. One worker publishes at a time, the one that holds `lease`
    until `leased_until`.
    """

    __tablename__ = "broker_cursor"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(BigInteger)
    lease: Mapped[str | None] = mapped_column(String(32))
    leased_until: Mapped[datetime | None] = mapped_column(Timestamp)
