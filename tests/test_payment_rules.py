"""What is due and the payment status, in every sequence of payments, price changes, cancellations and returns."""

from copy import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from app.db.engine import rfc3339
from app.errors import ServiceError
from app.models.lifecycle import RECEIVED
from app.models.money import REVERSALS, InvalidPrices
from app.models.order_aggregate import OrderAggregate, parse_order, render_order
from app.models.principal import ANONYMOUS
from app.services.document_checks import inconsistent_members
from app.services.order_service import CreateRequest, item_columns, new_order

START = datetime(2026, 11, 28, tzinfo=UTC)
UNITS = 4

amounts = st.sampled_from([1, 3, 10, 25, 50, 100])
steps = st.one_of(
    st.tuples(st.sampled_from(["capture", "refund", "chargeback", "authorization"]), amounts),
    st.tuples(st.sampled_from(["capture", "refund"]), st.just("the balance")),
    st.tuples(st.just("reverse"), st.integers(1, 12)),
    st.tuples(st.just("reprice"), st.sampled_from([0, 5, 10, 25])),
    st.tuples(st.sampled_from(["cancel", "fulfill", "return"]), st.integers(1, UNITS)),
    st.tuples(st.sampled_from(["confirm", "complete", "reopen", "cancel the rest"]), st.none()),
)


def order_of(unit_price: int) -> OrderAggregate:
    body = {"customer_id": "c-1", "currency": "EUR", "items": items_at(unit_price)}
    order = new_order(CreateRequest(body, ANONYMOUS), at=START)
    return parse_order(orjson.loads(order.document), principal="anonymous", external_ref_hash=None)


def items_at(unit_price: int) -> list[dict[str, Any]]:
    return [{"item_id": "sku-1", "quantity": UNITS, "unit_price": unit_price}]


def take(order: OrderAggregate, action: str, value: Any, *, at: datetime) -> None:
    """Make the change. Raises ServiceError or InvalidPrices if the order does not allow it."""
    units = [{"line": 1, "quantity": value}]
    match action:
        case "capture" | "refund" | "chargeback" | "authorization":
            amount = abs(due(order)) if value == "the balance" else value
            payment = {"type": action, "amount": amount, "reference": rfc3339(at), "method": None}
            order.record_payment(**payment, occurred_at=None, note=None, at=at)
        case "reverse":
            for payment in order.payments[-value:][:1]:
                reverse(order, payment, at=at)
        case "reprice":
            order.update({"items": item_columns({"items": items_at(value)})}, at=at)
        case "cancel":
            order.cancel(reason="other", note=None, items=units, at=at)
        case "cancel the rest":
            order.cancel(reason="other", note=None, at=at)
        case "fulfill":
            order.fulfill(items=units, tracking=None, at=at)
        case "return":
            order.return_items(items=units, status=RECEIVED, reason=None, at=at)
        case "reopen":
            order.reopen(reason="x", at=at)
        case _:
            getattr(order, action)(at=at)


def reverse(order: OrderAggregate, payment: dict[str, Any], *, at: datetime) -> None:
    """Reverse the payment, if there are reversals of its type."""
    for reversal, type_ in REVERSALS.items():
        if type_ == payment["type"]:
            entry = {name: payment[name] for name in ("amount", "reference", "method")}
            order.record_payment(type=reversal, **entry, occurred_at=None, note=None, at=at)


def due(order: OrderAggregate) -> int:
    assert order.totals is not None
    return order.totals["due"]


def kept(order: OrderAggregate) -> int:
    """The amount that the shop has received and not refunded."""
    assert order.totals is not None
    return order.totals["paid"] - order.totals["refunded"]


def status_of(order: OrderAggregate) -> set[str]:
    """The payment statuses that fit what is due and what was captured."""
    captured = order.totals is not None and order.totals["paid"]
    if due(order) > 0 and kept(order):
        return {"partially_paid"}
    if due(order) > 0 or not captured:
        return {"unpaid", "authorized"}
    return {"paid", "partially_refunded"} if kept(order) else {"refunded"}


