"""The plans of searches on PostgreSQL: ranges of indexes and lookups by key, with any statistics."""

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from flask import Flask
from sqlalchemy import text

from app import create_app
from app.db.engine import db
from app.models.search import SORTED_FILTERS, SORTS
from app.services.order_search import PageShape, Path, Source, count_statement, page_statement
from tests.support.applications import close_connections
from tests.support.databases import generic_plan, migrated, new_database
from tests.support.marks import on_postgresql

PATHS = [Path("term_0", 2), *(Path(name, 2) for name in SORTED_FILTERS), *(Path(name, 1) for name in SORTS)]


@pytest.fixture(scope="module")
def app(database_url: str) -> Iterator[Flask]:
    """The application with tables that were never analyzed: PostgreSQL assumes ten pages."""
    app = create_app({"DATABASE_URL": migrated(new_database(database_url, "plans")), "AUTH": "off", "TESTING": True})
    yield app
    close_connections(app)


def scans(app: Flask, sql: str) -> set[str]:
    with app.app_context(), db.engine.begin() as connection:
        for name in ("seqscan", "bitmapscan", "sort", "incremental_sort"):  # for empty tables they cost nothing
            connection.execute(text(f"SET LOCAL enable_{name} = off"))
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        plan = generic_plan(driver, sql)
    return set(re.findall(r"(?:using|Seq Scan on) (\w+)", plan))


@on_postgresql
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_candidates_are_counted_and_read_by_the_index_of_their_condition(app: Flask, path: Path) -> None:
    counted = scans(app, count_statement((path,)).sql("postgresql")) - {"pk_search_head", "pk_feed_head"}
    assert all(re.match("ix_order_search|pk_order_search", name) for name in counted - {"search_head", "feed_head"})
    for sort in SORTS:
        shape = PageShape(Source("candidates", path), (), sort, True)
        read = scans(app, page_statement(shape, "postgresql").sql("postgresql"))
        assert {"pk_order_search", "pk_order_events", "pk_orders"} <= read, read
        assert not read & {"order_search", "order_search_terms", "orders", "order_events"}, read


@on_postgresql
@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("descending", [True, False])
def test_a_scan_uses_the_index_in_sort_order(app: Flask, sort: str, descending: bool) -> None:
    base: dict[str, Any] = {"created_at": "pk_order_search"}
    for name in (None, *SORTED_FILTERS):
        if name is not None and sort not in SORTED_FILTERS[name]:
            continue
        for ranges in (1, 3):
            path = None if name is None else Path(name, ranges)
            index = base.get(sort, f"ix_order_search_{sort}") if name is None else f"ix_order_search_{name}_{sort}"
            shape = PageShape(Source("walk", path), (), sort, descending)
            read = scans(app, page_statement(shape, "postgresql").sql("postgresql"))
            assert read == {index, "pk_order_events", "pk_orders"}, (name, read)
