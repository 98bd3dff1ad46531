"""`flask verify` reports every corruption of the database."""

import io
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import Executable, Table, Text, cast, delete, func, insert, select, text, update
from sqlalchemy.dialects import postgresql

from app.cli import common
from app.cli.common import progress_bar
from app.db.engine import Base, db
from app.db.statements import consistent_read
from app.models import ChangeKey, FeedEntry, Order, OrderEvent, OrderItem, OutboxEntry
from app.models.order_id import first_order_id
from app.services import verification
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL, RICHEST
from tests.support.tables import POSITIONS, delete_all_rows

NOBODY = "0199c7a4-0000-7000-8000-000000000000"  # an id older than any test's
LATER = datetime(2040, 1, 1, tzinfo=UTC)

Rows = dict[Table, list[dict[str, Any]]]
Corruption = Callable[[str], Executable]  # of the order with the id


def run(app: Flask, *statements: Executable) -> None:
    with app.app_context(), db.engine.begin() as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture(scope="module")
def rows_of_an_order(app: Flask) -> Rows:
    """An order at version 6: one line fulfilled, a unit of it returned, and then a note."""
    delete_all_rows(app)
    client = app.test_client()
    path = client.post("/orders", json=RICHEST | {"external_ref": None}).headers["Location"]
    for action, body in (
        ("confirm", {}),
        ("fulfillments", {"items": [{"line": 1, "quantity": 1}]}),
        ("fulfillments?", {"items": [{"line": 1, "quantity": 1}], "tracking": {"number": "7"}}),
        ("returns", {"items": [{"line": 1, "quantity": 1}], "reason": "broken"}),
    ):
        keyed = client.post(f"{path}/{action}", json=body, headers={"Idempotency-Key": f"k-{action}"})
        assert keyed.status_code in (200, 201)
    assert client.patch(path, json={"note": "thanks"}).json["version"] == 6
    with app.app_context(), db.engine.begin() as connection:
        return {
            table: [dict(row) for row in connection.execute(table.select()).mappings()]
            for table in db.metadata.sorted_tables
            if table not in POSITIONS
        }


def twin(rows: Rows, position: int) -> Rows:
    """The rows of the same order with other random bits in its id and its number."""
    [order] = rows[Base.metadata.tables["orders"]]
    other_id = f"{order['id'][:24]}{position:08}{order['id'][32:]}"
    drawn = {order["id"]: other_id, order["number"]: f"260101-{position:08}"}

    def other(value: Any) -> Any:
        for old, new in drawn.items() if isinstance(value, str) else ():
            value = value.replace(old, new)
        return value

    return {table: [{name: other(row[name]) for name in row} for row in found] for table, found in rows.items()}


@pytest.fixture
def order_id(app: Flask, rows_of_an_order: Rows) -> str:
    """The order, alone in the database."""
    delete_all_rows(app)
    run(app, *(insert(table).values(rows) for table, rows in rows_of_an_order.items() if rows))
    return str(rows_of_an_order[Base.metadata.tables["orders"]][0]["id"])


def of_order(**values: Any) -> Corruption:
    return lambda order_id: update(Order).where(Order.id == order_id).values(values)


def of_rows(model: Any, values: dict[str, Any], **key: int) -> Corruption:
    return lambda order_id: update(model).filter_by(order_id=order_id, **key).values(values)


def of_line_one(**values: Any) -> Corruption:
    return of_rows(OrderItem, values, line=1)


def of_event(version: int, **values: Any) -> Corruption:
    return of_rows(OrderEvent, values, version=version)


def without(model: Any, **key: int) -> Corruption:
    return lambda order_id: delete(model).filter_by(order_id=order_id, **key)


def of_snapshot(version: int, old: str, new: str) -> Corruption:
    return of_event(version, snapshot=replaced(old, new))


def of_all_snapshots(old: str, new: str) -> Corruption:
    return of_rows(OrderEvent, {"snapshot": replaced(old, new)})


