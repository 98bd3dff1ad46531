"""Exports: `GET /orders/export`, as NDJSON or CSV, and `flask orders export`."""

import csv
import io
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.test import TestResponse

from app.cli.seed import sample_orders
from app.http import auth, streams
from app.http.streams import ExportAborted
from app.services import order_queries
from app.services.credentials import key_id, revoke_api_key
from app.services.order_queries import as_csv
from tests.support.credentials import api_key, bearer
from tests.support.samples import MINIMAL, RICHEST, error_locations, slug

NDJSON, CSV = "application/x-ndjson", "text/csv"
HEADER = (
    "id,number,customer_id,external_ref,channel,status,fulfillment_status,payment_status,return_status,currency,version,"
    "created_at,updated_at,note,items_total,adjustments_total,cancelled_total,total,paid,refunded,due,"
    "line,item_id,title,quantity,unit_price,discount,line_total,cancelled,fulfilled,returned"
)


def stream(client: FlaskClient, path: str = "/orders/export?sort=created_at", accept: str = NDJSON) -> TestResponse:
    response = client.get(path, headers={"Accept": accept})
    assert (response.status_code, response.mimetype) == (200, accept), response.text
    return response


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.fixture
def orders(client: FlaskClient) -> list[bytes]:
    """Five documents, oldest first, of two customers; the first one cancelled."""
    bodies = [RICHEST, *(MINIMAL | {"note": str(i)} for i in range(4))]
    paths = [client.post("/orders", json=body).headers["Location"] for body in bodies]
    client.post(f"{paths[0]}/cancel", json={"reason": "customer"})
    return [client.get(path).data for path in paths]


def test_ndjson_is_one_stored_document_a_line(client: FlaskClient, orders: list[bytes]) -> None:
    response = stream(client)

    assert response.data == b"".join(order + b"\n" for order in orders)
    assert response.content_type == "application/x-ndjson; charset=utf-8"
    assert response.headers["Cache-Control"] == "private, no-store"


def test_csv_is_a_header_and_one_row_for_each_line_of_each_order(client: FlaskClient, orders: list[bytes]) -> None:
    text = stream(client, accept=CSV).text

    first, second = orjson.loads(orders[0]), orjson.loads(orders[1])
    found = rows(text)
    assert text.startswith(HEADER + "\r\n")
    assert [row["id"] for row in found] == [first["id"]] * 3 + [orjson.loads(order)["id"] for order in orders[1:]]
    assert [(row["line"], row["item_id"], row["unit_price"]) for row in found[:3]] == [
        ("1", "sku-1", "1250"), ("2", "sku-2", ""), ("3", "sku-1", ""),
    ]  # fmt: skip
    assert (found[0]["status"], found[0]["total"], found[0]["note"]) == ("cancelled", "0", RICHEST["note"])
    assert (found[3]["currency"], found[3]["total"], found[3]["number"]) == ("", "", second["number"])


@pytest.mark.parametrize(("accept", "body"), [(NDJSON, ""), (CSV, HEADER + "\r\n")])
def test_an_export_without_matches_is_empty(client: FlaskClient, accept: str, body: str) -> None:
    assert stream(client, accept=accept).text == body


def in_csv(text: str) -> tuple[str, str]:
    """The CSV of an order with the text as its note and its customer, and the note as a reader parses it."""
    [order] = sample_orders(1, seed=1, until=datetime(2026, 11, 1, tzinfo=UTC))
    document = orjson.loads(order.document) | {"note": text, "customer_id": text}
    written = "".join(as_csv([orjson.dumps(document).decode()]))
    [row, *_] = rows(written)
    assert row["note"] == row["customer_id"]
    return written, row["note"]


@pytest.mark.parametrize("start", ["=1+1", "+1", "-1", "@SUM(A1)", "\t1", "\n1", "＝1", "－1"])
def test_a_formula_in_a_text_is_escaped_for_spreadsheets(start: str) -> None:
    assert in_csv(start)[1] == f"'{start}"


