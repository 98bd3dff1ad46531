"""`flask privacy`: erasure of personal data from the command line."""

import math
import sys

import click
from flask.cli import AppGroup

from app.cli.common import migrated_database
from app.errors import ServiceError
from app.models.erasure import DONE
from app.models.principal import Principal
from app.services.erasure import ErasureState, continue_erasure, erase_customer, running_erasures

OPERATOR = Principal("system:privacy", frozenset())

privacy = AppGroup("privacy", help="Erase personal data of customers.")


@privacy.command("resume")
def resume() -> None:
    """Complete all erasures that are running.

    The command can be interrupted and run again, also in several processes at once. Exit status 1 if an erasure could
    not be completed, because other processes kept reading or writing the SQLite file.
    """
    with migrated_database():
        _report([_complete(erasure_id) for erasure_id in running_erasures()])


@privacy.command("erase")
@click.argument("customer_id")
def erase(customer_id: str) -> None:
    """Erase the personal data of a customer without open orders. Exit status 1 if it could not be completed."""
    with migrated_database():
        try:
            started = erase_customer(customer_id, principal=OPERATOR, seconds=0)
        except ServiceError as error:
            raise click.ClickException(error.detail) from None
        _report([_complete(started.id)])


def _complete(erasure_id: str) -> ErasureState:
    """Continue until the erasure is done, or only the SQLite file cannot be rewritten."""
    return continue_erasure(erasure_id, seconds=math.inf, rewrite_always=True)


def _report(states: list[ErasureState]) -> None:
    for state in states:
        click.echo(f"Erasure {state.id}: {state.orders} orders erased, {state.status}.")
    click.echo(f"{len(states)} erasures, {sum(state.status != DONE for state in states)} not done.")
    sys.exit(any(state.status != DONE for state in states))