def replaced(old: str, new: str) -> Any:
    changed = func.replace(cast(OrderEvent.snapshot, Text), old, new)
    return cast(changed, Text().with_variant(postgresql.JSON(), "postgresql"))


def test_a_valid_database_has_no_differences(client: FlaskClient, runner: FlaskCliRunner, order_id: str) -> None:
    client.post("/orders", json=RICHEST | {"external_ref": "shop-2"})

    result = runner.invoke(args=["verify"])

    assert (result.exit_code, result.stdout, result.stderr) == (0, "2 orders verified, 0 differences.\n", "")


CORRUPTIONS: dict[str, tuple[Corruption, str]] = {
    # The tables
    "status": (of_order(status="completed"), 'status is "completed" in the tables, "confirmed" in the log'),
    "fulfillment status": (
        of_order(fulfillment_status="fulfilled"),
        'fulfillment_status is "fulfilled" in the tables, "partial" in the log',
    ),
    "version": (of_order(version=7), "version is 7 in the tables, 6 in the log"),
    "note": (of_order(note="x"), 'note is "x" in the tables, "thanks" in the log'),
    "metadata": (of_order(metadata_={}), "metadata is {} in the tables"),
    "customer": (of_order(customer_id="x"), 'customer_id is "x" in the tables, "c-123" in the log'),
    "address": (of_order(shipping_address=None), "shipping_address is null in the tables"),
    "adjustments": (of_order(adjustments=[]), "adjustments is [] in the tables"),
    "holds": (of_order(holds=[{"handle": "x"}]), 'holds is [{"handle":"x"}] in the tables'),
    "number": (of_order(number="000101-00000000"), 'number is "000101-00000000" in the tables'),
    "external reference": (of_order(external_ref="x"), 'external_ref is "x" in the tables, null in the log'),
    "time of creation": (of_order(created_at=LATER), 'created_at is "2040-01-01T00:00:00.000000Z" in the tables'),
    "principal": (of_order(principal="x"), "principal is 'x' in the table, 'anonymous' in the log"),
    "fingerprint": (of_order(fingerprint="x"), "fingerprint is not that of the first version"),
    "idempotency key": (
        of_order(idempotency_key_hash=f"{'0' * 31}x"),
        "idempotency_key_hash is not the one that the id was made for",
    ),
    "reference's hash": (of_order(external_ref_hash="x"), "external_ref_hash is not that of the principal's"),
    "quantity": (of_line_one(quantity=5), "items is "),
    "unit price": (of_line_one(unit_price=1), "adjustments in the tables do not add up"),
    "item": (of_line_one(item_id="x"), "items is "),
    "units fulfilled": (of_line_one(quantity=3, fulfilled=3), "items is "),
    "units returned": (of_line_one(returned=2), "items is "),
    "a missing line": (without(OrderItem, line=3), "items is "),
    "all lines missing": (without(OrderItem), "adjustments in the tables do not add up"),
    "fulfillments": (of_order(fulfillments=[]), "fulfillments is [] in the tables"),
    "returns": (of_order(returns=[]), "returns is [] in the tables"),
    # The log
    "no event": (without(OrderEvent), "there is no event in the log"),
    "no first event": (without(OrderEvent, version=1), "the log begins with order.confirmed at version 2"),
    "a gap": (without(OrderEvent, version=3), "version 4 follows version 2 in the log"),
    "no last event": (without(OrderEvent, version=6), "version is 6 in the tables, 5 in the log"),
    "an event's type": (of_event(2, type="order.held"), "status in version 2 cannot result from order.held"),
    "an unknown type": (of_event(2, type="order.lost"), "version 2, which is order.lost, cannot follow version 1"),
    "an event that could not be": (of_event(4, type="order.confirmed"), "order.confirmed, cannot follow version 3"),
    "an event's time": (of_event(4, at=LATER), '"2040-01-01T00:00:00.000000Z" in its event'),
    "the creator": (of_event(1, actor="x"), "principal is 'anonymous' in the table, 'x' in the log"),
    # The log's snapshots
    "bytes": (of_snapshot(3, '"id":', '"id": '), "the snapshot of version 3 is not written as it was rendered"),
    "the newest one's bytes": (of_snapshot(6, '"id":', '"id": '), "the newest snapshot is not written as the"),
    "no object": (of_event(3, snapshot="[]"), "the snapshot of version 3 is not the document of an order"),
    "a missing member": (of_snapshot(3, '"items"', '"lines"'), "version 3 is not the document of an order"),
    "another member": (of_snapshot(3, '"note"', '"hint"'), "hint in version 3 cannot result from order.fulfilled"),
    "another id": (of_snapshot(3, '"id":"', '"id":"x'), "in the snapshot of version 3"),
    "another version": (of_snapshot(3, '"version":3', '"version":9'), "version is 9 in the snapshot of version 3"),
    "another status": (
        of_snapshot(2, "confirmed", "completed"),
        "status in version 2 cannot result from order.confirmed",
    ),
    "another hold": (
        of_snapshot(6, '"holds":[]', '"holds":[{"handle":"x","until":null}]'),
        "holds in version 6 cannot result from",
    ),
    "another note": (of_snapshot(2, "Ring twice", "Ring"), "note in version 2 cannot result from order.confirmed"),
    "other totals": (of_snapshot(4, '"due":', '"due":1'), "totals contradicts other members in the snapshot of"),
    "another price": (
        of_snapshot(4, '"unit_price":1', '"unit_price":2'),
        "items in version 4 cannot result from order.fulfilled",
    ),
    "another quantity": (
        of_snapshot(3, '"quantity":3', '"quantity":4'),
        "items in version 3 cannot result from order.fulfilled",
    ),
    "other units": (of_snapshot(3, '"fulfilled":1', '"fulfilled":2'), "items contradicts other members in the"),
    "another past": (
        of_snapshot(4, '"tracking":null', '"tracking":{}'),
        "fulfillments in version 4 cannot result from order.fulfilled",
    ),
    "another action": (of_snapshot(6, '"return"', '"cancel"'), "allowed_actions contradicts other members in the"),
    "a number for a boolean": (of_snapshot(4, '"late":false', '"late":0'), "late contradicts other members in the"),
    "a member of all versions": (
        of_all_snapshots('"payment_status":"unpaid"', '"payment_status":"paid"'),
        "payment_status contradicts other members in the snapshot of version 5",
    ),
    "another fulfillment status": (of_snapshot(3, '"partial"', '"unfulfilled"'), "fulfillment_status contradicts"),
    "another first one": (of_snapshot(1, "c-123", "c-124"), "fingerprint is not that of the first version"),
}


