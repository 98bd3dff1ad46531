"""`flask verify`."""

import sys
from collections.abc import Iterable
from datetime import datetime
from functools import partial
from itertools import chain

import click
from flask.cli import with_appcontext

from app.cli.common import Since, migrated_database, progress_bar
from app.cli.processes import process_count, run_in_processes
from app.errors import pluralize
from app.services.event_checks import verify_feed_numbers
from app.services.search_checks import verify_search_head, verify_search_terms
from app.services.verification import count_orders, order_ranges, verify_erasures, verify_range


@click.command(short_help="Compare the tables, the feed and the search with the events.")
@click.option("--jobs", type=click.IntRange(1, 512), help="Number of processes; by default one per core.")
@click.option("--since", type=Since(), help="Verify only orders created or changed since: 30d, 12h, 45m, or a time.")
@with_appcontext
def verify(jobs: int | None, since: datetime | None) -> None:
    """Compare all tables, the feed and the search with the events, and report every difference, with exit status 1.

    The service can keep running: each batch is read from one snapshot of the database.

    With --since, orders whose updated_at is older are not verified, and damage to them is not found: run it daily,
    and without --since from time to time. No index has the time of a change, so the rows of all orders are still read,
    but not their events, which takes about a twentieth of the time.
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
