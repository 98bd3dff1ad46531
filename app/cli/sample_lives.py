"""What happens to the sample orders of `flask seed`: their changes, made by the methods of the order itself."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any

import orjson

from app.models.fulfillment import DELIVERED, EXPECTED, FULFILLMENT_CANCELLED, RECEIVED, REJECTED
from app.models.lifecycle import CREATED
from app.models.order_aggregate import OrderAggregate
from app.models.order_id import hash_reference
from app.models.order_item import Units, line_columns, open_units
from app.models.payment import AUTHORIZATION, CAPTURE, REFUND, VOID, sum_payments
from app.services.order_document import parse_order, render_order
from app.services.order_inserts import NewOrder, OrderHistory, event_row
from app.services.order_schedule import SCHEDULE

# A change, called with the order and `at`, after the mean number of hours since the one before.
Step = tuple[float, Callable[..., str | None]]

_HOLDS = (
    ("fraud", "First order, and a large one."),
    ("address", "The postal code does not belong to the town."),
    ("payment", None),
    ("inventory", "Counted again on Monday."),
    ("review", None),
)
_POLL = timedelta(milliseconds=1)  # between two changes that are due
_CARRIERS = ("DHL", "UPS", "DPD", "Post")
_METHODS = ("card", "card", "paypal", "invoice")
_RETURN_REASONS = ("Too small.", "Broken on arrival.", None)


def live(order: NewOrder, rng: Random, *, until: datetime) -> OrderHistory:
    """The order as it is at `until`, and all of its events."""
    columns = order.columns
    model = parse_order(
        orjson.loads(order.document),
        principal=columns["principal"],
        external_ref_hash=hash_reference(columns["external_ref"], principal=columns["principal"]),
    )
    history = _History(model, order.document)
    history.add(CREATED, actor=columns["principal"])
    _change(history, rng, until)
    kept = {name: columns[name] for name in ("idempotency_key_hash", "fingerprint")}
    final = replace(
        order,
        columns=model.columns() | kept,
        items=line_columns(model.items),
        document=history.document,
    )
    return OrderHistory(final, history.events)


class _History:
    """An order that is being changed, its newest document, and its events."""

    def __init__(self, order: OrderAggregate, document: str) -> None:
        self.order, self.document = order, document
        self.events: list[dict[str, Any]] = []

    def add(self, event_type: str, *, actor: str) -> None:
        """Add the event of the order's current version."""
        order = self.order
        if order.version > 1:
            self.document = render_order(vars(order))
        self.events.append(
            event_row(
                order.id,
                order.version,
                event_type=event_type,
                actor=actor,
                at=order.updated_at,
                snapshot=self.document,
            )
        )

    def apply_due_changes(self, before: datetime) -> None:
        """Make the changes that the service makes by itself before that time."""
        order = self.order
        while order.due_at is not None:
            at = max(order.due_at, order.updated_at + _POLL)  # a reopened order may be due since long
            if at >= before:
                break
            event_type = order.apply_due_change(at=at)
            assert event_type is not None
            self.add(event_type, actor=SCHEDULE.id)


def _change(history: _History, rng: Random, until: datetime) -> None:
    order, at = history.order, history.order.created_at
    for hours, step in _steps(order, rng):
        at += timedelta(hours=hours * rng.expovariate(1), seconds=1)
        if at >= until:
            break
        history.apply_due_changes(before=at)
        event_type = step(order, at=at)
        if event_type is not None:
            history.add(event_type, actor=order.principal)
    history.apply_due_changes(before=until)


def _steps(order: OrderAggregate, rng: Random) -> Iterator[Step]:
    """What is done with an order. Each step is taken before the next one is chosen."""
    if rng.random() < 0.04:
        return  # it stays pending
    if order.total:
        yield 0.1, _payment(AUTHORIZATION, order.total, order, method=rng.choice(_METHODS))
    if rng.random() < 0.08:
        yield from _hold(rng)
        if order.holds and rng.random() < 0.4:
            return
        yield from ((20, partial(OrderAggregate.release_hold, handle=hold["handle"])) for hold in list(order.holds))
    if rng.random() < 0.06:
        yield from _cancel(order, rng)
        return
    if rng.random() < 0.04:
        yield 1, partial(OrderAggregate.update, content={"note": "Please call before you come."})
    if not order.holds:
        yield 2, OrderAggregate.confirm
        yield from _cancel_units(order, rng)
        yield from _ship(order, rng)
        yield from _return(order, rng)


def _hold(rng: Random) -> Iterator[Step]:
    for kind, reason in rng.sample(_HOLDS, k=rng.choice((1, 1, 1, 2))):
        days = rng.choice((None, None, 3))
        yield 1, partial(_place_hold, kind=kind, reason=reason, days=days)


