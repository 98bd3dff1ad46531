"""The projection of the search: the worker updates it from the feed, an erasure at once, and a command rebuilds it.

A row is derived from the current document of its order. Each writer locks it first, and never replaces a later version
by an earlier one. So any number of writers may run, and none stores again what an erasure has just removed.

The last functions are for `flask verify`: the search must agree with the documents, up to the event of the feed that it
reflects.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson
import structlog
from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from app.db.engine import db, read_timestamp
from app.db.statements import Statement, consistent_read, json_rows, read_rows, rows_within, typed_columns
from app.models import (
    EVENTS,
    FEED,
    FEED_HEAD,
    ORDERS,
    OUTBOX,
    SEARCH,
    SEARCH_HEAD,
    SEARCH_TERMS,
    FeedEntry,
    Order,
    OrderEvent,
)
from app.models.order_aggregate import NOT_A_DOCUMENT, load_document
from app.models.order_id import LOWEST_ID
from app.models.search import NO_TOTAL, SEARCH_HEAD_ID, order_terms

log = structlog.get_logger()

SearchRow = dict[str, Any]
TermKey = tuple[str, str]  # a term, and the id of its order

# Events in one transaction. On SQLite, whose writers wait meanwhile, it takes about 50 ms.
PROJECT_MAX = {"postgresql": 500, "sqlite": 100}
REWRITE_MAX = 100  # orders in one transaction of a rebuild, so that no statement takes long
# Terms of the orders in one transaction. Most orders have 10 to 50; one may have 10,000, and 500 of these would take
# gigabytes of memory, and a statement that exceeds its time limit at each attempt.
TERMS_MAX = 20_000
SWEEP_MAX = 5_000  # terms in one transaction
# Bytes of the documents that one statement reads: 500 of a MiB would exceed its time limit at each attempt.
DOCUMENTS_BYTES = 8 * 1024**2
FIRST_TERM: TermKey = ("", LOWEST_ID)  # before all others
_COPIED_MEMBERS = (
    "customer_id",
    "channel",
    "status",
    "fulfillment_status",
    "payment_status",
    "return_status",
    "currency",
)

_READ_HEADS = Statement(select(SEARCH_HEAD.c.seq, FEED_HEAD.c.seq, FEED_HEAD.c.pruned_seq))
_LOCK_HEAD = select(SEARCH_HEAD.c.seq).with_for_update(skip_locked=True)

_LOCK_ROWS = select(SEARCH.c.order_id, SEARCH.c.version, SEARCH.c.terms).order_by(SEARCH.c.order_id).with_for_update()
_UPDATE_ROW = (
    update(SEARCH)
    .where(SEARCH.c.order_id == bindparam("of_order"))
    .values({name: bindparam(f"new_{name}") for name in SEARCH.c.keys() if name != "order_id"})
)
_DELETE_TERM = delete(SEARCH_TERMS).where(
    SEARCH_TERMS.c.term == bindparam("of_term"), SEARCH_TERMS.c.order_id == bindparam("of_order")
)

_STORED_ROWS = select(cast(SEARCH.c.order_id, Text).label("order_id"), *(c for c in SEARCH.c if c.name != "order_id"))


def project_events() -> bool:
    """Update the projection with the next events of the feed. Returns whether there were any.

    Any number of processes may call this at once: one of them stores the rows. Raises DATABASE_ERRORS; then nothing is
    stored.
    """
    [[seq, last, pruned]] = _READ_HEADS.rows()
    if seq == last:
        return False
    if seq > last:
        return _return_to_feed(seq, last)
    if seq < pruned:
        log.error("search has missed events: run `flask search rebuild`", after=seq, until=pruned)
        seq, first = pruned, seq
    else:
        first = seq
    rows, until = _next_rows(seq, min(last, seq + PROJECT_MAX[db.engine.dialect.name]))
    with db.engine.begin() as connection:
        if connection.scalar(_LOCK_HEAD) != first:  # another worker is storing them, or has stored them
            return False
        store_rows(connection, rows)
        connection.execute(update(SEARCH_HEAD).values(seq=until))
    return True


def _return_to_feed(seq: int, last: int) -> bool:
    """Continue at the end of the feed, after a restore of the feed and not of the search. Otherwise the events that get
    the numbers up to `seq` would be missed."""
    log.error("search is ahead of the feed: run `flask search rebuild`", after=seq, until=last)
    with db.engine.begin() as connection:
        connection.execute(update(SEARCH_HEAD).where(SEARCH_HEAD.c.seq == seq).values(seq=last))
    return True


def _next_rows(after: int, until: int) -> tuple[list[SearchRow], int]:
    """The current rows of the orders with events in this range of the feed, and the number that they reach: `until`, or
    less if the orders up to it have more than TERMS_MAX terms."""
    in_range = select(FeedEntry.seq, FeedEntry.order_id).where(FeedEntry.seq > after, FeedEntry.seq <= until)
    entries = read_rows(in_range.order_by(FeedEntry.seq))
    current = {row["order_id"]: row for row in _read_current_rows(Order.id.in_({entry.order_id for entry in entries}))}
    rows: list[SearchRow] = []
    terms = 0
    for entry in entries:
        row = current.pop(entry.order_id, None)
        if row is None:  # the order of an earlier entry
            continue
        terms += _count_terms(row)
        if rows and terms > TERMS_MAX:
            return rows, entry.seq - 1
        rows.append(row)
    return rows, until


def _read_current_rows(condition: ColumnElement[bool]) -> Iterator[SearchRow]:
    """The current rows of the orders that meet the condition, by id, without those whose documents cannot be read. At
    most DOCUMENTS_BYTES of documents and one more document are in memory."""
    query = _current_documents().add_columns(Order.id.label("position")).where(condition)
    after = LOWEST_ID
    while True:
        page = rows_within(
            query.where(Order.id > after),
            position="position",
            document="snapshot",
            size=DOCUMENTS_BYTES,
            descending=False,
        )
        documents = read_rows(page)
        for row in documents:
            try:
                search = search_row(load_document(row.snapshot))
            except NOT_A_DOCUMENT:  # `flask verify` says what is wrong
                log.error("order cannot be searched", order_id=row.id)
            else:
                yield search
        if not documents or documents[-1].bytes_so_far < DOCUMENTS_BYTES:
            return
        after = documents[-1].id


def _count_terms(row: SearchRow) -> int:
    return len(row["terms"].split())


def _current_documents() -> Any:
    """The query for the current documents of orders."""
    current = (OrderEvent.order_id == Order.id) & (OrderEvent.version == Order.version)
    return select(cast(Order.id, Text).label("id"), OrderEvent.snapshot).join(OrderEvent, current)


def search_row(document: Mapping[str, Any]) -> SearchRow:
    """The row of an order, given as its document."""
    row = {name: document[name] for name in _COPIED_MEMBERS}
    totals, terms = document["totals"], sorted(order_terms(document))
    return row | {
        "order_id": document["id"],
        "version": document["version"],
        "total": totals["total"] if totals else NO_TOTAL,
        "held": bool(document["holds"]),
        "late": document["late"],
        "updated_at": read_timestamp(document["updated_at"]),
        "terms": f" {' '.join(terms)} " if terms else "",
    }


def store_rows(connection: Connection, rows: Sequence[SearchRow], *, rewrite: bool = False) -> None:
    """Store the rows of orders that are later versions than the stored ones, with their terms. Called in a transaction.

    With `rewrite`, rows of the same version and all of their terms are stored again, too.
    """
    remaining = {row["order_id"]: row for row in sorted(rows, key=lambda row: str(row["order_id"]))}
    while remaining:
        # In the order of the ids, so that two transactions do not deadlock.
        stored = connection.execute(_LOCK_ROWS.where(SEARCH.c.order_id.in_(list(remaining)))).all()
        later = [
            (remaining[row.order_id], row.terms)
            for row in stored
            if row.version < remaining[row.order_id]["version"]
            or (rewrite and row.version == remaining[row.order_id]["version"])
        ]
        _update_rows(connection, later, rewrite=rewrite)
        for row in stored:
            del remaining[row.order_id]
        if remaining:
            # Those that another transaction inserts at the same time are locked and compared in the next round.
            new = [remaining.pop(order_id) for order_id in _insert_rows(connection, list(remaining.values()))]
            _insert_terms(connection, [(term, row["order_id"]) for row in new for term in row["terms"].split()])


def _update_rows(connection: Connection, rows: Sequence[tuple[SearchRow, str]], *, rewrite: bool) -> None:
    """Update rows, each given with the terms that are stored for it."""
    if not rows:
        return
    values = [{"of_order" if name == "order_id" else f"new_{name}": row[name] for name in row} for row, _ in rows]
    connection.execute(_UPDATE_ROW, values)
    removed, added = [], []
    for row, stored in rows:
        old, new = set(stored.split()), set(row["terms"].split())
        removed += [{"of_term": term, "of_order": row["order_id"]} for term in sorted(old - new)]
        added += [(term, row["order_id"]) for term in (new if rewrite else new - old)]
    if removed:
        connection.execute(_DELETE_TERM, removed)
    _insert_terms(connection, added)


def _insert_rows(connection: Connection, rows: Sequence[SearchRow]) -> Sequence[str]:
    """Insert the rows of orders that have none, and return the ids of those orders."""
    is_postgresql = connection.dialect.name == "postgresql"
    statement = postgresql.insert(SEARCH) if is_postgresql else sqlite.insert(SEARCH)
    inserted = statement.on_conflict_do_nothing().returning(SEARCH.c.order_id)
    return connection.execute(inserted, rows).scalars().all()


def _insert_terms(connection: Connection, terms: Iterable[TermKey]) -> None:
    """Insert terms, each given with its order, unless they exist. In the order of the index, which is faster."""
    rows = [{"term": term, "order_id": order_id} for term, order_id in sorted(terms)]
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        connection.execute(sqlite.insert(SEARCH_TERMS).on_conflict_do_nothing(), rows)
        return
    connection.execute(_INSERT_TERMS, {"rows": orjson.dumps(rows).decode()})


def _insert_terms_statement() -> Any:
    rows = json_rows(cast(bindparam("rows", type_=Text), JSON), "rows", *typed_columns(SEARCH_TERMS.c))
    source = select(rows.c.term, rows.c.order_id)
    return postgresql.insert(SEARCH_TERMS).from_select(["term", "order_id"], source).on_conflict_do_nothing()


_INSERT_TERMS = _insert_terms_statement()


def read_search_seq() -> int:
    """The number in the feed up to which the search reflects its events."""
    return int(_READ_HEADS.rows()[0][0])


def rewrite_rows(after: str, last: str) -> int:
    """Rebuild the rows and all terms of the orders with `after` < id <= `last`, and return the number of rows."""
    # The range is repeated inside NOT EXISTS, or the planner reads half of that table. A row of a later version than
    # the order's, after a restore of the orders only, would never be replaced.
    order = select(Order.id).where(Order.id == SEARCH.c.order_id, Order.id > after, Order.id <= last)
    is_right = order.where(Order.version >= SEARCH.c.version).exists()
    wrong = delete(SEARCH).where(SEARCH.c.order_id > after, SEARCH.c.order_id <= last, ~is_right)
    with db.engine.begin() as connection:
        connection.execute(wrong)
    # Afterwards: a worker that met a wrong row has not stored the version that it had.
    count = 0
    for batch in _batches(_read_current_rows(and_(Order.id > after, Order.id <= last))):
        with db.engine.begin() as connection:
            store_rows(connection, batch, rewrite=True)
        count += len(batch)
    return count


def _batches(rows: Iterable[SearchRow]) -> Iterator[list[SearchRow]]:
    """The rows of each transaction of a rebuild."""
    batch: list[SearchRow] = []
    terms = 0
    for row in rows:
        terms += _count_terms(row)
        if batch and (len(batch) == REWRITE_MAX or terms > TERMS_MAX):
            yield batch
            batch, terms = [], _count_terms(row)
        batch.append(row)
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class Sweep:
    """How many terms were compared with the rows of their orders, the last of them, and how many were removed."""

    size: int
    last: TermKey
    removed: int


def sweep_terms(after: TermKey) -> Sweep | None:
    """Remove those of the next terms that are not in the row of their order. Returns None after the last term."""
    terms = read_rows(_next_terms(after))
    if not terms:
        return None
    surplus = [{"of_term": row.term, "of_order": row.order_id} for row in terms if not _is_in_row(row)]
    if surplus:
        in_row = SEARCH.c.terms.contains(" " + SEARCH_TERMS.c.term + " ")
        # The row may have been stored meanwhile.
        row = select(SEARCH.c.order_id).where(SEARCH.c.order_id == SEARCH_TERMS.c.order_id, in_row).exists()
        with db.engine.begin() as connection:
            connection.execute(_DELETE_TERM.where(~row), surplus)
    return Sweep(len(terms), (terms[-1].term, terms[-1].order_id), len(surplus))


def _next_terms(after: TermKey) -> Select[Any]:
    """The query for the next SWEEP_MAX terms, each with the terms in the row of its order, NULL without one."""
    key = SEARCH_TERMS.c.term, SEARCH_TERMS.c.order_id
    first, last = (literal(value, column.type) for value, column in zip(after, key, strict=True))
    page = select(*key).where(tuple_(*key) > tuple_(first, last)).order_by(*key).limit(SWEEP_MAX).subquery("page")
    # A scalar subquery is a lookup by primary key. A join could be planned as a scan of all orders.
    of_row = select(SEARCH.c.terms).where(SEARCH.c.order_id == page.c.order_id).scalar_subquery()
    listed = select(page.c.term, cast(page.c.order_id, Text).label("order_id"), of_row.label("terms"))
    return listed.order_by(page.c.term, page.c.order_id)


def _is_in_row(term: Any) -> bool:
    """Whether a row of `_next_terms` belongs to its order."""
    return term.terms is not None and f" {term.term} " in term.terms


def finish_rebuild(seq: int) -> None:
    """Record that the projection reflects all events up to `seq` of the feed."""
    with db.engine.begin() as connection:
        stored = connection.scalar(select(func.max(SEARCH_HEAD.c.seq)).where(SEARCH_HEAD.c.id == SEARCH_HEAD_ID))
        if stored is None:
            connection.execute(insert(SEARCH_HEAD).values(id=SEARCH_HEAD_ID, seq=seq))
        elif stored < seq:
            connection.execute(update(SEARCH_HEAD).where(SEARCH_HEAD.c.seq < seq).values(seq=seq))


class SearchQueries:
    """The queries about the search rows of orders whose ids meet a condition."""

    def __init__(self, condition: Callable[[Any], ColumnElement[bool]]) -> None:
        self.documents = _current_documents().where(condition(ORDERS.c.id))
        self.stored = _STORED_ROWS.where(condition(SEARCH.c.order_id))
        self.next_events = _select_next_events(condition)


def _select_next_events(condition: Callable[[Any], ColumnElement[bool]]) -> Select[Any]:
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
    current = [
        order_id for order_id, row in expected.items() if _stored_version(stored.get(order_id)) == row["version"]
    ]
    missing = _missing_terms(connection, [expected[order_id] for order_id in current])
    due = _due_versions(connection, queries, parameters, as_of_seq) if len(current) < len(expected) else {}
    for order_id in sorted(expected.keys() | stored.keys()):
        for difference in _compare_row(expected.get(order_id), stored.get(order_id), due.get(order_id)):
            yield f"order {order_id}: {difference}"
        if order_id in missing:
            yield f"order {order_id}: order_search_terms does not have all of its terms"


def _stored_version(stored: Any) -> int:
    """The version of a stored row; 0 if there is none."""
    return 0 if stored is None else stored.version


def _compare_row(expected: SearchRow | None, stored: Any, due: int | None) -> Iterator[str]:
    if expected is None:
        yield "there is no such order, but order_search has a row for it"
        return
    version = _stored_version(stored)
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


def _missing_terms(connection: Connection, rows: Iterable[SearchRow]) -> set[str]:
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
            rows = session.execute(_next_terms(after)).all()
        yield [
            f"order {row.order_id}: order_search_terms has a term that is not the order's"
            for row in rows
            if not _is_in_row(row)
        ]
        size = len(rows)
        after = (rows[-1].term, rows[-1].order_id) if rows else after
