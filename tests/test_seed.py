"""`flask seed`."""

import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import Any
from unittest.mock import ANY

import orjson
import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.cli.seed import PRINCIPAL, sample_histories, sample_orders
from app.db.engine import db
from app.models import Order, OrderEvent, OrderItem, OutboxEntry
from app.models.lifecycle import (
    ERASED,
    EVENT_TYPES,
    FULFILLMENT_STATUSES,
    IMPORTED,
    RETURN_RECORD_STATUSES,
    RETURN_STATUSES,
    STATUSES,
)
from app.models.order_id import first_order_id, order_number
from app.schemas.order import HOLD_KINDS, ItemInSchema, OrderInSchema
from app.services.order_actions import SCHEDULE
from app.services.order_storage import NewOrder, OrderHistory, insert_histories
from tests.support.samples import MINIMAL

SEED_MODULE = sys.modules["app.cli.seed"]  # as an attribute of app.cli it is the command
UNTIL = datetime(2026, 11, 1, tzinfo=UTC)
ORDER_MEMBERS, ITEM_MEMBERS = [*OrderInSchema().fields], [*ItemInSchema().fields]
SERVICE_MEMBERS = ("id", "number", "created_at", "updated_at")
DRAWS = given(count=st.integers(1, 10), seed=st.integers(0, 2**31 - 1))


def sample(count: int, *, seed: int = 1, until: datetime = UNTIL) -> list[NewOrder]:
    return list(sample_orders(count, seed=seed, until=until))


def histories(count: int, *, seed: int = 1, until: datetime = UNTIL) -> list[OrderHistory]:
    return list(sample_histories(count, seed=seed, until=until))


def documents(orders: list[NewOrder]) -> list[dict[str, Any]]:
    return [orjson.loads(order.document) for order in orders]


def snapshots(orders: list[OrderHistory]) -> list[str]:
    """The documents of all versions, by id and version."""
    return [event["snapshot"] for order in orders for event in order.events]


def body_of(document: dict[str, Any]) -> dict[str, Any]:
    """The body of `POST /orders` for a document."""
    body = {name: document[name] for name in ORDER_MEMBERS if name in document}
    body["items"] = [{name: item[name] for name in ITEM_MEMBERS if item[name] is not None} for item in body["items"]]
    return {name: value for name, value in body.items() if value is not None}


@pytest.fixture(scope="module")
def bodies(many_histories: list[OrderHistory]) -> list[dict[str, Any]]:
    """The bodies of the orders."""
    return [body_of(orjson.loads(history.events[0]["snapshot"])) for history in many_histories]


@pytest.fixture(scope="module")
def many_histories() -> list[OrderHistory]:
    return histories(3000)


def stored_documents(app: Flask) -> list[str]:
    with app.app_context():
        return list(
            db.session.scalars(db.select(OrderEvent.snapshot).order_by(OrderEvent.order_id, OrderEvent.version))
        )


def count_rows(app: Flask, model: type) -> Any:
    with app.app_context():
        return db.session.scalar(db.select(db.func.count()).select_from(model))


@DRAWS
def test_the_same_options_create_the_same_orders(count: int, seed: int) -> None:
    assert sample(count, seed=seed) == sample(count, seed=seed)
    assert histories(count, seed=seed) == histories(count, seed=seed)


@pytest.mark.parametrize("other", [{"seed": 2}, {"until": UNTIL + timedelta(days=1)}, {"count": 21}], ids=str)
def test_other_options_create_orders_without_conflicts(other: dict[str, Any]) -> None:
    orders, others = sample(20), sample(**{"count": 20} | other)

    for name in ("id", "number", "external_ref", "idempotency_key_hash"):
        values = {order.columns[name] for order in orders} - {None}
        assert not values & {order.columns[name] for order in others}


@DRAWS
def test_every_order_is_accepted_by_the_api(count: int, seed: int) -> None:
    for document in documents(sample(count, seed=seed)):
        body = body_of(document)

        dates = {name: datetime.fromisoformat(body[name]) for name in ("ship_by", "deliver_by") if name in body}
        assert OrderInSchema().load(body) == body | dates | {"prices": ANY}


@DRAWS
def test_ids_and_numbers_contain_the_time_of_creation(count: int, seed: int) -> None:
    orders = sample(count, seed=seed)

    moments = [order.columns["created_at"] for order in orders]
    assert moments == sorted(moments)
    assert UNTIL - timedelta(days=365) <= moments[0] and moments[-1] < UNTIL
    for order, at in zip(orders, moments, strict=True):
        assert first_order_id(at) <= order.id < first_order_id(at + timedelta(microseconds=1))
        assert order.columns["number"] == order_number(order.id, at)


def test_a_document_equals_the_response_to_a_post(client: FlaskClient) -> None:
    for document in documents(sample(60)):
        order = client.post("/orders", json=body_of(document)).get_json()

        assert list(order) == list(document)
        for name in SERVICE_MEMBERS:
            del order[name], document[name]
        assert order == document


