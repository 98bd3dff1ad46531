"""Every limit of an order: values at the limit are accepted, larger ones refused with a pointer."""

import re
from typing import Any

import pytest
from flask.testing import FlaskClient

from app.schemas.order import CustomerId
from tests.support.samples import MINIMAL, RICHEST, UNKNOWN_MEMBER, error_locations, priced

ITEM = {"item_id": "sku-1", "quantity": 1}


def with_item(**members: Any) -> dict[str, Any]:
    return {"customer_id": "c-1", "currency": "EUR", "items": [ITEM | members]}


def with_address(**members: Any) -> dict[str, Any]:
    return MINIMAL | {"shipping_address": {"country": "DE"} | members}


def with_adjustment(**members: Any) -> dict[str, Any]:
    # Expensive enough for every discount.
    dear = [{"item_id": "sku-1", "quantity": 1, "unit_price": 10**12}]
    return priced(items=dear, adjustments=[{"type": "fee", "amount": 1} | members])


TEXT_LIMITS = [
    (lambda text: MINIMAL | {"customer_id": text}, 64, "#/customer_id"),
    (lambda text: MINIMAL | {"external_ref": text}, 64, "#/external_ref"),
    (lambda text: with_item(item_id=text), 64, "#/items/0/item_id"),
    (lambda text: with_adjustment(label=text), 100, "#/adjustments/0/label"),
    (lambda text: with_address(name=text), 200, "#/shipping_address/name"),
    (lambda text: with_address(company=text), 200, "#/shipping_address/company"),
    (lambda text: with_address(line1=text), 200, "#/shipping_address/line1"),
    (lambda text: with_address(line2=text), 200, "#/shipping_address/line2"),
    (lambda text: with_address(city=text), 100, "#/shipping_address/city"),
    (lambda text: with_address(region=text), 100, "#/shipping_address/region"),
    (lambda text: with_address(postal_code=text), 20, "#/shipping_address/postal_code"),
    (lambda text: with_address(phone=text), 40, "#/shipping_address/phone"),
    (lambda text: with_address(email=text), 254, "#/shipping_address/email"),
    (lambda text: MINIMAL | {"billing_address": {"country": "DE", "name": text}}, 200, "#/billing_address/name"),
]


@pytest.mark.parametrize(("body", "longest", "place"), TEXT_LIMITS, ids=[limit[2] for limit in TEXT_LIMITS])
def test_a_text_has_1_to_its_limit_of_characters(client: FlaskClient, body: Any, longest: int, place: str) -> None:
    # Characters are counted, not bytes.
    accepted = [client.post("/orders", json=body(text)) for text in ("é" * longest, "a")]
    refused = [client.post("/orders", json=body(text)) for text in ("é" * (longest + 1), "")]

    assert [response.status_code for response in accepted] == [201, 201]
    assert [error_locations(response) for response in refused] == [{place}, {place}]
    assert refused[0].json["errors"][0]["detail"] == f"This must have 1 to {longest} characters."


NUMBER_LIMITS = [
    (lambda number: with_item(quantity=number), 1, 1_000_000, "#/items/0/quantity"),
    (lambda number: with_item(unit_price=number), 0, 10**12, "#/items/0/unit_price"),
    (lambda number: with_adjustment(amount=number), -(10**12), 10**12, "#/adjustments/0/amount"),
]


@pytest.mark.parametrize(("body", "low", "high", "place"), NUMBER_LIMITS, ids=[limit[3] for limit in NUMBER_LIMITS])
def test_a_number_is_an_integer_within_its_limits(
    client: FlaskClient, body: Any, low: int, high: int, place: str
) -> None:
    accepted = [client.post("/orders", json=body(number)) for number in (low, high)]
    refused = [
        client.post("/orders", json=body(number))
        for number in (low - 1, high + 1, -(2**63), 2**63, low + 0.5, 1.5, "1", True, [], {})
    ]

    assert [response.status_code for response in accepted] == [201, 201]
    assert [error_locations(response) for response in refused] == [{place}] * len(refused)


