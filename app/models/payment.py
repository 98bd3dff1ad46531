"""Payments: entries that record money which others have moved, and the payment status that follows from them."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

AUTHORIZATION, VOID, CAPTURE, REFUND, CHARGEBACK = "authorization", "void", "capture", "refund", "chargeback"
PAYMENT_TYPES = (AUTHORIZATION, VOID, CAPTURE, REFUND, CHARGEBACK)
UNPAID = "unpaid"
PAYMENT_STATUSES = (UNPAID, "authorized", "partially_paid", "paid", "partially_refunded", "refunded")
PAYMENTS_MAX = 1_000  # of one order


class PaymentSums(NamedTuple):
    """What the entries of an order add up to, in minor units: `authorized` less what was voided, `captured`, and
    `refunded` with chargebacks. `repaid` is the part of `refunded` that was given back before the order was reopened
    after its cancellation."""

    authorized: int
    captured: int
    refunded: int
    repaid: int


NO_PAYMENTS = PaymentSums(0, 0, 0, 0)


def sum_payments(payments: Iterable[Mapping[str, Any]], cancellations: Iterable[Mapping[str, Any]] = ()) -> PaymentSums:
    """Add up the entries of an order. Its `cancellations` tell when it was reopened."""
    reopened_at = max((one["reopened_at"] for one in cancellations if one["reopened_at"]), default="")
    sums, repaid = dict.fromkeys(PAYMENT_TYPES, 0), 0
    for payment in payments:
        sums[payment["type"]] += payment["amount"]
        if payment["type"] in (REFUND, CHARGEBACK) and payment["created_at"] <= reopened_at:
            repaid += payment["amount"]
    return PaymentSums(sums[AUTHORIZATION] - sums[VOID], sums[CAPTURE], sums[REFUND] + sums[CHARGEBACK], repaid)


def payment_status(sums: PaymentSums, *, total: int) -> str:
    """The payment status of an order with this total in minor units.

    Money that was captured counts before an authorization, and money that was given back before both.
    """
    if sums.refunded:
        return "refunded" if sums.refunded == sums.captured else "partially_refunded"
    if sums.captured:
        return "paid" if sums.captured >= total else "partially_paid"
    return "authorized" if sums.authorized else UNPAID


def exceeded_limit(sums: PaymentSums) -> str | None:
    """Which limit the entries exceed, as an error detail: money given back is never more than was captured."""
    if sums.refunded > sums.captured:
        return f"Refunds and chargebacks would exceed what was captured by {sums.refunded - sums.captured:,}."
    return f"Voids would exceed what was authorized by {-sums.authorized:,}." if sums.authorized < 0 else None
