"""The lifecycle of an order over HTTP."""

from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st

from app.models.lifecycle import ACTIONS, CONDITIONS, STATUSES
from app.schemas.order import CANCELLATION_REASONS
from tests.support.actions import BODIES, READY, ROUTES, TO_STATUS, UNIT, event_types, order_after, send_action
from tests.support.samples import error_locations, slug

LINES = {"items": [{"item_id": "sku-1", "quantity": 2}, {"item_id": "sku-2", "quantity": 1}]}


def units(*pairs: tuple[int, int]) -> dict[str, Any]:
    return {"items": [{"line": line, "quantity": quantity} for line, quantity in pairs]}


def test_an_order_passes_through_its_whole_lifecycle(client: FlaskClient) -> None:
    path = order_after(client, **LINES)

    steps = [
        send_action(client, path, "confirm"),
        send_action(client, path, "hold"),
        send_action(client, path, "release"),
        send_action(client, path, "fulfill", units((1, 1))),
        send_action(client, path, "fulfill", units((1, 1), (2, 1))),
        send_action(client, path, "return", units((2, 1)) | {"reason": "broken"}),
        send_action(client, path, "update"),
    ]

    assert [step.status_code for step in steps] == [200, 200, 200, 201, 201, 201, 200]
    assert [step.json["version"] for step in steps] == [2, 3, 4, 5, 6, 7, 8]
    last = steps[-1].json
    assert (last["status"], last["fulfillment_status"]) == ("completed", "fulfilled")
    assert [(item["fulfilled"], item["returned"]) for item in last["items"]] == [(2, 0), (1, 1)]
    assert [event.removeprefix("order.") for event in event_types(client, path)] == [
        "created", "confirmed", "held", "released", "fulfilled", "fulfilled", "returned", "updated",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ACTIONS)
def test_an_action_is_one_version_and_one_event(client: FlaskClient, name: str) -> None:
    path = order_after(client, *READY[name])
    before = client.get(path).json

    response = send_action(client, path, name)

    assert response.status_code == ROUTES[name][2]
    assert response.json["version"] == before["version"] + 1
    to_status = {"cancel": "cancelled", "reopen": "pending"}.get(name, ACTIONS[name].to_status)
    assert response.json["status"] == (to_status or before["status"])
    assert client.get(path).data == response.data
    event = client.get(f"{path}/history").json["events"][-1]
    assert (event["type"], event["version"]) == (ACTIONS[name].event, response.json["version"])
    assert (event["actor"], event["at"]) == ("anonymous", response.json["updated_at"])
    assert event["data"] == response.json


# Releasing a hold that does not exist is no error.
ILLEGAL = [
    (name, status)
    for name, action in ACTIONS.items()
    for status in STATUSES
    if status not in action.from_statuses and name != "release"
]


@pytest.mark.parametrize(("name", "status"), ILLEGAL)
def test_an_illegal_action_is_409_and_lists_the_allowed_actions(client: FlaskClient, name: str, status: str) -> None:
    path = order_after(client, *TO_STATUS[status])
    before = client.get(path)

    response = send_action(client, path, name)

    assert slug(response) == (409, "illegal-action")
    assert response.json["order_status"] == before.json["status"] == status
    assert response.json["current_version"] == before.json["version"]
    assert response.json["allowed_actions"] == before.json["allowed_actions"]
    assert client.get(path).data == before.data


def succeeding(client: FlaskClient, path: str, way: list[str]) -> list[str]:
    """The actions that store a new version of the order, or of an order in the same state."""
    names = []
    for name in ACTIONS:
        before = client.get(path).json
        response = send_action(client, path, name)
        if response.status_code < 300 and response.json["version"] == before["version"] + 1:
            names.append(name)
            path = order_after(client, *way)
        else:
            assert client.get(path).json == before
    return sorted(names)


