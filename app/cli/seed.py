"""`flask seed`: fill a database with reproducible sample orders in all statuses.

First the command and how it stores the samples; then what the customers of a shop order, and what happens to it: the
methods of the order make the changes.

Distributions are those of a wholesaler's real orders: two orders in five have one line, one in a hundred eleven or
more; quantities are 1, 2, or dozens; a few customers and items make up much of the whole.
"""

import time
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import accumulate, islice
from math import log
from random import Random
from typing import Any

import click
import orjson
from flask.cli import with_appcontext
from sqlalchemy import func, select

from app.cli.common import migrated_database, progress_bar
from app.db.engine import DATABASE_ERRORS, is_unavailable
from app.db.statements import consistent_read
from app.errors import pluralize
from app.models import Order
from app.models.lifecycle import CREATED, DELIVERED, EXPECTED, FULFILLMENT_CANCELLED, RECEIVED, REJECTED
from app.models.money import AUTHORIZATION, CAPTURE, REFUND, VOID, sum_payments
from app.models.order import Units, line_columns, open_units
from app.models.order_aggregate import OrderAggregate, parse_order, render_order
from app.models.order_id import hash_reference
from app.models.principal import Principal
from app.schemas.order import ITEMS_MAX
from app.services.order_actions import SCHEDULE
from app.services.order_service import CreateRequest, new_order
from app.services.order_storage import NewOrder, OrderHistory, event_row, insert_histories, insert_orders

PRINCIPAL = Principal("seed", frozenset())  # distinguishes sample orders from all others
_UNTIL = "2026-11-01"  # fixed, so that the command creates the same orders on any day
_FEW_ORDERS = 100  # a trial has few; with more, the database may be in use
_BATCH = 1000  # orders a statement: a tenth of a second, where the database allows three
_PAUSES = (0.1, 1, 5)  # seconds before the attempts to store a batch again

Sample = NewOrder | OrderHistory  # a pending order, or one with all that has happened to it


@click.command(short_help="Create sample orders in all statuses.")
@click.option("--orders", type=click.IntRange(1, 10**8), default=1000, show_default=True, help="Number of orders.")
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=1, show_default=True, help="Another seed creates other orders."
)
@click.option(
    "--until",
    type=click.DateTime(["%Y-%m-%d"]),
    default=_UNTIL,
    show_default=True,
    help="The orders are created and changed in the 365 days before this date, UTC.",
)
@click.option("--new", is_flag=True, help="Do not change the orders: all of them are pending. Much faster.")
@click.option("--force", is_flag=True, help="Add sample orders to a database that may be in use.")
@with_appcontext
def seed(orders: int, seed: int, until: datetime, new: bool, force: bool) -> None:
    """Create sample orders in all statuses, the same ones for the same options.

    Run again, it creates only missing orders. They have complete histories: payments, holds, shipments, returns, …
    """
    if until.year < 1971:
        raise click.BadParameter("the first orders would be older than 1970.", param_hint="--until")
    started = time.perf_counter()
    with migrated_database():
        if not force and _has_many_other_orders():
            raise click.ClickException(
                f"The database has more than {_FEW_ORDERS} orders of others and may be in use. --force adds to them."
            )
        sample = sample_orders if new else sample_histories
        added = _store(sample(orders, seed=seed, until=until.replace(tzinfo=UTC)), orders)
        seconds = time.perf_counter() - started
        existing = f" ({orders - added:,} existed)" if added < orders else ""
        click.echo(f"{pluralize(added, 'order')} in {seconds:.1f} s, {added / seconds:,.0f} a second{existing}")


def _has_many_other_orders() -> bool:
    others = select(Order.id).where(Order.principal != PRINCIPAL.id).limit(_FEW_ORDERS + 1).subquery()
    with consistent_read(statement_timeout=None) as session:  # to find none, the database reads every order
        return session.scalars(select(func.count()).select_from(others)).one() > _FEW_ORDERS


def _store(orders: Iterator[Sample], count: int) -> int:
    """Store the orders that do not exist yet, and return their number."""
    added = 0
    with progress_bar("Seeding", length=count) as bar:
        for batch in _batches(orders):
            added += len(_insert_batch(batch))
            bar.update(len(batch))
    return added


