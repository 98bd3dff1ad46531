"""`flask verify`, `doctor`, `events`, `broker`, `search`: check and maintain an installation and its data."""

import sys
from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import partial
from itertools import chain

import click
from flask import current_app
from flask.cli import AppGroup, with_appcontext

from app.cli.common import (
    Age,
    Since,
    errors_in_one_line,
    migrated_database,
    outside_feed,
    process_count,
    progress_bar,
    run_in_processes,
)
from app.errors import CursorExpired, pluralize
from app.services.broker import replay
from app.services.diagnosis import Level, diagnose
from app.services.event_checks import verify_feed_numbers
from app.services.event_feed import read_ends
from app.services.search_checks import verify_search_head, verify_search_terms
from app.services.search_projection import FIRST_TERM, finish_rebuild, rewrite_rows, sweep_terms
from app.services.sequencer import prune_feed, renumber_feed
from app.services.verification import OrderRange, count_orders, order_ranges, verify_erasures, verify_range
from app.services.webhook_service import prune_deliveries

_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}

events = AppGroup("events", help="Manage the feed of events and the deliveries.")
broker = AppGroup("broker", help="Manage the publishing of events to the message broker.")
search = AppGroup("search", help="Manage the search of orders.")


@click.command(short_help="Compare the tables, the feed and the search with the events.")
@click.option("--jobs", type=click.IntRange(1, 512), help="Number of processes; by default one per core.")
@click.option("--since", type=Since(), help="Verify only orders created or changed since: 30d, 12h, 45m, or a time.")
@with_appcontext
def verify(jobs: int | None, since: datetime | None) -> None:
    """Compare all tables, the feed and the search with the events. Differences are reported, with exit status 1.

    The service can keep running: each batch is read from one snapshot of the database.

    With --since, orders whose updated_at is older are not verified, and damage to them is not found: run it daily, and
    without --since from time to time. The time of a change is not indexed, so the rows of all orders are still read,
    but not their events: this takes about a twentieth of the time.
    """
    differences = verified = 0
    with migrated_database():
        orders = count_orders()
        work = partial(verify_range, since=since)
        with progress_bar("Orders", length=orders) as bar:
            for result in run_in_processes(work, order_ranges(), processes=jobs or process_count(orders)):
                differences += _report(result.differences)
                verified += result.verified
                bar.update(min(result.orders.size, orders - bar.pos))
        for lines in chain(verify_erasures(), [verify_feed_numbers(), verify_search_head()], verify_search_terms()):
            differences += _report(lines)
        click.echo(f"{pluralize(verified, 'order')} verified, {pluralize(differences, 'difference')}.")
    sys.exit(1 if differences else 0)


def _report(lines: Iterable[str]) -> int:
    count = 0
    for count, line in enumerate(lines, start=1):
        click.echo(line)
    return count


@click.command(short_help="Check the installation; each line says what to do.")
@with_appcontext
def doctor() -> None:
    """Check settings, database, migrations, clock, access, worker, search, broker and webhooks.

    Each line says what to do. The exit status is 1 if there is an error: something that loses or delays orders or
    events. Run it with the settings of the service, on each of its machines.
    """
    failed = False
    with errors_in_one_line():
        for finding in diagnose(current_app.config):
            failed |= finding.level is Level.ERROR
            level = click.style(f"{finding.level:<8}", fg=_COLOURS[finding.level])
            click.echo(f"{level} {finding.topic:<12} {finding.text}")
    sys.exit(failed)


@events.command("prune", short_help="Remove old entries of the feed, and old webhook deliveries.")
@click.option("--older-than", type=Age(), required=True, help="Minimum age: 30d, 12h, 45m.")
def prune(older_than: timedelta) -> None:
    """Remove old entries from the feed, and old webhook deliveries that are not pending. The events and their snapshots
    stay in the history of each order.

    Readers whose cursor is older are answered 410. The command can be interrupted and run again.
    """
    prune_entries = partial(prune_feed, published=bool(current_app.config["BROKER_URL"]), older_than=older_than)
    with migrated_database():
        for singular, plural, batches in (
            ("entry of the feed", "entries of the feed", iter(prune_entries, 0)),
            ("delivery of a webhook", "deliveries of webhooks", prune_deliveries(older_than=older_than)),
        ):
            with progress_bar(plural.capitalize(), length=None) as bar:
                for pruned in batches:
                    bar.update(pruned)
            click.echo(f"{pluralize(bar.pos, singular, plural)} removed.")


@events.command("renumber", short_help="Renumber the feed after a restore.")
def renumber() -> None:
    """Renumber all events in the feed: run this after the database was restored to an earlier time, and before the
    service is started again.

    Otherwise the numbers assigned since that time are assigned again, to other events, and a reader that has already
    read these numbers misses them. After renumbering, each reader gets one 410 response, which says how to continue.
    Webhooks, the search and the message broker continue by themselves.
    """
    with migrated_database():
        click.echo(f"{renumber_feed()} was added to each number of the feed.")


@broker.command("replay", short_help="Publish events again, or leave some out.")
@click.option("--after", type=click.IntRange(min=0), required=True, help="Number of the last event to leave out.")
def replay_events(after: int) -> None:
    """Publish the events after a number again, for a broker that has lost them; or leave out those up to it.

    The workers continue from there at once.
    """
    with migrated_database():
        try:
            replay(after=after)
        except CursorExpired:
            raise outside_feed() from None
    click.echo(f"Publishing continues with event {after + 1}.")


@search.command("rebuild", short_help="Rebuild the search from the orders.")
@click.option("--jobs", type=click.IntRange(1, 512), help="Number of processes; by default one per core.")
def rebuild(jobs: int | None) -> None:
    """Rebuild the search from the orders, and remove what does not belong to it.

    The service and the workers can keep running: until an order is rewritten, it is found as before. The command can be
    interrupted and run again.
    """
    with migrated_database():
        seq, orders, rows = read_ends().seq, count_orders(), 0
        with progress_bar("Orders", length=orders) as bar:
            for count in run_in_processes(_rewrite, order_ranges(), processes=jobs or process_count(orders)):
                rows += count
                bar.update(min(count, orders - bar.pos))
        finish_rebuild(seq)
        removed, after = 0, FIRST_TERM
        with progress_bar("Terms", length=None) as bar:
            while (sweep := sweep_terms(after)) is not None:
                after, removed = sweep.last, removed + sweep.removed
                bar.update(sweep.size)
        click.echo(
            f"{pluralize(rows, 'order')} in the search, as of number {seq} of the feed. "
            f"{pluralize(removed, 'term')} removed."
        )


def _rewrite(orders: OrderRange) -> int:
    return rewrite_rows(orders.after, orders.last)
