"""`flask orders export`, `import` and `expire`."""

import sys
from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import click
from flask.cli import AppGroup

from app.cli.common import Age, migrated_database, progress_bar
from app.errors import ServiceError, pluralize
from app.models.lifecycle import STATUSES
from app.models.principal import ANONYMOUS, PRINCIPAL_MAX, Principal
from app.services.order_export import BYTE_ORDER_MARK, as_csv, as_ndjson, stream_orders
from app.services.order_import import FileLine, OrderImport
from app.services.order_schedule import apply_due_changes, expire_orders
from app.services.verification import count_orders

_BATCH = 500  # lines in one transaction

orders = AppGroup("orders", help="Look at orders and events; export, import and expire orders.")


@orders.command("export", short_help="Export all orders as NDJSON or CSV.")
@click.option("--format", "style", type=click.Choice(("ndjson", "csv")), default="ndjson", show_default=True)
@click.option("--bom", is_flag=True, help="Start CSV with a byte order mark, so that Excel reads it as UTF-8.")
@click.option(
    "--status",
    "statuses",
    type=click.Choice(STATUSES),
    multiple=True,
    help="Export only orders with this status, or one of these.",
)
@click.option(
    "--output",
    type=click.File("w", encoding="utf-8"),
    default="-",
    help="File to write to; standard output by default.",
)
def export_orders(style: str, bom: bool, statuses: tuple[str, ...], output: TextIO) -> None:
    """Export all orders, oldest first: one JSON document a line, or one CSV row for each item."""
    if bom and style != "csv":
        raise click.BadParameter("only a CSV export can have a byte order mark.", param_hint="--bom")
    filters = {"sort": "created_at"} | ({"status": tuple(sorted(set(statuses)))} if statuses else {})
    with migrated_database():
        with progress_bar("Orders", length=None if statuses else count_orders()) as bar:
            documents = _counted(stream_orders(filters, principal=ANONYMOUS), bar)
            if bom:
                output.write(BYTE_ORDER_MARK)
            for text in as_csv(documents) if style == "csv" else as_ndjson(documents):
                output.write(text)
        output.flush()  # reports a full disk here, not when the file is closed
        click.echo(f"{pluralize(bar.pos, 'order')} exported.", err=True)


@orders.command("import", short_help="Import orders from an NDJSON file.")
@click.argument("file", type=click.File("rb"))
@click.option("--principal", default=ANONYMOUS.id, show_default=True, help="Principal that creates the orders.")
def import_orders(file: BinaryIO, principal: str) -> None:
    """Import orders from an NDJSON FILE (- for standard input): bodies of POST /orders, or exported documents.

    Invalid lines are reported on standard error and skipped, with exit status 1. An import can be interrupted and run
    again: orders that exist already are skipped, recognized by id, external_ref, or else the text of the line.
    """
    if not 1 <= len(principal) <= PRINCIPAL_MAX:
        raise click.BadParameter(f"it must have 1 to {PRINCIPAL_MAX} characters.", param_hint="--principal")
    orders_import = OrderImport(Principal(principal, frozenset()))
    lines = (
        FileLine(number, text) for number, text in enumerate(_without_byte_order_mark(file), start=1) if text.strip()
    )
    with migrated_database():
        with progress_bar("Import", length=_size(file)) as bar:
            while batch := list(islice(lines, _BATCH)):
                try:
                    for message in orders_import.store(batch):
                        click.echo(message, err=True)
                except ServiceError as error:
                    raise click.ClickException(f"{error.detail} Run the same command again to continue.") from None
                bar.update(sum(len(line.text) for line in batch))
        click.echo(
            f"{pluralize(orders_import.created, 'order')} imported, {orders_import.existing:,} existed already, "
            f"{pluralize(orders_import.failed, 'invalid line')}."
        )
    sys.exit(1 if orders_import.failed else 0)


@orders.command("expire", short_help="Apply what is due: ends of holds, late orders, old orders.")
@click.option("--older-than", type=Age(), help="Also cancel pending orders that are older: 30d, 12h, 45m.")
def expire(older_than: timedelta | None) -> None:
    """Release the holds that have ended, and mark orders as late whose ship_by has passed.

    With --older-than, old pending orders are cancelled first, with the reason `expired`. Orders that are on hold,
    have a payment or have been reopened are skipped.
    """
    with migrated_database():
        if older_than is not None:
            click.echo(f"{pluralize(_total(expire_orders(older_than=older_than)), 'order')} expired.")
        click.echo(f"{pluralize(_total(apply_due_changes()), 'due change')} applied.")


def _total(counts: Iterable[int]) -> int:
    """Add up the numbers of the pages, showing the progress."""
    with progress_bar("Orders", length=None) as bar:
        for count in counts:
            bar.update(count)
    return int(bar.pos)


def _without_byte_order_mark(file: BinaryIO) -> Iterator[bytes]:
    for number, line in enumerate(file):
        yield line if number else line.removeprefix(BYTE_ORDER_MARK.encode())


def _counted(documents: Iterable[str], bar: Any) -> Iterator[str]:
    for document in documents:
        bar.update(1)
        yield document


def _size(file: BinaryIO) -> int | None:
    path = Path(str(getattr(file, "name", "")))
    return path.stat().st_size if path.is_file() else None