@pytest.mark.parametrize(
    ("text", "defused"),
    [
        ("x;=1+1", "x;'=1+1"),
        ("\t=1", "'\t'=1"),
        (' "=1', " \"'=1"),
        ("x; +1", "x; '+1"),
        ('x;"=1+1"', 'x;"\'=1+1"'),
        ("x\t@SUM(A1)", "x\t'@SUM(A1)"),
        ("x\n-1", "x\n'-1"),
        ("a,b;＝1;=2", "a,b;'＝1;'=2"),
        ("a = b; c - d", "a = b; c - d"),
        ("c-1;sku-1", "c-1;sku-1"),
    ],
)
def test_a_formula_after_another_separator_is_escaped(text: str, defused: str) -> None:
    assert in_csv(text)[1] == defused


def cpu_seconds(length: int) -> float:
    """The time of the CPU that a text of separators takes: the least of three runs."""

    def run() -> float:
        started = time.process_time()
        in_csv("\n" * length)
        return time.process_time() - started

    return min(run() for _ in range(3))


def test_a_text_of_separators_takes_linear_time() -> None:
    assert cpu_seconds(100_000) < 60 * cpu_seconds(5_000)  # 20 times as long; in quadratic time 400 times


@given(text=st.text(alphabet="=+-@;\t\n\"' ,a", max_size=12), separator=st.sampled_from([",", ";", "\t"]))
def test_no_separator_turns_a_text_into_a_formula(text: str, separator: str) -> None:
    written, _ = in_csv(text)

    for row in csv.reader(io.StringIO(written, newline=""), delimiter=separator):
        assert not any(cell.strip().startswith(("=", "+", "@")) for cell in row)


def test_numbers_below_zero_stay_numbers(client: FlaskClient) -> None:
    client.post("/orders", json=RICHEST | {"adjustments": [{"type": "discount", "amount": -250}]})

    assert rows(stream(client, accept=CSV).text)[0]["adjustments_total"] == "-250"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("?sort=created_at", [0, 1, 2, 3, 4]),
        ("", [4, 3, 2, 1, 0]),
        ("?status=cancelled", [0]),
        ("?status=pending,cancelled", [4, 3, 2, 1, 0]),
        ("?customer_id=c-1&sort=created_at", [1, 2, 3, 4]),
        ("?item_id=sku-2", [0]),
        ("?limit=1&sort=created_at", [0]),
        ("?limit=3", [4, 3, 2]),
        ("?limit=5", [4, 3, 2, 1, 0]),
        ("?limit=1000000000", [4, 3, 2, 1, 0]),
    ],
)
def test_an_export_contains_all_matches_in_the_requested_sort_order(
    client: FlaskClient, orders: list[bytes], monkeypatch: pytest.MonkeyPatch, query: str, expected: list[int]
) -> None:
    for page in (1, 2, 500):
        monkeypatch.setattr(order_queries, "EXPORT_PAGE", page)

        assert stream(client, f"/orders/export{query}").data.splitlines() == [orders[i] for i in expected]


def test_an_export_resumes_after_the_last_order_of_an_aborted_one(client: FlaskClient, orders: list[bytes]) -> None:
    for sort, expected in (("created_at", orders[2:]), ("-created_at", orders[:1])):
        last = orjson.loads(orders[1])["id"].upper()

        rest = stream(client, f"/orders/export?sort={sort}&after={last}")

        assert rest.data.splitlines() == (expected if sort == "created_at" else expected[::-1])


def test_the_query_can_select_the_format(client: FlaskClient, orders: list[bytes]) -> None:
    for name, media_type in (("ndjson", NDJSON), ("csv", CSV)):
        chosen = client.get(f"/orders/export?format={name}", headers={"Accept": "application/json"})

        assert (chosen.status_code, chosen.content_type) == (200, f"{media_type}; charset=utf-8")
        assert chosen.data == stream(client, "/orders/export", media_type).data