SIZES = [
    (MINIMAL | {"items": [ITEM] * 100}, None),
    (MINIMAL | {"items": [ITEM] * 101}, "#/items"),
    (MINIMAL | {"items": []}, "#/items"),
    (priced(*[1] * 100), None),
    (priced(*[1] * 101), "#/adjustments"),
    (MINIMAL | {"note": "é" * 2000}, None),
    (MINIMAL | {"note": "é" * 2001}, "#/note"),
    (MINIMAL | {"note": ""}, None),
    (MINIMAL | {"metadata": {f"k{i}": "v" for i in range(50)}}, None),
    (MINIMAL | {"metadata": {f"k{i}": "v" for i in range(51)}}, "#/metadata"),
    (MINIMAL | {"metadata": {"é" * 40: "é" * 500}}, None),
    (MINIMAL | {"metadata": {"k" * 41: "v"}}, "#/metadata/" + "k" * 41),
    (MINIMAL | {"metadata": {"": "v"}}, "#/metadata/"),
    (MINIMAL | {"metadata": {"k": "v" * 501}}, "#/metadata/k"),
    (MINIMAL | {"metadata": {"k": ""}}, None),
]


@pytest.mark.parametrize(("body", "place"), SIZES)
def test_lists_and_metadata_have_limits(client: FlaskClient, body: dict[str, Any], place: str | None) -> None:
    response = client.post("/orders", json=body)

    if place:
        assert error_locations(response) == {place}
    else:
        assert response.status_code == 201


TYPE = "#/adjustments/0/type"
CHOICES = [
    (lambda word: MINIMAL | {"currency": word}, ["EUR", "JPY", "XOF"], "#/currency"),
    (lambda word: with_adjustment(type=word, amount=0), ["discount", "tax", "shipping", "fee", "other"], TYPE),
    (lambda word: with_address(country=word), ["DE", "GB"], "#/shipping_address/country"),
]


@pytest.mark.parametrize(("body", "words", "place"), CHOICES, ids=[choice[2] for choice in CHOICES])
def test_a_code_must_be_a_known_one(client: FlaskClient, body: Any, words: list[str], place: str) -> None:
    accepted = [client.post("/orders", json=body(word)) for word in words]
    refused = [
        client.post("/orders", json=body(word))
        for word in (words[0].swapcase(), words[0] + "\n", "", "EURO", "\ud800", 1, [words[0]], {})
    ]

    assert {response.status_code for response in accepted} == {201}
    assert [error_locations(response) for response in refused] == [{place}] * len(refused)


REFUSED_EVERYWHERE = ["\0", "\x1f", "\x7f", "\x85", "\ud800", "\udfff"]
REFUSED_OUTSIDE_PROSE = ["\t", "\n", "\r"]


@pytest.mark.parametrize("symbol", REFUSED_EVERYWHERE + REFUSED_OUTSIDE_PROSE)
@pytest.mark.parametrize(("body", "_longest", "place"), TEXT_LIMITS[:4], ids=[limit[2] for limit in TEXT_LIMITS[:4]])
def test_a_name_must_not_contain_control_characters(
    client: FlaskClient, body: Any, _longest: int, place: str, symbol: str
) -> None:
    assert error_locations(client.post("/orders", json=body(f"a{symbol}b"))) == {place}


@pytest.mark.parametrize("symbol", REFUSED_EVERYWHERE)
def test_a_note_and_metadata_must_not_contain_control_characters(client: FlaskClient, symbol: str) -> None:
    body = MINIMAL | {"note": symbol, "metadata": {"k": symbol}}

    assert error_locations(client.post("/orders", json=body)) == {"#/note", "#/metadata/k"}


def test_a_note_may_have_line_breaks(client: FlaskClient) -> None:
    assert client.post("/orders", json=MINIMAL | {"note": "1\r\n\t2"}).json["note"] == "1\r\n\t2"


WRONG_KINDS = ["x", 1, True, [], {}]


@pytest.mark.parametrize("member", ["customer_id", "items", "adjustments", "shipping_address", "note", "metadata"])
def test_a_member_of_the_wrong_type_is_400_and_names_the_expected_type(client: FlaskClient, member: str) -> None:
    for value in WRONG_KINDS:
        response = client.post("/orders", json=MINIMAL | {member: value})

        if response.status_code != 201:
            places = {f"#/{member}"} if value != {} or member != "shipping_address" else {f"#/{member}/country"}
            assert error_locations(response) == places
            assert response.json["errors"][0]["detail"].startswith("This ")


@pytest.mark.parametrize("member", ["customer_id", "items", "adjustments", "metadata"])
def test_null_is_accepted_only_where_it_has_a_meaning(client: FlaskClient, member: str) -> None:
    assert error_locations(client.post("/orders", json=MINIMAL | {member: None})) == {f"#/{member}"}


