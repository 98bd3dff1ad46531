"""`flask orders`: export, import and expire orders; show orders and events, on a terminal as tables, else as JSON."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import click
import orjson
from flask.cli import AppGroup

from app.cli.common import Age, migrated_database, outside_feed, progress_bar
from app.errors import CursorExpired, InvalidRequest, ServiceError, pluralize
from app.models.lifecycle import EVENT_TYPES, STATUSES
from app.models.order_aggregate import load_document
from app.models.order_id import parse_uuid
from app.models.principal import ANONYMOUS, PRINCIPAL_MAX, Principal
from app.schemas.base import load_parameters
from app.schemas.parameters import PAGE_MAX, OrderFiltersSchema, SearchQuerySchema
from app.services.event_feed import FeedFilter, list_events, read_ends
from app.services.order_actions import apply_due_changes, expire_orders
from app.services.order_import import FileLine, OrderImport
from app.services.order_queries import BYTE_ORDER_MARK, as_csv, as_ndjson, get_order, list_history, stream_orders
from app.services.order_search import search_orders
from app.services.verification import count_orders

_BATCH = 500  # lines of an import in one transaction
_POLL = 0.5  # seconds between two reads of the feed
_EVENTS_PAGE = 100
_SUMMARY_MEMBERS = (
    "id",
    "customer_id",
    "external_ref",
    "channel",
    "created_at",
    "updated_at",
    "ship_by",
    "deliver_by",
    "version",
    "currency",
)
_ITEM_COLUMNS = ("line", "item_id", "title", "quantity", "cancelled", "fulfilled", "returned", "total")
_STATUSES = ("status", "fulfillment_status", "payment_status", "return_status")
_RECORDS = ("holds", "payments", "fulfillments", "returns", "cancellations")

Document = Mapping[str, Any]

orders = AppGroup("orders", help="Look at orders and events; export, import and expire orders.")


@orders.command("export", short_help="Export all orders as NDJSON or CSV.")
@click.option("--format", "format_name", type=click.Choice(("ndjson", "csv")), default="ndjson", show_default=True)
@click.option("--bom", is_flag=True, help="Start CSV with a byte order mark, so that Excel reads it as UTF-8.")
@click.option(
    "--status",
    "statuses",
    type=click.Choice(STATUSES),
    multiple=True,
    help="Only orders with this status; repeatable.",
)
@click.option(
    "--output",
    type=click.File("w", encoding="utf-8"),
    default="-",
    help="File to write to; standard output by default.",
)
def export_orders(format_name: str, bom: bool, statuses: tuple[str, ...], output: TextIO) -> None:
    """Export all orders, oldest first: one JSON document a line, or one CSV row for each item."""
    if bom and format_name != "csv":
        raise click.BadParameter("only a CSV export can have a byte order mark.", param_hint="--bom")
    filters = {"sort": "created_at"} | ({"status": tuple(sorted(set(statuses)))} if statuses else {})
    with migrated_database():
        with progress_bar("Orders", length=None if statuses else count_orders()) as bar:
            documents = _with_progress(stream_orders(filters, principal=ANONYMOUS), bar)
            if bom:
                output.write(BYTE_ORDER_MARK)
            for text in as_csv(documents) if format_name == "csv" else as_ndjson(documents):
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
    if not 1 <= len(principal) <= PRINCIPAL_MAX or not principal.isprintable():
        raise click.BadParameter(f"it must have 1 to {PRINCIPAL_MAX} printable characters.", param_hint="--principal")
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


@orders.command("expire", short_help="Apply due changes: release ended holds, mark late orders, cancel old ones.")
@click.option("--older-than", type=Age(), help="Also cancel pending orders that are older: 30d, 12h, 45m.")
def expire(older_than: timedelta | None) -> None:
    """Release the holds that have ended, and mark orders as late whose ship_by has passed.

    With --older-than, old pending orders are cancelled first, with the reason `expired`. Orders that are on hold,
    have a payment or have been reopened are skipped.
    """
    with migrated_database():
        if older_than is not None:
            click.echo(f"{pluralize(_count_changes(expire_orders(older_than=older_than)), 'order')} expired.")
        click.echo(f"{pluralize(_count_changes(apply_due_changes()), 'due change')} applied.")


def _count_changes(counts: Iterable[int]) -> int:
    """Add up the numbers of the pages, showing the progress."""
    with progress_bar("Orders", length=None) as bar:
        for count in counts:
            bar.update(count)
    return int(bar.pos)


def _without_byte_order_mark(file: BinaryIO) -> Iterator[bytes]:
    for number, line in enumerate(file):
        yield line if number else line.removeprefix(BYTE_ORDER_MARK.encode())


def _with_progress(documents: Iterable[str], bar: Any) -> Iterator[str]:
    for document in documents:
        bar.update(1)
        yield document


def _size(file: BinaryIO) -> int | None:
    path = Path(str(getattr(file, "name", "")))
    return path.stat().st_size if path.is_file() else None


@orders.command("get", short_help="Show one order by its id, number or reference.")
@click.argument("order", metavar="ID|NUMBER|REFERENCE")
@click.option("--version", type=click.IntRange(1, 2**31 - 1), help="The order as it was in this version.")
def show_order(order: str, version: int | None) -> None:
    """Show an order: the document as JSON, or on a terminal its statuses, items, records and events."""
    with _one_line_errors():
        document = get_order(_find_id(order), principal=ANONYMOUS, version=version).document
        if not sys.stdout.isatty():
            click.echo(document)
            return
        parsed = load_document(document)
        page = list_history(parsed["id"], principal=ANONYMOUS, after=0, limit=_EVENTS_PAGE)
        events = [orjson.loads(event) for event in page.events]
        for line in _describe(parsed, [event for event in events if event["version"] <= parsed["version"]]):
            click.echo(line)


@orders.command("list", short_help="List the newest orders that match.")
@click.option("--customer-id", help="Only orders of this customer.")
@click.option("--channel", help="Only orders of this channel.")
@click.option("--item-id", help="Only orders that contain this item.")
@click.option("--status", help="Only orders with one of these statuses, separated by commas.")
@click.option("--payment-status", help="Only orders with one of these payment statuses.")
@click.option("--fulfillment-status", help="Only orders with one of these fulfillment statuses.")
@click.option("--return-status", help="Only orders with one of these return statuses.")
@click.option("--created-from", help="Only orders created at this time or later: 2026-11-28T08:00:00Z.")
@click.option("--created-to", help="Only orders created before this time.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Number of orders.")
def list_orders(limit: int, **filters: str | None) -> None:
    """List the newest orders: one JSON document a line, or a table on a terminal."""
    with _one_line_errors():
        parameters = load_parameters(
            OrderFiltersSchema(), {name: text for name, text in filters.items() if text is not None}
        )
        _show(stream_orders(parameters, principal=ANONYMOUS, limit=limit))


@orders.command("find", short_help="Find orders by words.")
@click.argument("text", nargs=-1, required=True)
@click.option("--limit", type=click.IntRange(1, PAGE_MAX), default=20, show_default=True, help="Number of orders.")
def find_orders(text: tuple[str, ...], limit: int) -> None:
    """Find orders by words of TEXT: number, reference, customer, name, e-mail, phone, postcode, item or title.

    The beginning of a word suffices. The newest orders come first, in the form of `flask orders list`.
    """
    with _one_line_errors():
        filters = load_parameters(SearchQuerySchema(), {"q": " ".join(text)})
        page = search_orders(filters, principal=ANONYMOUS, limit=limit)
        _show(page.documents)
        if page.behind:
            click.echo(f"The search is {pluralize(page.behind, 'event')} behind: is `flask worker` running?", err=True)


@orders.command("tail")
@click.option("--event", "types", type=click.Choice(EVENT_TYPES), multiple=True, help="Only this type; repeatable.")
@click.option("--order", "order_id", metavar="ID|NUMBER|REFERENCE", help="Only events of this order.")
@click.option("--after", type=click.IntRange(0), help="Begin after the event with this number instead of now.")
def tail_events(types: tuple[str, ...], order_id: str | None, after: int | None) -> None:
    """Print events as they happen, until Ctrl-C. A worker must be running: it moves them to the feed."""
    with _one_line_errors():
        filters = FeedFilter(frozenset(types) or None, None, _find_id(order_id) if order_id else None)
        position = read_ends().seq if after is None else after
        try:
            while True:
                page = list_events(filters, after=position, limit=_EVENTS_PAGE)
                for event in page.events:
                    click.echo(_event_line(orjson.loads(event.document)) if sys.stdout.isatty() else event.document)
                position = page.next_after
                if not page.more:
                    time.sleep(_POLL)
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    with migrated_database():
        try:
            yield
        except InvalidRequest as error:
            lines = (f"{_option(entry['parameter'])}: {entry['detail']}" for entry in error.members["errors"])
            raise click.ClickException(" ".join(lines)) from None
        except CursorExpired:
            raise outside_feed() from None
        except ServiceError as error:
            raise click.ClickException(error.detail) from None


def _not_found(order: str) -> click.ClickException:
    return click.ClickException(f"No order has the id, number or external reference {order!r}.")


def _option(parameter: str) -> str:
    return "TEXT" if parameter == "q" else f"--{parameter.replace('_', '-')}"


def _find_id(order: str) -> str:
    """The id of the order with this id, number or external reference. Raises click.ClickException."""
    if order_id := parse_uuid(order):
        return order_id
    try:
        by_reference = load_parameters(OrderFiltersSchema(), {"external_ref": order})
    except InvalidRequest:  # such as one that is too long
        raise _not_found(order) from None
    by_number = {"number": order, "sort": by_reference["sort"]}  # a reference may be longer than a number
    orders = [
        orjson.loads(document)
        for filters in (by_number, by_reference)
        for document in stream_orders(filters, principal=ANONYMOUS, limit=10)
    ]
    if not orders:
        raise _not_found(order)
    if len(orders) > 1:  # several principals use the same reference
        raise click.ClickException(
            f"Several orders have the reference {order!r}: {', '.join(order['id'] for order in orders)}."
        )
    return str(orders[0]["id"])


def _show(documents: Iterable[str]) -> None:
    if not sys.stdout.isatty():
        for document in documents:
            click.echo(document)
        return
    rows = [("NUMBER", "CREATED", "CUSTOMER", "STATUS", "FULFILLMENT", "PAYMENT", "TOTAL", "ID")]
    for order in map(load_document, documents):
        statuses = (order[name] for name in _STATUSES[:3])
        rows.append(
            (order["number"], order["created_at"][:19], order["customer_id"], *statuses, _total(order), order["id"])
        )
    for line in _table(rows):
        click.echo(line)


def _describe(order: Document, events: Iterable[Document]) -> Iterator[str]:
    yield f"{order['number']}  {', '.join(order[name] for name in _STATUSES)}{', late' if order['late'] else ''}\n"
    summary = {name: order[name] for name in _SUMMARY_MEMBERS if order[name] is not None}
    summary |= {f"totals.{name}": amount for name, amount in (order["totals"] or {}).items()}
    yield from _table([*summary.items(), ("allowed_actions", ", ".join(order["allowed_actions"]))])
    yield ""
    rows = [[item[name] for name in _ITEM_COLUMNS] for item in order["items"]]
    yield from _table([[name.upper() for name in _ITEM_COLUMNS], *rows])
    for name in _RECORDS:
        for record in order[name]:
            yield from _table([("", name, orjson.dumps(record).decode())])
    yield ""
    yield from _table([(event["version"], event["at"], event["type"], event["actor"]) for event in events])


def _event_line(event: Document) -> str:
    order = event["data"]
    cells = (event["seq"], event["at"], event["type"], order["number"], f"v{event['version']}", event["actor"])
    return _printable("  ".join(map(str, cells)))


def _total(order: Document) -> str:
    return f"{order['totals']['total']} {order['currency'] or ''}" if order["totals"] else ""


def _table(rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """The rows with aligned columns."""
    cells = [["" if value is None else _printable(str(value)) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()


def _printable(text: str) -> str:
    """The text without control characters, which a terminal would execute."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
