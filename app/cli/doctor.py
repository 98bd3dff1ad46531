"""`flask doctor`: check the installation."""

import sys

import click
from flask import current_app
from flask.cli import with_appcontext

from app.cli.common import errors_in_one_line
from app.cli.processes import available_cores
from app.services.diagnosis import Level, diagnose

_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}


@click.command(short_help="Check the installation; each line says what to do.")
@with_appcontext
def doctor() -> None:
    """Check settings, database, migrations, clock, access, worker, search, broker and webhooks.

    Each line says what to do. The exit status is 1 if there is an error: something that loses or delays orders or
    events. Run it with the settings of the service, on each of its machines.
    """
    workers = current_app.config["WEB_CONCURRENCY"] or available_cores()
    failed = False
    with errors_in_one_line():
        for finding in diagnose(current_app.config, web_workers=workers):
            failed |= finding.level is Level.ERROR
            level = click.style(f"{finding.level:<8}", fg=_COLOURS[finding.level])
            click.echo(f"{level} {finding.topic:<12} {finding.text}")
    sys.exit(failed)
