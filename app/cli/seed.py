"""`flask seed`: fill a database with reproducible sample orders in all statuses."""

import time
from bisect import bisect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import accumulate, islice
from random import Random

import click
from flask.cli import with_appcontext
from sqlalchemy import func, select

from app.cli.common import migrated_database, progress_bar
from app.cli.sample_orders import Shop, simulate_changes
from app.db.errors import DATABASE_ERRORS, is_unavailable
from app.db.transactions import consistent_read
from app.errors import pluralize
from app.models import Order
from app.models.principal import Principal
from app.services.order_inserts import NewOrder, OrderHistory, insert_histories, insert_orders
from app.services.order_service import CreateRequest, new_order

PRINCIPAL = Principal("seed", frozenset())  # distinguishes sample orders from all others
UNTIL = "2026-11-01"  # fixed, so that the command creates the same orders on any day
_HOURS = 365 * 24
_BATCH = 1000  # orders a statement: a tenth of a second, where the database allows three
_PAUSES = (0.1, 1, 5)  # seconds before the attempts to store a batch again

# Weights of an hour of the day (UTC), a day of the week (from Monday) and a month.
_BY_HOUR = (1, 1, 1, 1, 1, 2, 4, 7, 10, 12, 13, 13, 12, 12, 12, 11, 11, 11, 12, 13, 13, 10, 6, 3)
_BY_WEEKDAY = (11, 11, 11, 11, 10, 6, 7)
_BY_MONTH = (8, 8, 9, 9, 9, 9, 8, 8, 10, 11, 15, 14)

_FEW_ORDERS = 100  # a trial has few; with more, the database may be in use

Sample = NewOrder | OrderHistory  # a pending order, or one with all that has happened to it


@click.command(short_help="Create sample orders in all statuses.")
@click.option("--orders", type=click.IntRange(1, 10**8), default=1000, show_default=True, help="Number of orders.")
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=1, show_default=True, help="Another seed creates other orders."
)
@click.option(
    "--until",
    type=click.DateTime(["%Y-%m-%d"]),
    default=UNTIL,
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


def sample_orders(count: int, *, seed: int, until: datetime) -> Iterator[NewOrder]:
    """`count` pending orders, oldest first, created in the 365 days before `until`, an aware time."""
    name = f"{seed}-{count}-{until:%y%m%d}"
    rng, shop = Random(name), Shop(count, seed=seed)  # reproducible sample data  # nosec B311
    for position, at in enumerate(_creation_times(count, until, rng), start=1):
        body = shop.draw_order(rng, external_ref=f"{name}-{position:09}", at=at)
        request = CreateRequest(body, principal=PRINCIPAL, idempotency_key=body.get("external_ref"))
        yield new_order(request, at=at, randbits=rng.getrandbits)


def sample_histories(count: int, *, seed: int, until: datetime) -> Iterator[OrderHistory]:
    """The same orders as they are at `until`, with all that has happened to them."""
    rng = Random(f"lives-{seed}-{count}-{until:%y%m%d}")  # reproducible sample data  # nosec B311
    for order in sample_orders(count, seed=seed, until=until):
        yield simulate_changes(order, rng, until=until)


def _creation_times(count: int, until: datetime, rng: Random) -> Iterator[datetime]:
    """Random times in ascending order, one at a time: the order statistics of a uniform distribution."""
    start = until - timedelta(hours=_HOURS)
    hours = [start + timedelta(hours=hour) for hour in range(_HOURS)]
    weights = [_BY_HOUR[hour.hour] * _BY_WEEKDAY[hour.weekday()] * _BY_MONTH[hour.month - 1] for hour in hours]
    cumulative = list(accumulate(weights))
    share_left = 1.0  # share of the year's orders that has not been drawn yet
    for remaining in range(count, 0, -1):
        share_left *= (1 - rng.random()) ** (1 / remaining)
        weight = (1 - share_left) * cumulative[-1]
        hour = bisect(cumulative, weight, hi=_HOURS - 1)
        share = 1 - (cumulative[hour] - weight) / weights[hour]
        yield hours[hour] + timedelta(microseconds=min(int(share * 3.6e9), 3_599_999_999))


def _has_many_other_orders() -> bool:
    others = select(Order.id).where(Order.principal != PRINCIPAL.id).limit(_FEW_ORDERS + 1).subquery()
    with consistent_read(statement_timeout=None) as session:  # to find none, the database reads every order
        return session.scalars(select(func.count()).select_from(others)).one() > _FEW_ORDERS


def _store(orders: Iterator[Sample], count: int) -> int:
    """Store the orders that do not exist yet, and return their number."""
    added = 0
    with progress_bar("Seeding", length=count) as bar:
        for batch in _batches(orders):
            added += len(_insert(batch))
            bar.update(len(batch))
    return added


def _insert(batch: list[Sample]) -> set[str]:
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


def _batches(orders: Iterator[Sample]) -> Iterator[list[Sample]]:
    """The orders in batches. Each is generated while the database stores the one before."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        next_batch = executor.submit(_generate_batch, orders)
        while batch := next_batch.result():
            next_batch = executor.submit(_generate_batch, orders)
            yield batch


def _generate_batch(orders: Iterator[Sample]) -> list[Sample]:
    return list(islice(orders, _BATCH))
