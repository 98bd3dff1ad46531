"""Payments: records of payments made elsewhere, and the derived payment status and totals."""

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.models.money import PAYMENTS_MAX
from tests.support.actions import event_types, order_after, send_action
from tests.support.credentials import api_key, bearer, token
from tests.support.samples import MINIMAL, error_locations, priced, slug

OVER_BY_ONE = "Refunds and chargebacks would exceed what was captured by 1."


def pay(client: FlaskClient, path: str, type: str, amount: int, reference: str = "p-1", **members: Any) -> Any:
    body = {"type": type, "amount": amount, "reference": reference} | members
    return client.post(f"{path}/payments", json=body)


def money(order: dict[str, Any]) -> tuple[str, int, int, int]:
    totals = order["totals"]
    return order["payment_status"], totals["paid"], totals["refunded"], totals["due"]


def test_a_payment_keeps_its_members(client: FlaskClient) -> None:
    path = order_after(client)
    members = {"method": "card", "occurred_at": "2026-01-01T12:00:00+02:00", "note": "by phone"}

    full, least = pay(client, path, "capture", 100, **members), pay(client, path, "refund", 40)

    first = {"type": "capture", "amount": 100, "waived": 0, "reference": "p-1", "created_at": full.json["updated_at"]}
    utc = {"occurred_at": "2026-01-01T10:00:00.000000Z"}
    assert (full.status_code, full.json["payments"]) == (201, [first | members | utc])
    [_, second] = least.json["payments"]
    assert second["occurred_at"] == second["created_at"] == least.json["updated_at"]
    assert (second["method"], second["note"]) == (None, None)
    assert event_types(client, path)[1:] == ["order.payment_recorded"] * 2


# The total is 2,000.
@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], ("unpaid", 0, 0, 2000)),
        ([("authorization", 2000)], ("authorized", 0, 0, 2000)),
        ([("authorization", 2000), ("void", 1500)], ("authorized", 0, 0, 2000)),
        ([("authorization", 2000), ("void", 2000)], ("unpaid", 0, 0, 2000)),
        ([("authorization", 2000), ("capture", 500)], ("partially_paid", 500, 0, 1500)),
        ([("capture", 2000)], ("paid", 2000, 0, 0)),
        ([("capture", 1500), ("capture", 700)], ("paid", 2200, 0, -200)),
        ([("capture", 2200), ("refund", 150)], ("partially_refunded", 2200, 150, -50)),
        ([("capture", 2200), ("refund", 900)], ("partially_refunded", 2200, 900, 0)),
        ([("capture", 500), ("refund", 500)], ("unpaid", 500, 500, 2000)),
        ([("capture", 2000), ("refund", 1000), ("chargeback", 1000)], ("refunded", 2000, 2000, 0)),
        ([("capture", 2000), ("chargeback", 1)], ("partially_refunded", 2000, 1, 0)),
    ],
)
def test_status_and_totals_follow_from_the_payments(
    client: FlaskClient, entries: list[tuple[str, int]], expected: tuple[str, int, int, int]
) -> None:
    path = order_after(client)
    for number, (type_, amount) in enumerate(entries):
        assert pay(client, path, type_, amount, f"p-{number}").status_code == 201

    assert money(client.get(path).json) == expected
    [listed] = client.get(f"/orders?payment_status={expected[0]}").json["orders"]
    assert f"/orders/{listed['id']}" == path


# A reversal has the reference and the amount of the payment that it reverses. The total is 2,000.
@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([("capture", 2000, "p-1"), ("capture_reversal", 2000, "p-1")], ("unpaid", 0, 0, 2000)),
        ([("authorization", 2000, "p-1"), ("capture", 2000, "p-1"), ("capture_reversal", 2000, "p-1")],
         ("authorized", 0, 0, 2000)),
        ([("capture", 2000, "p-1"), ("capture", 500, "p-2"), ("capture_reversal", 500, "p-2")], ("paid", 2000, 0, 0)),
        ([("capture", 2000, "p-1"), ("refund", 700, "r-1"), ("refund_reversal", 700, "r-1")], ("paid", 2000, 0, 0)),
        ([("capture", 500, "p-1"), ("refund", 500, "r-1"), ("refund_reversal", 500, "r-1")],
         ("partially_paid", 500, 0, 1500)),
        ([("capture", 2000, "p-1"), ("chargeback", 2000, "c-1"), ("chargeback_reversal", 2000, "c-1")],
         ("paid", 2000, 0, 0)),
        ([("capture", 5000, "p-1"), ("refund", 300, "r-1"), ("capture", 500, "p-1 corrected"),
          ("capture_reversal", 5000, "p-1")], ("partially_paid", 500, 300, 1800)),
    ],
)  # fmt: skip
def test_a_payment_that_is_reversed_does_not_count(
    client: FlaskClient, entries: list[tuple[str, int, str]], expected: tuple[str, int, int, int]
) -> None:
    path = order_after(client)
    for type_, amount, reference in entries:
        assert pay(client, path, type_, amount, reference).status_code == 201

    order = client.get(path).json

    assert money(order) == expected
    assert [(payment["type"], payment["amount"], payment["reference"]) for payment in order["payments"]] == entries


