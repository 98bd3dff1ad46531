"""Searching orders by words and filters, with sorts and facets, at a bounded cost for every query.

The first statement counts, up to CANDIDATES_MAX, how many orders each condition selects by its index. The page then
comes from one of three sources:

- `candidates`: if a condition selects few orders, all of them are read, filtered and sorted.
- `walk`: if all conditions select many orders, or the index of the condition with few orders has the sort, an index
  with the sort is read from the cursor on, and filtered. Since every condition is common, a page is soon full. If the
  conditions exclude each other, the walk ends after WALK_MAX orders.
- `ids`: if a walk has found too few orders, those that have all words are looked up in the index of the terms.

If these are too many as well, or if there are no words, the page has fewer orders, or none, and a cursor to continue.

The statements follow the search that runs them. Their plans do not depend on the statistics of the database: each range
of an index is limited and has the sort of the index, and rows are looked up one by one.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
from sqlalchemy import (
    JSON,
    ColumnElement,
    Integer,
    Select,
    Subquery,
    Text,
    and_,
    asc,
    bindparam,
    cast,
    desc,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    union_all,
)

from app.db.engine import UUID, db, read_timestamp, rfc3339
from app.db.statements import Statement, is_like_any, is_one_of
from app.errors import ServiceUnavailable
from app.models import FEED_HEAD, SEARCH, SEARCH_HEAD, SEARCH_TERMS, Order, OrderEvent
from app.models.lifecycle import NOT_RETURNED
from app.models.order_aggregate import visible_document
from app.models.order_id import HIGHEST_ID, LOWEST_ID, first_order_id, next_id
from app.models.principal import Principal
from app.models.search import INDEXED, NO_TOTAL, SORTED_FILTERS, SORTS, metadata_term, query_words, tag_term
from app.services.order_queries import first_within_page, owned_by, owner_parameters, owner_values, restrict_to_owner

CANDIDATES_MAX = 10_000  # orders that are read and sorted for one page
INTERSECTION_MAX = 50_000  # orders with a word that are compared with those with another word
WALK_MAX = 10_000  # orders that one page walks over
FACETS_MAX = 50_000  # orders that are counted for facets
FACET_VALUES_MAX = 100  # of one facet, those with most orders
SLOTS = threading.BoundedSemaphore(4)  # searches of a process, so that they leave connections to all others
CLOCKS_DIFFER_MAX = timedelta(days=1)  # of two machines; `created_from` is in 1970 or later
QUEUE_SECONDS = 4.0  # seconds that a search waits for others; its statements may take the rest of the 10 s of a request

_COLUMNS = (
    "customer_id", "channel", "status", "fulfillment_status", "payment_status", "return_status", "currency",
    "held", "late",
)  # fmt: skip
_ONE_OF = ("channel", "status", "fulfillment_status", "payment_status", "return_status")  # may have several values
_FLAGS = ("held", "late")  # their partial indexes contain the orders for which they are true, but not the value
_LAST_CHARACTER = "\U0010ffff"  # after every character of a term
# The bounds of the sorts: from the first value to the second, which is excluded.
_BOUNDS: dict[str, tuple[Any, Any]] = {
    "created_at": (LOWEST_ID, HIGHEST_ID),
    "updated_at": ("0001-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z"),
    "total": (NO_TOTAL, 2**63 - 1),
}


class Path(NamedTuple):
    """An index that selects the orders of a condition, and the number of its ranges: one for each value.

    The name is that of the condition: a column, or `term_0`, `term_1`, …
    """

    name: str
    ranges: int


class Source(NamedTuple):
    """The source of the rows of a page.

    `candidates`: all orders of the path. `ids`: those with the ids in the parameter of this name. `walk`: the first
    orders by the sort, of the path if there is one.
    """

    kind: str
    path: Path | None = None


class PageShape(NamedTuple):
    """What the SQL of a page depends on."""

    source: Source
    conditions: tuple[str, ...]
    sort: str
    descending: bool


@dataclass(frozen=True, slots=True)
class SearchPosition:
    """The position of an order in a sort: its id, and its time of change (RFC 3339) or total if that is the sort."""

    value: str | int | None
    order_id: str


@dataclass(frozen=True, slots=True)
class SearchPage:
    """Order documents, and the position to continue from if there may be more.

    The search reflects all events up to `as_of_seq` of the feed; `behind` events of the feed follow it. Customers do
    not receive `as_of_seq`: it discloses how many changes the shop has. `facets` are the values with their numbers of
    orders by name; `facets_complete` is whether all matching orders are counted.
    """

    documents: list[str]
    next_after: SearchPosition | None
    as_of_seq: int | None
    behind: int
    facets: dict[str, list[dict[str, Any]]]
    facets_complete: bool

    @property
    def members(self) -> dict[str, Any]:
        """What a response has besides the documents; facets only if some were requested."""
        members: dict[str, Any] = {"as_of_seq": self.as_of_seq, "behind": self.behind}
        return members | ({"facets": self.facets, "facets_complete": self.facets_complete} if self.facets else {})


def search_orders(
    filters: Mapping[str, Any],
    *,
    principal: Principal,
    limit: int,
    facets: Sequence[str] = (),
    after: SearchPosition | None = None,
) -> SearchPage:
    """The principal's orders that match `q` and all filters, after the position `after`.

    The filters are those of SearchFiltersSchema. Documents are the current ones, even if the search is behind the feed.
    A page has fewer orders than `limit`, although more follow, if their documents would exceed PAGE_LENGTH, or after
    WALK_MAX orders of which few matched. Raises ServiceUnavailable if other searches take too long.
    """
    search = _Search(filters, principal)
    with _slot():
        as_of_seq, last, *counts = search.count()
        source = search.choose_source(counts)
        documents, next_after = search.page(source, limit=limit, after=after) if source else ([], None)
        if source and source.kind == "walk" and next_after and len(documents) < limit and search.intersect():
            source = Source("ids")
            documents, next_after = search.page(source, limit=limit, after=after)
        values, complete = search.facets(source, facets) if source and facets else ({name: [] for name in facets}, True)
    visible = [visible_document(document, principal) for document in documents]
    seq = None if principal.customer_id is not None else as_of_seq
    return SearchPage(visible, next_after, seq, max(last - as_of_seq, 0), values, complete)


@contextmanager
def _slot() -> Iterator[None]:
    if not SLOTS.acquire(timeout=QUEUE_SECONDS):
        raise ServiceUnavailable("Too many searches are running. Send the request again.")
    try:
        yield
    finally:
        SLOTS.release()


class _Search:
    """The conditions of a search, with the parameters of its statements."""

    def __init__(self, filters: Mapping[str, Any], principal: Principal) -> None:
        sort = str(filters["sort"])
        self._sort, self._descending = sort.removeprefix("-"), sort.startswith("-")
        self._values = _column_values(filters, principal)
        self._terms = _required_terms(filters)
        self._ranges = _given_ranges(filters)
        self._matches_nothing = not all(self._values.values()) or not all(self._terms)
        self._is_bound = principal.channels is not None
        self._paths = list(self._find_paths())
        self._parameters = self._condition_parameters() | owner_values(principal)

    def count(self) -> Sequence[int]:
        """The numbers of search and feed, and of the orders that each path selects."""
        paths = () if self._matches_nothing else tuple(self._paths)
        [row] = count_statement(paths).rows(**self._parameters, range_limit=CANDIDATES_MAX + 1)
        return row

    def choose_source(self, counts: Sequence[int]) -> Source | None:
        """Where to read the rows from; None if nothing matches."""
        if self._matches_nothing:
            return None
        count, path = min(zip(counts, self._paths, strict=True), default=(None, None))
        if count == 0:
            return None
        if path is not None and count is not None and count <= CANDIDATES_MAX:
            return Source("walk" if self._sort in SORTED_FILTERS.get(path.name, ()) else "candidates", path)
        with_sort = (path for path in self._paths if self._sort in SORTED_FILTERS.get(path.name, ()))
        return Source("walk", min(with_sort, key=self._walk_preference, default=None))

    def _walk_preference(self, path: Path) -> tuple[bool, int]:
        """A key bound to channels walks over their orders: a cursor discloses the id and total of the last order
        walked."""
        return self._is_bound and path.name != "channel", list(SORTED_FILTERS).index(path.name)

    def intersect(self) -> bool:
        """Find the orders that have all words, tags and metadata. Returns False if these are too many to be sorted."""
        paths = tuple(path for path in self._paths if path.name.startswith("term_"))
        if len(paths) < 2:
            return False
        limits = {"range_limit": INTERSECTION_MAX + 1, "limit": CANDIDATES_MAX + 1}
        rows = _intersection_statement(paths).rows(**self._parameters, **limits)
        ids = [order_id for order_id, _ in rows if order_id is not None]
        compared = next(number for order_id, number in rows if order_id is None)
        if compared < 2 or len(ids) > CANDIDATES_MAX:
            return False
        self._parameters["ids"] = orjson.dumps(ids).decode()
        return True

    def page(
        self, source: Source, *, limit: int, after: SearchPosition | None
    ) -> tuple[list[str], SearchPosition | None]:
        """The documents of a page, and the position to continue from."""
        parameters = self._parameters | self._sort_parameters(after)
        rows = page_statement(self._shape(source), db.engine.dialect.name).rows(
            **parameters, limit=limit + 1, walk=WALK_MAX, range_limit=CANDIDATES_MAX + 1
        )
        # The last row of a walk is returned whether it matches or not. There may be more after it.
        last = rows[-1] if rows and rows[-1][3] == WALK_MAX else None
        matching = [row for row in rows if row[2] and row[4] is not None]
        if len(matching) > limit:
            matching = matching[:limit]
            last = matching[-1]
        documents = first_within_page([row[4] for row in matching])
        if len(documents) < len(matching):
            last = matching[len(documents) - 1]
        return documents, None if last is None else SearchPosition(self._sort_value(last[1]), last[0])

    def facets(self, source: Source, names: Sequence[str]) -> tuple[dict[str, list[dict[str, Any]]], bool]:
        """How many of the matching orders have each value, and whether all of them are counted."""
        parameters = self._parameters | self._sort_parameters(None)
        rows = _facet_statement(self._shape(source), tuple(names), db.engine.dialect.name).rows(
            **parameters, walk=FACETS_MAX, range_limit=CANDIDATES_MAX + 1
        )
        counters: dict[str, Counter[Any]] = {name: Counter() for name in names}
        for *values, matches, count in rows:
            for name, value in zip(names, values, strict=True):
                counters[name][bool(value) if name in _FLAGS else value] += count if matches else 0
        counted = {
            name: [{"value": value, "count": count} for value, count in counter.most_common(FACET_VALUES_MAX) if count]
            for name, counter in counters.items()
        }
        return counted, source.kind != "walk" or sum(row[-1] for row in rows) < FACETS_MAX

    def _shape(self, source: Source) -> PageShape:
        names = (*self._values, *(f"term_{i}" for i in range(len(self._terms))))
        ranges = (name for name in self._ranges if name != "created_at")  # that one is always a condition
        return PageShape(source, (*names, *ranges), self._sort, self._descending)

    def _find_paths(self) -> Iterator[Path]:
        for i, spellings in enumerate(self._terms):
            yield Path(f"term_{i}", len(spellings))
        for name, values in self._values.items():
            is_indexed = {
                "held": values == [True],
                "late": values == [True],
                "return_status": NOT_RETURNED not in values,
            }
            if is_indexed.get(name, True):
                yield Path(name, len(values))
        for name in self._ranges:
            yield Path(name, 1)

    def _condition_parameters(self) -> dict[str, Any]:
        parameters: dict[str, Any] = {}
        for i, spellings in enumerate(self._terms):
            parameters[f"term_{i}_patterns"] = orjson.dumps([f"% {spelling}%" for spelling in spellings]).decode()
            for j, spelling in enumerate(spellings):
                parameters |= {f"term_{i}_{j}_low": spelling, f"term_{i}_{j}_high": spelling + _LAST_CHARACTER}
        for name, values in self._values.items():
            parameters |= {f"{name}_{i}": value for i, value in enumerate(values)}
            parameters[f"{name}_values"] = orjson.dumps(values).decode()
            parameters[f"{name}_value"] = next(iter(values), None)
        for name, bounds in _BOUNDS.items():
            parameters[f"{name}_low"], parameters[f"{name}_high"] = self._ranges.get(name, bounds)
        return parameters

    def _sort_parameters(self, after: SearchPosition | None) -> dict[str, Any]:
        """The bounds of the sort, from which `after` cuts off what comes before it."""
        low, high = self._ranges.get(self._sort, _BOUNDS[self._sort])
        by_creation = SORTS[self._sort] == ("order_id",)
        first, last = ((None, low), (None, high)) if by_creation else ((low, LOWEST_ID), (high, LOWEST_ID))
        if after is not None and self._descending:
            last = min(last, (after.value, after.order_id), key=_comparable)
        elif after is not None:
            first = max(first, (after.value, next_id(after.order_id)), key=_comparable)
        return {
            "sort_low": first[0], "sort_low_id": first[1], "sort_high": last[0], "sort_high_id": last[1]
        }  # fmt: skip

    def _sort_value(self, stored: Any) -> str | int | None:
        if self._sort == "updated_at":
            return rfc3339(read_timestamp(stored))
        return int(stored) if self._sort == "total" else None


def _comparable(position: tuple[Any, str]) -> tuple[Any, ...]:
    return position if position[0] is not None else position[1:]


def _column_values(filters: Mapping[str, Any], principal: Principal) -> dict[str, list[Any]]:
    """The values of each filter by column; an empty list if no order can match."""
    columns = {name: filters[name] for name in _COLUMNS if name in filters}
    values = {name: list(value) if isinstance(value, tuple) else [value] for name, value in columns.items()}
    restrict_to_owner(values, principal)
    return values


def _required_terms(filters: Mapping[str, Any]) -> list[list[str]]:
    """The terms that an order must have, each with its spellings. Without a spelling, no order can match."""
    text = str(filters.get("q", "")).strip()
    words = (query_words(text) or [[]]) if text else []
    tags = [[tag_term(filters["tag"])]] if "tag" in filters else []
    return words + tags + [[metadata_term(*pair)] for pair in filters.get("metadata", {}).items()]


def _given_ranges(filters: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The bounds of the ranges that are given, by sort. The upper bound is excluded."""
    ranges: dict[str, tuple[Any, Any]] = {}
    for name, short in (("created_at", "created"), ("updated_at", "updated"), ("total", "total")):
        low, high = filters.get(f"{short}_from"), filters.get(f"{short}_to")
        if low is None and high is None:
            continue
        if name == "total":
            ranges[name] = (low or 0, _BOUNDS[name][1] if high is None else high + 1)
            continue
        convert = first_order_id if name == "created_at" else rfc3339
        first, last = _BOUNDS[name]
        ranges[name] = (first if low is None else convert(low), last if high is None else convert(high))
    if "created_at" in ranges and filters.get("created_from") is not None:
        # No order is changed before it is created, except by the clock of another machine: a walk by time of change
        # need not begin much earlier.
        first, last = ranges.get("updated_at", _BOUNDS["updated_at"])
        ranges["updated_at"] = (max(first, rfc3339(filters["created_from"] - CLOCKS_DIFFER_MAX)), last)
    return ranges


