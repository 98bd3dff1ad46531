"""`POST /orders/actions`: many actions in one request, each checked independently."""

from typing import Any
from unittest.mock import Mock

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.models.lifecycle import ACTIONS
from app.schemas.order import EmptySchema
from app.services import batches
from tests.support.actions import BODIES, READY, ROUTES, event_types, order_after, send_action
from tests.support.credentials import api_key, bearer
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL, error_locations, priced, slug

MEMBERS: dict[str, Any] = BODIES | {
    "update": {"patch": {"note": "x"}},
    "hold": {"handle": "review", "kind": "other"},
    "release": {"handle": "review"},
    "track": {"number": 1} | BODIES["track"],
    "receive": {"number": 1},
    "reject": {"number": 1},
}


def send(client: FlaskClient, *actions: Any, **headers: str) -> list[dict[str, Any]]:
    response = client.post("/orders/actions", json={"actions": actions}, headers=headers)
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json["results"]
    return results


def action(path: str, name: str, **members: Any) -> dict[str, Any]:
    return {"order_id": path.removeprefix("/orders/"), "action": name, **MEMBERS.get(name, {}), **members}


def test_every_action_can_be_sent() -> None:
    assert batches.BULK_ACTIONS.keys() == ACTIONS.keys(), "add the action to BULK_ACTIONS in app/services/batches.py"


@pytest.mark.parametrize("name", ACTIONS)
def test_each_action_has_the_same_result_as_its_route(client: FlaskClient, name: str) -> None:
    path = order_after(client, *READY[name])

    [result] = send(client, action(path, name))

    assert result["status"] == 200, result
    assert result["order"] == client.get(path).json
    assert event_types(client, path)[-1] == ACTIONS[name].event


def test_each_action_is_checked_independently_and_results_are_in_order(client: FlaskClient) -> None:
    first, second, third = (order_after(client) for _ in range(3))
    absent = "/orders/00000000-0000-7000-8000-000000000000"

    results = send(
        client,
        action(first, "confirm"),
        action(second, "complete"),
        action(absent, "confirm"),
        5,
        action(second, "cancel", reason="mood"),
        action(third, "confirm", colour="red"),
        action(third, "vanish"),
        action(first, "fulfill"),
        action(first, "confirm", if_match=1),
        action(third, "confirm", if_match=1),
    )

    assert [result["status"] for result in results] == [200, 409, 404, 400, 400, 400, 400, 200, 412, 200]
    pointers = [error["pointer"] for result in results[3:7] for error in result["problem"]["errors"]]
    assert pointers == ["#/actions/3", "#/actions/4/reason", "#/actions/5/colour", "#/actions/6/action"]
    assert [client.get(path).json["status"] for path in (first, second, third)] == ["confirmed", "pending", "confirmed"]


@pytest.mark.parametrize(
    ("name", "members", "place"),
    [
        ("cancel", {"items": [{"line": 1, "quantity": 1}, {"line": 9, "quantity": 1}]}, "items/1"),
        ("cancel", {"items": [{"line": 1, "quantity": 1_000}]}, "items/0"),
        ("cancel", {"adjustments": [{"type": "discount", "amount": 0, "line": 9}]}, "adjustments/0/line"),
        ("hold", {"until": "2020-01-01T00:00:00Z"}, "until"),
        ("pay", {"occurred_at": "2999-01-01T00:00:00Z"}, "occurred_at"),
        ("pay", {"type": "refund_reversal"}, "reference"),
        (
            "update",
            {"patch": {"shipping_address": {"country": None, "city": "Berlin"}}},
            "patch/shipping_address/country",
        ),
        ("update", {"patch": {"adjustments": [{"type": "discount", "amount": -(10**6)}]}}, "patch/adjustments"),
    ],
)
def test_an_error_that_depends_on_the_order_is_located_in_the_body(
    client: FlaskClient, name: str, members: dict[str, Any], place: str
) -> None:
    paths = [client.post("/orders", json=priced()).location for _ in range(2)]

    results = send(client, *(action(path, name, **members) for path in paths))

    assert [{error["pointer"] for error in result["problem"]["errors"]} for result in results] == [
        {f"#/actions/{position}/{place}"} for position in range(2)
    ]


def test_actions_on_one_order_are_carried_out_one_after_the_other(client: FlaskClient) -> None:
    paths = [order_after(client) for _ in range(30)]
    names = ("hold", "release", "confirm", "fulfill", "fulfill", "return")

    results = send(client, *(action(path, name) for name in names for path in paths))

    assert {result["status"] for result in results} == {200}
    assert [result["order"]["version"] for result in results] == [v for v in range(2, 8) for _ in paths]


