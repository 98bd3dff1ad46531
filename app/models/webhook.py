"""Webhooks: the endpoints that events are sent to, and one delivery for each event and endpoint."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.engine import Base
from app.db.types import JSON_VALUE, UUID, Timestamp
from app.models.principal import PRINCIPAL_MAX

URL_MAX = 2_048  # characters
DESCRIPTION_MAX = 200
PAYLOADS = THIN, WHOLE = ("thin", "order")
ENABLED, DISABLED = "enabled", "disabled"
# Why an endpoint is disabled: by a request, because it answered 410, because it failed for days.
PAUSED, GONE, FAILING = "paused", "gone", "failing"
PENDING, SUCCEEDED, FAILED = "pending", "succeeded", "failed"
DELIVERY_STATUSES = (PENDING, SUCCEEDED, FAILED)

# Events of endpoints instead of orders. An endpoint gets them only if it names them in `events`.
TEST, ENDPOINT_FAILING, ENDPOINT_DISABLED = "webhook.test", "endpoint.failing", "endpoint.disabled"
ENDPOINT_EVENT_TYPES = (ENDPOINT_FAILING, ENDPOINT_DISABLED)

_IS_PENDING = text("status = 'pending'")


class WebhookEndpoint(Base):
    """A URL that events are sent to.

    `events` and `channels` are filters; None means all events of orders and all channels. `secret` signs the requests;
    `previous_secret` signs them too until `previous_secret_until`. Both are stored as `app.services.webhook_secrets`
    seals them. Events up to `last_seq` of the feed have a delivery if they match the filters. The endpoint gets no
    request before `retry_at`.
    """

    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(UUID, primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    events: Mapped[list[str] | None] = mapped_column(JSON_VALUE)
    channels: Mapped[list[str] | None] = mapped_column(JSON_VALUE)
    payload: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    disabled_reason: Mapped[str | None] = mapped_column(String(16))
    secret: Mapped[str] = mapped_column(Text)
    previous_secret: Mapped[str | None] = mapped_column(Text)
    previous_secret_until: Mapped[datetime | None] = mapped_column(Timestamp)
    created_by: Mapped[str] = mapped_column(String(PRINCIPAL_MAX))
    created_at: Mapped[datetime] = mapped_column(Timestamp)
    updated_at: Mapped[datetime] = mapped_column(Timestamp)
    last_seq: Mapped[int] = mapped_column(BigInteger)
    consecutive_failures: Mapped[int] = mapped_column(Integer)
    failing_since: Mapped[datetime | None] = mapped_column(Timestamp)
    reported_at: Mapped[datetime | None] = mapped_column(Timestamp)
    retry_at: Mapped[datetime | None] = mapped_column(Timestamp)
    last_success_at: Mapped[datetime | None] = mapped_column(Timestamp)
    last_failure_at: Mapped[datetime | None] = mapped_column(Timestamp)

    __table_args__ = (CheckConstraint("status IN ('enabled', 'disabled')", name="status"),)


class WebhookDelivery(Base):
    """One event for one endpoint. It contains no payload: that is rendered from the event's snapshot when it is sent.

    `order_id`, `version` and `seq` are None for events of endpoints, whose payload is `data`. A worker that sends the
    delivery holds its `lease` until `next_attempt_at`, so that the delivery is due again after a crash. `attempts` are
    the latest ones. Attempts are made for a limited time after `first_attempt_at`.
    """

    __tablename__ = "webhook_deliveries"

    endpoint_id: Mapped[str] = mapped_column(UUID, primary_key=True)
    id: Mapped[str] = mapped_column(UUID, primary_key=True)
    type: Mapped[str] = mapped_column(String(32))
    order_id: Mapped[str | None] = mapped_column(UUID)
    version: Mapped[int | None] = mapped_column(Integer)
    seq: Mapped[int | None] = mapped_column(BigInteger)
    data: Mapped[dict[str, Any] | None] = mapped_column(JSON_VALUE)
    status: Mapped[str] = mapped_column(String(16))
    attempt_count: Mapped[int] = mapped_column(Integer)
    attempts: Mapped[list[dict[str, Any]]] = mapped_column(JSON_VALUE)
    lease: Mapped[str | None] = mapped_column(String(32))
    next_attempt_at: Mapped[datetime | None] = mapped_column(Timestamp)
    first_attempt_at: Mapped[datetime | None] = mapped_column(Timestamp)
    created_at: Mapped[datetime] = mapped_column(Timestamp)
    finished_at: Mapped[datetime | None] = mapped_column(Timestamp)

    __table_args__ = (
        Index("uq_webhook_deliveries_endpoint_id_order_id_version", endpoint_id, order_id, version, unique=True),
        # What is due, and the earlier deliveries of an order that a delivery waits for.
        Index(
            "ix_webhook_deliveries_endpoint_id_next_attempt_at",
            endpoint_id,
            next_attempt_at,
            postgresql_where=_IS_PENDING,
            sqlite_where=_IS_PENDING,
        ),
        Index(
            "ix_webhook_deliveries_pending",
            endpoint_id,
            order_id,
            version,
            postgresql_where=_IS_PENDING,
            sqlite_where=_IS_PENDING,
        ),
        CheckConstraint("status IN ('pending', 'succeeded', 'failed')", name="status"),
    )

    @property
    def event_id(self) -> str:
        """The id of the event, the same for all endpoints and attempts: the `webhook-id` of the requests."""
        return event_id(self.order_id, self.version, self.id)


def event_id(order_id: str | None, version: int | None, delivery_id: str) -> str:
    """The id of an event of an order; an event of an endpoint has the id of its delivery."""
    return delivery_id if order_id is None else f"{order_id}:{version}"
