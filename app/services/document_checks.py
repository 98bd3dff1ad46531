"""Whether the members of an order document agree with each other: what is derived is derived again from the records.

The derivations are the functions that the model uses; an instance of the model would take ten times as long.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from app.db.types import read_timestamp
from app.models.erasure import scrub
from app.models.fulfillment import (
    EXPECTED,
    FULFILLMENT_CANCELLED,
    RECEIVED,
    REJECTED,
    active_fulfillments,
    count_units,
    delivery_status,
    fulfillment_status,
    return_status,
    with_status,
)
from app.models.lifecycle import (
    ACTIVE_FULFILLMENTS,
    EXPECTED_RETURNS,
    ON_HOLD,
    OPEN,
    OPEN_UNITS,
    PRICES,
    UNITS_TO_RETURN,
    allowed_actions,
)
from app.models.order_aggregate import VERSIONS_MAX
from app.models.order_id import first_order_id, is_alias
from app.models.payment import exceeded_limit, payment_status, sum_payments
from app.models.pricing import InvalidPrices, Prices, order_totals, price_lines

_TIME_LENGTH = len("0199c7a4-0000-7000")  # the part of an id that holds the time of creation

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Units:
    """The units of an order by line, from the records, and the sums over all lines."""

    active: Sequence[Document]  # the fulfillments that were not cancelled
    cancelled: Mapping[int, int]
    fulfilled: Mapping[int, int]
    returned: Mapping[int, int]
    expected: Mapping[int, int]  # returns that have not arrived yet
    quantity: int
    all_cancelled: int
    all_fulfilled: int
    all_returned: int

    @property
    def open(self) -> int:
        """The units that are neither cancelled nor fulfilled."""
        return self.quantity - self.all_cancelled - self.all_fulfilled


def order_units(order: Document) -> Units:
    """Count the units in the records of an order document."""
    active = active_fulfillments(order["fulfillments"])
    cancelled = count_units(one for one in order["cancellations"] if one["reopened_at"] is None)
    fulfilled, returned = count_units(active), count_units(with_status(order["returns"], RECEIVED))
    return Units(
        active=active,
        cancelled=cancelled,
        fulfilled=fulfilled,
        returned=returned,
        expected=count_units(with_status(order["returns"], EXPECTED)),
        quantity=sum([item["quantity"] for item in order["items"]]),
        all_cancelled=sum(cancelled.values()),
        all_fulfilled=sum(fulfilled.values()),
        all_returned=sum(returned.values()),
    )


def order_prices(items: Sequence[Document], adjustments: Sequence[Document]) -> Prices:
    """The prices of the lines; most versions of an order have the same. Raises InvalidPrices."""
    return _price_lines(
        tuple([(item["unit_price"], item["quantity"]) for item in items]),
        tuple([(one["type"], one["amount"], one["line"]) for one in adjustments]),
    )


@lru_cache(maxsize=16)
def _price_lines(items: tuple[Any, ...], adjustments: tuple[Any, ...]) -> Prices:
    return price_lines(
        [{"unit_price": unit_price, "quantity": quantity} for unit_price, quantity in items],
        [{"type": kind, "amount": amount, "line": line} for kind, amount, line in adjustments],
    )


def inconsistent_members(order: Document) -> list[str]:
    """The names of the members of an order document that are inconsistent with other members.

    Raises KeyError, TypeError, AttributeError or ValueError if it is not an order document.
    """
    units = order_units(order)
    try:
        prices = order_prices(order["items"], order["adjustments"])
    except InvalidPrices as error:
        return sorted(error.messages)
    sums = sum_payments(order["payments"])
    totals = order_totals(
        prices, order["items"], is_cancelled=order["status"] == "cancelled", paid=sums.captured, refunded=sums.refunded
    )
    total = totals["total"] if totals else 0
    checks = {
        "id": _has_time(order["id"], order["created_at"]),
        "customer_id": not is_alias(order["customer_id"]) or scrub(order, alias=order["customer_id"]) == order,
        "items": _has_units_and_prices(order["items"], units, prices),
        "totals": order["totals"] == totals and total >= 0,
        "status": _is_status_possible(order["status"], units),
        "fulfillment_status": order["fulfillment_status"]
        == fulfillment_status(fulfilled=units.all_fulfilled, is_open=units.open > 0, active=units.active),
        "return_status": order["return_status"]
        == return_status(fulfilled=units.all_fulfilled, returned=units.all_returned),
        "payment_status": order["payment_status"] == payment_status(sums, total=total),
        "payments": exceeded_limit(sums) is None and _are_distinct(order["payments"], "type", "reference"),
        "late": order["late"] is False or (order["late"] is True and is_shippable(order)),
        "allowed_actions": order["allowed_actions"]
        == list(_allowed_actions(order, units, has_prices=totals is not None)),
    }
    return sorted({name for name, is_consistent in checks.items() if not is_consistent}.union(_wrong_records(order)))


def is_shippable(order: Document) -> bool:
    """Whether the order has a date to ship by and open units, so that it can become late, or is."""
    return order["ship_by"] is not None and order["status"] in OPEN and order_units(order).open > 0


def due_at(order: Document) -> datetime | None:
    """The next time at which the service changes the order by itself: a hold ends, or it becomes late."""
    dates = [read_timestamp(hold["until"]) for hold in order["holds"] if hold["until"]]
    if not order["late"] and order["version"] < VERSIONS_MAX and is_shippable(order):
        dates.append(read_timestamp(order["ship_by"]))
    return min(dates, default=None)


def _wrong_records(order: Document) -> Iterator[str]:
    """The lists of records that are not numbered, refer to unknown lines, or contradict other members."""
    due_at(order)  # raises KeyError, TypeError or ValueError for holds and dates that are none
    lines = range(1, len(order["items"]) + 1)
    for name in ("cancellations", "fulfillments", "returns"):
        for number, record in enumerate(order[name], start=1):
            if record["number"] != number or any(entry["quantity"] < 1 for entry in record["items"]):
                yield name
            # An update may have removed lines of records that no longer count.
            if any(entry["line"] not in lines for entry in record["items"]) and _counts(record):
                yield name
    if any(one["status"] != delivery_status(one["events"]) for one in order["fulfillments"]):
        yield "fulfillments"
    if order["holds"] and (order["status"] not in OPEN or not _are_distinct(order["holds"], "handle")):
        yield "holds"
    if order["reopening"] is None and any(one["reopened_at"] for one in order["cancellations"]):
        yield "reopening"


def _counts(record: Document) -> bool:
    """Whether the units of a cancellation, a fulfillment or a return count: it was not taken back."""
    return record.get("reopened_at") is None and record.get("status") not in (FULFILLMENT_CANCELLED, REJECTED)


def _has_time(order_id: str, created_at: str) -> bool:
    return order_id[:_TIME_LENGTH] == first_order_id(datetime.fromisoformat(created_at))[:_TIME_LENGTH]


def _are_distinct(records: Sequence[Document], *members: str) -> bool:
    return len({tuple(record[name] for name in members) for record in records}) == len(records)


def _has_units_and_prices(items: Sequence[Document], units: Units, prices: Prices) -> bool:
    """Whether each line counts the units of the records, no more than it has, and has its part of the prices."""
    for line, (item, subtotal, discount) in enumerate(
        zip(items, prices.subtotals, prices.discounts, strict=True), start=1
    ):
        cancelled, fulfilled, returned = item["cancelled"], item["fulfilled"], item["returned"]
        if (
            item["line"] != line
            or cancelled != units.cancelled.get(line, 0)
            or fulfilled != units.fulfilled.get(line, 0)
            or returned != units.returned.get(line, 0)
            or cancelled + fulfilled > item["quantity"]
            or returned + units.expected.get(line, 0) > fulfilled
            or item["subtotal"] != subtotal
            or item["discount"] != discount
            or item["total"] != (None if subtotal is None else subtotal + discount)
        ):
            return False
    return True


def _is_status_possible(status: str, units: Units) -> bool:
    """An order is cancelled if, and only if, all its units are; nothing of a pending one has been fulfilled."""
    all_cancelled = not units.open and not units.all_fulfilled
    return (status == "cancelled") == all_cancelled and not (status == "pending" and units.all_fulfilled)


def _allowed_actions(order: Document, units: Units, *, has_prices: bool) -> tuple[str, ...]:
    returnable = units.all_fulfilled > units.all_returned + sum(units.expected.values())
    conditions = {
        ON_HOLD: bool(order["holds"]),
        OPEN_UNITS: units.open > 0,
        UNITS_TO_RETURN: returnable,
        EXPECTED_RETURNS: bool(units.expected),
        ACTIVE_FULFILLMENTS: bool(units.active),
        PRICES: has_prices,
    }
    return allowed_actions(order["status"], frozenset(name for name, is_met in conditions.items() if is_met))
