"""`flask verify`."""

import sys

import click
from flask.cli import with_appcontext

from app.services.verification import count_orders, verify_no_strays, verify_orders


@click.command()
@with_appcontext
def verify() -> None:
    """Replay the log against the tables and name every difference.

    Exit status 1 if there is any. Changes that come in meanwhile do no harm: each batch is read at one moment.
    """
    differences = []
    with click.progressbar(length=count_orders(), label="Orders", file=sys.stderr) as bar:
        for looked_at, found in verify_orders():
            bar.update(looked_at)
            differences += found
    differences += verify_no_strays()
    for difference in differences:
        click.echo(difference)
    click.echo(f"{bar.pos} orders verified, {len(differences)} differences.")
    sys.exit(1 if differences else 0)
