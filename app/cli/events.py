"""`flask events`: retention of the feed and of webhook deliveries."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial

import click
from flask import current_app
from flask.cli import AppGroup

from app.cli.common import Age, migrated_database, progress_bar
from app.services.sequencer import prune_feed
from app.services.webhook_service import prune_deliveries

events = AppGroup("events", help="Manage the feed of events and the deliveries.")


@events.command("prune")
@click.option("--older-than", type=Age(), required=True, help="Minimum age: 30d, 12h, 45m.")
def prune(older_than: timedelta) -> None:
    """Remove old entries from the feed, and old webhook deliveries that are not pending. The events and their snapshots
    stay in the history of each order.

    Readers whose cursor is older are answered 410. The command can be interrupted and run again.
    """
    prune_entries = partial(prune_feed, published=bool(current_app.config["BROKER_URL"]))
    with migrated_database():
        for label, kind, prune_batch in (
            ("Entries", "entries of the feed", prune_entries),
            ("Deliveries", "deliveries of webhooks", prune_deliveries),
        ):
            with progress_bar(label, length=None) as bar:
                for pruned in _batches(partial(prune_batch, older_than=older_than)):
                    bar.update(pruned)
            click.echo(f"{bar.pos} {kind} removed.")


def _batches(prune_batch: Callable[[], int]) -> Iterator[int]:
    while pruned := prune_batch():
        yield pruned