def test_a_reversal_of_a_refund_before_a_reopening_is_not_due_again(client: FlaskClient) -> None:
    path = order_after(client)
    pay(client, path, "capture", 2000)
    client.post(f"{path}/cancel", json={"reason": "customer"})
    pay(client, path, "refund", 2000)
    client.post(f"{path}/reopen", json={"reason": "the refund failed"})

    reversed_refund = pay(client, path, "refund_reversal", 2000)

    assert money(reversed_refund.json) == ("paid", 2000, 0, 0)


@pytest.mark.parametrize(
    ("type_", "amount", "reference", "pointer", "detail"),
    [
        ("refund_reversal", 1, "p-1", "#/reference", "The order has no refund with this reference."),
        ("capture_reversal", 900, "p-2", "#/reference", "The order has no capture with this reference."),
        ("capture_reversal", 899, "p-1", "#/amount", "This must be 900, the amount of the capture."),
        ("capture_reversal", 901, "p-1", "#/amount", "This must be 900, the amount of the capture."),
    ],
)
def test_a_reversal_requires_a_payment_with_its_reference_and_amount(
    client: FlaskClient, type_: str, amount: int, reference: str, pointer: str, detail: str
) -> None:
    path = order_after(client)
    pay(client, path, "capture", 900)

    refused = pay(client, path, type_, amount, reference)

    assert slug(refused) == (400, "invalid-request")
    assert refused.json["errors"] == [{"pointer": pointer, "detail": detail}]
    assert client.get(path).json["version"] == 2


def test_a_payment_is_reversed_once(client: FlaskClient) -> None:
    path = order_after(client)
    pay(client, path, "capture", 900)
    pay(client, path, "capture_reversal", 900)

    again, captured_again = pay(client, path, "capture_reversal", 900), pay(client, path, "capture", 900)
    restored = pay(client, path, "capture", 900, "p-1 restored")

    assert [response.status_code for response in (again, captured_again, restored)] == [200, 200, 201]
    assert money(captured_again.json) == ("unpaid", 0, 0, 2000)
    assert money(restored.json) == ("partially_paid", 900, 0, 1100)


def test_a_capture_that_was_refunded_can_be_reversed_after_the_refund(client: FlaskClient) -> None:
    path = order_after(client)
    pay(client, path, "capture", 900)
    pay(client, path, "refund", 1)

    refused = pay(client, path, "capture_reversal", 900)
    pay(client, path, "refund_reversal", 1)

    assert (slug(refused), refused.json["detail"]) == ((409, "amount-exceeded"), OVER_BY_ONE)
    assert money(pay(client, path, "capture_reversal", 900).json) == ("unpaid", 0, 0, 2000)


def test_a_cancelled_order_that_was_paid_is_to_be_refunded(client: FlaskClient) -> None:
    path = order_after(client)
    pay(client, path, "capture", 2000)

    cancelled = send_action(client, path, "cancel").json
    refunded = pay(client, path, "refund", 2000).json

    assert money(cancelled) == ("paid", 2000, 0, -2000)
    assert money(refunded) == ("refunded", 2000, 2000, 0)


@pytest.mark.parametrize("way", [(), ("confirm",), ("confirm", "complete"), ("cancel",), ("hold",)], ids="-".join)
def test_a_payment_is_recorded_in_every_status(client: FlaskClient, way: tuple[str, ...]) -> None:
    assert pay(client, order_after(client, *way), "capture", 1).status_code == 201


def test_the_same_payment_again_is_200_and_changes_nothing(client: FlaskClient) -> None:
    path = order_after(client)
    first = pay(client, path, "capture", 100, method="card")

    again = pay(client, path, "capture", 100, method="transfer", note="once more")
    other_type = pay(client, path, "refund", 100)

    assert (again.status_code, again.data) == (200, first.data)
    assert (other_type.status_code, other_type.json["version"]) == (201, 3)


def test_the_same_payment_with_another_amount_is_409(client: FlaskClient) -> None:
    path = order_after(client)
    pay(client, path, "capture", 1250)

    refused = pay(client, path, "capture", 1251)

    assert slug(refused) == (409, "duplicate-payment")
    assert refused.json["detail"] == "This capture is already recorded with the amount 1,250."


def test_a_replay_has_the_status_of_the_first_response(client: FlaskClient) -> None:
    path, body = order_after(client), {"type": "capture", "amount": 100, "reference": "p-1"}

    def send(key: str) -> Any:
        return client.post(f"{path}/payments", json=body, headers={"Idempotency-Key": key})

    created, unchanged = send("k-1"), send("k-2")
    pay(client, path, "capture", 1, "p-2")
    replays = [send("k-1"), send("k-2")]

    assert [response.status_code for response in (created, unchanged, *replays)] == [201, 200, 201, 200]
    assert [response.data for response in replays] == [created.data] * 2
    assert [response.headers["Idempotent-Replayed"] for response in replays] == ["true"] * 2


