"""Hostile requests: each is refused with a problem document, and the next valid one is served."""

import gzip
import json
from decimal import Decimal, localcontext
from io import BytesIO
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from app.errors import MalformedJSON
from app.schemas.base import MAX_DEPTH, parse_json
from tests.support.samples import MINIMAL, error_locations, slug

GOOD = json.dumps(MINIMAL).encode()


def with_quantity(number: str) -> bytes:
    return b'{"customer_id":"c","items":[{"item_id":"s","quantity":%s}]}' % number.encode()


def with_member(text: str) -> bytes:
    return b'{"customer_id":"c","items":[{"item_id":"s","quantity":1}],%s}' % text.encode()


NOT_STRICT_JSON = {
    "nothing": b"",
    "only spaces": b" \n ",
    "20,000 lists deep": b"[" * 20_000 + b"]" * 20_000,
    "10,000 objects deep": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "60,000 lists that never end": b"[" * 60_000,
    "33 deep": with_member('"metadata":' + "[" * 32 + "]" * 32),
    "a string that never ends": b"[" * 40 + b'"' + b'\\"' * 30_000,
    "a backslash at the end": b"[" * 40 + b'"\\',
    "NaN": with_quantity("NaN"),
    "Infinity": with_quantity("Infinity"),
    "-Infinity": with_quantity("-Infinity"),
    "10^400": with_quantity("1" + "0" * 400),
    "4,301 digits": with_quantity("9" * 4301),
    "60,000 digits": with_quantity("9" * 60_000),
    "long fraction": with_quantity("1." + "0" * 5000),
    "long exponent": with_quantity("1e" + "0" * 60_000),
    "leading zero": with_quantity("01"),
    "plus sign": with_quantity("+1"),
    "hexadecimal": with_quantity("0x1"),
    "full-width digit": with_quantity("１"),
    "a member twice": b'{"customer_id":"a","customer_id":"b","items":[{"item_id":"s","quantity":1}]}',
    "a nested member twice": b'{"customer_id":"c","items":[{"item_id":"s","quantity":1,"quantity":2}]}',
    "a member twice, once escaped": b'{"customer_id":"a","customer_\\u0069d":"b"}',
    "a lone surrogate as member twice": b'{"\\ud800":1,"\\ud800":2}',
    "raw NUL": b'{"customer_id":"\0"}',
    "raw line break in a string": b'{"customer_id":"a\nb"}',
    "Latin-1": '{"customer_id":"é"}'.encode("latin-1"),
    "half a character": b'{"customer_id":"\xc3"}',
    "overlong NUL": b'{"customer_id":"\xc0\x80"}',
    "raw surrogate": b'{"customer_id":"\xed\xa0\x80"}',
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "UTF-16 without mark": GOOD.decode().encode("utf-16-le"),
    "UTF-32": GOOD.decode().encode("utf-32"),
    "two texts": GOOD + GOOD,
    "trailing comma": b'{"customer_id":"c",}',
    "comment": b"{} // nothing",
    "single quotes": b"{'customer_id':'c'}",
    "a form": b"customer_id=c&items=s",
    "gzip": gzip.compress(GOOD),
}


@pytest.mark.parametrize("body", NOT_STRICT_JSON.values(), ids=NOT_STRICT_JSON)
def test_only_strict_json_is_accepted(client: FlaskClient, body: bytes) -> None:
    response = client.post("/orders", data=body, content_type="application/json")

    assert slug(response) == (400, "malformed-json")
    assert client.post("/orders", json=MINIMAL).status_code == 201


