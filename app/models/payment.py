"""Payments: entries that record movements of money outside the service, and the payment status derived from them."""

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


def sum_payments(payments: Iterable[Mapping[str, Any]], cancellations: Iterable[Mapping[str, Any]] = ()) -> PaymentSums:
    """Add up the entries of an order. Its `cancellations` state when it was reopened."""
    reopened_at = max((record["reopened_at"] for record in cancellations if record["reopened_at"]), default="")
    sums, repaid, waived = dict.fromkeys(PAYMENT_TYPES, 0), 0, 0
    for payment in payments:
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
