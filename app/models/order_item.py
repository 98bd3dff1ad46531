"""Order items and their quantities."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, Integer, String, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.engine import Base
from app.db.types import UUID
from app.errors import InvalidRequest, QuantityExceeded, pluralize

ITEM_CONTENT = ("item_id", "title", "quantity", "unit_price")  # the members of an item that its caller sets
ZERO = text("0")
ID_MAX = 64  # characters of an id chosen by a caller: a UUID with a prefix fits
TITLE_MAX = 200


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
    cancelled: Mapped[int] = mapped_column(Integer, server_default=ZERO)
    fulfilled: Mapped[int] = mapped_column(Integer, server_default=ZERO)
    returned: Mapped[int] = mapped_column(Integer, server_default=ZERO)

    __table_args__ = (
        Index("ix_order_items_item_id_order_id", item_id, order_id),
        CheckConstraint(
            "0 <= returned AND returned <= fulfilled AND 0 <= cancelled AND cancelled + fulfilled <= quantity",
            name="quantities",
        ),
    )


Line = dict[str, Any]  # an item as the order document shows it
Units = list[dict[str, int]]  # {"line", "quantity"}, each line at most once
_COLUMNS = [name for name in OrderItem.__table__.columns.keys() if name != "order_id"]


def line_columns(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """The columns of the lines, without the order's id."""
    return [{name: line[name] for name in _COLUMNS} for line in lines]


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
        errors = [_error(i, "The order has no such line.") for i in unknown]
        raise InvalidRequest("The order has no such lines. Correct what `errors` lists.", errors=errors)
    remaining = [available(by_line[entry["line"]]) for entry in units]
    exceeded = [
        _error(i, f"Line {entry['line']} has {pluralize(remaining[i], 'unit')} left.")
        for i, entry in enumerate(units)
        if entry["quantity"] > remaining[i]
    ]
    if exceeded:
        raise QuantityExceeded(
            "Lines have fewer units left than requested. Reduce the quantities that `errors` lists.", errors=exceeded
        )


def _error(index: int, detail: str) -> dict[str, str]:
    return {"pointer": f"#/items/{index}", "detail": detail}