@lru_cache(maxsize=512)
def count_statement(paths: tuple[Path, ...]) -> Statement:
    """The numbers of search and feed, and how many orders each path selects, up to `range_limit` for each range."""
    counts = (
        select(func.count()).select_from(union_all(*_range_queries(path)).subquery()).scalar_subquery()
        for path in paths
    )
    return Statement(select(SEARCH_HEAD.c.seq, FEED_HEAD.c.seq, *counts))


@lru_cache(maxsize=512)
def _intersection_statement(paths: tuple[Path, ...]) -> Statement:
    """Rows (id, NULL) of the orders that all paths with less than `range_limit` terms select, up to `limit`, and one
    row (NULL, number of these paths)."""
    ids = [
        select(select(union_all(*_range_queries(path)).subquery().c.order_id).distinct().subquery()) for path in paths
    ]
    return Statement(_intersection([query.cte(f"ids_{i}") for i, query in enumerate(ids)]))


def _intersection(sets: Sequence[Any]) -> Any:
    limit = _parameter("range_limit", Integer)
    is_complete = [select(func.count()).select_from(cte).scalar_subquery() < limit for cte in sets]
    complete = func.coalesce(sum((cast(flag, Integer) for flag in is_complete[1:]), cast(is_complete[0], Integer)), 0)
    members = (select(cte.c.order_id).where(flag) for cte, flag in zip(sets, is_complete, strict=True))
    union = union_all(*members).subquery()
    number = select(complete).scalar_subquery()
    common = select(union.c.order_id).group_by(union.c.order_id).having(func.count() == number)
    listed = common.limit(_parameter("limit", Integer)).subquery()
    return union_all(
        select(cast(listed.c.order_id, Text).label("order_id"), null().label("complete")),
        select(cast(null(), Text), number),
    )