NOT_AN_ORDER = {
    "null": (b"null", "#"),
    "true": (b"true", "#"),
    "number": (b"1", "#"),
    "text": (b'"x"', "#"),
    "list": (b"[]", "#"),
    "32 deep": (with_member('"metadata":' + "[" * 31 + "]" * 31), "#/metadata"),
    "1e400": (with_quantity("1e400"), "#/items/0/quantity"),
    "-1e400": (with_quantity("-1e400"), "#/items/0/quantity"),
    "1e-400": (with_quantity("1e-400"), "#/items/0/quantity"),
    "1e39": (with_quantity("1e39"), "#/items/0/quantity"),
    "a huge exponent": (with_quantity("1e" + "9" * 90), "#/items/0/quantity"),
    "a huge negative exponent": (with_quantity("1e-" + "9" * 90), "#/items/0/quantity"),
    "2.5": (with_quantity("2.5"), "#/items/0/quantity"),
    "25e-1": (with_quantity("25e-1"), "#/items/0/quantity"),
    "a price too small for a float": (
        b'{"customer_id":"c","currency":"EUR","items":[{"item_id":"s","quantity":1,"unit_price":1e-400}]}',
        "#/items/0/unit_price",
    ),
    "0.0": (with_quantity("0.0"), "#/items/0/quantity"),
    "0e999999999": (with_quantity("0e999999999"), "#/items/0/quantity"),
    "true as a quantity": (with_quantity("true"), "#/items/0/quantity"),
    '"2.0"': (with_quantity('"2.0"'), "#/items/0/quantity"),
    "-0": (with_quantity("-0"), "#/items/0/quantity"),
    "40 digits": (with_quantity("9" * 40), "#/items/0/quantity"),
    "escaped NUL": (with_member(r'"note":"\u0000"'), "#/note"),
    "escaped NUL in a name": (with_member(r'"\u0000":1'), "#/%00"),
    "lone high surrogate": (with_member(r'"note":"\ud800"'), "#/note"),
    "lone low surrogate": (with_member(r'"note":"\udc00\ud800"'), "#/note"),
    "lone surrogate in a name": (with_member(r'"\ud800":1'), "#/%3F"),
    "lone surrogate in metadata": (with_member(r'"metadata":{"a":"\ud800"}'), "#/metadata/a"),
    "lone surrogate in a name of metadata": (with_member(r'"metadata":{"\udfff":"a"}'), "#/metadata/%3F"),
    "infinity in metadata": (with_member('"metadata":{"a":1e999}'), "#/metadata/a"),
    "a long name": (with_member(f'"{"a" * 60_000}":1'), "#/" + "a" * 60_000),
}


@pytest.mark.parametrize(("body", "place"), NOT_AN_ORDER.values(), ids=NOT_AN_ORDER)
def test_json_that_is_not_an_order_is_refused(client: FlaskClient, body: bytes, place: str) -> None:
    response = client.post("/orders", data=body, content_type="application/json")

    assert error_locations(response) == {place}
    assert client.post("/orders", json=MINIMAL).status_code == 201


@pytest.mark.parametrize("count", [1000, 6000])
def test_thousands_of_unknown_members_are_one_error(client: FlaskClient, count: int) -> None:
    response = client.post("/orders", json={f"{i:x}": 1 for i in range(count)})

    assert error_locations(response) == {"#"}
    assert len(response.data) < 1000


@pytest.mark.parametrize("path", ["/orders", "/orders/x", "/orders/x/history", "/orders/export"])
def test_a_hundred_unknown_parameters_are_one_error(client: FlaskClient, path: str) -> None:
    response = client.get(path, query_string={f"p{i}": 1 for i in range(100)})

    assert slug(response) == (400, "invalid-request")
    [error] = response.json["errors"]
    assert error["detail"].startswith("Too many parameters: 100. Allowed: ")


@pytest.mark.parametrize("size", [64 * 1024 + 1, 10_000_000])
def test_a_large_body_is_413(client: FlaskClient, size: int) -> None:
    for body in (b" " * size, b'{"%s":1}' % (b"a" * size), json.dumps({f"{i}": 1 for i in range(100_000)}).encode()):
        response = client.post("/orders", data=body, content_type="application/json")

        assert slug(response) == (413, "content-too-large")
        assert "65,536 bytes" in response.json["detail"]
    assert client.post("/orders", json=MINIMAL).status_code == 201


def test_a_body_of_64_kib_is_read(client: FlaskClient) -> None:
    body = GOOD + b" " * (64 * 1024 - len(GOOD))

    assert client.post("/orders", data=body, content_type="application/json").status_code == 201


@pytest.mark.parametrize(
    "content_type",
    [
        None, "", "text/plain", "garbage", ";;;", "application/jsonx", "application/x-ndjson", "text/json",
        "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/vnd.api+json",
        "application/json; charset=utf-16", "application/json; charset=latin-1", 'application/json; charset="utf-7"',
    ],
)  # fmt: skip
def test_another_content_type_is_415(client: FlaskClient, content_type: str | None) -> None:
    response = client.post("/orders", data=GOOD, content_type=content_type)

    assert slug(response) == (415, "unsupported-media-type")


