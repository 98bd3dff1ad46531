"""Erasures of personal data: their progress, and which members of an order are personal data."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db.engine import Base
from app.db.types import UUID, Timestamp
from app.models.order_item import ID_MAX
from app.models.principal import PRINCIPAL_MAX

RUNNING, DONE = "running", "done"

# The members of an order that are personal data, or contain some; `scrub` removes it.
PERSONAL_COLUMNS = (
    "customer_id", "note", "metadata", "tags", "shipping_address", "billing_address", "adjustments", "holds",
    "payments", "cancellations", "fulfillments", "returns", "reopening",
)  # fmt: skip


class Erasure(Base):
    """An erasure of a customer's personal data, and its progress.

    `customer_id` is set until all orders are erased, then NULL, so that the row itself identifies nobody. `orders` is
    the number of erased orders. `order_id` is the order in progress: its snapshots up to `erased_version` are erased.
    """

    __tablename__ = "erasures"

    id: Mapped[str] = mapped_column(UUID, primary_key=True)
    customer_id: Mapped[str | None] = mapped_column(String(ID_MAX))
    alias: Mapped[str] = mapped_column(String(ID_MAX))
    actor: Mapped[str] = mapped_column(String(PRINCIPAL_MAX))
    status: Mapped[str] = mapped_column(String(16))
    orders: Mapped[int] = mapped_column(Integer)
    order_id: Mapped[str | None] = mapped_column(UUID)
    erased_version: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(Timestamp)
    finished_at: Mapped[datetime | None] = mapped_column(Timestamp)

    __table_args__ = (
        # At most one running erasure for a customer; a unique index admits any number of NULLs.
        Index("uq_erasures_customer_id", customer_id, unique=True),
        CheckConstraint(status.in_((RUNNING, DONE)), name="status"),
    )


def scrub(document: Mapping[str, Any], *, alias: str) -> dict[str, Any]:
    """A copy of an order document, or of an order's columns, without personal data. Scrubbing is idempotent.

    The alias replaces the customer's id. Addresses, except the country, metadata, tracking and every free text are
    removed. Items, prices, countries and the references of payments are kept, because accounting needs them.
    """
    scrubbed = dict(document) | {"customer_id": alias, "note": None, "metadata": {}, "tags": []}
    for name in ("shipping_address", "billing_address"):
        address = document[name]
        scrubbed[name] = address and {"country": address["country"]}
    for name, texts in _FREE_TEXTS.items():
        scrubbed[name] = [{**record, **texts} for record in document[name]]
    for fulfillment in scrubbed["fulfillments"]:
        fulfillment["events"] = [{**event, "description": None} for event in fulfillment["events"]]
    scrubbed["reopening"] = document["reopening"] and {**document["reopening"], "reason": None}
    return scrubbed


# The free texts in the records of an order.
_FREE_TEXTS: dict[str, dict[str, None]] = {
    "adjustments": {"label": None},
    "holds": {"reason": None},
    "payments": {"note": None},
    "cancellations": {"note": None},
    "fulfillments": {"tracking": None},
    "returns": {"reason": None},
}
