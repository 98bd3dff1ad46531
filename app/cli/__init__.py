"""The flask commands.

`orders` lists, finds, shows, follows, exports, imports and expires orders, `webhooks` lists endpoints and forwards
events, `worker` runs the worker, `seed` creates sample orders. `admin` checks an installation, maintains the feed, the
broker and the search, manages API keys and tokens, and exports and erases personal data. `common` has what they share.
"""

import click
from flask import Flask
from flask.cli import FlaskGroup

from app.cli.admin import api_keys, broker, doctor, events, privacy, search, token, verify
from app.cli.orders import orders
from app.cli.seed import seed
from app.cli.webhooks import webhooks
from app.cli.worker import worker


def init_app(app: Flask) -> None:
    """Add the commands to the application."""
    for command in (doctor, seed, orders, privacy, verify, api_keys, token, events, search, webhooks, broker, worker):
        app.cli.add_command(command)


def is_serving() -> bool:
    """Whether this process serves requests. False for a command such as `flask db upgrade`."""
    context = click.get_current_context(silent=True)
    if context is None or not isinstance(context.find_root().command, FlaskGroup):
        return True
    return context.info_name == "run"