def _place_hold(order: OrderAggregate, *, kind: str, reason: str | None, days: int | None, at: datetime) -> str | None:
    until = None if days is None else at + timedelta(days=days)
    return order.place_hold(kind, kind=kind, reason=reason, until=until, placed_by=order.principal, at=at)


def _cancel(order: OrderAggregate, rng: Random) -> Iterator[Step]:
    """Cancel the whole order. Some customers think again."""
    yield 10, partial(OrderAggregate.cancel, reason=rng.choice(("customer", "inventory", "declined")), note=None)
    if rng.random() < 0.1:
        yield 5, partial(OrderAggregate.reopen, reason="The customer has called.")
    elif authorized := sum_payments(order.payments).authorized:
        yield 1, _payment(VOID, authorized, order)


def _cancel_units(order: OrderAggregate, rng: Random) -> Iterator[Step]:
    if len(order.items) > 1 and rng.random() < 0.05:
        item = rng.choice(order.items)
        units = [{"line": item["line"], "quantity": 1 + int(rng.random() * open_units(item))}]
        yield 4, partial(OrderAggregate.cancel, reason="inventory", note=None, items=units)


def _ship(order: OrderAggregate, rng: Random) -> Iterator[Step]:
    """Ship the open units in one parcel or two, and deliver them; a slow warehouse ships late, or never."""
    if rng.random() < 0.03:
        return
    hours = 150 if rng.random() < 0.05 else 20
    parcels = _parcels(order, rng)
    for number, units in enumerate(parcels, start=1):
        yield hours, _fulfill(units, rng)
        if number == 1 and order.total:
            yield 0.1, _payment(CAPTURE, order.total, order)
        if order.has_open_units and rng.random() < 0.1:
            yield 50, OrderAggregate.complete  # the rest is not going to come
            break
    if not order.has_open_units and rng.random() < 0.02:
        yield 40, _deliver(1, FULFILLMENT_CANCELLED, "Lost by the carrier.")
        yield 10, _fulfill(parcels[0], rng)
    if rng.random() < 0.03:
        return
    for fulfillment in order.fulfillments:
        if fulfillment["status"] != FULFILLMENT_CANCELLED:
            if rng.random() < 0.2:
                yield 15, _deliver(fulfillment["number"], "failed_attempt", "Nobody was at home.")
            yield 30, _deliver(fulfillment["number"], DELIVERED, None)


def _parcels(order: OrderAggregate, rng: Random) -> list[Units]:
    units = [{"line": item["line"], "quantity": left} for item in order.items if (left := open_units(item))]
    if len(units) > 1 and rng.random() < 0.3:
        return [units[:1], units[1:]]
    return [units]


def _return(order: OrderAggregate, rng: Random) -> Iterator[Step]:
    """Some units come back, most of them announced before, and are paid back."""
    if order.fulfillment_status != DELIVERED or rng.random() > 0.1:
        return
    units = [{"line": item["line"], "quantity": item["fulfilled"]} for item in order.items if item["fulfilled"]]
    if rng.random() < 0.8:  # some units of one line only
        line = rng.choice(units)
        units = [line | {"quantity": 1 + int(rng.random() * line["quantity"])}]
    status = rng.choice((EXPECTED, EXPECTED, RECEIVED))
    yield 100, partial(OrderAggregate.return_items, items=units, status=status, reason=rng.choice(_RETURN_REASONS))
    if status == EXPECTED:
        settled = RECEIVED if rng.random() < 0.9 else REJECTED
        yield 100, partial(OrderAggregate.settle_return, number=1, status=settled)
    if amount := _refundable(order):
        yield 5, _payment(REFUND, amount, order)
    if rng.random() < 0.1:
        yield 50, partial(OrderAggregate.reopen, reason="The refund was disputed.")


def _refundable(order: OrderAggregate) -> int:
    """What the returned units have cost, in minor units; all that was paid if nothing is left of the order."""
    captured = sum_payments(order.payments).captured
    if order.return_status == "returned":
        return captured
    refunds: list[int] = [(line["total"] or 0) * line["returned"] // line["quantity"] for line in order.items]
    return min(captured, sum(refunds))


def _payment(type: str, amount: int, order: OrderAggregate, *, method: str | None = None) -> Callable[..., str | None]:
    reference = f"{type}-{order.number}"
    return partial(
        OrderAggregate.record_payment,
        type=type,
        amount=amount,
        reference=reference,
        method=method,
        occurred_at=None,
        note=None,
    )


def _fulfill(units: Units, rng: Random) -> Callable[..., str | None]:
    tracking = {"carrier": rng.choice(_CARRIERS), "number": f"{rng.getrandbits(40):013}"}
    return partial(OrderAggregate.fulfill, items=units, tracking=tracking)


def _deliver(number: int, type: str, description: str | None) -> Callable[..., str | None]:
    return partial(
        OrderAggregate.record_delivery_event, number=number, type=type, occurred_at=None, description=description
    )
