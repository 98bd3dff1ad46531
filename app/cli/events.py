"""`flask events`: retention of the feed."""

from collections.abc import Iterator
from datetime import timedelta

import click
from flask.cli import AppGroup

from app.cli.common import Age, migrated_database, progress_bar
from app.services.sequencer import prune_feed

events = AppGroup("events", help="Manage the feed of events.")


@events.command("prune")
@click.option("--older-than", type=Age(), required=True, help="Minimum age: 30d, 12h, 45m.")
def prune(older_than: timedelta) -> None:
    """Remove old entries from the feed. The events and their snapshots stay in the history of each order.

    Readers whose cursor is older are answered 410. The command can be interrupted and run again.
    """
    with migrated_database():
        with progress_bar("Entries", length=None) as bar:
            for pruned in _batches(older_than):
                bar.update(pruned)
        click.echo(f"{bar.pos} entries of the feed removed.")


def _batches(older_than: timedelta) -> Iterator[int]:
    while pruned := prune_feed(older_than=older_than):
        yield pruned