@pytest.mark.parametrize(
    "content_type", ["application/json", "APPLICATION/JSON", "application/json; charset=UTF-8", "application/json;v=1"]
)
def test_every_spelling_of_the_json_media_type_is_accepted(client: FlaskClient, content_type: str) -> None:
    assert client.post("/orders", data=GOOD, content_type=content_type).status_code == 201


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "x", "identity, gzip"])
def test_a_content_coding_is_415(client: FlaskClient, coding: str) -> None:
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}

    assert slug(client.post("/orders", data=gzip.compress(GOOD), headers=headers)) == (415, "unsupported-media-type")


@pytest.mark.parametrize("coding", ["", "identity", "IDENTITY", "identity, identity", ",identity"])
def test_a_body_without_a_content_coding_is_accepted(client: FlaskClient, coding: str) -> None:
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}

    assert client.post("/orders", data=GOOD, headers=headers).status_code == 201


QUERIES = {
    "limit=１": "limit", "limit=1e1": "limit", "limit=1.0": "limit", "limit=0x1": "limit", "limit=1_0": "limit",
    "limit=%2B1": "limit", "limit=%201": "limit", "limit=": "limit", "limit": "limit", "limit=0": "limit",
    "limit=101": "limit", "limit=-1": "limit", "limit=" + "9" * 5000: "limit", "limit=1&limit=1": "limit",
    "status=": "status", "status=x": "status", "status=PENDING": "status", "fulfillment_status=x": "fulfillment_status",
    "sort=x": "sort", "sort=created_at;limit=1": "sort", "customer_id=": "customer_id",
    "customer_id=%00": "customer_id", "customer_id=" + "a" * 65: "customer_id",
    "item_id=%C2%85": "item_id", "external_ref=%0A": "external_ref",
    "number=": "number", "cursor=": "cursor", "cursor=%00": "cursor", "cursor=" + "a" * 201: "cursor", "x=1": "x",
    "=": "", "%00=1": "\0", "é=1": "é", "a" * 5000 + "=1": "a" * 5000, "created_from=": "created_from",
    "created_from=now": "created_from", "created_from=2026-11-22": "created_from",
    "created_from=2026-11-22T09:41:07": "created_from", "created_from=2026-11-22T09:41:07+00:00": "created_from",
    "created_from=2026-02-29T00:00:00Z": "created_from", "created_from=2026-11-22T24:41:07Z": "created_from",
    "created_to=2026-11-22T09:41:07%2B25:00": "created_to", "created_to=２026-11-22T09:41:07Z": "created_to",
}  # fmt: skip


@pytest.mark.parametrize(("query", "parameter"), QUERIES.items())
def test_an_invalid_parameter_is_400_and_named(client: FlaskClient, query: str, parameter: str) -> None:
    response = client.get(f"/orders?{query}")

    assert error_locations(response) == {parameter}


@pytest.mark.parametrize("query", ["customer_id=%ff", "%ff=1", "customer_id=%ED%A0%80", "customer_id=%zz", "status=%"])
def test_a_query_that_is_not_percent_encoded_utf8_is_refused(client: FlaskClient, query: str) -> None:
    assert slug(client.get(f"/orders?{query}")) == (400, "bad-request")


def test_all_errors_of_a_query_are_reported_at_once(client: FlaskClient) -> None:
    assert error_locations(client.get("/orders?limit=0&status=x&y=1")) == {"limit", "status", "y"}