def test_all_errors_are_reported_at_once(client: FlaskClient) -> None:
    body = {
        "items": [{"quantity": 0}, None, ITEM | {"unit_price": -1, "colour": "red"}, {"item_id": "", "unit_price": 1}],
        "adjustments": [{"type": "gift", "amount": "1"}, 7],
        "shipping_address": {"country": "germany", "street": "x"},
        "billing_address": [],
        "note": 1,
        "metadata": {"a/b~c": 1, "": ""},
        "total": 1,
    }

    response = client.post("/orders", json=body)

    assert error_locations(response) == {
        "#/customer_id",
        "#/currency",
        "#/items/0/item_id",
        "#/items/0/quantity",
        "#/items/1",
        "#/items/2/unit_price",
        "#/items/2/colour",
        "#/items/3/item_id",
        "#/items/3/quantity",
        "#/adjustments/0/type",
        "#/adjustments/0/amount",
        "#/adjustments/1",
        "#/shipping_address/country",
        "#/shipping_address/street",
        "#/billing_address",
        "#/note",
        "#/metadata/a~1b~0c",
        "#/metadata/",
        "#/total",
    }


def test_the_messages_are_sentences_that_state_what_is_expected(client: FlaskClient) -> None:
    body = {"items": [{"item_id": 1, "quantity": 0}], "adjustments": [{"type": "x", "amount": 1}], "colour": "red"}

    errors = client.post("/orders", json=body).json["errors"]

    assert {error["pointer"]: error["detail"] for error in errors} == {
        "#/customer_id": "This is required.",
        "#/items/0/item_id": "This must be a string.",
        "#/items/0/quantity": "This must be from 1 to 1,000,000.",
        "#/adjustments/0/type": "This must be one of: discount, tax, shipping, fee, other.",
        "#/currency": "This is required if there are prices or adjustments.",
        "#/colour": UNKNOWN_MEMBER,
    }


def test_a_list_that_is_too_long_is_one_error(client: FlaskClient) -> None:
    response = client.post("/orders", json={"customer_id": "c", "items": [{}] * 15_000})

    assert error_locations(response) == {"#/items"}
    assert len(response.data) < 1000


@pytest.mark.parametrize("name", ["id", "status", "version", "totals", "Customer_id", "", "é", "a" * 10_000])
def test_an_unknown_member_is_refused(client: FlaskClient, name: str) -> None:
    response = client.post("/orders", json=RICHEST | {name: None})

    [error] = response.json["errors"]
    assert error["detail"] == UNKNOWN_MEMBER


def test_the_largest_order_that_the_limits_of_its_parts_allow_in_ascii_is_stored(client: FlaskClient) -> None:
    items = [{"item_id": "i" * 64, "quantity": 10**6, "unit_price": 9 * 10**7} for _ in range(100)]
    metadata = {f"{i:040}": "v" * 500 for i in range(50)}
    body = {"customer_id": "c" * 64, "currency": "EUR", "items": items, "metadata": metadata, "note": "n" * 2000}

    assert client.post("/orders", json=body).json["totals"]["total"] == 9 * 10**15


@pytest.mark.parametrize("customer", [".", "..", "a/..", "../a", "a/./b", "/.", "erased-", "erased-0123456789abcdef"])
def test_a_customer_id_with_a_dot_segment_or_the_prefix_of_aliases_is_refused(
    client: FlaskClient, customer: str
) -> None:
    assert error_locations(client.post("/orders", json=MINIMAL | {"customer_id": customer})) == {"#/customer_id"}


@pytest.mark.parametrize("customer", ["...", ".a", "..a", "a.", "a..", "a/b", "/", "//", "a/.b", "Erased-1"])
def test_a_customer_id_may_contain_dots_and_slashes(client: FlaskClient, customer: str) -> None:
    assert client.post("/orders", json=MINIMAL | {"customer_id": customer}).status_code == 201


@pytest.mark.parametrize("customer", [".", "..", "a/..", "../a", "a/./b", "/.", "...", ".a", "a/.b", "//", "a.."])
def test_the_pattern_of_a_customer_id_matches_what_the_service_accepts(client: FlaskClient, customer: str) -> None:
    accepted = client.post("/orders", json=MINIMAL | {"customer_id": customer}).status_code == 201
    assert bool(re.search(CustomerId.PATTERN, customer)) == accepted


@pytest.mark.parametrize("time", ["1969-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00"])
def test_a_date_before_1970_is_refused(client: FlaskClient, time: str) -> None:
    assert error_locations(client.post("/orders", json=MINIMAL | {"deliver_by": time})) == {"#/deliver_by"}