# All states with different allowed actions.
WAYS: list[tuple[str, ...]] = [
    (),
    ("hold",),
    ("cancel",),
    ("confirm",),
    ("confirm", "fulfill"),
    ("confirm", "fulfill", "hold"),
    ("confirm", "fulfill", "return"),
    ("confirm", "fulfill", "complete"),
    ("confirm", "fulfill", "fulfill"),
    ("confirm", "fulfill", "fulfill", "return", "return"),
    ("confirm", "fulfill", "expect"),
    ("confirm", "fulfill", "cancel", "reopen"),
    ("cancel", "reopen"),
    ("pay", "confirm", "pay"),
]


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_exactly_the_allowed_actions_succeed(client: FlaskClient, way: tuple[str, ...]) -> None:
    path = order_after(client, *way)
    allowed = client.get(path).json["allowed_actions"]

    assert succeeding(client, path, list(way)) == allowed


@settings(max_examples=settings().max_examples // 6)
@given(names=st.lists(st.sampled_from([*ACTIONS, "confirm", "fulfill", "return"]), max_size=12))
def test_exactly_the_allowed_actions_succeed_in_every_reachable_state(client: FlaskClient, names: list[str]) -> None:
    path, steps = order_after(client), []
    for name in names:
        if name in client.get(path).json["allowed_actions"]:
            send_action(client, path, name)
            steps.append(name)

    allowed = client.get(path).json["allowed_actions"]
    assert succeeding(client, path, steps) == allowed


@pytest.mark.parametrize(
    ("reason", "note"),
    [*((reason, None) for reason in CANCELLATION_REASONS), ("other", ""), ("other", "Ordered twice.\nSorry!")],
)
def test_a_cancelled_order_has_its_reason(client: FlaskClient, reason: str, note: str | None) -> None:
    path = order_after(client)

    order = send_action(client, path, "cancel", {"reason": reason, "note": note}).json

    [cancellation] = order["cancellations"]
    assert cancellation == {
        "number": 1,
        "items": [{"line": 1, "quantity": 2}],
        "reason": reason,
        "note": note,
        "created_at": order["updated_at"],
        "reopened_at": None,
    }


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "#/reason"),
        ({"reason": "mood"}, "#/reason"),
        ({"reason": None}, "#/reason"),
        ({"reason": "other", "note": "x" * 2001}, "#/note"),
        ({"reason": "other", "comment": "x"}, "#/comment"),
    ],
)
def test_a_cancellation_requires_one_of_the_reasons(client: FlaskClient, body: Any, pointer: str) -> None:
    path = order_after(client)

    assert error_locations(client.post(f"{path}/cancel", json=body)) == {pointer}
    assert client.get(path).json["status"] == "pending"


@pytest.mark.parametrize("name", ["confirm", "complete", "fulfill"])
def test_a_hold_blocks_every_action_that_advances_the_order(client: FlaskClient, name: str) -> None:
    path = order_after(client, *READY[name], "hold")

    stopped = send_action(client, path, name)

    assert slug(stopped) == (409, "illegal-action")
    assert "hold" in stopped.json["detail"] and "release" in stopped.json["allowed_actions"]
    assert send_action(client, path, "release").status_code == 200
    assert send_action(client, path, name).status_code == ROUTES[name][2]


@pytest.mark.parametrize("way", [("hold",), ("confirm", "hold")], ids="-".join)
def test_a_hold_does_not_block_a_cancellation_and_ends_with_it(client: FlaskClient, way: tuple[str, ...]) -> None:
    path = order_after(client, *way)

    order = send_action(client, path, "cancel").json

    assert (order["status"], order["holds"]) == ("cancelled", [])


def test_placing_the_same_hold_again_stores_no_version(client: FlaskClient) -> None:
    path, body = order_after(client), {"kind": "address", "reason": "not found"}

    first, again = send_action(client, path, "hold", body), send_action(client, path, "hold", body)

    [hold] = first.json["holds"]
    placed = {"placed_by": "anonymous", "placed_at": first.json["updated_at"]}
    assert hold == {"handle": "review", "until": None} | body | placed
    assert (again.status_code, again.data) == (200, first.data)
    assert event_types(client, path) == ["order.created", "order.held"]


