"""Creating and reading one order over HTTP."""

import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from app.models.order import CONTENT, RECORDS
from app.schemas.order import PRICE_MAX, QUANTITY_MAX, OrderInSchema
from tests.support.samples import MINIMAL, RICHEST, priced, slug


def test_a_created_order_can_be_read(client: FlaskClient) -> None:
    created = client.post("/orders", json=MINIMAL)

    assert (created.status_code, created.mimetype) == (201, "application/json")
    read = client.get(created.headers["Location"])
    assert (read.status_code, read.data) == (200, created.data)
    assert read.json["customer_id"] == "c-1"
    assert [(item["item_id"], item["quantity"]) for item in read.json["items"]] == [("sku-1", 2)]


def test_a_minimal_order_has_every_member_of_the_document(client: FlaskClient) -> None:
    order = client.post("/orders", json=MINIMAL).json

    made_here = {name: order.pop(name) for name in ("id", "number", "created_at", "updated_at")}
    assert order == CONTENT | RECORDS | {
        "customer_id": "c-1",
        "channel": None,
        "status": "pending",
        "fulfillment_status": "unfulfilled",
        "payment_status": "unpaid",
        "return_status": "none",
        "items": [
            {"line": 1, "item_id": "sku-1", "title": None, "quantity": 2, "unit_price": None}
            | {"subtotal": None, "discount": 0, "total": None, "cancelled": 0, "fulfilled": 0, "returned": 0}
        ],
        "totals": None,
        "late": False,
        "version": 1,
        "allowed_actions": ["cancel", "confirm", "hold", "update"],
    }
    assert made_here["created_at"] == made_here["updated_at"]


def test_the_richest_order_has_every_member() -> None:
    assert list(RICHEST) == list(OrderInSchema().fields), "change RICHEST in tests/support/samples.py"


def test_the_richest_order_keeps_everything_that_was_sent(client: FlaskClient) -> None:
    order = client.post("/orders", json=RICHEST).json

    for name in RICHEST.keys() - {"items", "adjustments", "ship_by", "deliver_by", "related_orders"}:  # see below
        assert order[name] == RICHEST[name]
    assert (order["ship_by"], order["deliver_by"]) == ("2030-01-01T09:00:00.000000Z", "2030-01-03T00:00:00.000000Z")
    assert order["related_orders"] == [{"order_id": "019dab70-c2b3-7c51-b9f8-1d6f2a6c3e11", "relation": "replacement"}]
    members = ("line", "item_id", "title", "quantity", "unit_price", "subtotal", "discount", "total")
    assert [tuple(item[name] for name in members) for item in order["items"]] == [
        (1, "sku-1", "Mug", 2, 1250, 2500, -250, 2250),
        (2, "sku-2", None, 1, None, None, 0, None),
        (3, "sku-1", None, 3, None, None, 0, None),
    ]
    assert order["adjustments"] == [
        {"type": "discount", "label": "WELCOME10", "amount": -250, "line": None},
        {"type": "shipping", "label": None, "amount": 490, "line": None},
    ]
    unpaid = {"cancelled": 0, "paid": 0, "refunded": 0, "due": 2740}
    assert order["totals"] == {"items": 2500, "adjustments": 240, "total": 2740} | unpaid


def test_the_id_is_a_uuid7_of_the_current_time_and_the_number_has_the_date(client: FlaskClient) -> None:
    before = datetime.now(UTC)

    order = client.post("/orders", json=MINIMAL).json

    order_id, created_at = UUID(order["id"]), datetime.fromisoformat(order["created_at"])
    assert (order_id.version, order_id.variant) == (7, "specified in RFC 4122")
    assert order_id.int >> 80 == int(created_at.timestamp() * 1000)
    assert before <= created_at <= datetime.now(UTC)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", order["created_at"])
    assert re.fullmatch(f"{created_at:%y%m%d}-[0-9A-HJKMNP-TV-Z]{{8}}", order["number"])


@given(
    lines=st.lists(st.tuples(st.integers(1, QUANTITY_MAX), st.integers(0, 10**6) | st.none()), min_size=1, max_size=20),
    amounts=st.lists(st.integers(-(10**6), PRICE_MAX), max_size=10),
)
def test_totals_are_the_sums_of_priced_items_and_adjustments(
    client: FlaskClient, lines: list[tuple[int, int | None]], amounts: list[int]
) -> None:
    items = [{"item_id": "sku", "quantity": quantity, "unit_price": price} for quantity, price in lines]
    body = {"customer_id": "c", "currency": "JPY", "items": items}
    body["adjustments"] = [{"type": "fee", "amount": amount} for amount in amounts]

    response = client.post("/orders", json=body)

    prices = [quantity * price for quantity, price in lines if price is not None]
    if sum(prices) + sum(amounts) < 0:
        assert slug(response) == (400, "invalid-request")
    elif prices or amounts:
        whole = {"items": sum(prices), "adjustments": sum(amounts), "total": sum(prices) + sum(amounts)}
        assert response.json["totals"].items() >= whole.items()
    else:
        assert response.json["totals"] is None


character = st.characters(exclude_categories=("Cs", "Cc"))


@given(
    note=st.text(character | st.sampled_from("\t\n\r")),
    names=st.sets(st.text(character, min_size=1, max_size=40), max_size=50),
)
def test_text_is_returned_as_it_was_sent(client: FlaskClient, note: str, names: set[str]) -> None:
    metadata = {name: name[::-1] for name in names}

    created = client.post("/orders", json=MINIMAL | {"note": note, "metadata": metadata})

    assert (created.json["note"], created.json["metadata"]) == (note, metadata)
    assert client.get(created.headers["Location"]).data == created.data


