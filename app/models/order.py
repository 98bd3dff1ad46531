"""Orders, as they are stored and as they may change: the guards of every transition stand here.

There are no foreign keys. A child is written in the statement that writes its order, orders are never deleted, and each
check would cost a create 8 µs a row; `order_id` leads every child's key, so that an order lives whole on one shard.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.db.engine import Base
from app.db.types import JSON_VALUE, UUID, Timestamp, rfc3339
from app.errors import IllegalAction, TooManyVersions
from app.models.erasure import is_alias, scrub
from app.models.lifecycle import ACTIONS, FULFILLMENT_STATUSES, STATUSES, allowed_actions
from app.models.order_id import hash_reference
from app.models.order_item import ID_MAX, Fulfillment, OrderItem, Quantities, Return, order_totals
from app.models.principal import PRINCIPAL_MAX, customer_principal_id

IDEMPOTENCY_KEY_MAX = 255  # the ceiling that the well-known payment APIs have
NUMBER_LENGTH = 15
HASH_LENGTH = 32  # hexadecimal digits
VERSIONS_MAX = 10_000  # of one order; beyond it an order can only be ended, so that erasing and reading it stay bounded
# The members of an order that its caller sets and PATCH changes, beside its items; those of the second kind only while
# the order is pending. Every other list of them is derived from here.
CONTENT = (
    "external_ref", "currency", "adjustments", "shipping_address", "billing_address", "note", "metadata",
)  # fmt: skip
CONTENT_WHILE_PENDING = ("items", "adjustments", "currency")
_ENDING = {"cancel", "complete", "release"}  # each is possible at most once more


class Order(Base):
    """An order. Totals, both statuses and the version are computed by the service and stored, to be filtered by.

    The idempotency key and the owner of the external reference are stored as hashes of (principal, key) and (principal,
    reference). They survive an erasure, which gives the principal another name; the fingerprint of the body does not.

    Each change below is one new version. It raises IllegalAction where the status does not allow it, TooManyVersions
    where there are VERSIONS_MAX, and assigns nothing then. Times are aware, in UTC.
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

    items: Mapped[list[OrderItem]] = relationship(
        primaryjoin="Order.id == foreign(OrderItem.order_id)",
        order_by=OrderItem.line,
        lazy="raise",
    )
    fulfillments: Mapped[list[Fulfillment]] = relationship(
        primaryjoin="Order.id == foreign(Fulfillment.order_id)", order_by=Fulfillment.number, lazy="raise"
    )
    returns: Mapped[list[Return]] = relationship(
        primaryjoin="Order.id == foreign(Return.order_id)", order_by=Return.number, lazy="raise"
    )

    # The id sorts as the time of creation does, so it ends each index as the sort of every list.
    __table_args__ = (
        Index("uq_orders_number", number, unique=True),
        Index(
            "uq_orders_idempotency_key_hash",
            idempotency_key_hash,
            unique=True,
            postgresql_where=idempotency_key_hash.is_not(None),
            sqlite_where=idempotency_key_hash.is_not(None),
        ),
        # The reference leads, for the filter by it; the hash makes it unique among those of one principal.
        Index(
            "uq_orders_external_ref_external_ref_hash",
            external_ref,
            external_ref_hash,
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

    # Where a session changes an order, the version that was read stands in the WHERE of its UPDATE too.
    __mapper_args__ = {"version_id_col": version, "version_id_generator": False}

    @property
    def allowed_actions(self) -> list[str]:
        """What may come next."""
        return allowed_actions(
            status=self.status,
            held=self.hold is not None,
            fulfilled=self.fulfillment_status != "unfulfilled",
            units_out=any(item.fulfilled > item.returned for item in self.items),
        )

    def confirm(self, *, at: datetime) -> None:
        """Accept the order."""
        self._begin("confirm", at)

    def cancel(self, *, reason: str, note: str | None, at: datetime) -> None:
        """End the order before anything was sent; a hold ends with it."""
        self._refuse_personal_data(note=note)
        self._begin("cancel", at)
        self.hold = None
        self.cancellation = {"reason": reason, "note": note, "at": rfc3339(at)}

    def complete(self, *, at: datetime) -> None:
        """End the order as it is; what was not sent never will be."""
        self._begin("complete", at)

    def place_hold(self, *, reason: str, at: datetime) -> None:
        """Stop the order until the hold is released. A hold for the same reason that is there already stays."""
        if self.hold is not None and self.hold["reason"] == reason:
            return
        self._refuse_personal_data(reason=reason)
        self._begin("hold", at)
        self.hold = {"reason": reason, "at": rfc3339(at)}

    def release(self, *, at: datetime) -> None:
        """Take the hold away, if there is one."""
        if self.hold is None:
            return
        self._begin("release", at)
        self.hold = None

    def fulfill(self, quantities: Quantities, *, tracking: dict[str, str] | None, at: datetime) -> None:
        """Send units of the lines. The last unit completes the order. Raises QuantityExceeded."""
        self._require("fulfill")
        self._refuse_personal_data(tracking=tracking)
        sent = quantities.of(self.items, available=lambda item: item.quantity - item.fulfilled)
        self._begin("fulfill", at)
        for item, quantity in sent:
            item.fulfilled += quantity
        number = len(self.fulfillments) + 1
        self.fulfillments.append(Fulfillment(number=number, items=quantities.lines, tracking=tracking, created_at=at))
        whole = all(item.fulfilled == item.quantity for item in self.items)
        self.fulfillment_status = "fulfilled" if whole else "partial"
        if whole:
            self.status = "completed"

    def take_back(self, quantities: Quantities, *, reason: str | None, at: datetime) -> None:
        """Record units that came back. Raises QuantityExceeded."""
        self._require("return")
        self._refuse_personal_data(reason=reason)
        back = quantities.of(self.items, available=lambda item: item.fulfilled - item.returned)
        self._begin("return", at)
        for item, quantity in back:
            item.returned += quantity
        number = len(self.returns) + 1
        self.returns.append(Return(number=number, items=quantities.lines, reason=reason, created_at=at))

    def update(self, content: dict[str, Any], *, at: datetime) -> None:
        """Change the caller's own members, given by column name, and "items" with the columns of all lines.

        What is ordered and what it costs can change only while the order is pending.
        """
        if self.status != "pending" and not content.keys().isdisjoint(CONTENT_WHILE_PENDING):
            raise self._illegal("items, adjustments and currency can be changed only while the order is pending.")
        if is_alias(self.customer_id):
            scrubbed = scrub(self.columns() | content, alias=self.customer_id)
            self._refuse_personal_data(**{name: content[name] for name in content if scrubbed[name] != content[name]})
        self._begin("update", at)
        for name, value in content.items():
            if name == "items":
                self._replace_items(value)
            else:
                setattr(self, "metadata_" if name == "metadata" else name, value)
        if "external_ref" in content:
            self.external_ref_hash = hash_reference(self.external_ref, principal=self.principal)
        priced = [{"unit_price": item.unit_price, "quantity": item.quantity} for item in self.items]
        self.items_total, self.adjustments_total = order_totals(priced, self.adjustments)

    def erase(self, *, alias: str, at: datetime) -> None:
        """Forget the person behind an order that has ended; `alias` stands for the customer from now on."""
        scrubbed = scrub(self.columns(), alias=alias)
        if self.principal == customer_principal_id(self.customer_id):
            self.principal = customer_principal_id(alias)
        self.fingerprint = self.note = None
        self.customer_id, self.metadata_ = alias, {}
        self.shipping_address, self.billing_address = scrubbed["shipping_address"], scrubbed["billing_address"]
        self.hold, self.cancellation = scrubbed["hold"], scrubbed["cancellation"]
        self.adjustments = scrubbed["adjustments"]
        for fulfillment in self.fulfillments:
            fulfillment.tracking = None
        for one in self.returns:
            one.reason = None
        self.version += 1
        self.updated_at = at

    def _replace_items(self, items: list[dict[str, Any]]) -> None:
        """Line by line, in place."""
        kept = min(len(self.items), len(items))
        for item, columns in zip(self.items[:kept], items[:kept], strict=True):
            for name, value in columns.items():
                setattr(item, name, value)
        del self.items[kept:]
        self.items.extend(OrderItem(**columns) for columns in items[kept:])

    def _refuse_personal_data(self, **members: Any) -> None:
        """Raise IllegalAction where the order has been erased and one of these members has a value: no erasure would
        ever find it again."""
        names = sorted(name for name, value in members.items() if value not in (None, {}))
        if names and is_alias(self.customer_id):
            raise self._illegal(
                f"The customer's personal data was erased; the order no longer accepts {', '.join(names)}."
            )

    def _require(self, name: str) -> None:
        if name not in self.allowed_actions:
            raise self._illegal(f"The action {name} is not allowed: {self._obstacle(name)}.")

    def _obstacle(self, name: str) -> str:
        """Why an action that is not allowed is not."""
        action = ACTIONS[name]
        if self.status not in action.starts_from:
            return f"the order is {self.status}"
        if action.needs is not None:
            return _LACKING[action.needs]
        return f"the order is {self.status} and on hold"

    def _begin(self, name: str, at: datetime) -> None:
        self._require(name)
        if self.version >= VERSIONS_MAX and name not in _ENDING:
            raise TooManyVersions(f"The order has {self.version:,} versions; the maximum is {VERSIONS_MAX:,}.")
        self.status = ACTIONS[name].to or self.status
        self.version += 1
        self.updated_at = at

    def _illegal(self, detail: str) -> IllegalAction:
        return IllegalAction(detail, order_status=self.status, allowed_actions=self.allowed_actions)


# What is so where an action lacks what it needs (`Action.needs`).
_LACKING = {
    "nothing fulfilled": "units of the order have already been fulfilled",
    "a hold": "the order is not on hold",
    "units out": "the order has no fulfilled units that are not returned yet",
}