def test_few_customers_and_items_account_for_many_orders(bodies: list[dict[str, Any]]) -> None:
    customers = Counter(body["customer_id"] for body in bodies).most_common()
    items = Counter(item["item_id"] for body in bodies for item in body["items"]).most_common()
    for ranking in (customers, items):
        counts = [count for _, count in ranking]
        assert sum(counts[: len(counts) // 10]) > 0.3 * sum(counts)
        assert counts[0] > 20 * median(counts)
    assert {customers[0][0], items[0][0]} == {"c-1", "sku-1"}


def test_orders_vary_like_real_ones(bodies: list[dict[str, Any]]) -> None:
    lines = Counter(len(body["items"]) for body in bodies)
    quantities = Counter(item["quantity"] for body in bodies for item in body["items"])
    assert 0.38 < lines[1] / 3000 < 0.46 and max(lines) > 10
    assert quantities[1] > quantities[12] > quantities[3] > 0
    assert {body.get("currency") for body in bodies} == {"EUR", "GBP", "USD", "SEK", "JPY", None}
    adjusted = {adjustment["type"] for body in bodies for adjustment in body["adjustments"]}
    assert adjusted == {"discount", "shipping", "tax"}
    shares = {name: sum(bool(body.get(name)) for body in bodies) / 3000 for name in ORDER_MEMBERS}
    assert 0.85 < shares["external_ref"] < 0.95
    assert 0.9 < shares["shipping_address"] < 0.95
    assert 0 < shares["note"] < 0.1 < shares["billing_address"] < 0.3


def test_the_orders_are_in_all_states(many_histories: list[OrderHistory]) -> None:
    orders = [orjson.loads(history.order.document) for history in many_histories]

    def values(name: str) -> set[str]:
        return {order[name] for order in orders}

    assert values("status") == set(STATUSES)
    assert values("fulfillment_status") == set(FULFILLMENT_STATUSES)
    assert values("payment_status") == {"unpaid", "authorized", "paid", "partially_refunded", "refunded"}
    assert values("return_status") == set(RETURN_STATUSES)
    assert values("late") == {True, False}
    assert {hold["kind"] for order in orders for hold in order["holds"]} == set(HOLD_KINDS) - {"other"}
    assert {record["status"] for order in orders for record in order["returns"]} == set(RETURN_RECORD_STATUSES)
    assert {order["reopening"]["from_status"] for order in orders if order["reopening"]} == {"cancelled", "completed"}
    assert any(order["status"] == "completed" and order["cancellations"] for order in orders)
    assert {"Oak Bowl No. 1", "gift"} <= {item["title"] for order in orders for item in order["items"]} | {
        tag for order in orders for tag in order["tags"]
    }


def test_each_type_of_event_occurs_before_the_date_and_in_the_order_of_versions(
    many_histories: list[OrderHistory],
) -> None:
    events = [event for history in many_histories for event in history.events]

    assert {event["type"] for event in events} == set(EVENT_TYPES) - {ERASED, IMPORTED}
    assert all(event["at"] < UNTIL for event in events)
    for before, after in pairwise(events):
        is_same_order = before["order_id"] == after["order_id"]
        assert after["version"] == (before["version"] + 1 if is_same_order else 1)
        assert before["at"] < after["at"] or not is_same_order


def test_most_orders_are_delivered_and_paid(many_histories: list[OrderHistory]) -> None:
    orders = [orjson.loads(history.order.document) for history in many_histories]

    delivered = sum(order["fulfillment_status"] == "delivered" and order["totals"] is not None for order in orders)
    assert 0.7 < delivered / len(orders) < 0.9
    assert {order["status"] for order in orders if order["holds"]} == {"pending"}


def test_a_customer_has_one_currency_and_an_item_one_price_in_it(bodies: list[dict[str, Any]]) -> None:
    currencies: dict[str, set[str]] = {}
    prices: dict[tuple[str, str], set[int]] = {}
    for body in bodies:
        if "currency" in body:
            currencies.setdefault(body["customer_id"], set()).add(body["currency"])
            for item in body["items"]:
                prices.setdefault((item["item_id"], body["currency"]), set()).add(item["unit_price"])

    assert {len(known) for known in currencies.values()} == {1}
    assert {len(known) for known in prices.values()} == {1}


def test_seeding_stores_orders_with_their_items_events_and_outbox(app: Flask, runner: FlaskCliRunner) -> None:
    expected = histories(300, seed=7)

    result = runner.invoke(args=["seed", "--orders", "300", "--seed", "7"])

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("300 orders in ")
    assert stored_documents(app) == snapshots(expected)
    assert count_rows(app, Order) == 300
    assert count_rows(app, OutboxEntry) == len(snapshots(expected))
    assert count_rows(app, OrderItem) == sum(len(history.order.items) for history in expected)
    with app.app_context():
        assert set(db.session.scalars(db.select(OrderEvent.actor))) == {PRINCIPAL.id, SCHEDULE.id}


def test_seeded_orders_agree_with_their_histories(runner: FlaskCliRunner, client: FlaskClient) -> None:
    runner.invoke(args=["seed", "--orders", "300"])

    result = runner.invoke(args=["verify"])

    assert (result.exit_code, result.stdout) == (0, "300 orders verified, 0 differences.\n")
    for order in client.get("/orders?limit=100").get_json()["orders"]:
        events = client.get(f"/orders/{order['id']}/history?limit=100").get_json()["events"]
        assert (len(events), events[-1]["data"]) == (order["version"], order)


def test_new_orders_are_pending_and_have_one_event(app: Flask, runner: FlaskCliRunner) -> None:
    result = runner.invoke(args=["seed", "--orders", "50", "--new"])

    assert result.stdout.startswith("50 orders in ")
    assert stored_documents(app) == [order.document for order in sample(50)]


def test_a_second_run_adds_nothing(app: Flask, runner: FlaskCliRunner) -> None:
    runner.invoke(args=["seed", "--orders", "50"])
    before = stored_documents(app)

    result = runner.invoke(args=["seed", "--orders", "50"])

    assert result.exit_code == 0
    assert result.stdout.startswith("0 orders in ") and "(50 existed)" in result.stdout
    assert stored_documents(app) == before


def test_an_aborted_run_is_completed_by_the_next_one(
    app: Flask, runner: FlaskCliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SEED_MODULE, "_BATCH", 20)
    with app.app_context():
        insert_histories(histories(50)[:30])

    result = runner.invoke(args=["seed", "--orders", "50"])

    assert "(30 existed)" in result.stdout
    assert stored_documents(app) == snapshots(histories(50))


def test_seeds_of_another_number_are_added(app: Flask, runner: FlaskCliRunner) -> None:
    runner.invoke(args=["seed", "--orders", "20", "--seed", "1"])

    result = runner.invoke(args=["seed", "--orders", "20", "--seed", "2"])

    assert result.stdout.startswith("20 orders in ")
    assert count_rows(app, Order) == 40


def test_a_database_that_may_be_in_use_is_rejected_without_the_option(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner
) -> None:
    client.post("/orders/batch", json={"orders": [MINIMAL] * 101})

    refused = runner.invoke(args=["seed", "--orders", "5"])
    stored = count_rows(app, Order)
    forced = runner.invoke(args=["seed", "--orders", "5", "--force"])

    assert refused.exit_code == 1
    assert (
        refused.stderr
        == "Error: The database has more than 100 orders of others and may be in use. --force adds to them.\n"
    )
    assert stored == 101
    assert forced.exit_code == 0
    assert count_rows(app, Order) == 106


def test_sample_orders_are_added_to_the_first_orders_of_somebody_who_tries_the_service(
    client: FlaskClient, runner: FlaskCliRunner
) -> None:
    client.post("/orders", json=MINIMAL)

    seeded = runner.invoke(args=["seed", "--orders", "5"])

    assert seeded.exit_code == 0
    assert len(client.get("/orders").get_json()["orders"]) == 6


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--orders", "0"], "0 is not in the range"),
        (["--orders", "many"], "'many' is not a valid integer range"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--until", "yesterday"], "'yesterday' does not match the format '%Y-%m-%d'"),
        (["--until", "1970-06-01"], "the first orders would be older than 1970"),
    ],
)
def test_bad_options_are_refused_in_one_line(runner: FlaskCliRunner, arguments: list[str], fault: str) -> None:
    result = runner.invoke(args=["seed", *arguments])

    assert result.exit_code == 2
    [line] = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert fault in line


def test_a_failing_database_is_reported_in_one_line(runner: FlaskCliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> set[str]:
        raise PoolTimeout("no connection\nis free")

    monkeypatch.setattr(SEED_MODULE, "insert_histories", fail)
    monkeypatch.setattr(SEED_MODULE, "_PAUSES", (0,))

    result = runner.invoke(args=["seed", "--orders", "5"])

    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last == "Error: Database error. Run the same command again to continue. no connection"


def test_a_statement_on_a_busy_database_is_retried(runner: FlaskCliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = iter([PoolTimeout("busy"), PoolTimeout("busy")])

    def fail_twice(batch: list[OrderHistory]) -> set[str]:
        for fault in faults:
            raise fault
        return insert_histories(batch)

    monkeypatch.setattr(SEED_MODULE, "insert_histories", fail_twice)
    monkeypatch.setattr(SEED_MODULE, "_PAUSES", (0, 0))

    result = runner.invoke(args=["seed", "--orders", "5"])

    assert (result.exit_code, result.stdout[:9]) == (0, "5 orders ")