@lru_cache(maxsize=512)
def page_statement(shape: PageShape, dialect: str) -> Statement:
    """Rows (id, value of the sort, whether it matches, its number in the walk, document) of the first `limit` orders
    that match, and of the last order of a walk, which has the number `walk`."""
    rows = _source_rows(shape, dialect)
    sort = _sorting(rows.c, shape)
    value = rows.c[SORTS[shape.sort][0]]
    number: ColumnElement[Any] = literal_column("0")
    if shape.source.kind == "walk":
        number = func.row_number().over(order_by=sort)
    numbered: list[Any] = [rows.c.order_id, value.label("value"), rows.c.matches, number.label("number")]
    walk = select(*numbered).subquery("walked")
    page = (
        select(walk)
        .where(or_(walk.c.matches, walk.c.number == _parameter("walk", Integer)))
        .order_by(*_page_sorting(walk.c, shape))
        .limit(_parameter("limit", Integer))
        .subquery("page")
    )
    row: list[Any] = [cast(page.c.order_id, Text), page.c.value, page.c.matches, page.c.number]
    return Statement(select(*row, _current_document(page)).order_by(*_page_sorting(page.c, shape)))


def _current_document(page: Subquery) -> ColumnElement[str | None]:
    """The current document of an order, which must be the owner's; NULL otherwise."""
    owned = Order.id == page.c.order_id, owned_by(*owner_parameters())
    version = select(Order.version).where(*owned).correlate(page).scalar_subquery()
    of_order = OrderEvent.order_id == page.c.order_id, OrderEvent.version == version
    return select(OrderEvent.snapshot).where(*of_order).correlate(page).scalar_subquery()