def test_only_responses_that_depend_on_accept_vary_by_it(client: FlaskClient) -> None:
    assert "Accept" in client.get("/orders/export", headers={"Accept": CSV}).vary
    assert "Accept" in client.get("/orders/export").vary
    assert "Accept" in client.get("/orders/export", headers={"Accept": "image/png"}).vary
    assert "Accept" not in client.get("/orders/export?format=csv").vary
    assert "Accept" not in client.get("/orders", headers={"Accept": CSV}).vary


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, NDJSON),
        ("", NDJSON),
        ("*/*", NDJSON),
        ("text/html, image/gif, *; q=.2, */*; q=.2", NDJSON),
        ("text/*", CSV),
        ("text/csv; charset=utf-8", CSV),
        ("Text/CSV;header=present", CSV),
        ("application/x-ndjson; charset=utf-8", NDJSON),
        ("application/jsonl", "application/jsonl"),
        ("application/ndjson", "application/ndjson"),
        ("application/*", NDJSON),
        ("application/json;q=0.9, text/csv;q=0.5", CSV),
        ("text/csv;q=0.5, application/x-ndjson;q=0.9", NDJSON),
        ("text/csv, application/x-ndjson", NDJSON),
        ("text/csv;q=0.1;charset=utf-8, text/csv, application/x-ndjson;q=0.5", CSV),
        ("text/csv;q=0, */*", NDJSON),
        ("application/x-ndjson;q=0, */*;q=0.1", CSV),
        ("application/json", None),
        ("text/csv;q=0", None),
        ("*/*;q=0", None),
        ("image/png, garbage;;;=", None),
        ("text/csv;q=nan", None),
        ("text/csv;q=2", None),
    ],
)
def test_the_media_type_is_the_one_that_the_request_prefers(
    client: FlaskClient, accept: str | None, media_type: str | None
) -> None:
    response = client.get("/orders/export", headers={} if accept is None else {"Accept": accept})

    if media_type is None:
        assert slug(response) == (406, "not-acceptable")
        assert "application/x-ndjson or text/csv" in response.json["detail"]
    else:
        assert (response.status_code, response.mimetype) == (200, media_type)


@pytest.mark.parametrize("accept", [NDJSON, CSV, "application/json", "text/html"])
def test_a_list_is_json_with_any_accept_header(client: FlaskClient, accept: str) -> None:
    listed = client.get("/orders", headers={"Accept": accept})

    assert (listed.status_code, listed.mimetype) == (200, "application/json")


def test_csv_begins_with_a_byte_order_mark_on_request(client: FlaskClient, orders: list[bytes]) -> None:
    plain, marked = (stream(client, f"/orders/export?bom={bom}", CSV).data for bom in "01")

    assert marked == b"\xef\xbb\xbf" + plain
    assert not plain.startswith(b"\xef\xbb\xbf")


@pytest.mark.parametrize("accept", [NDJSON, CSV])
@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        ("status=x", {"status"}),
        ("limit=0&after=x", {"limit", "after"}),
        ("limit=x&sort=y", {"limit", "sort"}),
        ("cursor=x&format=xlsx&bom=2", {"cursor", "format", "bom"}),
        ("format=ndjson&bom=1", {"bom"}),
    ],
)
def test_an_invalid_export_request_is_a_problem(
    client: FlaskClient, accept: str, query: str, parameters: set[str]
) -> None:
    assert error_locations(client.get(f"/orders/export?{query}", headers={"Accept": accept})) == parameters


def test_a_head_request_gets_the_headers_of_an_export(client: FlaskClient, orders: list[bytes]) -> None:
    response = client.head("/orders/export")

    assert (response.status_code, response.mimetype, response.data) == (200, NDJSON, b"")


