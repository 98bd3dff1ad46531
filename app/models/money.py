"""Totals, in whole minor units of the order's currency. No float anywhere."""

from collections.abc import Mapping, Sequence
from typing import Any

LARGEST_TOTAL = 2**53 - 1  # what every JSON reader holds exactly (RFC 8259 §6)


def order_totals(
    items: Sequence[Mapping[str, Any]], adjustments: Sequence[Mapping[str, Any]]
) -> tuple[int, int] | tuple[None, None]:
    """The sums of the items and of the adjustments, or (None, None) where nothing is priced.

    A line without a price adds nothing.
    """
    prices = [item["unit_price"] * item["quantity"] for item in items if item.get("unit_price") is not None]
    if not prices and not adjustments:
        return None, None
    return sum(prices), sum(adjustment["amount"] for adjustment in adjustments)