def _sorting(columns: Any, shape: PageShape) -> list[Any]:
    direction = desc if shape.descending else asc
    return [direction(columns[name]) for name in SORTS[shape.sort]]


def _page_sorting(columns: Any, shape: PageShape) -> list[Any]:
    direction = desc if shape.descending else asc
    return [direction(columns.value), direction(columns.order_id)]


@lru_cache(maxsize=512)
def _facet_statement(shape: PageShape, facets: tuple[str, ...], dialect: str) -> Statement:
    """Rows (values of the facets, whether they match, number of orders)."""
    rows = _source_rows(shape, dialect)
    values = [rows.c[name] for name in facets]
    query = select(*values, rows.c.matches, func.count()).group_by(*values, rows.c.matches)
    return Statement(query)


def _source_rows(shape: PageShape, dialect: str) -> Any:
    """The rows of the source, with the column `matches`."""
    if shape.source.kind == "walk":
        walked = _walk(shape).subquery("rows")
        return select(walked, _matches(walked.c, shape).label("matches")).subquery("matched")
    if shape.source.kind == "ids":
        ids = _given_ids(dialect)
    else:
        assert shape.source.path is not None
        selected = union_all(*_range_queries(shape.source.path)).subquery("selected")
        ids = select(selected.c.order_id).distinct()
    matching = select(SEARCH, true().label("matches"))
    conditions = _matches(SEARCH.c, shape), *_within_sort(SEARCH.c, shape)
    if dialect == "sqlite":
        return matching.where(SEARCH.c.order_id.in_(ids), *conditions).subquery("matched")
    # LATERAL: a lookup by primary key for each order. A join could be planned as a scan of all orders.
    of_path = ids.subquery("ids")
    row = matching.where(SEARCH.c.order_id == of_path.c.order_id, *conditions).limit(literal_column("1"))
    matched = row.lateral("row")
    return select(matched).select_from(of_path).join(matched, true()).subquery("matched")