def test_a_hold_replaces_the_one_with_the_same_handle(client: FlaskClient) -> None:
    path = order_after(client, "hold")

    order = send_action(client, path, "hold", {"kind": "fraud", "reason": "fraud check"}).json

    assert (order["version"], [hold["reason"] for hold in order["holds"]]) == (3, ["fraud check"])


@pytest.mark.parametrize("status", STATUSES)
def test_releasing_an_order_without_a_hold_changes_nothing(client: FlaskClient, status: str) -> None:
    path = order_after(client, *TO_STATUS[status])
    before = client.get(path).data

    response = send_action(client, path, "release")

    assert (response.status_code, response.data) == (200, before)
    assert client.get(path).data == before


@pytest.mark.parametrize(
    ("name", "quantities", "places"),
    [
        ("fulfill", units((1, 2)), ["#/items/0"]),
        ("fulfill", units((2, 2), (1, 2)), ["#/items/0", "#/items/1"]),
        ("fulfill", units((1, 1), (2, 1_000_000)), ["#/items/1"]),
        ("return", units((1, 2)), ["#/items/0"]),
        ("return", units((1, 1), (2, 1)), ["#/items/1"]),
    ],
)
def test_no_more_units_are_fulfilled_or_returned_than_ordered(
    client: FlaskClient, name: str, quantities: Any, places: list[str]
) -> None:
    path = order_after(client, "confirm", "fulfill", **LINES)  # one of two, and none of one
    before = client.get(path).data

    response = send_action(client, path, name, quantities)

    assert slug(response) == (409, "quantity-exceeded")
    assert [fault["pointer"] for fault in response.json["errors"]] == places
    assert client.get(path).data == before


@pytest.mark.parametrize("name", ["fulfill", "return"])
@pytest.mark.parametrize(
    ("quantities", "places"),
    [
        (units((3, 1)), {"#/items/0"}),
        (units((1, 1), (3, 1), (4, 9)), {"#/items/1", "#/items/2"}),
        (units((1, 1), (2, 1), (1, 1)), {"#/items/2/line"}),
        (units((0, 1), (1, 0)), {"#/items/0/line", "#/items/1/quantity"}),
        (units(), {"#/items"}),
        ({}, {"#/items"}),
    ],
)
def test_a_line_is_named_at_most_once(client: FlaskClient, name: str, quantities: Any, places: set[str]) -> None:
    path = order_after(client, "confirm", "fulfill", **LINES)

    response = send_action(client, path, name, quantities)

    assert error_locations(response) == places
    assert client.get(path).json["version"] == 3


def test_a_fulfillment_keeps_its_tracking(client: FlaskClient) -> None:
    path = order_after(client, "confirm")
    tracking = {"carrier": "DHL", "number": "0034", "url": "https://example.com/0034"}

    first = send_action(client, path, "fulfill", UNIT | {"tracking": tracking}).json
    second = send_action(client, path, "fulfill", UNIT | {"tracking": None}).json

    shipped = {"items": UNIT["items"], "status": "shipped", "events": []}
    kept = shipped | {"number": 1, "tracking": tracking, "created_at": first["updated_at"]}
    assert first["fulfillments"] == [kept]
    assert second["fulfillments"] == [
        kept,
        shipped | {"number": 2, "tracking": None, "created_at": second["updated_at"]},
    ]


@pytest.mark.parametrize(
    "tracking", [{"url": "javascript:alert(1)"}, {"url": "ftp://example.com/1"}, {"url": 1}, {"weight": "2 kg"}, "DHL"]
)
def test_invalid_tracking_is_refused(client: FlaskClient, tracking: Any) -> None:
    path = order_after(client, "confirm")

    response = send_action(client, path, "fulfill", UNIT | {"tracking": tracking})

    [pointer] = error_locations(response)
    assert pointer.startswith("#/tracking")


def test_the_last_unit_completes_the_order(client: FlaskClient) -> None:
    path = order_after(client, "confirm", **LINES)

    steps = [send_action(client, path, "fulfill", units(pair)).json for pair in [(2, 1), (1, 1), (1, 1)]]

    assert [(step["status"], step["fulfillment_status"]) for step in steps] == [
        ("confirmed", "partial"), ("confirmed", "partial"), ("completed", "fulfilled"),
    ]  # fmt: skip
    assert event_types(client, path)[-1] == "order.fulfilled"  # one change, one event