@pytest.mark.parametrize("name", ["update", "hold", "pay"])
def test_a_key_is_the_same_here_and_on_the_route_of_the_action(client: FlaskClient, name: str) -> None:
    path = order_after(client, *READY[name])
    body = {name: value for name, value in MEMBERS[name].items() if name != "handle"}
    sent = send_action(client, path, name, body.get("patch", body), Idempotency_Key="k-1")

    [again, other] = send(
        client,
        action(path, name, idempotency_key="k-1"),
        action(path, name, idempotency_key="k-1")
        | ({"patch": {"note": "y"}} if name == "update" else {"kind": "fraud"} if name == "hold" else {"amount": 2}),
    )

    assert (again["status"], again["replayed"], again["order"]) == (200, True, sent.json)
    assert (other["status"], other["problem"]["type"]) == (422, "/problems/idempotency-key-reused")


def test_each_action_requires_the_scope_of_its_route(secure_app: Flask, secure_client: FlaskClient) -> None:
    writer = bearer(api_key(secure_app, "orders:write"))
    created = secure_client.post("/orders", json=MINIMAL, headers=writer).headers["Location"]

    results = send(
        secure_client, action(created, "confirm"), action(created, "pay"), action(created, "cancel"), **writer
    )

    assert [result["status"] for result in results] == [403, 403, 200]


@on_sqlite
@pytest.mark.parametrize("name", ACTIONS)
def test_each_action_has_the_members_and_the_scope_of_its_route(app: Flask, name: str) -> None:
    method, below, _ = ROUTES[name]
    endpoint, _ = app.url_map.bind("localhost").match(f"/orders/x{below.format(1)}", method)
    blueprint, _, view = endpoint.partition(".")
    operation = app.blueprints[blueprint].operations[view]
    bulk = batches.BULK_ACTIONS[name]

    assert bulk.scope == operation.scope
    body = operation.body.fields.keys() if operation.body else set()
    assert bulk.schema.fields.keys() - bulk.path_members == ({"patch"} if name == "update" else body)


def test_a_dry_run_stores_nothing(client: FlaskClient) -> None:
    path = order_after(client)
    entries = [action(path, "confirm"), action(path, "complete")]

    response = client.post("/orders/actions?dry_run=true", json={"actions": entries})

    assert response.headers["Dry-Run"] == "true"
    assert [result["status"] for result in response.json["results"]] == [200, 409]
    assert client.get(path).json["version"] == 1


def test_actions_that_are_not_started_in_time_are_not_executed(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "DEADLINE", -1.0)
    path = order_after(client)

    [result] = send(client, action(path, "confirm"))

    assert (result["status"], client.get(path).json["version"]) == (503, 1)


def test_actions_after_those_whose_orders_fill_the_response_are_not_executed(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "RESULTS_MAX", 1)
    path = order_after(client)

    results = send(client, action(path, "confirm"), action(path, "complete"))

    assert [result["status"] for result in results] == [200, 503]
    assert client.get(path).json["status"] == "confirmed"


@pytest.mark.parametrize(("body", "pointer"), [({"actions": []}, "#/actions"), ({}, "#/actions")])
def test_a_request_without_actions_is_refused(client: FlaskClient, body: Any, pointer: str) -> None:
    assert error_locations(client.post("/orders/actions", json=body)) == {pointer}


def test_only_the_first_thousand_errors_have_details(client: FlaskClient) -> None:
    path = order_after(client)
    wrong = action(path, "update", patch={"items": [{"item_id": "sku-1", "quantity": 0}] * 100})

    results = send(client, *[wrong] * 12, action(path, "confirm"))

    assert [len(result["problem"]["errors"]) for result in results[:12]] == [100] * 10 + [1] * 2
    assert results[11]["problem"]["errors"][0]["pointer"] == "#/actions/11"
    assert results[12]["status"] == 200


def test_more_than_a_thousand_actions_are_refused(client: FlaskClient) -> None:
    entries = [{"order_id": "x", "action": "confirm"}] * 1001

    assert slug(client.post("/orders/actions", json={"actions": entries})) == (400, "invalid-request")


def test_a_failed_action_does_not_affect_others(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = order_after(client), order_after(client)
    broken = batches.BulkAction(EmptySchema(), "orders:manage", Mock(side_effect=RuntimeError("a bug")))
    monkeypatch.setitem(batches.BULK_ACTIONS, "complete", broken)

    results = send(client, action(first, "confirm"), action(second, "complete"), action(second, "confirm"))

    assert [result["status"] for result in results] == [200, 500, 200]


@pytest.mark.parametrize(
    ("header", "member"), [({"Idempotency-Key": "k-1"}, "idempotency_key"), ({"If-Match": '"1"'}, "if_match")]
)
def test_headers_that_belong_in_each_action_are_refused(
    client: FlaskClient, header: dict[str, str], member: str
) -> None:
    path = order_after(client)

    response = client.post("/orders/actions", json={"actions": [action(path, "confirm")]}, headers=header)

    assert slug(response) == (400, "bad-request")
    assert f"Send `{member}` in each entry." in response.json["detail"]
    assert client.get(path).json["version"] == 1