def test_an_explicit_null_equals_an_absent_member(client: FlaskClient) -> None:
    nulls = dict.fromkeys(["external_ref", "currency", "shipping_address", "billing_address", "note"])

    order = client.post("/orders", json=MINIMAL | nulls).json

    assert {name: order[name] for name in nulls} == nulls


def test_an_order_is_found_by_its_id_in_upper_case(client: FlaskClient) -> None:
    created = client.post("/orders", json=MINIMAL)

    assert client.get(f"/orders/{created.json['id'].upper()}").data == created.data


@pytest.mark.parametrize("order_id", ["0199c7a4-0000-7000-8000-000000000000", "1", "%00", "x" * 5000, "é", "%FF"])
def test_an_order_that_does_not_exist_is_404(client: FlaskClient, order_id: str) -> None:
    assert slug(client.get(f"/orders/{order_id}")) == (404, "order-not-found")


def test_an_earlier_version_is_returned_unchanged_and_a_missing_one_is_404(client: FlaskClient) -> None:
    created = client.post("/orders", json=MINIMAL)
    address = created.headers["Location"]

    first, second = client.get(f"{address}?version=1"), client.get(f"{address}?version=2")

    assert (first.data, first.headers["ETag"]) == (created.data, '"1"')
    assert slug(second) == (404, "order-not-found")
    assert second.json["detail"] == f"Order {created.json['id']} has no version 2: it is at version 1."


@pytest.mark.parametrize(
    ("if_none_match", "status"),
    [('"1"', 304), ('W/"1"', 304), ("*", 304), ('"0", "1"', 304), ('"2"', 200), ("1", 304), ("rubbish", 200)],
)
def test_an_unchanged_order_is_not_sent_again(client: FlaskClient, if_none_match: str, status: int) -> None:
    created = client.post("/orders", json=MINIMAL)

    response = client.get(created.headers["Location"], headers={"If-None-Match": if_none_match})

    assert response.status_code == status
    assert (response.data == b"") == (status == 304)
    assert response.headers["ETag"] == created.headers["ETag"] == '"1"'
    assert response.headers["Cache-Control"] == "private, no-cache"


@pytest.mark.parametrize("path", ["order", "/docs", "/openapi.json"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_order_whose_version_if_match_does_not_name_is_not_returned(
    client: FlaskClient, path: str, method: str
) -> None:
    address = client.post("/orders", json=MINIMAL).headers["Location"] if path == "order" else path
    tag = client.get(address).headers["ETag"]

    def read(**conditions: str) -> TestResponse:
        headers = {name.replace("_", "-"): value for name, value in conditions.items()}
        return client.open(address, method=method, headers=headers)

    assert [read(If_Match=value).status_code for value in (tag, "*", f'"0", {tag}')] == [200] * 3
    assert read(If_Match=tag, If_None_Match=tag).status_code == 304
    for value in ('"0"', f"W/{tag}", ""):
        refused = read(If_Match=value, If_None_Match=tag)
        assert (refused.status_code, refused.content_type) == (412, "application/problem+json"), value


def test_a_read_with_another_version_in_if_match_is_a_version_mismatch(client: FlaskClient) -> None:
    address = client.post("/orders", json=MINIMAL).headers["Location"]

    refused = client.get(address, headers={"If-Match": '"2"'})

    assert slug(refused) == (412, "version-mismatch")
    assert refused.json["current_version"] == 1


def test_head_returns_the_headers_of_get(client: FlaskClient) -> None:
    address = client.post("/orders", json=MINIMAL).headers["Location"]

    get, head = client.get(address), client.head(address)

    assert (head.status_code, head.data) == (200, b"")
    for name in ("ETag", "Content-Type", "Content-Length", "Cache-Control"):
        assert head.headers[name] == get.headers[name]


def test_a_duplicate_reference_is_409_and_names_the_first_order(client: FlaskClient) -> None:
    first = client.post("/orders", json=MINIMAL | {"external_ref": "r-1"}).json

    second = client.post("/orders", json=MINIMAL | {"external_ref": "r-1", "note": "other"})

    assert slug(second) == (409, "duplicate-external-ref")
    assert second.json["order_id"] == first["id"]
    assert "Retry-After" not in second.headers
    assert len(client.get("/orders").json["orders"]) == 1


def test_orders_without_a_reference_or_key_never_conflict(client: FlaskClient) -> None:
    created = [client.post("/orders", json=MINIMAL) for _ in range(3)]

    assert {response.status_code for response in created} == {201}
    assert len({response.json["id"] for response in created}) == 3


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (priced(-1001), "#/adjustments"),
        (priced(currency=None), "#/currency"),
        (priced(items=MINIMAL["items"], adjustments=[{"type": "fee", "amount": 1}], currency=None), "#/currency"),
        (priced(items=[{"item_id": "s", "quantity": QUANTITY_MAX, "unit_price": PRICE_MAX}]), "#/items"),
    ],
    ids=["below zero", "no currency for a price", "no currency for an adjustment", "beyond 2^53"],
)
def test_impossible_amounts_are_refused(client: FlaskClient, body: dict[str, Any], place: str) -> None:
    response = client.post("/orders", json=body)

    assert [fault["pointer"] for fault in response.json["errors"]] == [place]


def test_the_total_of_an_order_may_be_zero(client: FlaskClient) -> None:
    assert client.post("/orders", json=priced(-1000)).json["totals"]["total"] == 0
