"""Payments: entries that record money which others have moved, and the payment status that follows from them."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

AUTHORIZATION, VOID, CAPTURE, REFUND, CHARGEBACK = "authorization", "void", "capture", "refund", "chargeback"
PAYMENT_TYPES = (AUTHORIZATION, VOID, CAPTURE, REFUND, CHARGEBACK)
REFUNDS = (REFUND, CHARGEBACK)
UNPAID = "unpaid"
PAYMENT_STATUSES = (UNPAID, "authorized", "partially_paid", "paid", "partially_refunded", "refunded")
PAYMENTS_MAX = 1_000  # of one order


class PaymentSums(NamedTuple):
    """What the entries of an order add up to, in minor units.

    `authorized` is less what was voided; `refunded` includes chargebacks, and `repaid` is the part of it from before
    the order was reopened after its cancellation. `waived` is the part of later refunds that is not due again.
    """

    authorized: int
    captured: int
    refunded: int
    repaid: int
    waived: int

    @property
    def kept(self) -> int:
        """What was captured and not given back."""
        return self.captured - self.refunded


NO_PAYMENTS = PaymentSums(0, 0, 0, 0, 0)


def sum_payments(payments: Iterable[Mapping[str, Any]], cancellations: Iterable[Mapping[str, Any]] = ()) -> PaymentSums:
    """Add up the entries of an order. Its `cancellations` tell when it was reopened."""
    reopened_at = max((one["reopened_at"] for one in cancellations if one["reopened_at"]), default="")
    sums, repaid, waived = dict.fromkeys(PAYMENT_TYPES, 0), 0, 0
    for payment in payments:
        sums[payment["type"]] += payment["amount"]
        if payment["created_at"] > reopened_at:
            waived += payment["waived"]
        elif payment["type"] in REFUNDS:
            repaid += payment["amount"]
    return PaymentSums(sums[AUTHORIZATION] - sums[VOID], sums[CAPTURE], sums[REFUND] + sums[CHARGEBACK], repaid, waived)


def amount_due(sums: PaymentSums, *, total: int) -> int:
    """What is still to be paid for an order with this total; negative if the shop has more than the total."""
    return max(0, total - sums.waived - sums.kept) + min(0, total - sums.kept)


def waived_amount(type: str, amount: int, sums: PaymentSums, *, total: int) -> int:
    """The part of a new entry that will not be due again; `sums` are those before.

    A refund does not make an order due that was fully paid: what exceeds an overpayment is for a return, say.
    """
    if type not in REFUNDS or amount_due(sums, total=total) > 0:
        return 0
    return max(0, amount_due(sums._replace(refunded=sums.refunded + amount), total=total))


def payment_status(sums: PaymentSums, *, total: int) -> str:
    """The payment status of an order with this total in minor units.

    While something is due, it depends on what the shop has. Afterwards, money that was captured counts before an
    authorization, and money that was given back before both, unless a cancelled order was reopened since.
    """
    if not sums.captured or (not sums.kept and amount_due(sums, total=total) > 0):
        return "authorized" if sums.authorized else UNPAID
    if amount_due(sums, total=total) > 0:
        return "partially_paid"
    if not sums.kept:
        return "refunded"
    return "paid" if sums.refunded == sums.repaid else "partially_refunded"


def exceeded_limit(sums: PaymentSums) -> str | None:
    """Which limit the entries exceed, as an error detail: money given back is never more than was captured."""
    if sums.refunded > sums.captured:
        return f"Refunds and chargebacks would exceed what was captured by {sums.refunded - sums.captured:,}."
    return f"Voids would exceed what was authorized by {-sums.authorized:,}." if sums.authorized < 0 else None
