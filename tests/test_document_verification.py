"""`flask verify` finds every change in a stored order document."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from flask import Flask
from flask.testing import FlaskCliRunner
from sqlalchemy import JSON, Column, Integer, Table, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from app.db.engine import Timestamp, db
from app.models import EVENTS, ITEMS, ORDERS
from app.models.lifecycle import ERASED, EVENT_TYPES, FULFILLMENT_STATUSES, IMPORTED, RETURN_STATUSES, STATUSES
from app.models.money import PAYMENT_STATUSES
from app.services.document_checks import VersionChecks, inconsistent_members
from app.services.verification import OrderRow, compare_events, differing_members
from tests.support.marks import on_sqlite
from tests.support.order_life import cancelled_life, complete_life
from tests.support.tables import POSITIONS, delete_all_rows

LIVES = {"completed": complete_life, "cancelled": cancelled_life}
LATER = datetime(2040, 1, 1, tzinfo=UTC)

Life = tuple[OrderRow, list[Any]]
Rows = dict[Table, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def paths(app: Flask) -> dict[str, str]:
    """The orders of LIVES, alone in the database."""
    delete_all_rows(app)
    return {name: live(app) for name, live in LIVES.items()}


@pytest.fixture(scope="module")
def stored_rows(app: Flask, paths: dict[str, str]) -> Rows:
    tables = [table for table in db.metadata.sorted_tables if table not in POSITIONS]
    with app.app_context(), db.engine.connect() as connection:
        return {
            table: [dict(row) for row in connection.execute(select(table).order_by(*table.primary_key)).mappings()]
            for table in tables
        }


@pytest.fixture(scope="module")
def lives(app: Flask, paths: dict[str, str], stored_rows: Rows) -> dict[str, Life]:
    """The order of each history and its events, as the verification reads them."""
    orders = {row["id"]: row for row in stored_rows[ORDERS]}
    return {name: life_of(orders[path.removeprefix("/orders/")], stored_rows) for name, path in paths.items()}


def life_of(order: dict[str, Any], rows: Rows) -> Life:
    items = [row for row in rows[ITEMS] if row["order_id"] == order["id"]]
    events = [row for row in rows[EVENTS] if row["order_id"] == order["id"]]
    return OrderRow(order, items), [SimpleNamespace(**row, seq=None, outbox_version=1) for row in events]


@pytest.fixture
def rows(app: Flask, stored_rows: Rows) -> Rows:
    """The rows of the orders, in the database."""
    for table in stored_rows:
        restore(app, stored_rows, table)
    return stored_rows


def restore(app: Flask, rows: Rows, table: Table) -> None:
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(delete(table))
        if rows[table]:
            connection.execute(insert(table), rows[table])


def differences(order: Any, events: list[Any]) -> list[str]:
    return list(compare_events(order, iter(events), alias=None, kept_since=LATER))


def test_sample_histories_have_all_events_and_no_differences(lives: dict[str, Life]) -> None:
    types = {event.type for _, events in lives.values() for event in events}

    assert types == {*EVENT_TYPES} - {IMPORTED, ERASED}
    assert [differences(order, events) for order, events in lives.values()] == [[], []]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a document: of members, of list entries, and of the values within."""
    if path:
        yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        yield from leaves(child, (*path, name))


@on_sqlite
@pytest.mark.parametrize("life", LIVES)
def test_every_other_value_in_every_snapshot_is_found(lives: dict[str, Life], life: str) -> None:
    order, events = lives[life]
    missed = []
    for position, event in enumerate(events):
        # Only with the neighbouring versions, which takes a tenth of the time.
        before, after = events[max(0, position - 1) : position], events[position + 1 : position + 2]
        unchanged = differences(order, [*before, event, *after])
        for path, other, document in changed_documents(event.snapshot):
            changed = SimpleNamespace(**{**vars(event), "snapshot": orjson.dumps(document).decode()})
            if differences(order, [*before, changed, *after]) == unchanged:
                missed.append((event.version, event.type, path, other))
    assert missed == []


