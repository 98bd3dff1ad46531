"""`flask privacy`: erasures that take longer than a request."""

import math
import sys

import click
from flask.cli import AppGroup

from app.cli.common import faults_in_one_line
from app.errors import ServiceError
from app.models.erasure import DONE
from app.models.principal import Principal
from app.services.erasure import ErasureState, continue_erasure, erase_customer, running_erasures

OPERATOR = Principal("system:privacy", frozenset())

privacy = AppGroup("privacy", help="Erase personal data.")


@privacy.command("resume")
def resume() -> None:
    """Go on with all erasures that are not done, until they are.

    It may be broken off and run again, and in several processes at once. Exit status 1 if an erasure is not done, since
    others kept reading or writing the SQLite file.
    """
    with faults_in_one_line():
        _tell([_complete(erasure_id) for erasure_id in running_erasures()])


@privacy.command("erase")
@click.argument("customer_id")
def erase(customer_id: str) -> None:
    """Erase the personal data of a customer whose orders have all ended. Exit status 1 if it is not done."""
    with faults_in_one_line():
        try:
            begun = erase_customer(customer_id, principal=OPERATOR, seconds=0)
        except ServiceError as error:
            raise click.ClickException(error.detail) from None
        _tell([_complete(begun.id)])


def _complete(erasure_id: str) -> ErasureState:
    """Work on it until it is done, or only the file is left that others keep from being rewritten."""
    return continue_erasure(erasure_id, seconds=math.inf, rewrite_always=True)


def _tell(states: list[ErasureState]) -> None:
    for state in states:
        click.echo(f"Erasure {state.id}: {state.orders} orders erased, {state.status}.")
    click.echo(f"{len(states)} erasures, {sum(state.status != DONE for state in states)} not done.")
    sys.exit(any(state.status != DONE for state in states))
