"""`flask search`: the projection by which orders are found."""

import click
from flask.cli import AppGroup

from app.cli.common import migrated_database, progress_bar
from app.cli.processes import process_count, run_in_processes
from app.errors import pluralize
from app.services.event_feed import read_ends
from app.services.search_projection import FIRST_TERM, finish_rebuild, rewrite_rows, sweep_terms
from app.services.verification import OrderRange, count_orders, order_ranges

search = AppGroup("search", help="Manage the search of orders.")


@search.command("rebuild", short_help="Rebuild the search from the orders.")
@click.option("--jobs", type=click.IntRange(1, 512), help="Number of processes; by default one per core.")
def rebuild(jobs: int | None) -> None:
    """Rebuild the search from the orders, and remove what does not belong to it.

    The service and the workers can keep running: until an order is rewritten, it is found as before. The command can be
    interrupted and run again.
    """
    with migrated_database():
        seq, orders = read_ends().seq, count_orders()
        with progress_bar("Orders", length=orders) as bar:
            for done in run_in_processes(_rewrite, order_ranges(), processes=jobs or process_count(orders)):
                bar.update(min(done.size, orders - bar.pos))
        finish_rebuild(seq)
        removed, after = 0, FIRST_TERM
        with progress_bar("Terms", length=None) as bar:
            while (swept := sweep_terms(after)) is not None:
                after, removed = swept.last, removed + swept.removed
                bar.update(swept.size)
        click.echo(
            f"{pluralize(orders, 'order')} in the search, as of number {seq} of the feed. "
            f"{pluralize(removed, 'term')} removed."
        )


def _rewrite(orders: OrderRange) -> OrderRange:
    rewrite_rows(orders.after, orders.last)
    return orders
