"""Whether the search agrees with the documents of the orders, up to the event of the feed that it reflects."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import orjson
from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Select,
    Text,
    bindparam,
    cast,
    func,
    select,
)

from app.db.statement import json_rows, typed_columns
from app.db.transactions import consistent_read
from app.models import EVENTS, FEED, FEED_HEAD, ORDERS, OUTBOX, SEARCH, SEARCH_HEAD, SEARCH_TERMS
from app.services.order_document import load_document
from app.services.search_projection import (
    FIRST_TERM,
    SWEEP_MAX,
    TERMS_MAX,
    Row,
    current_documents,
    is_in_row,
    next_terms,
    search_row,
)

_STORED = select(cast(SEARCH.c.order_id, Text).label("order_id"), *(c for c in SEARCH.c if c.name != "order_id"))


class SearchQueries:
    """The queries about the search rows of orders whose ids meet a condition."""

    def __init__(self, condition: Callable[[Any], ColumnElement[bool]]) -> None:
        self.documents = current_documents().where(condition(ORDERS.c.id))
        self.stored = _STORED.where(condition(SEARCH.c.order_id))
        self.next_events = _next_events(condition)


def _next_events(condition: Callable[[Any], ColumnElement[bool]]) -> Select[Any]:
    """The first version of each order that the search does not have, and the position of its event."""
    stored = select(SEARCH.c.version).where(SEARCH.c.order_id == EVENTS.c.order_id).scalar_subquery()
    later = select(EVENTS.c.order_id, func.min(EVENTS.c.version).label("version")).group_by(EVENTS.c.order_id)
    first = later.where(condition(EVENTS.c.order_id), EVENTS.c.version > func.coalesce(stored, 0)).subquery()
    positions = [
        select(column).where(table.c.order_id == first.c.order_id, table.c.version == first.c.version).scalar_subquery()
        for table, column in ((FEED, FEED.c.seq), (OUTBOX, OUTBOX.c.version))
    ]
    return select(cast(first.c.order_id, Text), first.c.version, *positions)


def compare_search(connection: Connection, queries: SearchQueries, parameters: Mapping[str, Any]) -> Iterator[str]:
    """The differences of the orders, between their current documents and the search."""
    snapshots = connection.execute(queries.documents, parameters)
    expected = {row["order_id"]: row for row in (search_row(load_document(row.snapshot)) for row in snapshots)}
    stored = {row.order_id: row for row in connection.execute(queries.stored, parameters)}
    as_of_seq = connection.scalar(select(SEARCH_HEAD.c.seq))
    if as_of_seq is None:
        return
    current = [order_id for order_id, row in expected.items() if _version(stored, order_id) == row["version"]]
    missing = _missing_terms(connection, [expected[order_id] for order_id in current])
    due = _due_versions(connection, queries, parameters, as_of_seq) if len(current) < len(expected) else {}
    for order_id in sorted(expected.keys() | stored.keys()):
        for difference in _compare(expected.get(order_id), stored.get(order_id), due.get(order_id)):
            yield f"order {order_id}: {difference}"
        if order_id in missing:
            yield f"order {order_id}: order_search_terms does not have all of its terms"


def verify_search_head() -> list[str]:
    """The differences between the number of the search and those of the feed."""
    with consistent_read(statement_timeout=None) as session:
        seq, last = session.scalar(select(SEARCH_HEAD.c.seq)), session.scalar(select(FEED_HEAD.c.seq))
    if seq is None:
        return ["search: search_head has no row"]
    return [f"search: search_head has {seq}, but the feed ends at {last}"] if last is not None and seq > last else []


def verify_search_terms() -> Iterator[list[str]]:
    """Verify that all terms belong to their order, and yield the differences of each page."""
    after, size = FIRST_TERM, SWEEP_MAX
    while size == SWEEP_MAX:
        with consistent_read(statement_timeout=None) as session:
            rows = session.execute(next_terms(after)).all()
        yield [
            f"order {row.order_id}: order_search_terms has a term that is not the order's"
            for row in rows
            if not is_in_row(row)
        ]
        size = len(rows)
        after = (rows[-1].term, rows[-1].order_id) if rows else after


def _version(stored: Mapping[str, Any], order_id: str) -> int:
    row = stored.get(order_id)
    return 0 if row is None else row.version


def _compare(expected: Row | None, stored: Any, due: int | None) -> Iterator[str]:
    if expected is None:
        yield "there is no such order, but order_search has a row for it"
        return
    version = 0 if stored is None else stored.version
    if version > expected["version"]:
        yield f"order_search has version {version}, but the order has {expected['version']}"
    elif version < expected["version"]:
        if due is not None:
            yield f"order_search has {f'version {version}' if version else 'no row'}, but version {due} is due"
    else:
        for name, value in expected.items():
            if getattr(stored, name) != value:
                yield f"{name} in order_search differs from the document"


def _due_versions(
    connection: Connection, queries: SearchQueries, parameters: Mapping[str, Any], as_of_seq: int
) -> dict[str, int]:
    """The first version of each order that the search should have and does not have."""
    return {
        order_id: version
        for order_id, version, seq, pending in connection.execute(queries.next_events, parameters)
        if pending is None and (seq is None or seq <= as_of_seq)
    }


def _missing_terms(connection: Connection, rows: Iterable[Row]) -> set[str]:
    """The ids of the orders with a term that has no row of its own."""
    pairs = ({"term": term, "order_id": row["order_id"]} for row in rows for term in row["terms"].split())
    query, missing = _MISSING_TERMS[connection.dialect.name], set[str]()
    while page := list(islice(pairs, TERMS_MAX)):
        missing.update(connection.execute(query, {"pairs": orjson.dumps(page).decode()}).scalars())
    return missing


def _missing_terms_query(pairs: Any) -> Select[str]:
    # A scalar subquery is a lookup by primary key. NOT EXISTS could be planned as a scan of all terms.
    same = SEARCH_TERMS.c.term == pairs.c.term, SEARCH_TERMS.c.order_id == pairs.c.order_id
    stored = select(SEARCH_TERMS.c.term).where(*same).scalar_subquery()
    return select(cast(pairs.c.order_id, Text)).where(stored.is_(None)).distinct()


def _pairs_on_sqlite() -> Any:
    rows = func.json_each(bindparam("pairs", type_=Text)).table_valued("value", name="rows")
    return select(
        *(func.json_extract(rows.c.value, f"$.{name}").label(name) for name in SEARCH_TERMS.c.keys())
    ).subquery()


_MISSING_TERMS = {
    "postgresql": _missing_terms_query(
        json_rows(cast(bindparam("pairs", type_=Text), JSON), "pairs", *typed_columns(SEARCH_TERMS.c))
    ),
    "sqlite": _missing_terms_query(_pairs_on_sqlite()),
}
