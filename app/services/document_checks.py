"""Whether the members of an order document agree with each other: derived members are derived again from the records.

The derivations are the functions that the model uses; an instance of the model would take ten times as long. If an
event has not changed what a check reads, the result for the previous version is used.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from datetime import datetime
from functools import cache, lru_cache
from itertools import compress
from typing import Any, NamedTuple

from app.db.engine import read_timestamp
from app.models.lifecycle import (
    CONDITIONS,
    DELIVERED,
    EXPECTED,
    FULFILLMENT_CANCELLED,
    OPEN,
    RECEIVED,
    REJECTED,
    active_fulfillments,
    allowed_actions,
    count_units,
    delivery_status,
    fulfillment_status,
    return_status,
    with_status,
)
from app.models.money import (
    REFUNDS,
    REVERSALS,
    InvalidPrices,
    PaymentSums,
    Prices,
    exceeded_limit,
    order_totals,
    payment_status,
    price_lines,
    sum_payments,
)
from app.models.order import CONTENT_TIMES, scrub
from app.models.order_aggregate import VERSIONS_MAX
from app.models.order_id import first_order_id, is_alias

ID_TIME_LENGTH = len("0199c7a4-0000-7000")  # the part of an id that contains the time of creation

Document = Mapping[str, Any]


class UnitCounts(NamedTuple):
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
        """The number of units that are neither cancelled nor fulfilled."""
        return self.quantity - self.all_cancelled - self.all_fulfilled


def order_units(order: Document) -> UnitCounts:
    """Count the units in the records of an order document."""
    active = active_fulfillments(order["fulfillments"])
    cancelled = count_units(record for record in order["cancellations"] if record["reopened_at"] is None)
    fulfilled, returned = count_units(active), count_units(with_status(order["returns"], RECEIVED))
    return UnitCounts(
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
        tuple([(adjustment["type"], adjustment["amount"], adjustment["line"]) for adjustment in adjustments]),
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
    return VersionChecks().inconsistent_members(order, order.keys())


class VersionChecks:
    """Finds inconsistent members in the versions of one order, which are passed in ascending order.

    A check is repeated only if what it reads differs from the previous version. Most events change few members.
    """

    def __init__(self) -> None:
        self._derived: Derived | None = None  # from the previous version
        self._wrong: list[list[str]] = [[] for _ in _CHECKS]  # the names that each check has found

    def units(self, order: Document) -> UnitCounts:
        """The units of the version that was checked last."""
        return order_units(order) if self._derived is None else self._derived.units

    def inconsistent_members(self, order: Document, differing: Set[str]) -> list[str]:
        """The names of the members of the next version that are inconsistent with other members.

        `differing` are the members that differ from the previous version. Raises KeyError, TypeError, AttributeError or
        ValueError if it is not an order document.
        """
        before = self._derived
        try:
            self._derived = derived = _derive(order, differing, before)
        except InvalidPrices as error:
            self._derived = None
            return sorted(error.messages)
        changed = _ALL if before is None else frozenset(differing).union(_changed_parts(before, derived))
        for position in _checks_of(changed):
            self._wrong[position] = [*_CHECKS[position][1](order, derived)]
        wrong = {name for names in self._wrong for name in names}
        if is_alias(order["customer_id"]) and scrub(order, alias=order["customer_id"]) != order:
            wrong.add("customer_id")
        if not isinstance(order["late"], bool):  # 0 does not differ from False
            wrong.add("late")
        return sorted(wrong)


class Derived(NamedTuple):
    """The values derived from the records, the items and the adjustments of an order document."""

    units: UnitCounts
    prices: Prices
    payments: PaymentSums
    totals: dict[str, int] | None


def _derive(order: Document, differing: Set[str], before: Derived | None) -> Derived:
    """Compute the parts that depend on members that differ. Raises InvalidPrices."""
    if before is None:
        units, sums = order_units(order), sum_payments(order["payments"], order["cancellations"])
        prices = order_prices(order["items"], order["adjustments"])
    elif _READ_TO_DERIVE.isdisjoint(differing):
        return before
    else:
        units, prices, sums, _ = before
        if not _WITH_UNITS.isdisjoint(differing):
            units = order_units(order)
        if "items" in differing or "adjustments" in differing:
            prices = order_prices(order["items"], order["adjustments"])
        if "payments" in differing or "cancellations" in differing:
            sums = sum_payments(order["payments"], order["cancellations"])
    totals = order_totals(prices, order["items"], is_cancelled=order["status"] == "cancelled", payments=sums)
    return Derived(units, prices, sums, totals)


def _changed_parts(before: Derived, derived: Derived) -> Iterator[str]:
    """The names of the parts that have changed."""
    if before is not derived:
        for name, old, new in zip(_PARTS, before, derived, strict=True):
            if old is not new and old != new:
                yield name


def may_be_late(order: Document, units: UnitCounts) -> bool:
    """Whether the order has a `ship_by` and open units: only then can it be late."""
    return order["ship_by"] is not None and order["status"] in OPEN and units.open > 0


def due_at(order: Document, *, version: int) -> datetime | None:
    """When the worker changes the order next: a hold ends, or the order becomes late."""
    dates = [read_timestamp(hold["until"]) for hold in order["holds"] if hold["until"]]
    if not order["late"] and version < VERSIONS_MAX and may_be_late(order, order_units(order)):
        dates.append(read_timestamp(order["ship_by"]))
    return min(dates, default=None)


def _check_id(order: Document, _: Derived) -> Iterator[str]:
    if order["id"][:ID_TIME_LENGTH] != first_order_id(datetime.fromisoformat(order["created_at"]))[:ID_TIME_LENGTH]:
        yield "id"


def _check_items(order: Document, derived: Derived) -> Iterator[str]:
    if not _has_units_and_prices(order["items"], derived.units, derived.prices):
        yield "items"


def _check_money(order: Document, derived: Derived) -> Iterator[str]:
    sums, total = derived.payments, derived.totals["total"] if derived.totals else 0
    if order["totals"] != derived.totals or total < 0:
        yield "totals"
    if order["payment_status"] != payment_status(sums, total=total):
        yield "payment_status"
    if (
        exceeded_limit(sums) is not None
        or not _are_distinct(order["payments"], "type", "reference")
        or not _reverse_earlier_payments(order["payments"])
        or any(
            not 0 <= payment["waived"] <= (payment["amount"] if payment["type"] in REFUNDS else 0)
            for payment in order["payments"]
        )
    ):
        yield "payments"


def _reverse_earlier_payments(payments: Sequence[Document]) -> bool:
    """Whether each reversal follows the payment that it reverses, and has its amount."""
    earlier = set()
    for payment in payments:
        reversed_type = REVERSALS.get(payment["type"])
        if reversed_type and (reversed_type, payment["reference"], payment["amount"]) not in earlier:
            return False
        earlier.add((payment["type"], payment["reference"], payment["amount"]))
    return True


def _check_statuses(order: Document, derived: Derived) -> Iterator[str]:
    """An order is cancelled if, and only if, all its units are; nothing of a pending one has been fulfilled."""
    units, status = derived.units, order["status"]
    all_cancelled = not units.open and not units.all_fulfilled
    if (status == "cancelled") != all_cancelled or (status == "pending" and units.all_fulfilled):
        yield "status"
    if order["fulfillment_status"] != fulfillment_status(
        fulfilled=units.all_fulfilled, is_open=units.open > 0, active=units.active
    ):
        yield "fulfillment_status"
    if order["return_status"] != return_status(fulfilled=units.all_fulfilled, returned=units.all_returned):
        yield "return_status"


def _check_late(order: Document, derived: Derived) -> Iterator[str]:
    if order["late"] and not may_be_late(order, derived.units):
        yield "late"


def _check_dates(order: Document, _: Derived) -> Iterator[str]:
    yield from ()
    for date in [*(order[name] for name in CONTENT_TIMES), *(hold["until"] for hold in order["holds"])]:
        if date is not None:
            read_timestamp(date)  # raises TypeError or ValueError if it is not a time


def _check_allowed_actions(order: Document, derived: Derived) -> Iterator[str]:
    if order["allowed_actions"] != _allowed_actions(order, derived.units, has_prices=derived.totals is not None):
        yield "allowed_actions"


def _check_records(order: Document, _: Derived) -> Iterator[str]:
    """The lists of records that are not numbered, refer to unknown lines, or contradict other members."""
    last_line = len(order["items"])
    for name in ("cancellations", "fulfillments", "returns"):
        for number, record in enumerate(order[name], start=1):
            if record["number"] != number:
                yield name
            for entry in record["items"]:
                # An update may have removed lines of records that no longer count.
                if entry["quantity"] < 1 or (not 1 <= entry["line"] <= last_line and _counts(record)):
                    yield name
    for fulfillment in order["fulfillments"]:
        events = fulfillment["events"]
        if fulfillment["status"] != delivery_status(events) or not _may_follow_each_other(events):
            yield "fulfillments"


def _may_follow_each_other(events: Sequence[Document]) -> bool:
    """Whether nothing follows a cancellation, and none follows a delivery."""
    cancelled = [i for i, event in enumerate(events) if event["type"] == FULFILLMENT_CANCELLED]
    return not cancelled or (cancelled == [len(events) - 1] and delivery_status(events[:-1]) != DELIVERED)


def _check_holds(order: Document, _: Derived) -> Iterator[str]:
    if order["holds"] and (order["status"] not in OPEN or not _are_distinct(order["holds"], "handle")):
        yield "holds"


def _check_reopening(order: Document, _: Derived) -> Iterator[str]:
    reopening, times = (
        order["reopening"],
        [record["reopened_at"] for record in order["cancellations"] if record["reopened_at"]],
    )
    if (reopening is None and times) or (
        reopening is not None and reopening["from_status"] == "cancelled" and reopening["at"] not in times
    ):
        yield "reopening"


def _counts(record: Document) -> bool:
    """Whether the units of a cancellation, a fulfillment or a return count: it was not reverted."""
    return record.get("reopened_at") is None and record.get("status") not in (FULFILLMENT_CANCELLED, REJECTED)


def _are_distinct(records: Sequence[Document], *members: str) -> bool:
    return len({tuple(record[name] for name in members) for record in records}) == len(records)


def _has_units_and_prices(items: Sequence[Document], units: UnitCounts, prices: Prices) -> bool:
    """Whether each line has the units of the records, at most its quantity, and its part of the prices."""
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


def _allowed_actions(order: Document, units: UnitCounts, *, has_prices: bool) -> list[str]:
    returnable = units.all_fulfilled > units.all_returned + sum(units.expected.values())
    # The versions before an erasure keep the actions that were allowed then.
    is_reopenable = not is_alias(order["customer_id"]) or "reopen" in order["allowed_actions"]
    # In the order of CONDITIONS.
    are_met = (
        bool(order["holds"]), units.open > 0, returnable, bool(units.expected), bool(units.active), has_prices,
        is_reopenable,
    )  # fmt: skip
    return _cached_actions(order["status"], are_met)


@cache
def _cached_actions(status: str, are_met: tuple[bool, ...]) -> list[str]:
    return list(allowed_actions(status, frozenset(compress(CONDITIONS, are_met))))


_WITH_UNITS = frozenset({"items", "cancellations", "fulfillments", "returns"})
_READ_TO_DERIVE = _WITH_UNITS | {"adjustments", "payments", "status"}
_PARTS = ("derived units", "derived prices", "derived payments", "derived totals")  # in the order of Derived
# Each check, with the members and the derived parts that it reads.
_CHECKS: tuple[tuple[set[str], Callable[[Document, Derived], Iterator[str]]], ...] = (
    ({"id", "created_at"}, _check_id),
    ({"items", "derived units", "derived prices"}, _check_items),
    ({"totals", "payment_status", "payments", "derived totals"}, _check_money),
    ({"status", "fulfillment_status", "return_status", "derived units"}, _check_statuses),
    ({"late", "ship_by", "status", "derived units"}, _check_late),
    ({*CONTENT_TIMES, "holds"}, _check_dates),
    ({"allowed_actions", "customer_id", "status", "holds", "derived units", "derived totals"}, _check_allowed_actions),
    ({"items", "cancellations", "fulfillments", "returns"}, _check_records),
    ({"holds", "status"}, _check_holds),
    ({"reopening", "cancellations"}, _check_reopening),
)
_ALL = frozenset(name for members, _ in _CHECKS for name in members)


@lru_cache(maxsize=1024)
def _checks_of(changed: frozenset[str]) -> list[int]:
    """The positions of the checks that read something that has changed: the same for all events of a type."""
    return [position for position, (members, _) in enumerate(_CHECKS) if not members.isdisjoint(changed)]
