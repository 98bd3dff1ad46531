"""Erasures of personal data: what was requested, and how far it has come."""

from datetime import datetime

from sqlalchemy import CheckConstraint, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db.engine import Base
from app.db.types import UUID, Timestamp
from app.models.order import PRINCIPAL_MAX
from app.models.order_item import ID_MAX

RUNNING, DONE = "running", "done"


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
