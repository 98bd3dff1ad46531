"""Holds: several at a time, each with its own handle."""

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.models.order_aggregate import HOLDS_MAX
from app.schemas.order import HOLD_KINDS
from tests.support.actions import event_types, order_after, send_action
from tests.support.credentials import api_key, bearer
from tests.support.samples import MINIMAL, error_locations, slug


def hold(client: FlaskClient, path: str, handle: str, **members: Any) -> Any:
    return client.put(f"{path}/holds/{handle}", json={"kind": "fraud"} | members)


def handles(order: dict[str, Any]) -> list[str]:
    return [one["handle"] for one in order["holds"]]


def test_each_hold_is_placed_and_released_independently(client: FlaskClient) -> None:
    path = order_after(client, "confirm")
    hold(client, path, "fraud", reason="score 97")
    hold(client, path, "stock", kind="inventory")

    replaced = hold(client, path, "fraud", reason="score 12").json
    released = client.delete(f"{path}/holds/stock").json
    blocked = send_action(client, path, "fulfill")
    free = client.delete(f"{path}/holds/fraud").json

    assert [(one["handle"], one["reason"]) for one in replaced["holds"]] == [("fraud", "score 12"), ("stock", None)]
    assert handles(released) == ["fraud"]
    assert blocked.json["detail"] == "The action fulfill is not allowed: the order is confirmed and on hold (fraud)."
    assert (free["holds"], "fulfill" in free["allowed_actions"]) == ([], True)
    assert event_types(client, path)[2:] == ["order.held"] * 3 + ["order.released"] * 2


@pytest.mark.parametrize("name", ["confirm", "complete", "fulfill"])
def test_each_of_several_holds_blocks_the_order(client: FlaskClient, name: str) -> None:
    path = order_after(client, *(["confirm"] if name != "confirm" else []))
    for handle in ("a", "b"):
        hold(client, path, handle)
    client.delete(f"{path}/holds/b")

    assert slug(send_action(client, path, name)) == (409, "illegal-action")


@pytest.mark.parametrize("kind", HOLD_KINDS)
def test_a_hold_has_its_kind_its_principal_and_its_time(
    secure_app: Flask, secure_client: FlaskClient, kind: str
) -> None:
    shop = bearer(api_key(secure_app, "orders:write", "orders:manage", name="shop"))
    path = secure_client.post("/orders", json=MINIMAL, headers=shop).location

    body = {"kind": kind, "until": "2999-01-01T01:00:00+01:00"}
    order = secure_client.put(f"{path}/holds/h_1-x", json=body, headers=shop).json

    assert order["holds"] == [
        {
            "handle": "h_1-x",
            "kind": kind,
            "reason": None,
            "until": "2999-01-01T00:00:00.000000Z",
            "placed_by": "service:shop",
            "placed_at": order["updated_at"],
        }
    ]


def test_an_order_has_a_limited_number_of_holds(client: FlaskClient) -> None:
    path = order_after(client)
    for number in range(HOLDS_MAX):
        assert hold(client, path, f"h-{number}").status_code == 200

    refused = hold(client, path, "one-more")

    assert slug(refused) == (409, "illegal-action")
    assert refused.json["detail"] == "The order has 20 holds, the maximum. Release one of them first."
    assert hold(client, path, "h-3", kind="review").status_code == 200  # replaces one
    client.delete(f"{path}/holds/h-7")
    assert hold(client, path, "one-more").status_code == 200


@pytest.mark.parametrize("handle", ["A", "a b", "a.b", "é", "%0A", "a%0A", "x" * 65, "a:b"])
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_handle_has_lower_case_letters_digits_dashes_and_underscores(
    client: FlaskClient, method: str, handle: str
) -> None:
    path = order_after(client)
    body = {"json": {"kind": "fraud"}} if method == "PUT" else {}

    assert error_locations(client.open(f"{path}/holds/{handle}", method=method, **body)) == {"handle"}


@pytest.mark.parametrize("handle", ["a", "0", "_", "-", "x" * 64])
def test_a_handle_may_be_short_or_long(client: FlaskClient, handle: str) -> None:
    assert handles(hold(client, order_after(client), handle).json) == [handle]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, "#/kind"),
        ({"kind": "mood"}, "#/kind"),
        ({"kind": "fraud", "until": "2020-01-01T00:00:00Z"}, "#/until"),
        ({"kind": "fraud", "until": "tomorrow"}, "#/until"),
        ({"kind": "fraud", "reason": "x" * 201}, "#/reason"),
        ({"kind": "fraud", "reason": ""}, "#/reason"),
        ({"kind": "fraud", "handle": "a"}, "#/handle"),
    ],
)
def test_an_invalid_hold_is_refused(client: FlaskClient, body: Any, place: str) -> None:
    path = order_after(client)

    assert error_locations(client.put(f"{path}/holds/a", json=body)) == {place}


@pytest.mark.parametrize("way", [("cancel",), ("confirm", "complete")], ids="-".join)
def test_a_completed_or_cancelled_order_accepts_no_hold(client: FlaskClient, way: tuple[str, ...]) -> None:
    assert slug(hold(client, order_after(client, *way), "a")) == (409, "illegal-action")


def test_a_key_belongs_to_one_hold(client: FlaskClient) -> None:
    path, key = order_after(client), {"Idempotency-Key": "k-1"}

    first, other = (client.put(f"{path}/holds/{h}", json={"kind": "fraud"}, headers=key) for h in ("a", "b"))
    client.delete(f"{path}/holds/a")
    replayed = client.put(f"{path}/holds/a", json={"kind": "fraud"}, headers=key)

    assert (first.json["version"], other.json["version"]) == (2, 3)
    assert (replayed.data, replayed.headers["Idempotent-Replayed"]) == (first.data, "true")
    assert handles(client.get(path).json) == ["b"]
