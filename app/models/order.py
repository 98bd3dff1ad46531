"""The tables of orders, of their items, and of erasures; then the units of lines, and what is personal data."""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Index, Integer, String, Text, false, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.engine import JSON_VALUE, UUID, Base, Timestamp
from app.errors import InvalidRequest, QuantityExceeded, pluralize
from app.models.lifecycle import FULFILLMENT_STATUSES, NOT_RETURNED, RETURN_STATUSES, STATUSES
from app.models.money import PAYMENT_STATUSES, UNPAID
from app.models.principal import PRINCIPAL_MAX

ID_MAX = 64  # characters of an id chosen by a caller: a UUID with a prefix fits
TITLE_MAX = 200
IDEMPOTENCY_KEY_MAX = 255  # characters, as in Stripe's API
NUMBER_LENGTH = 15
HASH_LENGTH = 32  # hexadecimal digits
_ZERO, _EMPTY_LIST = text("0"), text("'[]'")

# The members of an order that its caller sets, besides its items: those that never change, and those that PATCH
# changes. Some of the latter can change only while the order is pending, and some are times.
IMMUTABLE_CONTENT = ("customer_id", "channel")
# With the value of a member that is absent: in a request, or in a document that was stored before the member existed.
CONTENT: dict[str, Any] = {
    "external_ref": None,
    "currency": None,
    "adjustments": [],
    "ship_by": None,
    "deliver_by": None,
    "related_orders": [],
    "tags": [],
    "shipping_address": None,
    "billing_address": None,
    "note": None,
    "metadata": {},
}
CONTENT_WHILE_PENDING = ("items", "adjustments", "currency")
CONTENT_TIMES = ("ship_by", "deliver_by")
ITEM_CONTENT = ("item_id", "title", "quantity", "unit_price")  # the members of an item that its caller sets
# The members that actions set, with their values in a new order, or in a document from before the member existed.
RECORDS: dict[str, Any] = {
    "holds": [],
    "payments": [],
    "fulfillments": [],
    "returns": [],
    "cancellations": [],
    "reopening": None,
}

RUNNING, DONE = "running", "done"  # the statuses of an erasure


class Order(Base):
    """A row of `orders`, for queries; `app.models.order_aggregate` makes the transitions.

    The idempotency key and the owner of the external reference are stored as hashes of (principal, key) and (principal,
    reference). An erasure changes the principal and deletes the fingerprint, but keeps both hashes.

    Holds, payments, cancellations, fulfillments and returns are stored as the document shows them.
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
    channel: Mapped[str | None] = mapped_column(String(ID_MAX))
    status: Mapped[str] = mapped_column(String(16))
    fulfillment_status: Mapped[str] = mapped_column(String(16), server_default="unfulfilled")
    payment_status: Mapped[str] = mapped_column(String(20), server_default=UNPAID)
    return_status: Mapped[str] = mapped_column(String(16), server_default=NOT_RETURNED)
    currency: Mapped[str | None] = mapped_column(String(3))
    adjustments: Mapped[list[dict[str, Any]]] = mapped_column(JSON_VALUE)
    total: Mapped[int | None] = mapped_column(BigInteger)
    holds: Mapped[list[dict[str, Any]]] = mapped_column(JSON_VALUE, server_default=_EMPTY_LIST)
    payments: Mapped[list[dict[str, Any]]] = mapped_column(JSON_VALUE, server_default=_EMPTY_LIST)
    fulfillments: Mapped[list[dict[str, Any]]] = mapped_column(JSON_VALUE, server_default=_EMPTY_LIST)
    returns: Mapped[list[dict[str, Any]]] = mapped_column(JSON_VALUE, server_default=_EMPTY_LIST)
    cancellations: Mapped[list[dict[str, Any]]] = mapped_column(JSON_VALUE, server_default=_EMPTY_LIST)
    reopening: Mapped[dict[str, Any] | None] = mapped_column(JSON_VALUE)
    ship_by: Mapped[datetime | None] = mapped_column(Timestamp)
    deliver_by: Mapped[datetime | None] = mapped_column(Timestamp)
    late: Mapped[bool] = mapped_column(Boolean, server_default=false())
    related_orders: Mapped[list[dict[str, str]]] = mapped_column(JSON_VALUE)
    tags: Mapped[list[str]] = mapped_column(JSON_VALUE)
    shipping_address: Mapped[dict[str, str] | None] = mapped_column(JSON_VALUE)
    billing_address: Mapped[dict[str, str] | None] = mapped_column(JSON_VALUE)
    note: Mapped[str | None] = mapped_column(Text)
    metadata_: Mapped[dict[str, str]] = mapped_column("metadata", JSON_VALUE)
    due_at: Mapped[datetime | None] = mapped_column(Timestamp)
    version: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(Timestamp)
    updated_at: Mapped[datetime] = mapped_column(Timestamp)

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
        # Partial indexes: a new order without dates, holds, payments and returns has no entry in them.
        Index(
            "ix_orders_payment_status_id",
            payment_status,
            id,
            postgresql_where=payment_status != UNPAID,
            sqlite_where=payment_status != UNPAID,
        ),
        Index(
            "ix_orders_return_status_id",
            return_status,
            id,
            postgresql_where=return_status != NOT_RETURNED,
            sqlite_where=return_status != NOT_RETURNED,
        ),
        Index("ix_orders_due_at", due_at, postgresql_where=due_at.is_not(None), sqlite_where=due_at.is_not(None)),
        CheckConstraint(status.in_(STATUSES), name="status"),
        CheckConstraint(fulfillment_status.in_(FULFILLMENT_STATUSES), name="fulfillment_status"),
        CheckConstraint(payment_status.in_(PAYMENT_STATUSES), name="payment_status"),
        CheckConstraint(return_status.in_(RETURN_STATUSES), name="return_status"),
    )


class OrderItem(Base):
    """One line of an order. `line` numbers start at 1, in the order of the request.

    Each unit is open, cancelled or fulfilled; returned units have been fulfilled.
    """

    __tablename__ = "order_items"

    order_id: Mapped[str] = mapped_column(UUID, primary_key=True)
    line: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    item_id: Mapped[str] = mapped_column(String(ID_MAX))
    title: Mapped[str | None] = mapped_column(String(TITLE_MAX))
    quantity: Mapped[int] = mapped_column(Integer)
    unit_price: Mapped[int | None] = mapped_column(BigInteger)
    cancelled: Mapped[int] = mapped_column(Integer, server_default=_ZERO)
    fulfilled: Mapped[int] = mapped_column(Integer, server_default=_ZERO)
    returned: Mapped[int] = mapped_column(Integer, server_default=_ZERO)

    __table_args__ = (
        Index("ix_order_items_item_id_order_id", item_id, order_id),
        CheckConstraint(
            "0 <= returned AND returned <= fulfilled AND 0 <= cancelled AND cancelled + fulfilled <= quantity",
            name="quantities",
        ),
    )


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


Line = dict[str, Any]  # an item as the order document shows it
Units = list[dict[str, int]]  # {"line", "quantity"}, each line at most once
_LINE_COLUMNS = [name for name in OrderItem.__table__.columns.keys() if name != "order_id"]


def line_columns(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """The columns of the lines, without the order's id."""
    return [{name: line[name] for name in _LINE_COLUMNS} for line in lines]


