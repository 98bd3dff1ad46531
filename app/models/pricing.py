"""Prices: discounts by line, and the totals of an order. Amounts are whole minor units of the order's currency."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from app.models.payment import NO_PAYMENTS, PaymentSums, amount_due

LARGEST_TOTAL = 2**53 - 1  # the largest integer that is exact in every JSON implementation (RFC 8259 §6)
DISCOUNT = "discount"  # the type of adjustment that lowers the prices of lines


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
