"""`flask privacy`: export and erasure of personal data from the command line."""

import math
import sys
from typing import TextIO

import click
from flask.cli import AppGroup

from app.cli.common import errors_in_one_line, migrated_database
from app.errors import InvalidRequest, ServiceError, pluralize
from app.models.erasure import DONE
from app.models.principal import Principal
from app.schemas.parameters import CustomerPathSchema
from app.schemas.strict_json import load_parameters
from app.services.order_export import as_ndjson
from app.services.personal_data import (
    ErasureState,
    continue_erasure,
    erase_customer,
    running_erasures,
    stream_personal_data,
)

OPERATOR = Principal("system:privacy", frozenset())

privacy = AppGroup("privacy", help="Export and erase personal data of customers.")


def _customer_id(_context: click.Context, _argument: click.Parameter, value: str) -> str:
    with errors_in_one_line():
        value.encode()
    try:
        valid: str = load_parameters(CustomerPathSchema(), {"customer_id": value})["customer_id"]
    except InvalidRequest as error:
        raise click.BadParameter(error.members["errors"][0]["detail"]) from None
    return valid


customer_argument = click.argument("customer_id", callback=_customer_id)


@privacy.command("export", short_help="Export all that is stored about a customer.")
@customer_argument
@click.option(
    "--output",
    type=click.File("w", encoding="utf-8"),
    default="-",
    help="File to write to; standard output by default.",
)
def export(customer_id: str, output: TextIO) -> None:
    """Export all that is stored about a customer, one JSON object a line: orders, their events, deliveries of webhooks,
    a running erasure."""
    with migrated_database():
        lines = 0
        for line in as_ndjson(stream_personal_data(customer_id, principal=OPERATOR)):
            output.write(line)
            lines += 1
        output.flush()  # reports a full disk here, not when the file is closed
        click.echo(f"{pluralize(lines, 'line')} exported.", err=True)


@privacy.command("resume")
def resume() -> None:
    """Complete all erasures that are running.

    The command can be interrupted and run again, even in several processes at once. Exit status 1 if an erasure could
    not be completed: other processes kept reading or writing the SQLite file, or an order was reopened meanwhile.
    """
    with migrated_database():
        _report([_complete(erasure_id) for erasure_id in running_erasures()])


@privacy.command("erase")
@customer_argument
def erase(customer_id: str) -> None:
    """Erase the personal data of a customer without open orders. Exit status 1 if it could not be completed."""
    with migrated_database():
        try:
            erasure = erase_customer(customer_id, principal=OPERATOR, seconds=0)
        except ServiceError as error:
            raise click.ClickException(error.detail) from None
        _report([_complete(erasure.id)])


def _complete(erasure_id: str) -> ErasureState:
    """Continue until the erasure is done, or waits for a reopened order or for the SQLite file."""
    return continue_erasure(erasure_id, seconds=math.inf, rewrite_always=True)


def _report(states: list[ErasureState]) -> None:
    for state in states:
        click.echo(f"Erasure {state.id}: {pluralize(state.orders, 'order')} erased, {state.status}.")
    click.echo(f"{pluralize(len(states), 'erasure')}, {sum(state.status != DONE for state in states)} not done.")
    sys.exit(any(state.status != DONE for state in states))