@pytest.fixture(scope="module")
def reported(app: Flask, rows_of_an_order: Rows) -> dict[str, list[str]]:
    """The reported differences for each corruption, and for a valid order, all in one database."""
    delete_all_rows(app)
    differences: dict[str, list[str]] = {}
    order_ids: dict[str, str] = {}
    for position, corruption in enumerate([*CORRUPTIONS, "none"]):
        rows = twin(rows_of_an_order, position)
        order_ids[rows[Base.metadata.tables["orders"]][0]["id"]] = corruption
        run(app, *(insert(table).values(found) for table, found in rows.items() if found))
    for order_id, corruption in order_ids.items():
        if corruption in CORRUPTIONS:
            run(app, CORRUPTIONS[corruption][0](order_id))
    result = app.test_cli_runner().invoke(args=["verify"])
    *lines, last = result.stdout.splitlines()
    assert (result.exit_code, last) == (1, f"{len(order_ids)} orders verified, {len(lines)} differences.")
    for line in lines:
        order_id, _, difference = line.removeprefix("order ").partition(": ")
        differences.setdefault(order_ids[order_id], []).append(difference)
    return differences


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_each_corruption_is_reported_with_its_order(reported: dict[str, list[str]], corruption: str) -> None:
    assert any(CORRUPTIONS[corruption][1] in difference for difference in reported[corruption]), reported[corruption]


def test_a_valid_order_among_corrupt_ones_is_not_reported(reported: dict[str, list[str]]) -> None:
    assert "none" not in reported