def _given_ids(dialect: str) -> Select[Any]:
    ids = _parameter("ids", Text)
    if dialect == "sqlite":
        return select(func.json_each(ids).table_valued("value").c.value.label("order_id"))
    elements = func.json_array_elements_text(cast(ids, JSON)).table_valued("value")
    return select(cast(elements.c.value, UUID).label("order_id"))


def _walk(shape: PageShape) -> Any:
    """The first `walk` rows by the sort, of the path or of all orders."""
    limit = _parameter("walk", Integer)
    path = shape.source.path or Path("", 1)
    ranges = [
        select(SEARCH).where(*_walked_range(path, i, shape)).order_by(*_walk_sorting(path, shape)).limit(limit)
        for i in range(path.ranges)
    ]
    if len(ranges) == 1:
        return ranges[0]
    merged = union_all(*(select(query.subquery()) for query in ranges)).subquery("merged")
    return select(merged).order_by(*_sorting(merged.c, shape)).limit(limit)


def _walk_sorting(path: Path, shape: PageShape) -> list[Any]:
    direction = desc if shape.descending else asc
    return [
        direction(column) for column in (*_leading_columns(path.name), *(SEARCH.c[name] for name in SORTS[shape.sort]))
    ]


def _leading_columns(name: str) -> list[Any]:
    return [SEARCH.c[name]] if name and name not in _FLAGS else []


