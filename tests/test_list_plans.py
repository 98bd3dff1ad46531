"""The plans of lists on PostgreSQL: an index in sort order, with any statistics."""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain, combinations
from typing import Any

import psycopg
import pytest
from flask import Flask
from sqlalchemy import text
from sqlalchemy.dialects import sqlite

from app import create_app
from app.cli.seed import sample_orders
from app.db.engine import db
from app.db.statements import Statement
from app.models.order_id import HIGHEST_ID, LOWEST_ID
from app.models.principal import ANONYMOUS, Principal
from app.services import webhook_queue
from app.services.order_queries import (
    FILTER_INDEXES,
    FILTERS,
    SNAPSHOTS,
    Shape,
    list_query,
    list_statement,
    select_orders,
)
from app.services.order_storage import CURRENT_ORDERS, UPDATE_ORDER, UPDATE_ORDERS, insert_orders
from app.services.webhook_service import select_deliveries
from tests.support.databases import generic_plan, migrated, new_database
from tests.support.marks import on_sqlite
from tests.support.postgres import libpq_url

INDEXES = {
    "number": "uq_orders_number",
    "external_ref": "uq_orders_external_ref_external_ref_hash",
    "idempotency_key": "uq_orders_idempotency_key_hash",
    "customer_id": "ix_orders_customer_id_id",
    "item_id": "ix_order_items_item_id_order_id",
    "channel": "ix_orders_channel_status_id",
    "status": "ix_orders_status_id",
    "fulfillment_status": "ix_orders_fulfillment_status_id",
    "payment_status": "ix_orders_payment_status_id",
    "return_status": "ix_orders_return_status_id",
}
COMBINATIONS = [*chain.from_iterable(combinations(FILTERS, size) for size in (1, 2, 3)), tuple(FILTERS)]


@pytest.fixture(scope="module")
def orders_of_one_status(postgresql_url: str) -> str:
    """The URL of a database with a thousand orders, whose statistics favour scanning all of them."""
    url = migrated(new_database(postgresql_url, "list_plans"))
    app = create_app({"DATABASE_URL": url, "AUTH": "off", "TESTING": True})
    with app.app_context():
        insert_orders(list(sample_orders(1000, seed=1, until=datetime(2026, 11, 1, tzinfo=UTC))))
        with db.engine.begin() as keys:
            keys.execute(text("INSERT INTO change_keys SELECT id, md5(id::text), 1, true FROM orders"))
            keys.execute(text("ANALYZE"))
        db.engine.dispose()
    return url


