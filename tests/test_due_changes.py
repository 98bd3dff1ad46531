"""Changes that are due at a time: holds that end, and orders that become late."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import update
from structlog.testing import capture_logs

from app.db.engine import db
from app.models import EVENTS
from app.services import order_actions
from app.services.order_actions import apply_due_changes
from tests.support.actions import event_types, order_after, send_action
from tests.support.samples import error_locations, slug

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def at(hours: float) -> str:
    return (NOW + timedelta(hours=hours)).isoformat()


@pytest.fixture
def pass_time(app: Flask) -> Any:
    """Moves the clock of the service, and returns the number of due changes."""
    with time_machine.travel(NOW, tick=False) as clock:

        def pass_time(hours: float) -> int:
            clock.move_to(NOW + timedelta(hours=hours))
            with app.app_context():
                return sum(apply_due_changes())

        yield pass_time


PassTime = Callable[[float], int]


def test_a_hold_ends_at_its_time(client: FlaskClient, pass_time: PassTime) -> None:
    path = order_after(client)
    for handle, hours in [("a", 2), ("b", 1), ("c", None)]:
        until = at(hours) if hours else None
        client.put(f"{path}/holds/{handle}", json={"kind": "payment", "until": until})

    counts = [pass_time(hours) for hours in (0.9, 1, 1.5, 3, 4)]

    order, events = client.get(path).json, client.get(f"{path}/history").json["events"]
    assert counts == [0, 1, 0, 1, 0]
    assert [hold["handle"] for hold in order["holds"]] == ["c"]
    assert [(event["type"], event["actor"]) for event in events[4:]] == [("order.released", "system:schedule")] * 2
    assert [hold["handle"] for hold in events[4]["data"]["holds"]] == ["a", "c"]


def test_an_order_becomes_late_only_once(client: FlaskClient, pass_time: PassTime) -> None:
    path = order_after(client, ship_by=at(1))

    counts = [pass_time(hours) for hours in (0.9, 1, 2)]

    order = client.get(path).json
    assert counts == [0, 1, 0]
    assert (order["late"], order["version"], event_types(client, path)[-1]) == (True, 2, "order.late")


@pytest.mark.parametrize(
    "way",
    [("cancel",), ("confirm", "complete"), ("confirm", "fulfill", "fulfill"), ("confirm", "fulfill", "cancel")],
    ids="-".join,
)
def test_an_order_that_has_ended_is_never_late(client: FlaskClient, pass_time: PassTime, way: tuple[str, ...]) -> None:
    early, late = (order_after(client, ship_by=at(1)) for _ in range(2))
    for name in way:
        send_action(client, early, name)

    assert pass_time(2) == 1
    for name in way:
        send_action(client, late, name)

    assert [client.get(path).json["late"] for path in (early, late)] == [False, False]
    assert "order.late" not in event_types(client, early)


def test_an_order_with_a_new_date_is_no_longer_late_until_that_date_passes(
    client: FlaskClient, pass_time: PassTime
) -> None:
    path = order_after(client, ship_by=at(1))
    pass_time(2)

    postponed = send_action(client, path, "update", {"ship_by": at(3)}).json
    counts = [pass_time(2.5), pass_time(3)]
    without = send_action(client, path, "update", {"ship_by": None}).json

    assert (postponed["late"], postponed["ship_by"]) == (False, "2026-06-01T15:00:00.000000Z")
    assert counts == [0, 1]
    assert (without["late"], without["ship_by"]) == (False, None)
    assert pass_time(99) == 0


def test_an_order_that_is_reopened_after_its_date_is_late_again(client: FlaskClient, pass_time: PassTime) -> None:
    path = order_after(client, "cancel", ship_by=at(1))
    assert pass_time(2) == 0

    reopened = send_action(client, path, "reopen").json

    assert (reopened["late"], pass_time(2), client.get(path).json["late"]) == (False, 1, True)


def test_an_order_may_be_created_after_its_date(client: FlaskClient, pass_time: PassTime) -> None:
    path = order_after(client, ship_by=at(-1))

    assert (pass_time(0), client.get(path).json["late"]) == (1, True)


def test_all_due_changes_are_made_at_once_each_as_a_version(client: FlaskClient, pass_time: PassTime) -> None:
    path = order_after(client, ship_by=at(1))
    for handle in "ab":
        client.put(f"{path}/holds/{handle}", json={"kind": "other", "until": at(1)})

    assert pass_time(5) == 3
    assert event_types(client, path)[3:] == ["order.released", "order.released", "order.late"]
    assert client.get(path).json["version"] == 6


def test_a_hold_that_has_ended_can_be_replaced_by_one_that_ends_later(client: FlaskClient, pass_time: PassTime) -> None:
    path = order_after(client)
    body = {"kind": "other", "until": at(1)}
    client.put(f"{path}/holds/a", json=body)

    with time_machine.travel(NOW + timedelta(hours=2), tick=False):
        confirmed = send_action(client, path, "confirm")
        again = client.put(f"{path}/holds/a", json=body)
        past = client.put(f"{path}/holds/b", json=body)
        longer = client.put(f"{path}/holds/a", json=body | {"until": at(9)})

    assert slug(confirmed) == (409, "illegal-action")  # until the service has released it
    assert (again.status_code, again.json["version"]) == (200, 2)
    assert error_locations(past) == {"#/until"}
    assert longer.json["holds"][0]["until"] == "2026-06-01T21:00:00.000000Z"
    assert pass_time(3) == 0


def test_due_changes_are_made_in_pages(
    client: FlaskClient, pass_time: PassTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_actions, "_SCHEDULE_PAGE", 2)
    paths = [order_after(client, ship_by=at(hours)) for hours in (1, 1, 1, 0.5, 2)]

    assert pass_time(3) == 5
    assert [client.get(path).json["late"] for path in paths] == [True] * 5


def test_an_order_that_fails_does_not_prevent_the_changes_of_others(
    app: Flask, client: FlaskClient, pass_time: PassTime
) -> None:
    broken, other = (order_after(client, ship_by=at(hours)) for hours in (1, 2))
    with app.app_context(), db.engine.begin() as connection:
        of_order = EVENTS.c.order_id == broken.rpartition("/")[2]
        connection.execute(update(EVENTS).where(of_order).values(snapshot="{}"))

    with capture_logs() as logged:
        assert pass_time(3) == 1

    assert [(entry["event"], entry["order_id"]) for entry in logged if entry["log_level"] == "error"] == [
        ("scheduled change failed", broken.rpartition("/")[2])
    ]
    assert client.get(other).json["late"]


def test_the_command_makes_due_changes_and_expires_orders_only_with_an_age(
    client: FlaskClient, runner: FlaskCliRunner, pass_time: PassTime
) -> None:
    held = order_after(client)
    client.put(f"{held}/holds/a", json={"kind": "payment", "until": at(1)})
    late = order_after(client, ship_by=at(1))

    with time_machine.travel(NOW + timedelta(hours=2), tick=False):
        young = runner.invoke(args=["orders", "expire"])
        with_age = runner.invoke(args=["orders", "expire", "--older-than", "1h"])

    assert (young.exit_code, young.stdout) == (0, "2 due changes applied.\n")
    assert (with_age.exit_code, with_age.stdout) == (0, "2 orders expired.\n0 due changes applied.\n")
    assert event_types(client, held) == ["order.created", "order.held", "order.released", "order.cancelled"]
    assert event_types(client, late) == ["order.created", "order.late", "order.cancelled"]
    assert runner.invoke(args=["verify"]).exit_code == 0