@pytest.mark.parametrize("accept", [NDJSON, CSV])
def test_an_error_before_the_first_byte_is_a_problem(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, accept: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PoolTimeout

    monkeypatch.setattr(order_queries, "read_export_page", fail)

    response = client.get("/orders/export", headers={"Accept": accept})

    assert slug(response) == (503, "service-unavailable")
    assert response.headers["Retry-After"] == "1"


def test_an_error_of_a_later_page_of_the_first_chunk_is_a_problem(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(17):  # the first page has 16
        client.post("/orders", json=MINIMAL)
    read_export_page, calls = order_queries.read_export_page, iter(range(9))

    def fail_later(*args: Any, **kwargs: Any) -> Any:
        if next(calls) > 0:
            raise PoolTimeout
        return read_export_page(*args, **kwargs)

    monkeypatch.setattr(order_queries, "read_export_page", fail_later)

    assert slug(client.get("/orders/export")) == (503, "service-unavailable")


def test_an_export_waits_for_others_for_a_limited_time(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_queries, "_EXPORT_WAIT_SECONDS", 0.05)
    with app.app_context():
        readers = order_queries.EXPORT_CONNECTIONS.get()
    places = 0
    while readers.acquire(blocking=False):
        places += 1
    try:
        refused = client.get("/orders/export")
        others = client.get("/orders")
    finally:
        readers.release(places)

    assert slug(refused) == (503, "service-unavailable")
    assert others.status_code == 200
    assert client.get("/orders/export").status_code == 200


@pytest.mark.parametrize("path", ["/orders/export", "/orders/export?format=csv", "/customers/c-1/personal-data"])
def test_a_revoked_key_ends_its_exports(
    secure_app: Flask, secure_client: FlaskClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(streams, "EXPORT_CHUNK", 1)  # a chunk for each line
    monkeypatch.setattr(auth, "KEY_SECONDS", 0)
    key = api_key(secure_app, "orders:read", "orders:write", "privacy:export")
    for _ in range(5):
        secure_client.post("/orders", json=MINIMAL | {"customer_id": "c-1"}, headers=bearer(key))
    chunks = iter(secure_client.get(path, headers=bearer(key)).response)
    assert next(chunks) and next(chunks)
    with secure_app.app_context():
        revoke_api_key(key_id(key))

    with pytest.raises(ExportAborted):
        next(chunks)


def test_the_command_writes_the_same_export_as_the_api(
    client: FlaskClient, runner: FlaskCliRunner, orders: list[bytes], tmp_path: Path
) -> None:
    file = tmp_path / "orders"
    for style, accept in (("ndjson", NDJSON), ("csv", CSV)):
        printed = runner.invoke(args=["orders", "export", "--format", style])
        written = runner.invoke(args=["orders", "export", "--format", style, "--output", str(file)])

        assert (printed.exit_code, printed.stderr) == (0, "5 orders exported.\n")
        assert (written.exit_code, written.stdout) == (0, "")
        assert file.read_bytes() == printed.stdout_bytes == stream(client, accept=accept).data


def test_the_command_exports_orders_of_one_status(runner: FlaskCliRunner, orders: list[bytes]) -> None:
    result = runner.invoke(args=["orders", "export", "--status", "cancelled"])

    assert (result.stdout_bytes, result.stderr) == (orders[0] + b"\n", "1 order exported.\n")


def test_the_command_begins_csv_with_a_byte_order_mark_on_request(
    runner: FlaskCliRunner, orders: list[bytes], tmp_path: Path
) -> None:
    plain, marked = (runner.invoke(args=["orders", "export", "--format", "csv", *bom]) for bom in ([], ["--bom"]))
    file = tmp_path / "orders.csv"
    runner.invoke(args=["orders", "export", "--format", "csv", "--bom", "--output", str(file)])
    refused = runner.invoke(args=["orders", "export", "--bom"])

    assert marked.stdout_bytes == file.read_bytes() == b"\xef\xbb\xbf" + plain.stdout_bytes
    assert refused.exit_code == 2
    assert "only a CSV export can have a byte order mark" in refused.stderr