@given(st.recursive(st.none() | st.booleans() | st.integers(-(10**39), 10**39) | st.text(), lambda inner: (
    st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5)
), max_leaves=50))  # fmt: skip
def test_every_json_value_is_parsed_unchanged(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@given(
    number=st.decimals(-(10**30), 10**30, places=10) | st.integers(-(10**30), 10**30).map(Decimal),
    exponent=st.integers(-40, 9),
)
def test_a_number_without_a_fraction_is_an_integer_in_every_notation(number: Decimal, exponent: int) -> None:
    text = f"{number:f}e{exponent}"
    with localcontext(prec=200):
        exact = number.scaleb(exponent)
    expected = int(exact) if exact == exact.to_integral_value() else float(text)

    read = parse_json(text.encode())

    assert (type(read), read) == (type(expected), expected)


INTEGERS = {"2.0": 2, "2e0": 2, "2E+0": 2, "20e-1": 2, "0.002e3": 2, "2.000e0": 2, "1e3": 1000, "1.5e1": 15}


@pytest.mark.parametrize(("text", "integer"), INTEGERS.items())
def test_an_integer_is_accepted_in_every_notation(client: FlaskClient, text: str, integer: int) -> None:
    """Quantities, prices and adjustments; the document and the fingerprint are those of the integer."""
    body = (
        '{"customer_id":"c","currency":"EUR","items":[{"item_id":"s","quantity":%s,"unit_price":%s}],'
        '"adjustments":[{"type":"fee","amount":-%s}]}'
    )
    headers = {"Idempotency-Key": "k-1", "Content-Type": "application/json"}

    written = client.post("/orders", data=body % (text, text, text), headers=headers)
    plain = client.post("/orders", data=body % (integer, integer, integer), headers=headers)

    assert (written.status_code, plain.status_code, plain.data) == (201, 201, written.data)
    assert b'"quantity":%d,"unit_price":%d,' % (integer, integer) in written.data
    assert b'"amount":-%d,' % integer in written.data
    assert plain.headers["Idempotent-Replayed"] == "true"


def test_an_integer_in_every_notation_is_accepted_in_changes_and_batches(client: FlaskClient) -> None:
    """Lines and quantities; the replay holds the fingerprint."""
    batch = b'{"orders":[{"customer_id":"c","external_ref":"r","items":[{"item_id":"s","quantity":%s}]}]}'
    results = [
        client.post("/orders/batch", data=batch % number, content_type="application/json").json["results"][0]
        for number in (b"4.0", b"4")
    ]
    path = f"/orders/{results[0]['order']['id']}"
    assert [result.get("replayed") for result in results] == [None, True]
    assert client.post(f"{path}/confirm").status_code == 200

    for number, action in enumerate(("fulfillments", "returns")):
        headers = {"Idempotency-Key": f"k-{number}", "Content-Type": "application/json"}
        first, again = (
            client.post(f"{path}/{action}", data=b'{"items":[{"line":%s,"quantity":%s}]}' % units, headers=headers)
            for units in ((b"10e-1", b"2.0"), (b"1", b"2"))
        )
        assert (first.status_code, again.data) == (201, first.data)
        assert first.json[action][0]["items"] == [{"line": 1, "quantity": 2}]


@given(st.binary(max_size=200) | st.text(alphabet='[]{}",:\\ 01eE.-+ntfu\ud800', max_size=200).map(
    lambda text: text.encode("utf-8", "surrogatepass")
))  # fmt: skip
def test_any_bytes_are_json_or_malformed(body: bytes) -> None:
    try:
        parse_json(body)
    except MalformedJSON as problem:
        assert problem.detail.endswith(".")


@pytest.mark.parametrize(("depth", "fits"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False)])
@pytest.mark.parametrize("start", ["[", '{"a":'])
@pytest.mark.parametrize("text", [r"[{\"[{\\", "[{", "]}"])
def test_nesting_has_a_limit_and_brackets_in_strings_do_not_count(
    depth: int, fits: bool, start: str, text: str
) -> None:
    brackets = '"' + text * 50 + '"'
    body = (start * depth + brackets + {"[": "]", '{"a":': "}"}[start] * depth).encode()

    if fits:
        assert parse_json(body)
    else:
        with pytest.raises(MalformedJSON):
            parse_json(body)


def test_a_body_that_ends_early_is_refused_and_nothing_is_stored(client: FlaskClient) -> None:
    environ = {"CONTENT_LENGTH": str(len(GOOD) + 1)}  # the received part alone is a valid order

    cut_off = client.post("/orders", data=GOOD, content_type="application/json", environ_overrides=environ)

    assert slug(cut_off) == (400, "bad-request")
    assert client.get("/orders").json["orders"] == []


class FailingStream(BytesIO):
    """A body whose end the server cannot receive."""

    def __init__(self, error: OSError) -> None:
        super().__init__(b"{")
        self.error = error

    def read(self, size: int | None = -1) -> bytes:
        raise self.error

    def readinto(self, buffer: Any) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "expected"), [(TimeoutError(), (408, "request-timeout")), (OSError(), (400, "bad-request"))]
)
@pytest.mark.parametrize("framing", [{"CONTENT_LENGTH": "9"}, {"HTTP_TRANSFER_ENCODING": "chunked"}])
def test_a_body_that_cannot_be_received_is_408_or_400(
    client: FlaskClient, framing: dict[str, str], error: OSError, expected: tuple[int, str]
) -> None:
    environ = framing | {"wsgi.input": FailingStream(error), "wsgi.input_terminated": True}

    response = client.post("/orders", content_type="application/json", environ_overrides=environ)

    assert slug(response) == expected
