"""The lines of an order, and what was sent and came back of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.engine import Base
from app.db.types import JSON_VALUE, UUID, Timestamp
from app.errors import InvalidRequest, QuantityExceeded

ITEM_CONTENT = ("item_id", "quantity", "unit_price")  # the members of an item that its caller sets
ID_MAX = 64  # characters of any id a caller chooses: a UUID with a prefix fits
LARGEST_TOTAL = 2**53 - 1  # what every JSON reader holds exactly (RFC 8259 §6)


class OrderItem(Base):
    """One line of an order. `line` counts from 1 in the caller's order."""

    __tablename__ = "order_items"

    order_id: Mapped[str] = mapped_column(UUID, primary_key=True)
    line: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    item_id: Mapped[str] = mapped_column(String(ID_MAX))
    quantity: Mapped[int] = mapped_column(Integer)
    unit_price: Mapped[int | None] = mapped_column(BigInteger)
    fulfilled: Mapped[int] = mapped_column(Integer)
    returned: Mapped[int] = mapped_column(Integer)

    __table_args__ = (
        Index("ix_order_items_item_id_order_id", item_id, order_id),
        CheckConstraint("0 <= returned AND returned <= fulfilled AND fulfilled <= quantity", name="quantities"),
    )


class Fulfillment(Base):
    """Units that were sent together. `items` is a list of {"line", "quantity"}."""

    __tablename__ = "fulfillments"

    order_id: Mapped[str] = mapped_column(UUID, primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    items: Mapped[list[dict[str, int]]] = mapped_column(JSON_VALUE)
    tracking: Mapped[dict[str, str] | None] = mapped_column(JSON_VALUE)
    created_at: Mapped[datetime] = mapped_column(Timestamp)


class Return(Base):
    """Units that came back together."""

    __tablename__ = "returns"

    order_id: Mapped[str] = mapped_column(UUID, primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    items: Mapped[list[dict[str, int]]] = mapped_column(JSON_VALUE)
    reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Timestamp)


@dataclass(frozen=True, slots=True)
class Quantities:
    """How many units of which lines, as the request's list of {"line", "quantity"}; each line stands once."""

    lines: list[dict[str, int]]

    def of(
        self, items: Sequence[OrderItem], *, available: Callable[[OrderItem], int]
    ) -> Iterator[tuple[OrderItem, int]]:
        """The items and their quantities. Raises InvalidRequest for an unknown line, and QuantityExceeded; both name
        every fault, and nothing is yielded then."""
        known = {item.line: item for item in items}
        unknown = self._faults(lambda line, _: line not in known, lambda _: "The order has no such line.")
        if unknown:
            raise InvalidRequest("The order has no such lines. Correct what `errors` lists.", errors=unknown)
        exceeded = self._faults(
            lambda line, quantity: quantity > available(known[line]),
            lambda line: f"Line {line} has {available(known[line])} units left.",
        )
        if exceeded:
            raise QuantityExceeded(
                "More units than the lines have left. Reduce the quantities that `errors` lists.", errors=exceeded
            )
        return ((known[entry["line"]], entry["quantity"]) for entry in self.lines)

    def _faults(self, wrong: Callable[[int, int], bool], detail: Callable[[int], str]) -> list[dict[str, Any]]:
        return [
            {"pointer": f"#/items/{i}", "detail": detail(entry["line"])}
            for i, entry in enumerate(self.lines)
            if wrong(entry["line"], entry["quantity"])
        ]


def order_totals(
    items: Sequence[Mapping[str, Any]], adjustments: Sequence[Mapping[str, Any]]
) -> tuple[int, int] | tuple[None, None]:
    """The sums of the items and of the adjustments, in whole minor units of the order's currency.

    (None, None) if the order has no prices. A line without a price adds nothing.
    """
    prices = [item["unit_price"] * item["quantity"] for item in items if item.get("unit_price") is not None]
    if not prices and not adjustments:
        return None, None
    return sum(prices), sum(adjustment["amount"] for adjustment in adjustments)
