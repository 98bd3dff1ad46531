"""Exporting all orders that match a filter as NDJSON or CSV, in constant memory."""

import csv
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from threading import Semaphore
from typing import Any

from sqlalchemy import Row
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from app.db.batching import PerApplication
from app.db.engine import db
from app.db.statement import rows_within, with_retry
from app.db.transactions import consistent_read
from app.models.principal import Principal
from app.services.order_document import load_document, visible_document
from app.services.order_listing import Selection, Shape, id_range, list_query, select_orders

BYTE_ORDER_MARK = "\ufeff"

# The size of a page, which an export keeps in memory while a slow client reads it.
PAGE, PAGE_BYTES = 500, 256 * 1024  # orders, bytes
_FIRST_PAGE = 16  # orders
_QUEUE_SECONDS = 10  # seconds that a page waits for a connection while other exports use theirs
_PAGE_SECONDS = 30  # a request has 3; where few orders match, a page may scan the whole table

# Where a formula can begin: at the start of a cell, and after a character that is a list separator elsewhere (`;`
# in much of Europe, a tab), since quotes do not protect it there. Possessive, so it takes linear time.
_CELL_START = re.compile(r"(?:^|[;\t\r\n])[;\"'\s]*+([=+\-@＝＋－＠]?)")
ORDER_COLUMNS = (
    "id", "number", "customer_id", "external_ref", "channel", "status", "fulfillment_status",
    "payment_status", "return_status", "currency", "version", "created_at", "updated_at", "note",
)  # fmt: skip
TOTAL_COLUMNS = ("items", "adjustments", "cancelled", "total", "paid", "refunded", "due")
ITEM_COLUMNS = (
    "line", "item_id", "title", "quantity", "unit_price", "discount", "total", "cancelled", "fulfilled", "returned"
)  # fmt: skip
# The names of columns in the header, where they are not those of the members.
_TOTAL_NAMES = {"items": "items_total", "adjustments": "adjustments_total", "cancelled": "cancelled_total"}
_ITEM_NAMES = {"total": "line_total"}


def stream_orders(
    filters: Mapping[str, Any],
    *,
    principal: Principal,
    limit: int | None = None,
    after: str | None = None,
) -> Iterator[str]:
    """The documents of all orders that match, at most `limit`, after the order with the id `after`.

    Filters as in `list_orders`. Every order that existed at the start is yielded exactly once. Orders are read page by
    page: each page is a transaction of its own, committed before its first document is yielded, and holds at most
    PAGE_BYTES and one document.
    """
    selection = select_orders(filters, principal=principal)
    remaining, size = sys.maxsize if limit is None else limit, _FIRST_PAGE
    while selection is not None and remaining > 0:
        low, high = id_range(filters, after)
        size = min(size, PAGE, remaining)
        rows = read_page(selection, low=low, high=high, limit=size)
        for _, document, _ in rows:
            yield visible_document(document, principal)
        if not rows or (len(rows) < size and rows[-1].bytes_so_far < PAGE_BYTES):
            return
        after, remaining = rows[-1].id, remaining - len(rows)
        size = 2 * len(rows)  # the database reads the sizes of all these documents, so request no more than may fit


def read_page(selection: Selection, **bounds: Any) -> Sequence[Row[*tuple[Any, ...]]]:
    query, parameters = _page_query(selection.shape), {**selection.parameters, **bounds}

    def read() -> Sequence[Row[*tuple[Any, ...]]]:
        with consistent_read(statement_timeout=_PAGE_SECONDS) as session:
            return session.execute(query, parameters).all()

    with export_connection():
        return with_retry(read)


@contextmanager
def export_connection() -> Iterator[None]:
    """Wait for one of the connections that exports share, and hold it. Raises PoolTimeout if none becomes free."""
    connections = EXPORT_CONNECTIONS.get()
    if not connections.acquire(timeout=_QUEUE_SECONDS):
        raise PoolTimeout("No database connection for exports became free in time.")
    try:
        yield
    finally:
        connections.release()


@lru_cache(maxsize=512)  # all combinations of filters that clients use fit
def _page_query(shape: Shape) -> Any:
    return rows_within(
        list_query(shape), position="id", document="document", size=PAGE_BYTES, descending=shape.descending
    )


# Exports share half of the connections, and leave the other half to other requests.
EXPORT_CONNECTIONS = PerApplication(lambda: Semaphore(_export_connections()))


def _export_connections() -> int:
    pool = db.engine.pool
    return max(1, pool.size() // 2) if isinstance(pool, QueuePool) else 1


def as_ndjson(documents: Iterable[str]) -> Iterator[str]:
    """One document a line."""
    for document in documents:
        yield document + "\n"


def as_csv(documents: Iterable[str]) -> Iterator[str]:
    """One row for each item of each order, with the order's columns repeated (RFC 4180).

    A cell that a spreadsheet would read as a formula is prefixed with an apostrophe, for any list separator.
    """
    to_text = csv.writer(_Echo()).writerow
    totals_header = [_TOTAL_NAMES.get(name, name) for name in TOTAL_COLUMNS]
    yield to_text([*ORDER_COLUMNS, *totals_header, *(_ITEM_NAMES.get(name, name) for name in ITEM_COLUMNS)])
    for document in documents:
        order = load_document(document)
        totals = order["totals"] or {}
        start = [_without_formula(order[name]) for name in ORDER_COLUMNS] + [totals.get(name) for name in TOTAL_COLUMNS]
        for item in order["items"]:
            yield to_text([*start, *(_without_formula(item[name]) for name in ITEM_COLUMNS)])


class _Echo:
    """The file of `csv.writer`: `writerow` returns what `write` returns, the row as text."""

    def write(self, text: str) -> str:
        """Return the text instead of writing it."""
        return text


def _without_formula(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    text = _CELL_START.sub(lambda start: f"{start[0][:-1]}'{start[1]}" if start[1] else start[0], cell)
    return f"'{text}" if text.startswith(("\t", "\r", "\n")) else text
