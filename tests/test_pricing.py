"""Prices: the allocation of discounts to lines, totals, and errors of inconsistent prices."""

from collections.abc import Sequence
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from app.models.money import LARGEST_TOTAL, InvalidPrices, order_totals, price_lines
from app.schemas.order import PRICE_MAX, QUANTITY_MAX
from tests.support.order_model import discounts, price_errors, totals
from tests.support.samples import error_locations, priced

Document = dict[str, Any]

small, amounts = st.integers(0, 60), st.integers(0, 60) | st.sampled_from([10**9, PRICE_MAX])
items = st.lists(
    st.fixed_dictionaries(
        {"item_id": st.just("sku-1"), "quantity": st.integers(1, 7) | st.just(1_000)},
        optional={"unit_price": st.none() | amounts},
    ),
    min_size=1,
    max_size=6,
)
lines = st.none() | st.integers(1, 6)
discount = st.fixed_dictionaries({"type": st.just("discount"), "amount": amounts.map(lambda amount: -amount)})
surcharge = st.fixed_dictionaries({"type": st.sampled_from(["tax", "shipping", "fee"]), "amount": st.integers(-30, 90)})
adjustments = st.lists(
    st.tuples(discount | discount | surcharge, lines).map(lambda pair: pair[0] | {"line": pair[1]}), max_size=5
)
orders = st.tuples(items, adjustments)


def content(items: Sequence[Document], adjustments: Sequence[Document]) -> Document:
    """The order with all members that concern its prices, as the model reads it."""
    full = [{"unit_price": None, "cancelled": 0} | item for item in items]
    return {"items": full, "adjustments": list(adjustments), "currency": "EUR", "status": "pending", "payments": []}


@given(order=orders)
def test_the_discounts_of_the_lines_add_up_to_all_discounts(order: tuple[list[Document], list[Document]]) -> None:
    items, adjustments = order
    expected = content(items, adjustments)
    try:
        prices = price_lines(items, adjustments)
    except InvalidPrices:
        assert price_errors(expected)
        return

    assert price_errors(expected) == []
    assert prices.discounts == discounts(expected)
    assert sum(prices.discounts) == sum(one["amount"] for one in adjustments if one["type"] == "discount")
    for subtotal, line_discount in zip(prices.subtotals, prices.discounts, strict=True):
        assert -(subtotal or 0) <= line_discount <= 0


@given(order=orders, data=st.data())
def test_cancelled_units_never_make_the_total_of_a_line_negative(
    order: tuple[list[Document], list[Document]], data: st.DataObject
) -> None:
    items, adjustments = order
    try:
        prices = price_lines(items, adjustments)
    except InvalidPrices:
        return
    cancelled = [item | {"cancelled": data.draw(st.integers(0, item["quantity"]))} for item in items]

    sums = order_totals(prices, cancelled, is_cancelled=False)
    rest = order_totals(prices, [item | {"cancelled": item["quantity"]} for item in items], is_cancelled=False)

    if sums is None or rest is None:
        assert prices.items is None
        return
    assert rest["cancelled"] <= sums["cancelled"] <= 0
    assert rest["total"] == sum(one["amount"] for one in adjustments if one["type"] != "discount")
    assert sums["total"] == sums["items"] + sums["adjustments"] + sums["cancelled"] == sums["due"]


def test_prices_and_their_errors_are_the_same_over_http(client: FlaskClient) -> None:
    @given(order=orders)
    def check(order: tuple[list[Document], list[Document]]) -> None:
        items, adjustments = order
        expected = content(items, adjustments)

        response = client.post(
            "/orders", json={"customer_id": "c-1", "items": items, "adjustments": adjustments, "currency": "EUR"}
        )

        if faults := price_errors(expected):
            assert error_locations(response) == {f"#/{fault}" for fault in faults}
            return
        assert response.status_code == 201, response.text
        document = response.json
        for item, line_discount in zip(document["items"], discounts(expected), strict=True):
            assert item["discount"] == line_discount
            assert item["total"] == (None if item["subtotal"] is None else item["subtotal"] + line_discount)
        assert document["totals"] == totals(expected | {"items": document["items"]})

    check()