def _walked_range(path: Path, i: int, shape: PageShape) -> list[Any]:
    """The i-th range of the path, between the bounds of the sort.

    A row comparison: (status, updated_at, id) from (s, …) to (s, …) means status = s, and only the index on these
    columns has this order, so that the planner does not use another one.
    """
    leading = _leading_columns(path.name)
    columns = [*leading, *(SEARCH.c[name] for name in SORTS[shape.sort])]
    low, high = (
        [_parameter(f"{path.name}_{i}") for _ in leading] + [_bound(bound, name) for name in SORTS[shape.sort]]
        for bound in ("low", "high")
    )
    return [tuple_(*columns) >= tuple_(*low), tuple_(*columns) < tuple_(*high), *_index_conditions(path.name)]


def _bound(bound: str, name: str) -> ColumnElement[Any]:
    return bindparam(f"sort_{bound}_id" if name == "order_id" else f"sort_{bound}", type_=SEARCH.c[name].type)


def _within_sort(columns: Any, shape: PageShape) -> list[Any]:
    names = SORTS[shape.sort]
    sort = tuple_(*(columns[name] for name in names))
    low, high = (tuple_(*(_bound(bound, name) for name in names)) for bound in ("low", "high"))
    return [sort >= low, sort < high]


def _index_conditions(name: str) -> list[Any]:
    return [INDEXED[name]] if name in INDEXED else []


def _range_queries(path: Path) -> list[Any]:
    """The queries for the ids of the orders in each range of the path, each up to `range_limit`."""
    return [select(_range_query(path.name, i).subquery().c.order_id) for i in range(path.ranges)]


def _range_query(name: str, i: int) -> Select[Any]:
    limit = _parameter("range_limit", Integer)
    if name.startswith("term_"):
        term, order_id = SEARCH_TERMS.c.term, SEARCH_TERMS.c.order_id
        low, high = _parameter(f"{name}_{i}_low"), _parameter(f"{name}_{i}_high")
        return select(order_id).where(term >= low, term < high).order_by(term, order_id).limit(limit)
    leading = [] if name in SORTS else _leading_columns(name)
    sort = name if name in SORTS else SORTED_FILTERS[name][0]
    columns = [*leading, *(SEARCH.c[column] for column in SORTS[sort])]
    low, high = (
        tuple_(*(_parameter(f"{name}_{i}") for _ in leading), *_range_bounds(sort, bound)) for bound in ("low", "high")
    )
    query = select(SEARCH.c.order_id).where(tuple_(*columns) >= low, tuple_(*columns) < high)
    return query.where(*_index_conditions(name)).order_by(*columns).limit(limit)


def _range_bounds(sort: str, bound: str) -> list[Any]:
    value = bindparam(f"{sort}_{bound}", type_=SEARCH.c[SORTS[sort][0]].type)
    return [value] if sort == "created_at" else [value, literal_column(f"'{LOWEST_ID}'", UUID)]


def _matches(columns: Any, shape: PageShape) -> ColumnElement[bool]:
    """Whether a row meets all conditions."""
    created = (
        columns.order_id >= _parameter("created_at_low", UUID),
        columns.order_id < _parameter("created_at_high", UUID),
    )
    return and_(*created, *(_condition(columns, name) for name in shape.conditions))


def _condition(columns: Any, name: str) -> ColumnElement[bool]:
    if name.startswith("term_"):
        return is_like_any(columns.terms, _parameter(f"{name}_patterns"))
    if name in _ONE_OF:
        return is_one_of(columns[name], _parameter(f"{name}_values"))
    if name in _COLUMNS:
        condition: ColumnElement[bool] = columns[name] == bindparam(f"{name}_value", type_=SEARCH.c[name].type)
        return condition
    low, high = (bindparam(f"{name}_{bound}", type_=SEARCH.c[name].type) for bound in ("low", "high"))
    return and_(columns[name] >= low, columns[name] < high)


def _parameter(name: str, kind: Any = Text) -> ColumnElement[Any]:
    return bindparam(name, type_=kind)