@given(st.sampled_from([5, 10, 25]), st.lists(steps, max_size=12))
def test_due_amount_and_status_agree_in_every_sequence(unit_price: int, sequence: list[tuple[str, Any]]) -> None:
    order = order_of(unit_price)
    for number, (action, value) in enumerate(sequence, start=1):
        before, order = order, copy(order)
        try:
            take(order, action, value, at=START + timedelta(minutes=number))
        except (ServiceError, InvalidPrices):
            order = before
            continue
        assert before.total is not None and order.total is not None
        repaid = kept(before) - kept(order)
        # The due amount is positive only if the shop has less than the total, negative only if it has more.
        assert min(0, order.total - kept(order)) <= due(order) <= max(0, order.total - kept(order))
        assert (due(order) < 0) == (kept(order) > order.total)
        assert order.payment_status in status_of(order)
        if action == "reverse":
            pass  # what was recorded before it may have depended on the payment
        elif repaid > 0:  # a refund never makes an order due that was paid, otherwise it is due again
            assert due(order) == (due(before) + repaid if due(before) > 0 else min(0, due(before) + repaid))
        elif repaid < 0 and due(before) > 0:
            assert due(order) == min(max(0, due(before) + repaid), order.total - kept(order)) or due(order) == 0
        elif action == "reopen" and before.status == "cancelled":
            assert due(order) == order.total - kept(order)
        elif due(before) > 0 and due(order) > 0:  # other prices
            assert due(order) - due(before) == order.total - before.total
        if order.status == "cancelled":
            assert due(order) == -kept(order)
        if value == "the balance":
            assert due(order) == 0 or (action == "capture") == (due(before) <= 0)
        assert inconsistent_members(orjson.loads(render_order(vars(order)))) == []


@given(st.lists(steps, max_size=8), st.sampled_from(sorted(REVERSALS.values())), amounts)
def test_a_payment_and_its_reversal_leave_status_and_totals_unchanged(
    sequence: list[tuple[str, Any]], type_: str, amount: int
) -> None:
    order = order_of(25)
    for number, step in enumerate([*sequence, (type_, amount)], start=1):
        before, order = order, copy(order)
        try:
            take(order, *step, at=START + timedelta(minutes=number))
        except (ServiceError, InvalidPrices):
            order = before
    if order is before:  # the payment was refused
        return

    reverse(order, order.payments[-1], at=START + timedelta(hours=1))

    assert (order.payment_status, order.totals) == (before.payment_status, before.totals)


def lived(*sequence: tuple[str, Any]) -> tuple[str, int]:
    """The payment status and what is due of an order of 100 after these changes."""
    order = order_of(25)
    for number, (action, value) in enumerate(sequence, start=1):
        take(order, action, value, at=START + timedelta(minutes=number))
    return order.payment_status, due(order)


def test_a_refund_after_a_price_reduction_is_due_again_after_a_price_increase() -> None:
    cheaper = ("capture", 100), ("reprice", 10), ("refund", 60)

    assert lived(*cheaper) == ("partially_refunded", 0)
    assert lived(*cheaper, ("reprice", 25)) == ("partially_paid", 60)
    assert lived(*cheaper, ("reprice", 25), ("capture", 60)) == ("partially_refunded", 0)
    assert lived(*cheaper, ("refund", 10), ("reprice", 25)) == ("partially_paid", 60)


def test_a_refund_of_a_paid_order_is_not_due_again() -> None:
    returned = ("capture", 100), ("confirm", None), ("fulfill", 4), ("return", 4)

    assert lived(("capture", 100), ("refund", 10)) == ("partially_refunded", 0)
    assert lived(*returned, ("refund", 100)) == ("refunded", 0)
    assert lived(*returned, ("refund", 100), ("capture", 100)) == ("partially_refunded", 0)


def test_a_refund_of_an_order_that_is_not_fully_paid_is_due_again() -> None:
    assert lived(("capture", 40), ("refund", 30)) == ("partially_paid", 90)
    assert lived(("capture", 40), ("refund", 40)) == ("unpaid", 100)
    assert lived(("authorization", 100), ("capture", 40), ("refund", 40)) == ("authorized", 100)


def test_a_reopened_order_is_unpaid_if_all_was_refunded_and_paid_when_it_is_paid_again() -> None:
    cancelled = ("capture", 100), ("cancel the rest", None), ("refund", 100)
    reopened = *cancelled, ("reopen", None)

    assert lived(*cancelled) == ("refunded", 0)
    assert lived(*reopened) == ("unpaid", 100)
    assert lived(*reopened, ("capture", 40)) == ("partially_paid", 60)
    assert lived(*reopened, ("capture", 100)) == ("paid", 0)
    assert lived(*reopened, ("capture", 100), ("refund", 10)) == ("partially_refunded", 0)
    assert lived(*reopened, ("cancel the rest", None)) == ("refunded", 0)
