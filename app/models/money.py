"""What an order costs and what was paid for it. Amounts are whole minor units of the order's currency.

Prices are those of the lines, with their discounts. Payments are entries that record movements of money outside the
service; the payment status is derived from them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

LARGEST_TOTAL = 2**53 - 1  # the largest integer that is exact in every JSON implementation (RFC 8259 §6)
DISCOUNT = "discount"  # the type of adjustment that lowers the prices of lines
AUTHORIZATION, VOID, CAPTURE, REFUND, CHARGEBACK = "authorization", "void", "capture", "refund", "chargeback"
# The type of the payment that a reversal reverses; an authorization is voided instead.
REVERSALS = {"capture_reversal": CAPTURE, "refund_reversal": REFUND, "chargeback_reversal": CHARGEBACK}
PAYMENT_TYPES = (AUTHORIZATION, VOID, CAPTURE, REFUND, CHARGEBACK, *REVERSALS)
REFUNDS = (REFUND, CHARGEBACK)
UNPAID = "unpaid"
PAYMENT_STATUSES = (UNPAID, "authorized", "partially_paid", "paid", "partially_refunded", "refunded")
PAYMENTS_MAX = 1_000  # of one order


class InvalidPrices(ValueError):
    """Prices that cannot be added up. `messages` holds the error messages by member, nested as the body is."""

    def __init__(self, messages: dict[str, Any]) -> None:
        super().__init__(messages)
        self.messages = messages


class Prices(NamedTuple):
    """The prices of the lines as ordered.

    `subtotals` are unit price times quantity, None for a line without a price; `discounts` are 0 or negative. `items`
    and `adjustments` are the sums of the subtotals and of all adjustments; both are None if the order has no prices.
    """

    subtotals: Sequence[int | None]
    discounts: Sequence[int]
    items: int | None
    adjustments: int | None


class PaymentSums(NamedTuple):
    """What the entries of an order add up to, in minor units. Payments that were reversed do not count.

    `authorized` excludes what was voided. `refunded` includes chargebacks; `repaid` is the part that was refunded
    before the cancelled order was reopened, `waived` the part of later refunds that does not become due again.
    """

    authorized: int
    captured: int
    refunded: int
    repaid: int
    waived: int

    @property
    def net_paid(self) -> int:
        """What was captured and not refunded."""
        return self.captured - self.refunded


NO_PAYMENTS = PaymentSums(0, 0, 0, 0, 0)


def price_lines(items: Sequence[Mapping[str, Any]], adjustments: Sequence[Mapping[str, Any]]) -> Prices:
    """Add up prices, and allocate the discounts to the lines so that their sum is exact.

    A discount with a `line` lowers that line. The others together are shared in proportion to the remaining subtotals;
    the minor units that rounding leaves over go to the largest remainders. Raises InvalidPrices for discounts that
    exceed the price of what they lower, unknown lines, and totals that are negative or exceed LARGEST_TOTAL.
    """
    subtotals = [None if item.get("unit_price") is None else item["unit_price"] * item["quantity"] for item in items]
    prices = [subtotal for subtotal in subtotals if subtotal is not None]
    if not prices and not adjustments:
        return Prices(subtotals, [0] * len(subtotals), None, None)
    total, adjusted, discounts = sum(prices), 0, [0] * len(subtotals)
    if adjustments:
        adjusted = sum(adjustment["amount"] for adjustment in adjustments)
        discounts = _allocate_discounts(subtotals, adjustments)
    if total > LARGEST_TOTAL:
        raise InvalidPrices({"items": [f"The total of the items must be at most {LARGEST_TOTAL:,} minor units."]})
    if total + adjusted > LARGEST_TOTAL:
        raise InvalidPrices({"adjustments": [f"The order's total must be at most {LARGEST_TOTAL:,} minor units."]})
    if total + adjusted < 0:
        raise InvalidPrices({"adjustments": ["The adjustments must not make the order's total negative."]})
    return Prices(subtotals, discounts, total, adjusted)


def priced_lines(items: Iterable[Mapping[str, Any]], prices: Prices) -> list[dict[str, Any]]:
    """The items with their prices, as the order document shows them."""
    return [
        {
            "line": item["line"],
            "item_id": item["item_id"],
            "title": item["title"],
            "quantity": item["quantity"],
            "unit_price": item["unit_price"],
            "subtotal": subtotal,
            "discount": discount,
            "total": None if subtotal is None else subtotal + discount,
            "cancelled": item["cancelled"],
            "fulfilled": item["fulfilled"],
            "returned": item["returned"],
        }
        for item, subtotal, discount in zip(items, prices.subtotals, prices.discounts, strict=True)
    ]


def order_totals(
    prices: Prices, items: Iterable[Mapping[str, Any]], *, is_cancelled: bool, payments: PaymentSums = NO_PAYMENTS
) -> dict[str, int] | None:
    """The totals of the document; None if the order has no prices. `items` may be left out if no unit is cancelled.

    `cancelled` is minus the price of the cancelled units: their part of the line's price after its discount, rounded
    down to a whole minor unit. An order cancelled as a whole owes nothing, whatever its adjustments.
    """
    if prices.items is None or prices.adjustments is None:
        return None
    ordered = prices.items + prices.adjustments
    cancelled = ordered if is_cancelled else _cancelled_price(prices, items)
    total = ordered - cancelled
    return {
        "items": prices.items,
        "adjustments": prices.adjustments,
        "cancelled": -cancelled,
        "total": total,
        "paid": payments.captured,
        "refunded": payments.refunded,
        "due": amount_due(payments, total=total),
    }


def _cancelled_price(prices: Prices, items: Iterable[Mapping[str, Any]]) -> int:
    return sum(
        (subtotal + discount) * item["cancelled"] // item["quantity"]
        for item, subtotal, discount in zip(items, prices.subtotals, prices.discounts)  # noqa: B905 (items may be empty)
        if subtotal is not None and item["cancelled"]
    )


def _allocate_discounts(subtotals: Sequence[int | None], adjustments: Sequence[Mapping[str, Any]]) -> list[int]:
    """The discount of each line, 0 or negative."""
    remaining, shared, errors = [subtotal or 0 for subtotal in subtotals], 0, dict[int, dict[str, list[str]]]()
    for i, adjustment in enumerate(adjustments):
        line, amount = adjustment.get("line"), adjustment["amount"]
        if line is not None and line > len(remaining):
            errors[i] = {"line": ["The order has no such line."]}
        elif adjustment["type"] != DISCOUNT:
            continue
        elif line is None:
            shared -= amount
        elif remaining[line - 1] + amount < 0:
            errors[i] = {"amount": [f"The discounts of line {line} must not exceed its price."]}
        else:
            remaining[line - 1] += amount
    if errors:
        raise InvalidPrices({"adjustments": errors})
    if shared > sum(remaining):
        raise InvalidPrices({"adjustments": ["The discounts must not exceed the price of the items."]})
    shares = _largest_remainder(shared, remaining)
    return [
        price - share - (subtotal or 0) for subtotal, price, share in zip(subtotals, remaining, shares, strict=True)
    ]


def _largest_remainder(amount: int, weights: Sequence[int]) -> list[int]:
    """`amount` in integer parts that are proportional to the weights; of equal remainders, the first comes first."""
    total = sum(weights)
    if not amount:
        return [0] * len(weights)
    shares = [amount * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: -(amount * weights[i] % total))
    for i in by_remainder[: amount - sum(shares)]:
        shares[i] += 1
    return shares


def sum_payments(payments: Sequence[Mapping[str, Any]], cancellations: Iterable[Mapping[str, Any]] = ()) -> PaymentSums:
    """Add up the entries of an order. Its `cancellations` state when it was reopened."""
    reversed_payments = {(REVERSALS[one["type"]], one["reference"]) for one in payments if one["type"] in REVERSALS}
    reopened_at = max((record["reopened_at"] for record in cancellations if record["reopened_at"]), default="")
    sums, repaid, waived = dict.fromkeys(PAYMENT_TYPES, 0), 0, 0
    for payment in payments:
        if (payment["type"], payment["reference"]) in reversed_payments:
            continue
        sums[payment["type"]] += payment["amount"]
        if payment["created_at"] > reopened_at:
            waived += payment["waived"]
        elif payment["type"] in REFUNDS:
            repaid += payment["amount"]
    return PaymentSums(sums[AUTHORIZATION] - sums[VOID], sums[CAPTURE], sums[REFUND] + sums[CHARGEBACK], repaid, waived)


def amount_due(sums: PaymentSums, *, total: int) -> int:
    """The amount still to be paid for an order with this total; negative if the customer has overpaid."""
    return max(0, total - sums.waived - sums.net_paid) + min(0, total - sums.net_paid)


def waived_amount(type: str, amount: int, sums: PaymentSums, *, total: int) -> int:
    """The part of a new entry that does not become due again; `sums` are those without the entry.

    A refund does not make a fully paid order due again: what exceeds an overpayment is refunded for a return, say.
    """
    if type not in REFUNDS or amount_due(sums, total=total) > 0:
        return 0
    return max(0, amount_due(sums._replace(refunded=sums.refunded + amount), total=total))


def payment_status(sums: PaymentSums, *, total: int) -> str:
    """The payment status of an order with this total in minor units.

    While an amount is due, the status depends on what was captured and not refunded. Afterwards, captures take
    precedence over authorizations, and refunds over both, except those before a cancelled order was reopened.
    """
    if not sums.captured or (not sums.net_paid and amount_due(sums, total=total) > 0):
        return "authorized" if sums.authorized else UNPAID
    if amount_due(sums, total=total) > 0:
        return "partially_paid"
    if not sums.net_paid:
        return "refunded"
    return "paid" if sums.refunded == sums.repaid else "partially_refunded"


def exceeded_limit(sums: PaymentSums) -> str | None:
    """Which limit the entries exceed, as an error detail; None if they exceed none."""
    if sums.refunded > sums.captured:
        return f"Refunds and chargebacks would exceed what was captured by {sums.refunded - sums.captured:,}."
    return f"Voids would exceed what was authorized by {-sums.authorized:,}." if sums.authorized < 0 else None