def open_units(line: Mapping[str, Any]) -> int:
    """The units of a line that are neither cancelled nor fulfilled."""
    return int(line["quantity"] - line["cancelled"] - line["fulfilled"])


def returnable_units(line: Mapping[str, Any], *, expected: Mapping[int, int]) -> int:
    """The fulfilled units of a line that are neither returned nor, by line number, `expected` to be."""
    return int(line["fulfilled"] - line["returned"] - expected.get(line["line"], 0))


def require_available(units: Units, lines: Iterable[Line], *, available: Callable[[Line], int]) -> None:
    """Raise InvalidRequest for lines that the order does not have, and QuantityExceeded for lines with fewer units
    `available`. Both list every error."""
    by_line = {line["line"]: line for line in lines}
    unknown = [i for i, entry in enumerate(units) if entry["line"] not in by_line]
    if unknown:
        errors = [_item_error(i, "The order has no such line.") for i in unknown]
        raise InvalidRequest("The order has no such lines. Correct what `errors` lists.", errors=errors)
    remaining = [available(by_line[entry["line"]]) for entry in units]
    exceeded = [
        _item_error(i, f"Line {entry['line']} has {pluralize(remaining[i], 'unit')} left.")
        for i, entry in enumerate(units)
        if entry["quantity"] > remaining[i]
    ]
    if exceeded:
        raise QuantityExceeded(
            "Lines have fewer units left than requested. Reduce the quantities that `errors` lists.", errors=exceeded
        )


def _item_error(index: int, detail: str) -> dict[str, str]:
    return {"pointer": f"#/items/{index}", "detail": detail}


# The members of an order that are personal data, or contain some; `scrub` removes it.
PERSONAL_COLUMNS = (
    "customer_id", "note", "metadata", "tags", "shipping_address", "billing_address", "adjustments", "holds",
    "payments", "cancellations", "fulfillments", "returns", "reopening",
)  # fmt: skip

# The free texts in the records of an order.
_FREE_TEXTS: dict[str, dict[str, None]] = {
    "adjustments": {"label": None},
    "holds": {"reason": None},
    "payments": {"note": None},
    "cancellations": {"note": None},
    "fulfillments": {"tracking": None},
    "returns": {"reason": None},
}


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