MADE = {"version": 1, "at": LATER}
STRAYS = {
    "order_items": insert(OrderItem).values(order_id=NOBODY, line=1, item_id="x", quantity=1, fulfilled=0, returned=0),
    "order_events": insert(OrderEvent).values(order_id=NOBODY, type="order.created", actor="x", snapshot="{}", **MADE),
    "change_keys": insert(ChangeKey).values(order_id=NOBODY, key_hash="x", version=1, changed=True),
    "outbox": insert(OutboxEntry).values(order_id=NOBODY, **MADE),
    "feed": insert(FeedEntry).values(order_id=NOBODY, seq=1, **MADE),
}


@pytest.mark.parametrize("table", STRAYS)
def test_a_row_without_an_order_is_reported(app: Flask, runner: FlaskCliRunner, order_id: str, table: str) -> None:
    run(app, STRAYS[table])

    result = runner.invoke(args=["verify"])

    assert result.exit_code == 1
    assert f"order {NOBODY}: there is no such order, but there are rows of it in {table}\n" in result.stdout


def test_a_deleted_order_leaves_orphaned_rows_that_are_reported(
    app: Flask, runner: FlaskCliRunner, order_id: str
) -> None:
    run(app, delete(Order))

    result = runner.invoke(args=["verify"])

    reported = {
        line.rpartition(" ")[2] for line in result.stdout.splitlines() if line.startswith(f"order {order_id}: ")
    }
    assert (result.exit_code, reported) == (1, STRAYS.keys() - {"feed"})


def test_a_key_without_an_event_is_reported(app: Flask, runner: FlaskCliRunner, order_id: str) -> None:
    run(app, update(ChangeKey).where(ChangeKey.version == 2).values(version=7))

    result = runner.invoke(args=["verify"])

    assert result.exit_code == 1
    assert f"order {order_id}: a key has version 7, but there is no such event\n" in result.stdout


@on_sqlite
@pytest.mark.parametrize(
    ("statement", "reported"),
    [
        ("UPDATE orders SET updated_at = 'yesterday' WHERE version = 6", "a value in one of its rows cannot be read"),
        ("UPDATE orders SET metadata = '{' WHERE version = 6", "a value in one of its rows cannot be read"),
        ("UPDATE order_events SET snapshot = '{' WHERE version = 2", "the snapshot of version 2 is not JSON"),
    ],
)
def test_an_unreadable_order_is_reported_and_the_others_are_verified(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner, order_id: str, statement: str, reported: str
) -> None:
    other = client.post("/orders", json=RICHEST | {"external_ref": "2"}).json["id"]
    run(app, text(statement), delete(OrderEvent).where(OrderEvent.order_id == other))

    result = runner.invoke(args=["verify"])

    assert f"order {order_id}: {reported}" in result.stdout
    assert "there is no event in the log" in result.stdout


