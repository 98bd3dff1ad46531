"""The order: its columns, its transitions and their guards."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.db.engine import Base
from app.db.types import JSON_VALUE, UUID, Timestamp, rfc3339
from app.errors import IllegalAction, TooManyVersions
from app.models.erasure import scrub
from app.models.lifecycle import (
    ACTIONS,
    FULFILLMENT_STATUSES,
    NOTHING_FULFILLED,
    ON_HOLD,
    STATUSES,
    UNITS_TO_RETURN,
    allowed_actions,
)
from app.models.order_id import hash_reference, is_alias
from app.models.order_item import ID_MAX, OrderItem, match_lines, order_totals
from app.models.principal import PRINCIPAL_MAX, customer_principal_id

IDEMPOTENCY_KEY_MAX = 255  # characters, as in Stripe's API
NUMBER_LENGTH = 15
HASH_LENGTH = 32  # hexadecimal digits
EMPTY = text("'[]'")
VERSIONS_MAX = 10_000  # of one order, so that erasing it and reading it stay bounded
# The members of an order that its caller sets, beside its items: those that never change, and those that PATCH changes,
# some of them only while the order is pending. Every other list of them is derived from here.
IMMUTABLE_CONTENT = ("customer_id", "channel")
CONTENT = (
    "external_ref", "currency", "adjustments", "shipping_address", "billing_address", "note", "metadata",
)  # fmt: skip
CONTENT_WHILE_PENDING = ("items", "adjustments", "currency")
# Allowed beyond VERSIONS_MAX, so that every order can be ended; each is possible only once more.
_FINAL_ACTIONS = {"cancel", "complete", "release"}
# Error details by the unmet condition of an action.
_UNMET = {
    NOTHING_FULFILLED: "units of the order have already been fulfilled",
    ON_HOLD: "the order is not on hold",
    UNITS_TO_RETURN: "the order has no fulfilled units that are not returned yet",
}


class Order(Base):
    """An order.

    The idempotency key and the owner of the external reference are stored as hashes of (principal, key) and (principal,
    reference). An erasure changes the principal and deletes the fingerprint, but keeps both hashes.

    Each method that changes the order makes one new version and returns the type of its event, or None where nothing
    changes. If the order does not allow the change, it raises IllegalAction or, at VERSIONS_MAX, TooManyVersions, and
    changes nothing. Times are aware, in UTC.

    Fulfillments and returns are stored as the document shows them. A change replaces their lists and the objects in
    them, and never modifies one in place: the caller may still hold the document that the order was parsed from.
    """

    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(UUID, primary_key=True)
    number: Mapped[str] = mapped_column(String(NUMBER_LENGTH))
    principal: Mapped[str] = mapped_column(String(PRINCIPAL_MAX))
    customer_id: Mapped[str] = mapped_column(String(ID_MAX))
    external_ref: Mapped[str | None] = mapped_column(String(ID_MAX))
    external_ref_hash: Mapped[str | None] = mapped_column(String(HASH_LENGTH))
    channel: Mapped[str | None] = mapped_column(String(ID_MAX))
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
    fulfillments: Mapped[list[dict[str, Any]]] = mapped_column(JSON_VALUE, server_default=EMPTY)
    returns: Mapped[list[dict[str, Any]]] = mapped_column(JSON_VALUE, server_default=EMPTY)
    version: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(Timestamp)
    updated_at: Mapped[datetime] = mapped_column(Timestamp)

    items: Mapped[list[OrderItem]] = relationship(
        primaryjoin="Order.id == foreign(OrderItem.order_id)",
        order_by=OrderItem.line,
        lazy="raise",
    )

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
        CheckConstraint(status.in_(STATUSES), name="status"),
        CheckConstraint(fulfillment_status.in_(FULFILLMENT_STATUSES), name="fulfillment_status"),
    )

    # Optimistic locking: the UPDATE of a session requires the version that was read.
    __mapper_args__ = {"version_id_col": version, "version_id_generator": False}

    @property
    def allowed_actions(self) -> list[str]:
        """The names of the actions that are allowed next, sorted."""
        return allowed_actions(
            status=self.status,
            on_hold=self.hold is not None,
            any_fulfilled=self.fulfillment_status != "unfulfilled",
            any_returnable=any(item.fulfilled > item.returned for item in self.items),
        )

    def confirm(self, *, at: datetime) -> str:
        """Confirm a pending order."""
        return self._transition("confirm", at)

    def cancel(self, *, reason: str, note: str | None, at: datetime) -> str:
        """Cancel an open order of which nothing has been fulfilled, and release its hold."""
        self._refuse_personal_data(note=note)
        event = self._transition("cancel", at)
        self.hold = None
        self.cancellation = {"reason": reason, "note": note, "at": rfc3339(at)}
        return event

    def complete(self, *, at: datetime) -> str:
        """Complete a confirmed order; units that are not fulfilled never will be."""
        return self._transition("complete", at)

    def place_hold(self, *, reason: str, at: datetime) -> str | None:
        """Put an open order on hold. The same hold again changes nothing."""
        if self.hold is not None and self.hold["reason"] == reason:
            return None
        self._refuse_personal_data(reason=reason)
        event = self._transition("hold", at)
        self.hold = {"reason": reason, "at": rfc3339(at)}
        return event

    def release_hold(self, *, at: datetime) -> str | None:
        """Release the order's hold. Without a hold nothing changes."""
        if self.hold is None:
            return None
        event = self._transition("release", at)
        self.hold = None
        return event

    def fulfill(self, *, items: list[dict[str, int]], tracking: dict[str, str] | None, at: datetime) -> str:
        """Record a fulfillment of `items`, a list of {"line", "quantity"}. The last unit completes the order.

        Also raises QuantityExceeded, and InvalidRequest for unknown lines.
        """
        self._require_allowed("fulfill")
        self._refuse_personal_data(tracking=tracking)
        fulfilled = match_lines(items, self.items, available=lambda item: item.quantity - item.fulfilled)
        event = self._advance("fulfill", at)
        for item, quantity in fulfilled:
            item.fulfilled += quantity
        record = {"number": len(self.fulfillments) + 1, "items": items, "tracking": tracking, "created_at": rfc3339(at)}
        self.fulfillments = [*self.fulfillments, record]
        complete = all(item.fulfilled == item.quantity for item in self.items)
        self.fulfillment_status = "fulfilled" if complete else "partial"
        if complete:
            self.status = "completed"
        return event

    def return_items(self, *, items: list[dict[str, int]], reason: str | None, at: datetime) -> str:
        """Record a return of `items`, a list of {"line", "quantity"}.

        Also raises QuantityExceeded, and InvalidRequest for unknown lines.
        """
        self._require_allowed("return")
        self._refuse_personal_data(reason=reason)
        returned = match_lines(items, self.items, available=lambda item: item.fulfilled - item.returned)
        event = self._advance("return", at)
        for item, quantity in returned:
            item.returned += quantity
        record = {"number": len(self.returns) + 1, "items": items, "reason": reason, "created_at": rfc3339(at)}
        self.returns = [*self.returns, record]
        return event

    def update(self, content: dict[str, Any], *, at: datetime) -> str:
        """Change the members of CONTENT, given by column name, and "items", given as the columns of all lines.

        Those of CONTENT_WHILE_PENDING can change only while the order is pending.
        """
        if self.status != "pending" and not content.keys().isdisjoint(CONTENT_WHILE_PENDING):
            raise self._illegal("Items, adjustments and currency can be changed only while the order is pending.")
        if is_alias(self.customer_id):
            scrubbed = scrub(self.columns() | content, alias=self.customer_id)
            self._refuse_personal_data(**{name: content[name] for name in content if scrubbed[name] != content[name]})
        event = self._transition("update", at)
        for name, value in content.items():
            if name == "items":
                self._replace_items(value)
            else:
                setattr(self, "metadata_" if name == "metadata" else name, value)
        if "external_ref" in content:
            self.external_ref_hash = hash_reference(self.external_ref, principal=self.principal)
        priced = [{"unit_price": item.unit_price, "quantity": item.quantity} for item in self.items]
        self.items_total, self.adjustments_total = order_totals(priced, self.adjustments)
        return event

    def erase(self, *, alias: str, at: datetime) -> None:
        """Erase the personal data of an order that has ended. `alias` replaces the customer's id."""
        scrubbed = scrub(self.columns(), alias=alias)
        if self.principal == customer_principal_id(self.customer_id):
            self.principal = customer_principal_id(alias)
        self.fingerprint = self.note = None
        self.customer_id, self.metadata_ = alias, {}
        self.shipping_address, self.billing_address = scrubbed["shipping_address"], scrubbed["billing_address"]
        self.hold, self.cancellation = scrubbed["hold"], scrubbed["cancellation"]
        self.adjustments = scrubbed["adjustments"]
        self.fulfillments, self.returns = scrubbed["fulfillments"], scrubbed["returns"]
        self.version += 1
        self.updated_at = at

    def _replace_items(self, items: list[dict[str, Any]]) -> None:
        common = min(len(self.items), len(items))
        for item, columns in zip(self.items[:common], items[:common], strict=True):
            for name, value in columns.items():
                setattr(item, name, value)
        del self.items[common:]
        self.items.extend(OrderItem(**columns) for columns in items[common:])

    def _refuse_personal_data(self, **members: Any) -> None:
        """Raise IllegalAction if the order has been erased and one of these members has a value, since no later erasure
        would find it."""
        names = sorted(name for name, value in members.items() if value not in (None, {}))
        if names and is_alias(self.customer_id):
            raise self._illegal(
                f"The customer's personal data was erased; the order no longer accepts {', '.join(names)}."
            )

    def _require_allowed(self, name: str) -> None:
        if name not in self.allowed_actions:
            raise self._illegal(f"The action {name} is not allowed: {self._unmet_condition(name)}.")

    def _unmet_condition(self, name: str) -> str:
        action = ACTIONS[name]
        if self.status not in action.from_statuses:
            return f"the order is {self.status}"
        if action.condition is not None:
            return _UNMET[action.condition]
        return f"the order is {self.status} and on hold"

    def _transition(self, name: str, at: datetime) -> str:
        self._require_allowed(name)
        return self._advance(name, at)

    def _advance(self, name: str, at: datetime) -> str:
        """Move to the next version and to the status that the action leads to, and return the event type."""
        if self.version >= VERSIONS_MAX and name not in _FINAL_ACTIONS:
            raise TooManyVersions(f"The order has {self.version:,} versions; the maximum is {VERSIONS_MAX:,}.")
        self.status = ACTIONS[name].to_status or self.status
        self.version += 1
        self.updated_at = at
        return ACTIONS[name].event

    def _illegal(self, detail: str) -> IllegalAction:
        return IllegalAction(detail, order_status=self.status, allowed_actions=self.allowed_actions)