def _batches(orders: Iterator[Sample]) -> Iterator[list[Sample]]:
    """The orders in batches. Each is generated while the database stores the one before."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        next_batch = executor.submit(_generate_batch, orders)
        while batch := next_batch.result():
            next_batch = executor.submit(_generate_batch, orders)
            yield batch


def _generate_batch(orders: Iterator[Sample]) -> list[Sample]:
    return list(islice(orders, _BATCH))


def _insert_batch(batch: list[Sample]) -> set[str]:
    """Store a batch, with retries while the database is unavailable, and return the ids of the new orders.

    If a connection is lost after the commit, the retry finds the orders and does not count them as new.
    """
    for pause in _PAUSES:
        try:
            return _insert_once(batch)
        except DATABASE_ERRORS as error:
            if not is_unavailable(error):
                raise
            time.sleep(pause)
    return _insert_once(batch)


def _insert_once(batch: list[Sample]) -> set[str]:
    histories = [sample for sample in batch if isinstance(sample, OrderHistory)]
    if histories:
        return insert_histories(histories)
    return insert_orders([sample for sample in batch if isinstance(sample, NewOrder)])


def sample_orders(count: int, *, seed: int, until: datetime) -> Iterator[NewOrder]:
    """`count` pending orders, oldest first, created in the 365 days before `until`, an aware time."""
    name = f"{seed}-{count}-{until:%y%m%d}"
    rng, shop = Random(name), _Shop(count, seed=seed)  # reproducible sample data  # nosec B311
    for position, at in enumerate(_creation_times(count, until, rng), start=1):
        body = shop.draw_order(rng, external_ref=f"{name}-{position:09}", at=at)
        request = CreateRequest(body, principal=PRINCIPAL, idempotency_key=body.get("external_ref"))
        yield new_order(request, at=at, randbits=rng.getrandbits)


def sample_histories(count: int, *, seed: int, until: datetime) -> Iterator[OrderHistory]:
    """The same orders as they are at `until`, with all that has happened to them."""
    rng = Random(f"lives-{seed}-{count}-{until:%y%m%d}")  # reproducible sample data  # nosec B311
    for order in sample_orders(count, seed=seed, until=until):
        yield _simulate_changes(order, rng, until=until)


_HOURS_OF_YEAR = 365 * 24
# Weights of an hour of the day (UTC), a day of the week (from Monday) and a month.
_HOUR_WEIGHTS = (1, 1, 1, 1, 1, 2, 4, 7, 10, 12, 13, 13, 12, 12, 12, 11, 11, 11, 12, 13, 13, 10, 6, 3)
_WEEKDAY_WEIGHTS = (11, 11, 11, 11, 10, 6, 7)
_MONTH_WEIGHTS = (8, 8, 9, 9, 9, 9, 8, 8, 10, 11, 15, 14)


def _creation_times(count: int, until: datetime, rng: Random) -> Iterator[datetime]:
    """Random times in ascending order, one at a time: the order statistics of a uniform distribution."""
    start = until - timedelta(hours=_HOURS_OF_YEAR)
    hours = [start + timedelta(hours=hour) for hour in range(_HOURS_OF_YEAR)]
    weights = [
        _HOUR_WEIGHTS[hour.hour] * _WEEKDAY_WEIGHTS[hour.weekday()] * _MONTH_WEIGHTS[hour.month - 1] for hour in hours
    ]
    cumulative = list(accumulate(weights))
    share_left = 1.0  # share of the year's orders that has not been drawn yet
    for remaining in range(count, 0, -1):
        share_left *= (1 - rng.random()) ** (1 / remaining)
        weight = (1 - share_left) * cumulative[-1]
        hour = bisect(cumulative, weight, hi=_HOURS_OF_YEAR - 1)
        share = 1 - (cumulative[hour] - weight) / weights[hour]
        yield hours[hour] + timedelta(microseconds=min(int(share * 3.6e9), 3_599_999_999))


_ITEM_COUNT = 10_000
_ORDERS_PER_CUSTOMER = 3
_PRICE_MU, _PRICE_SIGMA = log(350), 1  # half of the items cost less than 3.50 euros, one in a hundred over 35
_MORE_LINES = 0.58  # the share of orders of n lines or more that have one more
_QUANTITIES = (1, 2, 12, 6, 4, 3, 24, 10, 8, 5, 48, 36, 100, 500)
_QUANTITY_WEIGHTS = list(accumulate((22, 15, 14, 9, 8, 7, 6, 5, 3, 2, 1.5, 1, 1, 0.1)))
_CAMPAIGNS = (("WELCOME10", 10), ("SPRING15", 15), ("THANKS5", 5))
_SHIPPING, _FREE_FROM = 490, 7500  # cents of the euro
_CHANNELS = ("web", "web", "web", "app", "app", "phone")
_DEVICES = ("desktop", "phone", "phone", "tablet")
_TAGS = ("gift", "express", "wholesale", "first-order", "newsletter")
_MATERIALS = ("Oak", "Steel", "Linen", "Glass", "Wool", "Paper", "Cork", "Stone", "Cotton", "Copper")
_PRODUCTS = tuple("Bowl Mug Lamp Box Frame Towel Tray Clock Vase Spoon Basket Candle Card Brush Rug Plate".split())
_SHIP_DAYS, _DELIVERY_DAYS = 3, 4
_NOTES = (
    "Please leave the parcel with the neighbour.",
    "A gift: no invoice in the parcel, please.",
    "Deliver on weekdays, 8:00 to 16:00.\nRing twice; the bell is quiet.",
    "Bitte nicht knicken!",
)
_NAMES = tuple("Ada Bo Chloé Dmitri Elif Femke Gareth Hana Inés João Kofi Łucja Mei Noor Søren Zoë".split())
_SURNAMES = tuple("Andersson Berg Costa Dubois Evans García Ito Jansen Keller Müller Novák O’Brien Petit Smith".split())


@dataclass(frozen=True, slots=True)
class _Market:
    """A country to sell in: minor units of its currency for a cent of the euro, sales tax that prices do not include
    (per cent), towns with their postal codes, and streets."""

    country: str
    currency: str
    rate: float
    tax: int
    towns: Sequence[tuple[str, str]]
    streets: Sequence[str]


_MARKETS = (
    _Market("DE", "EUR", 1, 0, (("10115", "Berlin"), ("50667", "Köln")), ("Lindenweg", "Am Markt")),
    _Market("FR", "EUR", 1, 0, (("75011", "Paris"), ("69002", "Lyon")), ("Rue des Lilas", "Place de l’Église")),
    _Market("GB", "GBP", 0.86, 0, (("M1 2JW", "Manchester"), ("BS1 4DJ", "Bristol")), ("High Street", "Mill Lane")),
    _Market("US", "USD", 1.1, 7, (("97205", "Portland"), ("60601", "Chicago")), ("Main Street", "Oak Avenue")),
    _Market("SE", "SEK", 11, 0, (("411 03", "Göteborg"), ("211 22", "Malmö")), ("Storgatan", "Björkvägen")),
    _Market("JP", "JPY", 1.6, 0, (("150-0001", "渋谷区"), ("530-0001", "大阪市")), ("神宮前", "梅田")),
)
_MARKET_WEIGHTS = list(accumulate((38, 20, 20, 14, 5, 3)))


@dataclass(frozen=True, slots=True)
class _Customer:
    """A customer with one address and one currency."""

    id: str
    market: _Market
    address: dict[str, str]


class _Shop:
    """Customers and items are numbered by how much they sell: c-1 and sku-1 are ordered most."""

    def __init__(self, orders: int, *, seed: int) -> None:
        self._seed = seed
        self._customers = _skewed_weights(max(1, orders // _ORDERS_PER_CUSTOMER))
        self._items = _skewed_weights(_ITEM_COUNT)
        rng = Random(seed)  # reproducible sample data  # nosec B311
        self._cents = [1 + int(rng.lognormvariate(_PRICE_MU, _PRICE_SIGMA)) for _ in range(_ITEM_COUNT)]

    def draw_order(self, rng: Random, *, external_ref: str, at: datetime) -> dict[str, Any]:
        """A body for `POST /orders` at that time. Nine in ten carry the reference; one in fifty has no prices and
        extras."""
        customer = self._customer(_draw_ranks(rng, self._customers)[0])
        lines = min(ITEMS_MAX, 1 + int(log(1 - rng.random()) / log(_MORE_LINES)))
        items = self._draw_items(rng, lines, customer.market)
        body: dict[str, Any] = {"customer_id": customer.id, "items": items}
        if rng.random() < 0.9:
            body["external_ref"] = external_ref
        if rng.random() < 0.02:
            for item in items:
                del item["unit_price"]
            return body
        return body | {
            "currency": customer.market.currency,
            "adjustments": _draw_adjustments(rng, items, customer.market),
            **_draw_extras(rng, customer, at),
        }

    def _draw_items(self, rng: Random, lines: int, market: _Market) -> list[dict[str, Any]]:
        ranks = dict.fromkeys(_draw_ranks(rng, self._items, lines))  # an item drawn twice is one line
        quantities = rng.choices(_QUANTITIES, cum_weights=_QUANTITY_WEIGHTS, k=len(ranks))
        return [
            {
                "item_id": f"sku-{rank + 1}",
                "title": f"{_MATERIALS[rank % 10]} {_PRODUCTS[rank // 10 % 16]} No. {rank // 160 + 1}",
                "quantity": quantity,
                "unit_price": round(self._cents[rank] * market.rate),
            }
            for rank, quantity in zip(ranks, quantities, strict=True)
        ]

    def _customer(self, rank: int) -> _Customer:
        # Derived from the rank alone, so that a customer is the same in every order without being stored.
        rng = Random(self._seed << 32 | rank)  # reproducible  # nosec B311
        [market] = rng.choices(_MARKETS, cum_weights=_MARKET_WEIGHTS)
        name, surname = rng.choice(_NAMES), rng.choice(_SURNAMES)
        postal_code, town = rng.choice(market.towns)
        address = {
            "name": f"{name} {surname}",
            "line1": f"{rng.choice(market.streets)} {1 + int(rng.random() * 120)}",
            "city": town,
            "postal_code": postal_code,
            "country": market.country,
            "email": f"customer-{rank + 1}@example.com",
        }
        return _Customer(f"c-{rank + 1}", market, address)


def _draw_adjustments(rng: Random, items: Sequence[dict[str, Any]], market: _Market) -> list[dict[str, Any]]:
    """A discount on one order in eight, shipping on small orders, sales tax where it comes on top."""
    total = sum(item["quantity"] * item["unit_price"] for item in items)
    adjustments = []
    if rng.random() < 0.12:
        label, per_cent = rng.choice(_CAMPAIGNS)
        adjustments.append({"type": "discount", "label": label, "amount": -(total * per_cent // 100)})
    if market.tax:
        taxed = total + sum(adjustment["amount"] for adjustment in adjustments)
        adjustments.append({"type": "tax", "label": f"{market.tax} %", "amount": taxed * market.tax // 100})
    if total < _FREE_FROM * market.rate:
        adjustments.append({"type": "shipping", "label": "Standard", "amount": round(_SHIPPING * market.rate)})
    return adjustments


def _draw_extras(rng: Random, customer: _Customer, at: datetime) -> dict[str, Any]:
    extras: dict[str, Any] = {"channel": rng.choice(_CHANNELS), "metadata": {"device": rng.choice(_DEVICES)}}
    if rng.random() < 0.2:
        extras["tags"] = rng.sample(_TAGS, k=rng.choice((1, 1, 2)))
    if rng.random() < 0.6:
        extras["ship_by"] = at.replace(hour=18, minute=0, second=0, microsecond=0) + timedelta(days=_SHIP_DAYS)
        extras["deliver_by"] = extras["ship_by"] + timedelta(days=_DELIVERY_DAYS)
    if rng.random() < 0.95:
        extras["shipping_address"] = customer.address
        if rng.random() < 0.2:
            extras["billing_address"] = customer.address | {"company": f"{customer.address['name']} & Co."}
    if rng.random() < 0.04:
        extras["note"] = rng.choice(_NOTES)
    return extras


def _skewed_weights(count: int) -> list[float]:
    """Cumulative weights of ranks by the law of Zipf and Mandelbrot, which fits the best-selling items of real
    sales."""
    return list(accumulate((rank + 3) ** -0.8 for rank in range(count)))


def _draw_ranks(rng: Random, cumulative: list[float], count: int = 1) -> list[int]:
    return rng.choices(range(len(cumulative)), cum_weights=cumulative, k=count)


Change = Callable[..., str | None]  # a method of the order, called with it and `at`
Step = tuple[float, Change]  # the mean number of hours since the previous change, and the change

_HOLDS = (
    ("fraud", "First order, and a large one."),
    ("address", "The postal code does not belong to the town."),
    ("payment", None),
    ("inventory", "Counted again on Monday."),
    ("review", None),
)
_DUE_CHANGE_PAUSE = timedelta(milliseconds=1)  # between two changes that are due
_CARRIERS = ("DHL", "UPS", "DPD", "Post")
_PAYMENT_METHODS = ("card", "card", "paypal", "invoice")
_RETURN_REASONS = ("Too small.", "Broken on arrival.", None)


def _simulate_changes(order: NewOrder, rng: Random, *, until: datetime) -> OrderHistory:
    """The order as it is at `until`, and all of its events."""
    columns = order.columns
    model = parse_order(
        orjson.loads(order.document),
        principal=columns["principal"],
        external_ref_hash=hash_reference(columns["external_ref"], principal=columns["principal"]),
    )
    history = _History(model, order.document)
    history.add(CREATED, actor=columns["principal"])
    _make_changes(history, rng, until)
    unchanged = {name: columns[name] for name in ("idempotency_key_hash", "fingerprint")}
    final = replace(
        order,
        columns=model.columns() | unchanged,
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
            # A reopened order may have been due for a long time.
            at = max(order.due_at, order.updated_at + _DUE_CHANGE_PAUSE)
            if at >= before:
                break
            event_type = order.apply_due_change(at=at)
            assert event_type is not None
            self.add(event_type, actor=SCHEDULE.id)


def _make_changes(history: _History, rng: Random, until: datetime) -> None:
    order, at = history.order, history.order.created_at
    for hours, change in _steps(order, rng):
        at += timedelta(hours=hours * rng.expovariate(1), seconds=1)
        if at >= until:
            break
        history.apply_due_changes(before=at)
        event_type = change(order, at=at)
        if event_type is not None:
            history.add(event_type, actor=order.principal)
    history.apply_due_changes(before=until)


def _steps(order: OrderAggregate, rng: Random) -> Iterator[Step]:
    """The steps of an order. Each step is applied before the next one is chosen."""
    if rng.random() < 0.04:
        return  # it stays pending
    if order.total:
        yield 0.1, _payment_change(AUTHORIZATION, order.total, order, method=rng.choice(_PAYMENT_METHODS))
    if rng.random() < 0.08:
        yield from _hold_steps(rng)
        if order.holds and rng.random() < 0.4:
            return
        yield from ((20, partial(OrderAggregate.release_hold, handle=hold["handle"])) for hold in list(order.holds))
    if rng.random() < 0.06:
        yield from _cancellation_steps(order, rng)
        return
    if rng.random() < 0.04:
        yield 1, partial(OrderAggregate.update, content={"note": "Please call before you come."})
    if not order.holds:
        yield 2, OrderAggregate.confirm
        yield from _item_cancellation_steps(order, rng)
        yield from _shipping_steps(order, rng)
        yield from _return_steps(order, rng)


def _hold_steps(rng: Random) -> Iterator[Step]:
    for kind, reason in rng.sample(_HOLDS, k=rng.choice((1, 1, 1, 2))):
        days = rng.choice((None, None, 3))
        yield 1, partial(_place_hold, kind=kind, reason=reason, days=days)


def _place_hold(order: OrderAggregate, *, kind: str, reason: str | None, days: int | None, at: datetime) -> str | None:
    until = None if days is None else at + timedelta(days=days)
    return order.place_hold(kind, kind=kind, reason=reason, until=until, placed_by=order.principal, at=at)


def _cancellation_steps(order: OrderAggregate, rng: Random) -> Iterator[Step]:
    """Cancel the whole order. Some customers change their minds."""
    yield 10, partial(OrderAggregate.cancel, reason=rng.choice(("customer", "inventory", "declined")), note=None)
    if rng.random() < 0.1:
        yield 5, partial(OrderAggregate.reopen, reason="The customer has called.")
    elif authorized := sum_payments(order.payments).authorized:
        yield 1, _payment_change(VOID, authorized, order)


def _item_cancellation_steps(order: OrderAggregate, rng: Random) -> Iterator[Step]:
    if len(order.items) > 1 and rng.random() < 0.05:
        item = rng.choice(order.items)
        units = [{"line": item["line"], "quantity": 1 + int(rng.random() * open_units(item))}]
        yield 4, partial(OrderAggregate.cancel, reason="inventory", note=None, items=units)


def _shipping_steps(order: OrderAggregate, rng: Random) -> Iterator[Step]:
    """Ship the open units in one parcel or two, and deliver them; a slow warehouse ships late, or never."""
    if rng.random() < 0.03:
        return
    hours = 150 if rng.random() < 0.05 else 20
    parcels = _draw_parcels(order, rng)
    for number, units in enumerate(parcels, start=1):
        yield hours, _fulfillment_change(units, rng)
        if number == 1 and order.total:
            yield 0.1, _payment_change(CAPTURE, order.total, order)
        if order.has_open_units and rng.random() < 0.1:
            yield 50, OrderAggregate.complete  # the rest will not be shipped
            break
    if not order.has_open_units and rng.random() < 0.02:
        yield 40, _delivery_change(1, FULFILLMENT_CANCELLED, "Lost by the carrier.")
        yield 10, _fulfillment_change(parcels[0], rng)
    if rng.random() < 0.03:
        return
    for fulfillment in order.fulfillments:
        if fulfillment["status"] != FULFILLMENT_CANCELLED:
            if rng.random() < 0.2:
                yield 15, _delivery_change(fulfillment["number"], "failed_attempt", "Nobody was at home.")
            yield 30, _delivery_change(fulfillment["number"], DELIVERED, None)


def _draw_parcels(order: OrderAggregate, rng: Random) -> list[Units]:
    units = [{"line": item["line"], "quantity": count} for item in order.items if (count := open_units(item))]
    if len(units) > 1 and rng.random() < 0.3:
        return [units[:1], units[1:]]
    return [units]


def _return_steps(order: OrderAggregate, rng: Random) -> Iterator[Step]:
    """Some units are returned, most of them expected first, and refunded."""
    if order.fulfillment_status != DELIVERED or rng.random() > 0.1:
        return
    units = [{"line": item["line"], "quantity": item["fulfilled"]} for item in order.items if item["fulfilled"]]
    if rng.random() < 0.8:  # some units of one line only
        line = rng.choice(units)
        units = [line | {"quantity": 1 + int(rng.random() * line["quantity"])}]
    status = rng.choice((EXPECTED, EXPECTED, RECEIVED))
    yield 100, partial(OrderAggregate.return_items, items=units, status=status, reason=rng.choice(_RETURN_REASONS))
    if status == EXPECTED:
        outcome = RECEIVED if rng.random() < 0.9 else REJECTED
        yield 100, partial(OrderAggregate.settle_return, number=1, status=outcome)
    if amount := _refundable_amount(order):
        yield 5, _payment_change(REFUND, amount, order)
    if rng.random() < 0.1:
        yield 50, partial(OrderAggregate.reopen, reason="The refund was disputed.")


def _refundable_amount(order: OrderAggregate) -> int:
    """The price of the returned units, in minor units; the amount captured if all units were returned."""
    captured = sum_payments(order.payments).captured
    if order.return_status == "returned":
        return captured
    refunds: list[int] = [(line["total"] or 0) * line["returned"] // line["quantity"] for line in order.items]
    return min(captured, sum(refunds))


def _payment_change(type: str, amount: int, order: OrderAggregate, *, method: str | None = None) -> Change:
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


def _fulfillment_change(units: Units, rng: Random) -> Change:
    tracking = {"carrier": rng.choice(_CARRIERS), "number": f"{rng.getrandbits(40):013}"}
    return partial(OrderAggregate.fulfill, items=units, tracking=tracking)


def _delivery_change(number: int, type: str, description: str | None) -> Change:
    return partial(
        OrderAggregate.record_delivery_event, number=number, type=type, occurred_at=None, description=description
    )
