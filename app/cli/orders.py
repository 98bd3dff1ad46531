"""`flask orders export`, `import` and `expire`, and `flask verify`: many orders at once."""

import sys
from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import click
from flask.cli import AppGroup, with_appcontext

from app.cli.common import Age, faults_in_one_line, progress_bar
from app.errors import ServiceError
from app.models.lifecycle import STATUSES
from app.models.principal import ANONYMOUS, Principal
from app.services.order_actions import expire_orders
from app.services.order_export import BYTE_ORDER_MARK, as_csv, as_ndjson, stream_orders
from app.services.order_import import Import, Line
from app.services.verification import count_orders, verify_erasures, verify_orders

_BATCH = 500  # lines stored at once

orders = AppGroup("orders", help="Export, import and expire orders.")


@orders.command("export")
@click.option("--format", "style", type=click.Choice(("ndjson", "csv")), default="ndjson", show_default=True)
@click.option("--bom", is_flag=True, help="Begin CSV with a byte order mark, by which Excel knows UTF-8.")
@click.option("--status", type=click.Choice(STATUSES), help="Only orders of this status.")
@click.option("--output", type=click.File("w", encoding="utf-8"), default="-", help="A file, or standard output.")
def export_orders(style: str, bom: bool, status: str | None, output: TextIO) -> None:
    """Write all orders, oldest first: one document a line, or one CSV row for each line item."""
    if bom and style != "csv":
        raise click.BadParameter("only a CSV export can have a byte order mark.", param_hint="--bom")
    filters = {"sort": "created_at"} | ({"status": status} if status else {})
    with faults_in_one_line():
        with progress_bar("Orders", length=None if status else count_orders()) as bar:
            documents = _counted(stream_orders(filters, principal=ANONYMOUS), bar)
            if bom:
                output.write(BYTE_ORDER_MARK)
            for text in as_csv(documents) if style == "csv" else as_ndjson(documents):
                output.write(text)
        output.flush()  # a full disk is noticed here, and not when the file is closed
        click.echo(f"{bar.pos} orders exported.", err=True)


@orders.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--principal", default=ANONYMOUS.id, show_default=True, help="Whose orders they become.")
def import_orders(file: BinaryIO, principal: str) -> None:
    """Create the orders of an NDJSON FILE (- for standard input): `POST /orders` bodies, or exported documents.
    A byte order mark at its beginning is skipped.

    It may be broken off and run again: what is there already is left alone, known by its external_ref, its id, or its
    text where it has neither. Bad lines are named on standard error, and all others are imported; exit status 1 then.
    """
    work = Import(Principal(principal, frozenset()))
    lines = (Line(number, text) for number, text in enumerate(_without_byte_order_mark(file), start=1) if text.strip())
    with faults_in_one_line():
        with progress_bar("Import", length=_size(file)) as bar:
            while batch := list(islice(lines, _BATCH)):
                try:
                    for fault in work.store(batch):
                        click.echo(fault, err=True)
                except ServiceError as error:
                    raise click.ClickException(f"{error.detail} Run the same command again to continue.") from None
                bar.update(sum(len(line.text) for line in batch))
        click.echo(f"{work.created} orders imported, {work.there} there already, {work.bad} bad lines.")
    sys.exit(1 if work.bad else 0)


@orders.command("expire")
@click.option("--older-than", type=Age(), required=True, help="How long ago they were made: 30d, 12h, 45m.")
def expire(older_than: timedelta) -> None:
    """Cancel pending orders that nobody confirmed (reason `expired`); those on hold are left alone."""
    with faults_in_one_line():
        with progress_bar("Orders", length=None) as bar:
            for expired in expire_orders(older_than=older_than):
                bar.update(expired)
        click.echo(f"{bar.pos} orders expired.")


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
