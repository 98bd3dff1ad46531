"""Erasures of personal data: what was requested and how far it has come, and which parts of an order are personal."""

import secrets
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

ERASED_TEXT = "erased"
_ALIAS_PREFIX = "erased-"  # callers cannot choose a customer id that begins with it
_HEAD = 100  # characters of a stored document in which its id, number and customer_id stand


class Erasure(Base):
    """One request to erase a customer's personal data.

    `customer_id` is the customer whose orders are still to be erased; NULL as soon as none is left, so that the row
    names nobody. `orders` counts those that are erased. Of the order `order_id`, the snapshots up to `erased_version`
    are erased already.
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
        # One running erasure for a customer. NULL is equal to no other NULL.
        Index("uq_erasures_customer_id", customer_id, unique=True),
        CheckConstraint(status.in_((RUNNING, DONE)), name="status"),
    )


def new_alias() -> str:
    """A random customer id that stands for a person whose data was erased."""
    return f"{_ALIAS_PREFIX}{secrets.token_hex(8)}"


def is_alias(customer_id: str) -> bool:
    """Whether the customer id stands for a person whose data was erased."""
    return customer_id.startswith(_ALIAS_PREFIX)


def is_erased(document: str) -> bool:
    """Whether a stored order document is one of which the personal data was erased; the document is not parsed."""
    return f'"customer_id":"{_ALIAS_PREFIX}' in document[:_HEAD]


def scrub(document: Mapping[str, Any], *, alias: str) -> dict[str, Any]:
    """An order document, or an order's columns, without what tells of a person: the customer's id, addresses, metadata,
    tracking, and every free text. Scrubbed again, it stays as it is.

    What was sold, for how much and to which country stays: the books need it, and it names nobody.
    """
    scrubbed = dict(document) | {"customer_id": alias, "note": None, "metadata": {}}
    for name in ("shipping_address", "billing_address"):
        address = document[name]
        scrubbed[name] = address and {"country": address["country"]}
    scrubbed["adjustments"] = [{**adjustment, "label": None} for adjustment in document["adjustments"]]
    scrubbed["hold"] = document["hold"] and {**document["hold"], "reason": ERASED_TEXT}
    scrubbed["cancellation"] = document["cancellation"] and {**document["cancellation"], "note": None}
    scrubbed["fulfillments"] = [{**one, "tracking": None} for one in document.get("fulfillments", [])]
    scrubbed["returns"] = [{**one, "reason": None} for one in document.get("returns", [])]
    return scrubbed