@pytest.fixture
def connection(orders_of_one_status: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(libpq_url(orders_of_one_status)) as connection:
        # Scanning a table of a thousand orders is faster; with a million it is not.
        connection.execute("SET enable_seqscan = off")
        connection.execute("SET enable_bitmapscan = off")
        yield connection


STATUS = {"status": ("pending",)}


def shape_of(filters: Iterable[str], *, ranges: int = 1, descending: bool) -> Shape:
    """The shape of a list with these filters. Partial indexes exclude other values than these."""
    values = {name: "x" for name in filters} | {"sort": "-created_at" if descending else "created_at"}
    selection = select_orders(values, principal=ANONYMOUS)
    assert selection is not None
    return selection.shape._replace(ranges=ranges)


def plan_of(connection: psycopg.Connection[Any], shape: Shape) -> str:
    sql = list_statement(shape).sql("postgresql")
    return generic_plan(connection, sql)


def test_every_list_scans_the_index_of_its_first_filter(connection: psycopg.Connection[Any]) -> None:
    for filters in COMBINATIONS:
        for descending in (True, False):
            plan = plan_of(connection, shape_of(filters, descending=descending))

            scans = re.findall(r"using (\w+)", plan)
            unique = [name for name in ("number", "external_ref", "idempotency_key") if name in filters]
            first = [INDEXES[name] for name in unique or [name for name in FILTER_INDEXES if name in filters][:1]]
            assert scans[0] in first, (filters, plan)
            assert unique or "Sort" not in plan, (filters, plan)
            assert "Seq Scan" not in plan, (filters, plan)


@pytest.mark.parametrize("status", ["pending", "failed"])
def test_few_deliveries_of_a_status_are_found_by_an_index(connection: psycopg.Connection[Any], status: str) -> None:
    connection.execute(
        "INSERT INTO webhook_deliveries"
        " (endpoint_id, id, type, status, attempt_count, attempts, next_attempt_at, created_at, finished_at)"
        " SELECT (SELECT min(id::text)::uuid FROM orders), gen_random_uuid(), 'order.created', CASE n WHEN 1 THEN"
        " 'pending' WHEN 2 THEN 'failed' ELSE 'succeeded' END, 1, '[]', now(), now(), now()"
        " FROM generate_series(1, 20000) AS n"
    )
    connection.execute("ANALYZE webhook_deliveries")
    sql = Statement(select_deliveries(LOWEST_ID, status=status).limit(100)).sql("postgresql")

    plan = generic_plan(connection, sql)

    assert re.findall(r"using (\w+)", plan)[0].startswith("ix_webhook_deliveries_"), plan
    connection.rollback()


BY_EARLIER = {
    "postponement": webhook_queue.POSTPONE,
    "claim": webhook_queue.CLAIM_OLDEST["postgresql"],
    "lag": webhook_queue.OLDEST_DUE,
}


@pytest.mark.parametrize("statement", BY_EARLIER)
def test_earlier_deliveries_of_an_order_are_found_by_its_index_whatever_its_size(
    connection: psycopg.Connection[Any], statement: str
) -> None:
    """Deliveries that are queued together share their time, so the index of these times is smaller."""
    connection.execute(
        "INSERT INTO webhook_deliveries"
        " (endpoint_id, id, type, order_id, version, status, attempt_count, attempts, next_attempt_at, created_at)"
        " SELECT (SELECT min(id::text)::uuid FROM orders), gen_random_uuid(), 'order.created', gen_random_uuid(), 1,"
        " 'pending', 0, '[]', now(), now() FROM generate_series(1, 20000)"
    )
    connection.execute("UPDATE webhook_deliveries SET status = 'succeeded', next_attempt_at = NULL")
    connection.execute("ANALYZE webhook_deliveries")

    plan = generic_plan(connection, BY_EARLIER[statement].sql("postgresql"))

    assert "using ix_webhook_deliveries_pending" in plan and "Sort" not in plan, plan
    connection.rollback()


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize(
    "filters",
    [{"channel"}, {"channel", "status"}, {"status"}, {"channel", "fulfillment_status"}, {"payment_status"}],
)
def test_each_value_of_a_filter_is_a_range_of_the_index(
    connection: psycopg.Connection[Any], filters: set[str], descending: bool
) -> None:
    plan = plan_of(connection, shape_of(filters, ranges=8, descending=descending))

    first = next(name for name in FILTER_INDEXES if name in filters)
    scans = re.findall(r"using (\w+)", plan)
    assert scans[:8] == [INDEXES[first]] * 8, plan
    assert set(scans[8:]) == {"pk_orders", "pk_order_events"} and "Seq Scan" not in plan, plan


@pytest.mark.parametrize("filters", [{"payment_status": ("paid", "unpaid")}, {"return_status": ("none",)}])
def test_the_index_of_a_filter_by_the_default_value_is_not_used(filters: dict[str, tuple[str, ...]]) -> None:
    selections = [select_orders({"sort": "created_at"} | filters | more, principal=ANONYMOUS) for more in ({}, STATUS)]

    assert [selection and selection.shape.leading for selection in selections] == [(), ("status",)]


BY_KEYS = {
    "look-up": (SNAPSHOTS.statements["postgresql"], {"pk_orders", "pk_order_events", "json_to_recordset"}),
    "current": (
        CURRENT_ORDERS.statements["postgresql"],
        {"pk_orders", "pk_order_events", "pk_change_keys", "json_to_recordset"},
    ),
    "change": (UPDATE_ORDER, {"pk_orders", "pk_order_items", "json_to_recordset"}),
    "changes": (UPDATE_ORDERS, {"pk_orders", "pk_order_items", "json_to_recordset"}),
}


@pytest.mark.parametrize("statement", BY_KEYS)
def test_orders_are_found_by_index_in_a_small_table_too(connection: psycopg.Connection[Any], statement: str) -> None:
    connection.execute("RESET enable_seqscan")
    connection.execute("RESET enable_bitmapscan")
    sql, scanned = BY_KEYS[statement][0].sql("postgresql"), BY_KEYS[statement][1]

    plan = generic_plan(connection, sql)

    found = set(re.findall(r"(?:using|Index Scan on|Seq Scan on|Function Scan on) (\w+)", plan))
    assert found == scanned, plan


@on_sqlite
@pytest.mark.parametrize("filters", [{}, {"status": ["pending"]}, {"fulfillment_status": ["unfulfilled"]}])
def test_sqlite_reads_the_orders_of_channels_by_index_too(app: Flask, filters: dict[str, Any]) -> None:
    principal = Principal("service:shop", frozenset(), channels=frozenset({"web", "app"}))
    selection = select_orders(filters | {"sort": "-created_at"}, principal=principal)
    assert selection is not None
    compiled = list_query(selection.shape).compile(dialect=sqlite.dialect(paramstyle="named"))
    values = compiled.params | selection.parameters | {"low": LOWEST_ID, "high": HIGHEST_ID, "limit": 20}

    with app.app_context(), db.engine.connect() as connection:
        plan = [row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", values)]

    assert [step for step in plan if step.startswith("SCAN orders")] == []
    ranges = [step for step in plan if "INDEX ix_orders_channel_status_id ((channel,status,id)>" in step]
    assert len(ranges) == selection.shape.ranges, plan
