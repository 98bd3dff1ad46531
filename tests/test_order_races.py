"""Concurrent writers on one order: no change is lost or repeated, on both databases."""

import itertools
from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from werkzeug.test import TestResponse

from app.models import Order
from app.services import order_actions
from tests.support.actions import UNIT, order_after, send_action
from tests.support.concurrency import retry_while_unavailable, run_concurrently
from tests.support.samples import MINIMAL, slug

WRITERS = 32


def assert_gap_free(client: FlaskClient, runner: FlaskCliRunner, path: str) -> dict[str, Any]:
    """The order, whose history holds each version once and whose tables say what its log says."""
    order: dict[str, Any] = client.get(path).json
    events = client.get(f"{path}/history?limit=100").json["events"]
    assert [event["version"] for event in events] == list(range(1, order["version"] + 1))
    assert events[-1]["data"] == order
    verified = runner.invoke(args=["verify"])
    assert verified.exit_code == 0, verified.output
    return order


def test_unconditional_writers_store_one_version_each_or_are_refused(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner
) -> None:
    path = order_after(client)

    def write(i: int) -> list[TestResponse]:
        own = app.test_client()
        actions = "cancel" if i == WRITERS - 1 else ("update", "hold", "confirm", "hold")[i % 4], "update"
        return [retry_while_unavailable(lambda name=name: send_action(own, path, name)) for name in actions]  # type: ignore[misc]

    responses = [response for both in run_concurrently(WRITERS, write) for response in both]

    statuses = Counter(response.status_code for response in responses)
    assert statuses.keys() <= {200, 409}
    order = assert_gap_free(client, runner, path)
    assert statuses[200] == order["version"] - 1
    assert sorted(r.json["version"] for r in responses if r.status_code == 200) == list(range(2, order["version"] + 1))


def test_writers_who_retry_with_the_current_version_all_succeed(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner
) -> None:
    path = order_after(client, note="0")

    def count_up(_: int) -> list[int]:
        own, statuses = app.test_client(), []
        while 200 not in statuses:
            read = retry_while_unavailable(lambda: own.get(path))
            note, tag = str(int(read.json["note"]) + 1), read.headers["ETag"]
            statuses.append(
                retry_while_unavailable(
                    lambda: send_action(own, path, "update", {"note": note}, If_Match=tag)
                ).status_code
            )
        return statuses

    tries = [status for statuses in run_concurrently(WRITERS, count_up) for status in statuses]

    assert set(tries) <= {200, 412}
    order = assert_gap_free(client, runner, path)
    assert (order["note"], order["version"]) == (str(WRITERS), WRITERS + 1)


def test_concurrent_fulfillments_ship_no_more_units_than_ordered(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner
) -> None:
    path = order_after(client, "confirm", items=[MINIMAL["items"][0] | {"quantity": 20}])

    responses = run_concurrently(
        WRITERS, lambda i: retry_while_unavailable(lambda: send_action(app.test_client(), path, "fulfill", UNIT))
    )

    assert Counter(response.status_code for response in responses) == {201: 20, 409: WRITERS - 20}
    order = assert_gap_free(client, runner, path)
    assert (order["items"][0]["fulfilled"], order["status"], order["version"]) == (20, "completed", 22)
    assert [sent["number"] for sent in order["fulfillments"]] == list(range(1, 21))


def test_a_change_that_loses_every_race_gets_503(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    path = order_after(client)
    tries = []

    def be_late(order: Order, event: Any, **_: Any) -> bool:
        tries.append(order.version)
        return False

    monkeypatch.setattr(order_actions, "store_version", be_late)
    moments = itertools.count(step=order_actions.CONFLICT_DEADLINE / 4)
    monkeypatch.setattr(order_actions, "time", SimpleNamespace(monotonic=lambda: next(moments)))

    response = send_action(client, path, "confirm")

    assert slug(response) == (503, "service-unavailable")
    assert response.headers["Retry-After"] == "1"
    assert tries == [2, 2, 2]
    assert client.get(path).json["version"] == 1


def test_two_equal_changes_in_one_microsecond_are_two_versions(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The documents that they would make are the same to the last byte."""
    path = order_after(client, "confirm")
    store, at = order_actions.store_version, datetime.now(UTC)
    twins = iter([True])

    class Frozen(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return at

    def let_the_twin_go_first(order: Order, event: Any, **written: Any) -> bool:
        if next(twins, False):
            assert send_action(app.test_client(), path, "fulfill", UNIT).status_code == 201
        return store(order, event, **written)

    monkeypatch.setattr(order_actions, "datetime", Frozen)
    monkeypatch.setattr(order_actions, "store_version", let_the_twin_go_first)

    second = send_action(client, path, "fulfill", UNIT)

    assert (second.status_code, second.json["items"][0]["fulfilled"], second.json["version"]) == (201, 2, 4)


def test_a_reference_patched_concurrently_is_assigned_to_one_order(app: Flask, client: FlaskClient) -> None:
    paths = [order_after(client) for _ in range(8)]

    responses = run_concurrently(
        8,
        lambda i: retry_while_unavailable(
            lambda: send_action(app.test_client(), paths[i], "update", {"external_ref": "r-1"})
        ),
    )

    assert Counter(response.status_code for response in responses) == {200: 1, 409: 7}
    [order] = client.get("/orders?external_ref=r-1").json["orders"]
    assert [r.json["version"] for r in responses if r.status_code == 200] == [order["version"]] == [2]
