"""Limits of the changes of an order: an invalid body is a 400 with a pointer to each error."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from app.models import order_aggregate
from app.services import order_actions, order_storage
from tests.support.actions import order_after, send_action
from tests.support.samples import MINIMAL, error_locations, slug


@pytest.fixture
def address(client: FlaskClient) -> str:
    """The address of a confirmed order of two units."""
    address = client.post("/orders", json=MINIMAL).headers["Location"]
    assert client.post(f"{address}/confirm").status_code == 200
    return address


UNIT = {"line": 1, "quantity": 1}

FULFILLMENTS = [
    ({}, {"#/items"}),
    ({"items": []}, {"#/items"}),
    ({"items": [UNIT] * 101}, {"#/items"}),
    ({"items": [{}] * 15_000}, {"#/items"}),
    ({"items": [{"quantity": 1}]}, {"#/items/0/line"}),
    ({"items": [{"line": "1", "quantity": 0}, UNIT]}, {"#/items/0/line", "#/items/0/quantity"}),
    ({"items": [UNIT, UNIT]}, {"#/items/1/line"}),
    ({"items": [{"line": 101, "quantity": 1_000_001}]}, {"#/items/0/line", "#/items/0/quantity"}),
    ({"items": [UNIT], "tracking": {"carrier": "a\0", "number": "", "url": "x"}},
     {"#/tracking/carrier", "#/tracking/number", "#/tracking/url"}),
    *(
        ({"items": [UNIT], "tracking": {"url": url}}, {"#/tracking/url"})
        for url in ("", "ftp://a.b", "javascript:alert(1)", "http://", "http://a b", "http://a\0", "http://a/\ud800",
                    "http://a/\x85", "http://" + "a" * 2000)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("body", "places"), FULFILLMENTS)
def test_an_invalid_fulfillment_is_400_and_changes_nothing(
    client: FlaskClient, address: str, body: dict[str, Any], places: set[str]
) -> None:
    response = client.post(f"{address}/fulfillments", json=body)

    assert error_locations(response) == places
    assert client.get(address).headers["ETag"] == '"2"'


PATCHES = [
    ({"metadata": {"k": 1}}, {"#/metadata/k"}),
    ({"metadata": {"k" * 41: "v"}}, {"#/metadata/" + "k" * 41}),
    ({"metadata": {f"{i}": "v" for i in range(51)}}, {"#/metadata"}),
    ({"metadata": {f"{i}": None for i in range(101)}}, {"#/metadata"}),
    ({"metadata": {"\ud800": "\0"}}, {"#/metadata/%3F"}),
    ({"metadata": []}, {"#/metadata"}),
    ({"note": "\0", "external_ref": ""}, {"#/note", "#/external_ref"}),
    ({"shipping_address": {"name": "x"}}, {"#/shipping_address/country"}),
    ({"shipping_address": {"country": "de", "street": "x"}}, {"#/shipping_address/street"}),
    ({"customer_id": "c-2", "status": "completed"}, {"#/customer_id", "#/status"}),
]


@pytest.mark.parametrize(("patch", "places"), PATCHES)
def test_an_invalid_patch_is_400_and_changes_nothing(
    client: FlaskClient, address: str, patch: dict[str, Any], places: set[str]
) -> None:
    response = client.patch(address, json=patch)

    assert error_locations(response) == places
    assert client.get(address).headers["ETag"] == '"2"'


@pytest.mark.parametrize(
    ("method", "action", "body", "pointer"),
    [
        ("POST", "cancel", {"reason": "because"}, "#/reason"),
        ("POST", "cancel", {"reason": "staff", "note": "n" * 2001}, "#/note"),
        ("PUT", "holds/x", {"kind": "other", "reason": ""}, "#/reason"),
        ("PUT", "holds/x", {"kind": "other", "reason": "r" * 201}, "#/reason"),
        ("POST", "returns", {"items": [UNIT], "reason": "\0"}, "#/reason"),
        ("POST", "complete", {"now": True}, "#/now"),
    ],
)
def test_an_invalid_action_is_400(
    client: FlaskClient, address: str, method: str, action: str, body: dict[str, Any], pointer: str
) -> None:
    response = client.open(f"{address}/{action}", method=method, json=body)

    assert error_locations(response) == {pointer}


IF_MATCH = {
    '"2"': 200, "*": 200, '"1", "2"': 200, '"1"': 412, 'W/"2"': 412, '""': 412, '"2x"': 412, '"２"': 412, "": 412,
    '"' + "9" * 5000 + '"': 412, '"a", "", W/"9d\\%"': 412, 'W/""': 412,
}  # fmt: skip


@pytest.mark.parametrize(("if_match", "status"), IF_MATCH.items())
def test_a_change_applies_only_to_the_version_in_if_match(
    client: FlaskClient, address: str, if_match: str, status: int
) -> None:
    headers = {"If-Match": if_match.encode().decode("latin-1")}

    response = client.put(f"{address}/holds/review", json={"kind": "other"}, headers=headers)

    assert response.status_code == status
    assert response.headers.get("ETag", '"2"') == ('"3"' if status == 200 else '"2"')


def test_an_order_has_a_limited_number_of_versions_and_can_be_ended_beyond(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_aggregate, "VERSIONS_MAX", 3)
    address = order_after(client, "hold", "update", customer_id="c-versions")

    refused = [send_action(client, address, name) for name in ("update", "hold")]
    released = send_action(client, address, "release")
    still_refused = send_action(client, address, "confirm")
    cancelled = send_action(client, address, "cancel")
    erased = client.delete("/customers/c-versions/personal-data")

    assert [slug(response) for response in (*refused, still_refused)] == [(409, "too-many-versions")] * 3
    assert (released.json["version"], cancelled.json["version"], erased.json["orders"]) == (4, 5, 1)
    assert slug(send_action(client, address, "update", {"external_ref": "r-1"})) == (409, "too-many-versions")


def test_an_order_has_a_limited_size_and_can_be_ended_beyond(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = order_after(client, "hold", "update", customer_id="c-size")
    monkeypatch.setattr(order_actions, "DOCUMENT_MAX", 500)

    refused = [client.patch(address + query, json={"note": "n" * 100}) for query in ("", "?dry_run=true")]
    released = send_action(client, address, "release")
    cancelled = send_action(client, address, "cancel")
    reopened = send_action(client, address, "reopen")
    erased = client.delete("/customers/c-size/personal-data")

    assert [slug(response) for response in (*refused, reopened)] == [(409, "order-too-large")] * 3
    assert (released.json["version"], cancelled.json["version"], erased.json["orders"]) == (4, 5, 1)


def test_an_order_has_a_limited_number_of_idempotency_keys(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_storage, "CHANGE_KEYS_MAX", 2)
    address = order_after(client, customer_id="c-keys")

    unchanged = [send_action(client, address, "update", {}, Idempotency_Key=f"k-{number}") for number in range(3)]
    replay = send_action(client, address, "update", {}, Idempotency_Key="k-1")
    without_key = send_action(client, address, "update", {})
    changed = send_action(client, address, "cancel", Idempotency_Key="k-3")
    erased = client.delete("/customers/c-keys/personal-data")

    assert [response.status_code for response in unchanged] == [200, 200, 409]
    assert slug(unchanged[2]) == (409, "too-many-idempotency-keys")
    assert [response.status_code for response in (replay, without_key, changed)] == [200, 200, 200]
    assert erased.json["orders"] == 1
