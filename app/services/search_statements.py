"""The statements of the search.

Their plans do not depend on the statistics of the database: each range of an index is limited and has the sort of the
index, and rows are looked up one by one.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    JSON,
    ColumnElement,
    Integer,
    Select,
    Subquery,
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
from sqlalchemy import Text as SQLText

from app.db.statement import Statement, is_like_any, is_one_of
from app.db.types import UUID
from app.models import FEED_HEAD, SEARCH, SEARCH_HEAD, SEARCH_TERMS, Order, OrderEvent
from app.models.order_id import LOWEST_ID
from app.models.search import INDEXED, SORTED_FILTERS, SORTS
from app.services.order_queries import owned_by, owner_parameters

_ONE_OF = ("channel", "status", "fulfillment_status", "payment_status", "return_status")
_EQUAL = ("customer_id", "currency", "held", "late")
_FLAGS = ("held", "late")  # their partial indexes contain the orders for which they are true, but not the value


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


@lru_cache(maxsize=512)
def count_statement(paths: tuple[Path, ...]) -> Statement:
    """The numbers of search and feed, and how many orders each path selects, up to `range_limit` for each range."""
    counts = (
        select(func.count()).select_from(union_all(*_ranges(path)).subquery()).scalar_subquery() for path in paths
    )
    return Statement(select(SEARCH_HEAD.c.seq, FEED_HEAD.c.seq, *counts))


@lru_cache(maxsize=512)
def intersection_statement(paths: tuple[Path, ...]) -> Statement:
    """Rows (id, NULL) of the orders that all paths with less than `range_limit` terms select, up to `limit`, and one
    row (NULL, number of these paths)."""
    ids = [select(select(union_all(*_ranges(path)).subquery().c.order_id).distinct().subquery()) for path in paths]
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
        select(cast(listed.c.order_id, SQLText).label("order_id"), null().label("complete")),
        select(cast(null(), SQLText), number),
    )


@lru_cache(maxsize=512)
def page_statement(shape: PageShape, dialect: str) -> Statement:
    """Rows (id, value of the sort, whether it matches, its number in the walk, document) of the first `limit` orders
    that match, and of the last order of a walk, which has the number `walk`."""
    return Statement(page_query(shape, dialect))


@lru_cache(maxsize=512)
def facet_statement(shape: PageShape, facets: tuple[str, ...], dialect: str) -> Statement:
    """Rows (values of the facets, whether they match, number of orders)."""
    rows = _source_rows(shape, dialect)
    values = [rows.c[name] for name in facets]
    query = select(*values, rows.c.matches, func.count()).group_by(*values, rows.c.matches)
    return Statement(query)


def page_query(shape: PageShape, dialect: str) -> Select[Any]:
    """The query of `page_statement`."""
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
    columns: list[Any] = [cast(page.c.order_id, SQLText), page.c.value, page.c.matches, page.c.number, _document(page)]
    return select(*columns).order_by(*_page_sorting(page.c, shape))


def _document(page: Subquery) -> ColumnElement[str | None]:
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


def _source_rows(shape: PageShape, dialect: str) -> Any:
    """The rows of the source, with the column `matches`."""
    if shape.source.kind == "walk":
        walked = _walk(shape).subquery("rows")
        return select(walked, _matches(walked.c, shape).label("matches")).subquery("matched")
    if shape.source.kind == "ids":
        ids = _given_ids(dialect)
    else:
        assert shape.source.path is not None
        selected = union_all(*_ranges(shape.source.path)).subquery("selected")
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
    ids = _parameter("ids", SQLText)
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


def _ranges(path: Path) -> list[Any]:
    """The queries for the ids of the orders in each range of the path, each up to `range_limit`."""
    return [select(_range(path.name, i).subquery().c.order_id) for i in range(path.ranges)]


def _range(name: str, i: int) -> Select[Any]:
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
    if name in _EQUAL:
        condition: ColumnElement[bool] = columns[name] == bindparam(f"{name}_value", type_=SEARCH.c[name].type)
        return condition
    low, high = (bindparam(f"{name}_{bound}", type_=SEARCH.c[name].type) for bound in ("low", "high"))
    return and_(columns[name] >= low, columns[name] < high)


def _parameter(name: str, kind: Any = SQLText) -> ColumnElement[Any]:
    return bindparam(name, type_=kind)