def test_returned_units_can_be_neither_fulfilled_nor_returned_again(client: FlaskClient) -> None:
    path = order_after(client, "confirm", "fulfill", "return")

    assert slug(send_action(client, path, "return")) == (409, "illegal-action")
    assert send_action(client, path, "fulfill").json["status"] == "completed"
    assert slug(send_action(client, path, "return", units((1, 2)))) == (409, "quantity-exceeded")


@pytest.mark.parametrize(
    ("way", "fulfillment_status"),
    [
        (("confirm",), "unfulfilled"),
        (("confirm", "complete"), "unfulfilled"),
        (("confirm", "fulfill"), "partial"),
        (("confirm", "fulfill", "return"), "partial"),
        (("confirm", "fulfill", "complete"), "partial"),
        (("confirm", "fulfill", "fulfill"), "fulfilled"),
        (("confirm", "fulfill", "fulfill", "return", "return"), "fulfilled"),
    ],
)
def test_orders_are_listed_by_fulfillment_status(
    client: FlaskClient, way: tuple[str, ...], fulfillment_status: str
) -> None:
    order = client.get(order_after(client, *way)).json

    found = {
        status: client.get(f"/orders?fulfillment_status={status}").json["orders"]
        for status in ("unfulfilled", "partial", "fulfilled")
    }

    assert order["fulfillment_status"] == fulfillment_status
    assert found == {"unfulfilled": [], "partial": [], "fulfilled": [], fulfillment_status: [order]}


@pytest.mark.parametrize("name", ["confirm", "complete"])
@pytest.mark.parametrize("content", [{}, {"json": {}}, {"data": b"", "content_type": "application/json"}])
def test_an_action_without_input_needs_no_body(client: FlaskClient, name: str, content: Any) -> None:
    path = order_after(client, *READY[name])

    assert client.post(f"{path}/{name}", **content).status_code == 200


@pytest.mark.parametrize("name", ["confirm", "complete"])
def test_an_action_without_input_rejects_members(client: FlaskClient, name: str) -> None:
    path = order_after(client, *READY[name])

    assert error_locations(send_action(client, path, name, {"reason": "x"})) == {"#/reason"}


@pytest.mark.parametrize("order_id", ["00000000-0000-7000-8000-000000000000", "1", "%00", "é"])
def test_an_action_on_an_unknown_order_is_404(client: FlaskClient, order_id: str) -> None:
    for name in ACTIONS:
        assert slug(send_action(client, f"/orders/{order_id}", name)) == (404, "order-not-found")


def test_the_conditions_are_those_of_the_actions() -> None:
    assert {action.condition for action in ACTIONS.values() if action.condition} == CONDITIONS.keys()


def test_every_action_has_a_request_in_the_test_support() -> None:
    assert ROUTES.keys() == READY.keys() == ACTIONS.keys() and BODIES.keys() <= ACTIONS.keys()


NOTHING_TO_RETURN = "The action return is not allowed: the order has no fulfilled units left to return."
NO_OPEN_UNITS = "The action fulfill is not allowed: all units of the order are cancelled or fulfilled."


@pytest.mark.parametrize(
    ("before", "action", "detail"),
    [
        (["confirm", "fulfill", "fulfill", "reopen"], "fulfill", NO_OPEN_UNITS),
        (["confirm"], "return", NOTHING_TO_RETURN),
        (["hold"], "confirm", "The action confirm is not allowed: the order is pending and on hold (review)."),
        (["cancel"], "cancel", "The action cancel is not allowed: the order is cancelled."),
        ([], "fulfill", "The action fulfill is not allowed: the order is pending."),
    ],
)
def test_a_409_says_what_prevents_the_action(client: FlaskClient, before: list[str], action: str, detail: str) -> None:
    refused = send_action(client, order_after(client, *before), action)

    assert slug(refused) == (409, "illegal-action")
    assert refused.json["detail"] == detail
