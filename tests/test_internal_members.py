"""Members that a customer does not see: internal reasons, references and notes, and actors of the shop."""

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support.credentials import api_key, bearer, token
from tests.support.samples import priced

SECRET = "internal canary"
SHOP_SCOPES = ("orders:read", "orders:write", "orders:manage", "payments:write", "privacy:export")
CHANGES: list[tuple[str, str, Any]] = [
    ("PUT", "/holds/fraud", {"kind": "fraud", "reason": f"{SECRET} of a hold"}),
    ("PUT", "/holds/fraud", {"kind": "fraud", "reason": f"{SECRET} of a hold that replaces it"}),
    ("POST", "/payments", {"type": "capture", "amount": 400, "reference": f"{SECRET} 1", "note": f"{SECRET} 2"}),
    ("POST", "/payments", {"type": "refund", "amount": 100, "reference": f"{SECRET} 3", "method": "card"}),
    ("POST", "/cancel", {"reason": "fraud"}),
    ("POST", "/reopen", {"reason": f"{SECRET} of the reopening"}),
    ("PUT", "/holds/again", {"kind": "review", "reason": f"{SECRET} of another hold"}),
]

TOO_MANY = {"reason": "customer", "items": [{"line": 1, "quantity": 9}]}


@pytest.fixture
def shop(secure_app: Flask) -> dict[str, str]:
    return bearer(api_key(secure_app, *SHOP_SCOPES, name="internal-shop"))


@pytest.fixture
def customer() -> dict[str, str]:
    return bearer(token(customer="c-1", scope="orders:read orders:write privacy:export"))


@pytest.fixture
def path(secure_client: FlaskClient, shop: dict[str, str], customer: dict[str, str]) -> str:
    """A customer's own order, to which the shop has added everything internal; some of it by a member of the staff."""
    location: str = secure_client.post("/orders", json=priced(external_ref="own-1"), headers=customer).location
    agent = bearer(token(customer="agent-7", scope="orders:read orders:write orders:manage"))
    for number, (method, below, body) in enumerate(CHANGES):
        headers = agent if "/holds" in below and number else shop
        response = secure_client.open(location + below, method=method, json=body, headers=headers)
        assert response.status_code < 300, response.text
    return location


@pytest.mark.parametrize(
    "of",
    [
        "{path}",
        *(f"{{path}}?version={version}" for version in range(2, 9)),
        "{path}/history",
        "/orders",
        "/orders?external_ref=own-1",
        "/orders/export",
        "/orders/export?format=csv",
        "/orders/by-ref/own-1",
        "/customers/c-1/personal-data",
    ],
)
def test_nothing_internal_is_in_any_view_of_a_customer(
    secure_client: FlaskClient, customer: dict[str, str], path: str, of: str
) -> None:
    response = secure_client.get(of.format(path=path), headers=customer, buffered=True)

    assert response.status_code == 200
    assert path.removeprefix("/orders/") in response.text
    for internal in (SECRET, "internal-shop", "agent-7", "service:", "token:"):
        assert internal not in response.text


def test_nothing_internal_is_in_a_replay_after_an_erasure(
    secure_app: Flask, secure_client: FlaskClient, shop: dict[str, str], customer: dict[str, str]
) -> None:
    eraser = bearer(api_key(secure_app, "privacy:erase", name="internal-eraser"))
    order = priced(external_ref="own-1")
    first = secure_client.post("/orders", json=order, headers=customer | {"Idempotency-Key": "k-1"})
    batch = {"orders": [order | {"external_ref": "own-2", "idempotency_key": "k-2"}]}
    [second] = secure_client.post("/orders/batch", json=batch, headers=customer).json["results"]
    for order_id in (first.json["id"], second["order"]["id"]):
        payment = {"type": "capture", "amount": 1, "reference": SECRET}
        assert secure_client.post(f"/orders/{order_id}/payments", json=payment, headers=shop).status_code == 201
        secure_client.post(f"/orders/{order_id}/cancel", json={"reason": "fraud"}, headers=shop)
    assert secure_client.delete("/customers/c-1/personal-data", headers=eraser).json["orders"] == 2

    replays = [
        secure_client.post("/orders", json=order, headers=customer | {"Idempotency-Key": "k-1"}),
        secure_client.post("/orders/batch", json=batch, headers=customer),
    ]

    for response in replays:
        assert '"amount":1,' in response.text and SECRET not in response.text


def test_all_other_members_of_records_are_visible_to_customers(
    secure_client: FlaskClient, shop: dict[str, str], customer: dict[str, str], path: str
) -> None:
    full, visible = (secure_client.get(path, headers=headers).json for headers in (shop, customer))

    for hold in full["holds"]:
        del hold["reason"]
        hold["placed_by"] = "staff"
    for payment in full["payments"]:
        del payment["reference"], payment["note"]
    del full["reopening"]["reason"]
    assert visible == full
    assert [payment["method"] for payment in visible["payments"]] == [None, "card"]


def test_the_shop_sees_everything(secure_client: FlaskClient, shop: dict[str, str], path: str) -> None:
    history = secure_client.get(f"{path}/history", headers=shop).text

    for _, _, body in CHANGES:
        assert all(text in history for text in body.values() if SECRET in str(text))


def test_the_patches_of_a_customers_history_lead_from_version_to_version(
    secure_client: FlaskClient, customer: dict[str, str], path: str
) -> None:
    events = secure_client.get(f"{path}/history", headers=customer).json["events"]

    patched = [operation["path"] for event in events[1:] for operation in event["changes"]]
    assert len(events) == 1 + len(CHANGES)
    assert "/holds/0" in patched and not any(
        name in place for place in patched for name in ("reason", "reference", "note")
    )


def test_errors_reveal_nothing_internal_to_customers(
    secure_client: FlaskClient, customer: dict[str, str], path: str
) -> None:
    refused = [
        secure_client.post(f"{path}/cancel", json=TOO_MANY, headers=customer),
        secure_client.patch(path, json={"items": []}, headers=customer),
        secure_client.post(f"{path}/confirm", headers=customer),
    ]

    assert all(response.status_code >= 400 and SECRET not in response.text for response in refused)