@pytest.mark.parametrize(
    ("entries", "detail"),
    [
        ([("refund", 1)], OVER_BY_ONE),
        ([("chargeback", 1)], OVER_BY_ONE),
        ([("capture", 10), ("refund", 6), ("chargeback", 5)], OVER_BY_ONE),
        ([("void", 1)], "Voids would exceed what was authorized by 1."),
        ([("authorization", 10), ("void", 11)], "Voids would exceed what was authorized by 1."),
    ],
)
def test_no_more_is_refunded_than_was_captured(
    client: FlaskClient, entries: list[tuple[str, int]], detail: str
) -> None:
    path = order_after(client)
    *before, last = [pay(client, path, type_, amount) for type_, amount in entries]

    assert slug(last) == (409, "amount-exceeded")
    assert last.json["detail"] == detail
    assert client.get(path).json["version"] == 1 + len(before)


@pytest.mark.parametrize(
    ("members", "place"),
    [
        ({"type": "gift"}, "#/type"),
        ({"amount": 0}, "#/amount"),
        ({"amount": -1}, "#/amount"),
        ({"amount": 10**12 + 1}, "#/amount"),
        ({"amount": 1.5}, "#/amount"),
        ({"reference": ""}, "#/reference"),
        ({"reference": "x" * 129}, "#/reference"),
        ({"reference": None}, "#/reference"),
        ({"occurred_at": "2999-01-01T00:00:00Z"}, "#/occurred_at"),
        ({"note": "x" * 2001}, "#/note"),
        ({"currency": "EUR"}, "#/currency"),
    ],
)
def test_an_invalid_payment_is_refused(client: FlaskClient, members: dict[str, Any], place: str) -> None:
    path = order_after(client)

    refused = client.post(f"{path}/payments", json={"type": "capture", "amount": 1, "reference": "p"} | members)

    assert error_locations(refused) == {place}
    assert client.get(path).json["version"] == 1


def test_an_order_without_prices_accepts_no_payment(client: FlaskClient) -> None:
    path = client.post("/orders", json=MINIMAL).location

    refused = pay(client, path, "capture", 1)

    assert slug(refused) == (409, "illegal-action")
    assert refused.json["detail"] == "The action pay is not allowed: the order has no prices."
    assert "pay" not in refused.json["allowed_actions"]


def test_with_a_payment_the_currency_stays_and_the_prices_cannot_be_removed(client: FlaskClient) -> None:
    path = order_after(client)
    assert client.patch(path, json={"currency": "USD"}).status_code == 200
    pay(client, path, "capture", 100)

    currency = client.patch(path, json={"currency": "EUR"})
    prices = client.patch(path, json={"items": MINIMAL["items"]})

    assert (slug(currency), currency.json["detail"]) == (
        (409, "illegal-action"),
        "The currency can be changed only while no payment is recorded.",
    )
    assert (prices.status_code, error_locations(prices)) == (400, {"#/adjustments"})
    assert client.patch(path, json={"items": priced()["items"]}).json["totals"]["due"] == 900


def test_a_cancellation_cannot_remove_the_only_prices_of_an_order_with_a_payment(client: FlaskClient) -> None:
    fee = {"type": "shipping", "amount": 500}
    items = [{"item_id": "sku-1", "quantity": 2}]
    order = {"customer_id": "c-1", "currency": "EUR", "items": items, "adjustments": [fee]}
    path = f"/orders/{client.post('/orders', json=order).json['id']}"
    pay(client, path, "capture", 500)

    body = {"reason": "customer", "items": [{"line": 1, "quantity": 1}], "adjustments": []}
    response = client.post(f"{path}/cancel", json=body)

    assert (response.status_code, error_locations(response)) == (400, {"#/adjustments"})


def test_an_order_has_a_limited_number_of_payments(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.models.order_aggregate.PAYMENTS_MAX", 2)
    path = order_after(client)
    for reference in ("p-1", "p-2"):
        pay(client, path, "capture", 1, reference)

    assert PAYMENTS_MAX == 1000
    assert slug(pay(client, path, "capture", 1, "p-3")) == (409, "illegal-action")
    assert pay(client, path, "capture", 1, "p-2").status_code == 200


def test_recording_payments_needs_no_other_scope(secure_app: Flask, secure_client: FlaskClient) -> None:
    shop, payments = (bearer(api_key(secure_app, scope)) for scope in ("orders:write", "payments:write"))
    path = secure_client.post("/orders", json=priced(), headers=shop).location
    body = {"type": "capture", "amount": 1000, "reference": "p-1"}

    def send(method: str, path: str, headers: dict[str, str], json: Any = None) -> Any:
        return secure_client.open(path, method=method, json=json, headers=headers)

    assert send("POST", f"{path}/payments", payments, body).json["payment_status"] == "paid"
    assert slug(send("POST", f"{path}/payments", shop, body)) == (403, "forbidden")
    assert slug(send("POST", f"{path}/cancel", payments, {"reason": "other"})) == (403, "forbidden")
    assert slug(send("GET", path, payments)) == (403, "forbidden")
    customer = bearer(token(customer="c-1", scope="orders:read orders:write payments:write"))
    assert slug(send("POST", f"{path}/payments", customer, body)) in [(401, "unauthenticated"), (403, "forbidden")]