@on_sqlite
@pytest.mark.parametrize("life", LIVES)
def test_the_cached_checks_report_the_same_differences(lives: dict[str, Life], life: str) -> None:
    snapshots = [event.snapshot for event in lives[life][1]]
    documents = [orjson.loads(snapshot) for snapshot in snapshots]
    for position, snapshot in enumerate(snapshots):
        before, after = documents[max(0, position - 1) : position], documents[position + 1 : position + 2]
        for path, other, changed in changed_documents(snapshot):
            versions = [*before, changed, *after]
            one_by_one = outcomes(inconsistent_members(one) if one is changed else [] for one in versions)
            assert outcomes(in_succession(versions)) == one_by_one, (position + 1, path, other)


def in_succession(versions: list[Any]) -> Iterator[list[str]]:
    checks, before = VersionChecks(), None
    for version in versions:
        yield checks.inconsistent_members(version, differing_members(before, version) if before else set(version))
        before = version


def outcomes(results: Iterator[list[str]]) -> list[Any]:
    """The results, up to the first version that is not the document of an order."""
    found: list[Any] = []
    with suppress(KeyError, TypeError, AttributeError, ValueError):
        found.extend(results)
        found.append("all are documents")
    return found


def changed_documents(snapshot: str) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Each path of a snapshot with each other value, and the document that has it there."""
    document = orjson.loads(snapshot)
    for path in leaves(document):
        for other in others(at(document, path)):
            changed = orjson.loads(snapshot)  # deepcopy takes fifty times as long
            at(changed, path[:-1])[path[-1]] = other
            yield path, other, changed


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        document = document[name]
    return document


def others(value: Any) -> Iterator[Any]:
    """Other values of the same type, and none."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1)
    elif isinstance(value, str):
        yield value + "0"
    elif isinstance(value, list):
        yield from ([], [*value, deepcopy(value[-1])]) if value else ([{}],)
    elif isinstance(value, dict):
        yield {}
    yield "x" if value is None else None


ENUMERATIONS: dict[str, Sequence[str]] = {
    "status": STATUSES,
    "fulfillment_status": FULFILLMENT_STATUSES,
    "payment_status": PAYMENT_STATUSES,
    "return_status": RETURN_STATUSES,
}
NOT_REQUIRED = {"idempotency_key_hash"}  # an order may have been created without


def other_values(column: Column[Any], value: Any) -> Iterator[Any]:
    """Other values for the column; its constraints may refuse them."""
    if column.name in ENUMERATIONS:
        yield from (one for one in ENUMERATIONS[column.name] if one != value)
    elif isinstance(column.type, Timestamp):
        yield LATER
    elif value is None:
        yield {} if isinstance(column.type, JSON) else 1 if isinstance(column.type, Integer) else "x"
    elif isinstance(value, str):
        yield f"{value[:-1]}{'y' if value.endswith('x') else 'x'}"
    elif isinstance(value, bool | int):
        yield from others(value)
    else:
        yield from (one for one in others(value) if one is not None)
    if value is not None and column.nullable and column.name not in NOT_REQUIRED:
        yield None


COLUMNS = [column for column in (*ORDERS.c, *ITEMS.c) if column.name not in ("id", "order_id")]


@pytest.mark.parametrize("column", COLUMNS, ids=str)
def test_every_other_value_in_a_column_is_found(
    app: Flask, rows: Rows, runner: FlaskCliRunner, column: Column[Any]
) -> None:
    tried = 0
    for row in rows[column.table][: 1 if column.table is ORDERS else 3]:
        keys = [key == row[key.name] for key in column.table.primary_key]
        for value in other_values(column, row[column.name]):
            with app.app_context(), suppress(IntegrityError):
                with db.engine.begin() as connection:
                    connection.execute(update(column.table).where(*keys).values({column: value}))
                tried += 1
                assert runner.invoke(args=["verify"]).exit_code == 1, value
                restore(app, rows, column.table)
    assert tried


@pytest.mark.parametrize("event", ["first", "last"])
def test_every_member_of_a_stored_snapshot_is_compared(
    app: Flask, rows: Rows, runner: FlaskCliRunner, event: str
) -> None:
    row = rows[EVENTS][0 if event == "first" else -1]
    for member, value in orjson.loads(row["snapshot"]).items():
        document = orjson.loads(row["snapshot"]) | {member: next(others(value))}
        with app.app_context(), db.engine.begin() as connection:
            keys = [key == row[key.name] for key in EVENTS.primary_key]
            changed = {"snapshot": orjson.dumps(document).decode()}
            connection.execute(update(EVENTS).where(*keys).values(changed))

        assert runner.invoke(args=["verify"]).exit_code == 1, member