def discounts_over_http(client: FlaskClient, prices: list[int | None], adjustments: list[Document]) -> list[int]:
    items = [{"item_id": "sku-1", "quantity": 1, "unit_price": price} for price in prices]
    response = client.post("/orders", json=priced() | {"items": items, "adjustments": adjustments})
    assert response.status_code == 201, response.text
    return [item["discount"] for item in response.json["items"]]


def off(amount: int, line: int | None = None) -> Document:
    return {"type": "discount", "amount": -amount, "line": line}


@pytest.mark.parametrize(
    ("prices", "adjustments", "expected"),
    [
        ([100, 100, 100], [off(100)], [-34, -33, -33]),  # of equal remainders, the first line's wins
        ([1, 1, 1], [off(2)], [-1, -1, 0]),
        ([100, 200], [off(1)], [0, -1]),
        ([100, 200], [off(60), off(40)], [-33, -67]),  # shared together, rounded once
        ([100, 200], [off(90, line=1), off(30)], [-91, -29]),  # in proportion to the remaining prices: 10 and 200
        ([100, None, 0], [off(50)], [-50, 0, 0]),
        ([100, 200], [off(300)], [-100, -200]),
        ([100, 200], [{"type": "shipping", "amount": -10}], [0, 0]),  # not a discount: it lowers no line
        ([0], [off(0)], [0]),
    ],
)
def test_a_discount_is_shared_by_largest_remainder(
    client: FlaskClient, prices: list[int | None], adjustments: list[Document], expected: list[int]
) -> None:
    assert discounts_over_http(client, prices, adjustments) == expected


@pytest.mark.parametrize(
    ("members", "errors"),
    [
        (
            {"adjustments": [off(1001)]},
            {"#/adjustments": "The discounts must not exceed the price of the items."},
        ),
        (
            {"adjustments": [off(600, line=1), off(401, line=1)]},
            {"#/adjustments/1/amount": "The discounts of line 1 must not exceed its price."},
        ),
        (
            {"adjustments": [off(1, line=2), {"type": "tax", "amount": 1, "line": 3}]},
            {
                "#/adjustments/0/line": "The order has no such line.",
                "#/adjustments/1/line": "The order has no such line.",
            },
        ),
        (
            {"adjustments": [{"type": "fee", "amount": -1001}]},
            {"#/adjustments": "The adjustments must not make the order's total negative."},
        ),
        (
            {"adjustments": [{"type": "discount", "amount": 1}]},
            {"#/adjustments/0/amount": "A discount must be 0 or negative."},
        ),
        (
            {"items": [{"item_id": "sku-1", "quantity": QUANTITY_MAX, "unit_price": PRICE_MAX}]},
            {"#/items": f"The total of the items must be at most {LARGEST_TOTAL:,} minor units."},
        ),
        (
            {
                "items": [{"item_id": "sku-1", "quantity": QUANTITY_MAX, "unit_price": 9 * 10**9}],
                "adjustments": [{"type": "fee", "amount": PRICE_MAX}] * 8,
            },
            {"#/adjustments": f"The order's total must be at most {LARGEST_TOTAL:,} minor units."},
        ),
        (
            {"adjustments": [off(1001)], "currency": None, "tags": ["gift", "gift"]},
            {
                "#/adjustments": "The discounts must not exceed the price of the items.",
                "#/currency": "This is required if there are prices or adjustments.",
                "#/tags": "Duplicate tag. List each tag once.",
            },
        ),
    ],
)
def test_inconsistent_prices_are_refused_with_all_errors(
    client: FlaskClient, members: Document, errors: dict[str, str]
) -> None:
    response = client.post("/orders", json=priced() | members)

    assert error_locations(response) == errors.keys()
    assert {fault["pointer"]: fault["detail"] for fault in response.json["errors"]} == errors


def test_a_change_to_inconsistent_prices_is_refused(client: FlaskClient) -> None:
    path = client.post("/orders", json=priced() | {"adjustments": [off(900)]}).headers["Location"]

    cheaper = {"items": [{"item_id": "sku-1", "quantity": 1, "unit_price": 899}]}

    assert error_locations(client.patch(path, json=cheaper)) == {"#/adjustments"}
    assert client.get(path).json["version"] == 1
