"""`flask orders expire`."""

import itertools
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import click
import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import update
from structlog.testing import capture_logs

from app.cli.orders import Age
from app.cli.seed import sample_orders
from app.db.engine import db
from app.models import EVENTS, Order
from app.services import order_actions
from app.services.order_actions import expire_orders
from app.services.order_storage import insert_orders
from tests.support.samples import priced


@pytest.fixture
def old(app: Flask) -> list[str]:
    """The paths of seven orders that are between two and one years old."""
    orders = list(sample_orders(7, seed=1, until=datetime.now(UTC) - timedelta(days=365)))
    with app.app_context():
        insert_orders(orders)
    return [f"/orders/{order.id}" for order in orders]


def statuses(client: FlaskClient, paths: list[str]) -> list[str]:
    return [client.get(path).json["status"] for path in paths]


def test_stale_pending_orders_are_cancelled_as_expired_by_the_system(
    client: FlaskClient, runner: FlaskCliRunner, old: list[str]
) -> None:
    result = runner.invoke(args=["orders", "expire", "--older-than", "365d"])

    assert (result.exit_code, result.stdout.splitlines()[0], result.stderr) == (0, "7 orders expired.", "")
    assert statuses(client, old) == ["cancelled"] * 7
    [_, event] = client.get(f"{old[0]}/history").json["events"]
    assert (event["type"], event["actor"]) == ("order.cancelled", "system:expiry")
    assert (
        event["data"]["cancellations"][0].items()
        >= {"reason": "expired", "note": None, "created_at": event["at"]}.items()
    )
    assert runner.invoke(args=["verify"]).exit_code == 0


def test_an_order_that_fails_does_not_prevent_the_expiry_of_others(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner, old: list[str]
) -> None:
    broken = old[0].rpartition("/")[2]
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(update(EVENTS).where(EVENTS.c.order_id == broken).values(snapshot="{}"))

    with capture_logs() as logged:
        result = runner.invoke(args=["orders", "expire", "--older-than", "365d"])

    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "6 orders expired.")
    assert [entry["order_id"] for entry in logged if entry["log_level"] == "error"] == [broken]
    assert statuses(client, old[1:]) == ["cancelled"] * 6


def test_a_second_run_expires_nothing(client: FlaskClient, runner: FlaskCliRunner, old: list[str]) -> None:
    runner.invoke(args=["orders", "expire", "--older-than", "1d"])

    result = runner.invoke(args=["orders", "expire", "--older-than", "1d"])

    assert result.stdout.startswith("0 orders expired.\n")
    assert client.get(old[0]).json["version"] == 2


def test_young_held_and_confirmed_orders_do_not_expire(
    client: FlaskClient, runner: FlaskCliRunner, old: list[str]
) -> None:
    young = client.post("/orders", json={"customer_id": "c", "items": [{"item_id": "i", "quantity": 1}]})
    client.put(f"{old[0]}/holds/review", json={"kind": "address"})
    client.post(f"{old[1]}/confirm")

    result = runner.invoke(args=["orders", "expire", "--older-than", "1h"])

    assert result.stdout.startswith("5 orders expired.\n")
    assert statuses(client, [*old[:2], young.headers["Location"]]) == ["pending", "confirmed", "pending"]


def test_a_reopened_order_does_not_expire(client: FlaskClient, runner: FlaskCliRunner, old: list[str]) -> None:
    client.post(f"{old[0]}/cancel", json={"reason": "customer"})
    client.post(f"{old[0]}/reopen", json={"reason": "ordered again by phone"})

    result = runner.invoke(args=["orders", "expire", "--older-than", "1h"])

    assert result.stdout.startswith("6 orders expired.\n")
    assert statuses(client, old[:2]) == ["pending", "cancelled"]


def test_an_order_with_a_payment_does_not_expire(client: FlaskClient, runner: FlaskCliRunner, old: list[str]) -> None:
    for path, type in zip(old, ("authorization", "capture"), strict=False):
        client.patch(path, json={"currency": "EUR", "items": priced()["items"]})
        client.post(f"{path}/payments", json={"type": type, "amount": 100, "reference": "p-1"})

    result = runner.invoke(args=["orders", "expire", "--older-than", "1h"])

    assert result.stdout.startswith("5 orders expired.\n")
    assert statuses(client, old[:3]) == ["pending", "pending", "cancelled"]


def test_orders_are_expired_in_batches(
    app: Flask, client: FlaskClient, old: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_actions, "_SCHEDULE_PAGE", 3)

    with app.app_context():
        assert list(expire_orders(older_than=timedelta(days=1))) == [3, 3, 1]


def test_an_order_that_is_confirmed_concurrently_does_not_expire(
    app: Flask, client: FlaskClient, old: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = order_actions.find_expired

    def confirm_after_search(*, after: str, before: str) -> Any:
        found = find(after=after, before=before)
        client.post(f"{old[2]}/confirm")
        return found

    monkeypatch.setattr(order_actions, "find_expired", confirm_after_search)

    with app.app_context():
        assert list(expire_orders(older_than=timedelta(days=1))) == [6]
    assert statuses(client, old[1:4]) == ["cancelled", "confirmed", "cancelled"]


def test_a_locked_order_is_left_to_the_next_run(
    app: Flask, client: FlaskClient, old: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = order_actions.store_version

    def store_others(order: Order, event: dict[str, Any], **written: Any) -> bool:
        return f"/orders/{order.id}" != old[2] and store(order, event, **written)

    monkeypatch.setattr(order_actions, "_SCHEDULE_PAGE", 2)
    with app.app_context():
        with monkeypatch.context() as busy:
            busy.setattr(order_actions, "store_version", store_others)
            moments = itertools.count(step=order_actions.CONFLICT_DEADLINE / 4)
            busy.setattr(order_actions, "time", SimpleNamespace(monotonic=lambda: next(moments)))
            assert list(expire_orders(older_than=timedelta(days=1))) == [2, 1, 2, 1]
        assert list(expire_orders(older_than=timedelta(days=1))) == [1]


def test_an_age_before_the_first_possible_order_expires_no_order(runner: FlaskCliRunner, old: list[str]) -> None:
    for age in ("30000d", "36500d"):
        result = runner.invoke(args=["orders", "expire", "--older-than", age])

        assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "0 orders expired.")


@pytest.mark.parametrize(
    "age", ["", "30", "d", "-1d", "1.5d", "30 d", "30w", "３d", "0d", "00m", "36501d", "52560001m", "999999999d"]
)
def test_an_invalid_age_is_rejected(age: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a duration in days, hours or minutes"):
        Age().convert(age, None, None)
