"""`flask broker`: where publishing to the message broker goes on."""

import click
from flask.cli import AppGroup

from app.cli.common import migrated_database
from app.errors import CursorExpired
from app.services.broker import replay

broker = AppGroup("broker", help="Manage the publishing of events to the message broker.")


@broker.command("replay")
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
