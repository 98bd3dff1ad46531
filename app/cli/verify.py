"""`flask verify`."""

import sys

import click
from flask.cli import with_appcontext

from app.cli.faults import faults_in_one_line
from app.cli.progress import progress_bar
from app.services.verification import count_orders, verify_erasures, verify_orders


@click.command()
@with_appcontext
def verify() -> None:
    """Replay the log against the tables and name every difference.

    Exit status 1 if there is any. Changes that come in meanwhile do no harm: each batch is read at one moment.
    """
    differences = 0
    with faults_in_one_line():
        with progress_bar("Orders", length=count_orders()) as bar:
            for looked_at, found in verify_orders():
                for difference in found:
                    click.echo(difference)
                differences += len(found)
                bar.update(looked_at)
        for found in verify_erasures():
            for difference in found:
                click.echo(difference)
            differences += len(found)
        click.echo(f"{bar.pos} orders verified, {differences} differences.")
    sys.exit(1 if differences else 0)