def test_every_order_is_verified_once_with_any_size_of_a_range(
    client: FlaskClient, runner: FlaskCliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(5):
        client.post("/orders", json=RICHEST | {"external_ref": f"r-{i}"})

    for size in (1, 2, 5, 6):
        monkeypatch.setattr(verification, "RANGE_SIZE", size)
        assert runner.invoke(args=["verify"]).stdout == "5 orders verified, 0 differences.\n"


def test_a_range_has_a_limited_size_of_documents(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [client.post("/orders", json=MINIMAL | {"note": "ä" * 400}).data for _ in range(5)]
    monkeypatch.setattr(verification, "RANGE_BYTES", 2 * len(documents[0]))
    with app.app_context():
        sizes = [orders.size for orders in verification.order_ranges()]

    assert sizes == [2, 2, 1]
    assert runner.invoke(args=["verify"]).stdout == "5 orders verified, 0 differences.\n"


def test_a_verification_does_not_block_changes(app: Flask, client: FlaskClient, order_id: str) -> None:
    with app.app_context(), consistent_read(statement_timeout=None) as session:
        session.scalar(select(Order.version))
        [orders] = verification.order_ranges()

        response = client.patch(f"/orders/{order_id}", json={"note": "meanwhile"})

        assert response.status_code == 200
        assert verification.verify_range(orders).differences == []


def test_only_orders_changed_since_a_time_are_verified(client: FlaskClient, runner: FlaskCliRunner) -> None:
    first, second = (client.post("/orders", json=MINIMAL).json for _ in range(2))

    def verified_since(moment: str) -> str:
        return runner.invoke(args=["verify", "--since", moment]).stdout

    assert verified_since(second["created_at"]) == "1 order verified, 0 differences.\n"
    client.patch(f"/orders/{first['id']}", json={"note": "changed"})
    assert verified_since(second["created_at"]) == "2 orders verified, 0 differences.\n"
    assert verified_since("30d") == "2 orders verified, 0 differences.\n"


def test_an_invalid_duration_or_time_is_refused_and_both_formats_are_shown(runner: FlaskCliRunner) -> None:
    result = runner.invoke(args=["verify", "--since", "yesterday"])

    assert result.exit_code == 2
    assert "'yesterday' is not a duration from 1m to 36500d, or a time with its offset from UTC" in result.stderr


@pytest.mark.parametrize("since", ["0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z"])
def test_a_time_before_all_orders_selects_them_all(
    runner: FlaskCliRunner, app: Flask, order_id: str, since: str
) -> None:
    run(app, STRAYS["outbox"], update(Order).values(note="x"))

    result = runner.invoke(args=["verify", "--since", since])

    assert result.stdout.endswith("1 order verified, 3 differences.\n")


def test_rows_without_an_order_are_searched_among_ids_created_since_a_time(
    app: Flask, runner: FlaskCliRunner, order_id: str
) -> None:
    young = first_order_id(datetime.now(UTC))
    run(app, STRAYS["outbox"], insert(OutboxEntry).values(order_id=young, **MADE))

    result = runner.invoke(args=["verify", "--since", "1h"])

    assert f"order {young}: there is no such order" in result.stdout


@pytest.mark.parametrize("since", ["1", "yesterday", "2026-11-28T02:00:00", "2026-13-28T02:00:00Z", "0d", "999999d"])
def test_a_time_that_cannot_be_read_is_a_usage_error(runner: FlaskCliRunner, since: str) -> None:
    result = runner.invoke(args=["verify", "--since", since])

    assert result.exit_code == 2
    assert f"Error: Invalid value for '--since': '{since}' is not a " in result.stderr


def test_a_time_in_the_future_is_a_usage_error(runner: FlaskCliRunner) -> None:
    result = runner.invoke(args=["verify", "--since", "2999-01-01T00:00:00Z"])

    assert result.exit_code == 2
    assert result.stderr.endswith("Error: Invalid value for '--since': '2999-01-01T00:00:00Z' is in the future.\n")


def test_a_bar_is_shown_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, seen_by_the_program = os.openpty()
    with open(seen_by_the_program, "w") as screen, io.StringIO() as file:
        for stream in (screen, file):
            monkeypatch.setattr(sys, "stderr", stream)
            for length in (4, None):
                with progress_bar("Orders", length=length) as bar:
                    bar.update(2)
        written = file.getvalue()

    shown = os.read(terminal, 10_000)
    os.close(terminal)
    assert b"Orders  [--" in shown
    assert written == ""


def test_without_a_terminal_progress_is_an_occasional_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "PROGRESS_INTERVAL", 0)

    for length in (4, None, 0):
        with progress_bar("Orders", length=length) as bar:
            for steps in (0, 2000):
                bar.update(steps)
    with progress_bar("Orders", length=4) as bar:
        bar.update(1)

    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "left" not in line] == ["Orders: 0", *["Orders: 0", "Orders: 2,000"] * 2]
    assert lines[-1] == "Orders: 25%, about 0:00:00 left"


def test_a_database_without_the_newest_schema_is_reported_in_one_line(
    runner: FlaskCliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.db.migrations.expected_revision", lambda: "9999")

    result = runner.invoke(args=["verify"])

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: The database is at migration ") and len(result.stderr.splitlines()) == 1
