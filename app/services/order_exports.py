"""Orders on their way out: all that match, in constant memory, as NDJSON or CSV."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from app.models.principal import Principal
from app.services.order_reads import list_orders

BYTE_ORDER_MARK = "\ufeff"

PAGE = 500  # orders fetched at once: a few hundred KiB

# Where a formula could begin: at the start of a cell, and behind what another list separator (`;` in much of Europe, a
# tab) makes the start of one, for our own quotes protect nothing there. It matches each run once, so it takes linear
# time.
_CELL_START = re.compile(r"(?:^|[;\t\r\n])[;\"'\s]*+([=+\-@＝＋－＠]?)")
ORDER_COLUMNS = (
    "id", "number", "customer_id", "external_ref", "status", "fulfillment_status", "currency", "version", "created_at",
    "updated_at", "note",
)  # fmt: skip
TOTAL_COLUMNS = ("items", "adjustments", "total")
ITEM_COLUMNS = ("line", "item_id", "quantity", "unit_price", "fulfilled", "returned")


def stream_orders(
    filters: Mapping[str, Any],
    *,
    principal: Principal,
    descending: bool,
    limit: int | None = None,
    after: str | None = None,
) -> Iterator[str]:
    """The documents of all orders that match, at most `limit`, from just behind the id `after`, page by page.

    Every order that was there at the start comes exactly once. Each page is a query of its own, so that a slow reader
    holds no transaction open.
    """
    left = limit
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        page = list_orders(filters, principal=principal, descending=descending, limit=size, after=after)
        yield from page.documents
        after = page.next_after
        if after is None:
            return
        left = None if left is None else left - size


def as_ndjson(documents: Iterable[str]) -> Iterator[str]:
    """One document a line."""
    for document in documents:
        yield document + "\n"


def as_csv(documents: Iterable[str]) -> Iterator[str]:
    """One row for each line of each order, the order's own columns repeated (RFC 4180).

    What a spreadsheet would take for a formula gets an apostrophe in front, whatever separator it reads the file with.
    """
    yield _csv_row([*ORDER_COLUMNS, "items_total", "adjustments_total", "total", *ITEM_COLUMNS])
    for document in documents:
        order = orjson.loads(document)
        totals = order["totals"] or {}
        start = [order[name] for name in ORDER_COLUMNS] + [totals.get(name) for name in TOTAL_COLUMNS]
        for item in order["items"]:
            yield _csv_row([*start, *(item[name] for name in ITEM_COLUMNS)])


def _csv_row(cells: Iterable[Any]) -> str:
    out = io.StringIO()
    csv.writer(out).writerow([_harmless(cell) for cell in cells])
    return out.getvalue()


def _harmless(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    text = _CELL_START.sub(lambda start: f"{start[0][:-1]}'{start[1]}" if start[1] else start[0], cell)
    return f"'{text}" if text.startswith(("\t", "\r", "\n")) else text
