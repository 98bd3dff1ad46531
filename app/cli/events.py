"""`flask events` and `flask broker`: retention of the feed, new numbers after a restore, and what the broker gets."""

from datetime import timedelta
from functools import partial

import click
from flask import current_app
from flask.cli import AppGroup

from app.cli.common import Age, migrated_database, progress_bar
from app.errors import CursorExpired, pluralize
from app.services.broker import replay
from app.services.sequencer import prune_feed, renumber_feed
from app.services.webhook_service import prune_deliveries

events = AppGroup("events", help="Manage the feed of events and the deliveries.")
broker = AppGroup("broker", help="Manage the publishing of events to the message broker.")


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


@events.command("renumber", short_help="Give the feed new numbers after a restore.")
def renumber() -> None:
    """Give all events in the feed new numbers: after the database was restored to an earlier time, and before the
    service is started again.

    Otherwise the numbers that were given since that time are given again, to other events, and a reader that knows them
    misses those. With the new numbers, each reader is answered 410 once, which says how to go on. Webhooks, the search
    and the message broker go on by themselves.
    """
    with migrated_database():
        click.echo(f"{renumber_feed()} was added to each number of the feed.")


@broker.command("replay", short_help="Publish events again, or leave some out.")
@click.option("--after", type=click.IntRange(min=0), required=True, help="Number of the last event to leave out.")
def replay_events(after: int) -> None:
    """Publish the events after a number again, for a broker that has lost them; or leave out those up to it.

    The workers go on from there at once.
    """
    with migrated_database():
        try:
            replay(after=after)
        except CursorExpired as error:
            raise click.ClickException(error.detail) from None
    click.echo(f"Publishing goes on with event {after + 1}.")
