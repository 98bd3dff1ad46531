"""`flask orders import`: bodies and exported documents, repeatedly, completely or in part."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.db.engine import db
from app.errors import pluralize
from app.models.order import CONTENT, RECORDS
from app.services.event_feed import oldest_pending
from tests.support.description import api_description
from tests.support.marks import on_postgresql
from tests.support.runbook import section
from tests.support.samples import MINIMAL, RICHEST, UNKNOWN_MEMBER
from tests.support.servers import ROOT
from tests.support.tables import delete_all_rows


@pytest.fixture
def imported(runner: FlaskCliRunner) -> Callable[..., Result]:
    """Imports lines, given as values or as the text itself."""

    def run(*lines: Any, principal: str = "anonymous") -> Result:
        file = b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines)
        return runner.invoke(args=["orders", "import", "-", "--principal", principal], input=file)

    return run


def exported(runner: FlaskCliRunner) -> bytes:
    return runner.invoke(args=["orders", "export"]).stdout_bytes


def order(**members: Any) -> dict[str, Any]:
    return MINIMAL | members


def summary(created: int, existing: int, invalid: int) -> str:
    return (
        f"{pluralize(created, 'order')} imported, {existing} existed already, {pluralize(invalid, 'invalid line')}.\n"
    )


SENT: dict[str, Any] = {"items": [{"line": 1, "quantity": 1}]}
LIVES: dict[str, Sequence[tuple[str, str, Any]]] = {
    "pending": [],
    "updated": [("PATCH", "", {"note": "=1+1\n", "items": [{"item_id": "ä", "quantity": 9}], "adjustments": None})],
    "held": [("PUT", "/holds/review", {"kind": "other", "reason": "address check"})],
    "confirmed": [("POST", "/confirm", {})],
    "held again": [("POST", "/confirm", {}), ("PUT", "/holds/review", {"kind": "other", "reason": "x"})],
    "cancelled": [("PUT", "/holds/x", {"kind": "fraud"}), ("POST", "/cancel", {"reason": "fraud", "note": "…"})],
    "partly sent": [
        ("POST", "/confirm", {}),
        ("POST", "/fulfillments", SENT | {"tracking": {"carrier": "DHL", "url": "https://example.com/1"}}),
    ],
    "completed early": [("POST", "/confirm", {}), ("POST", "/fulfillments", SENT), ("POST", "/complete", {})],
    "sent and returned": [
        ("POST", "/confirm", {}),
        ("POST", "/fulfillments", SENT),
        ("POST", "/fulfillments", {"items": [{"line": n, "quantity": n} for n in (1, 2, 3)]}),
        ("POST", "/returns", SENT | {"reason": "broken"}),
        ("POST", "/returns", SENT),
    ],
}  # fmt: skip


@pytest.fixture
def documents(client: FlaskClient, runner: FlaskCliRunner) -> bytes:
    """The export of orders in all states."""
    items = [{"item_id": f"sku-{n}", "quantity": n, "unit_price": 1000} for n in (2, 2, 3)]
    for name, actions in LIVES.items():
        body = RICHEST | {"items": items, "external_ref": name, "channel": "web"}
        path = client.post("/orders", json=body).headers["Location"]
        for method, action, body in actions:
            response = client.open(path + action, method=method, json=body)
            assert response.status_code in (200, 201), response.text
    return exported(runner)


def test_an_export_of_all_states_imported_elsewhere_exports_the_same(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner, imported: Callable[..., Result], documents: bytes
) -> None:
    csv = runner.invoke(args=["orders", "export", "--format", "csv"]).stdout_bytes
    delete_all_rows(app)

    result = imported(documents)

    assert (result.exit_code, result.stdout, result.stderr) == (0, summary(len(LIVES), 0, 0), "")
    assert exported(runner) == documents
    assert runner.invoke(args=["orders", "export", "--format", "csv"]).stdout_bytes == csv
    assert runner.invoke(args=["verify"]).stdout == f"{len(LIVES)} orders verified, 0 differences.\n"


def test_an_imported_order_can_be_changed(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner, imported: Callable[..., Result], documents: bytes
) -> None:
    delete_all_rows(app)
    imported(documents)
    partly_sent = orjson.loads(documents.splitlines()[list(LIVES).index("partly sent")])
    path = f"/orders/{partly_sent['id']}"

    sent = client.post(f"{path}/fulfillments", json=SENT)
    returned = client.post(f"{path}/returns", json=SENT)

    assert sent.json["version"] == partly_sent["version"] + 1
    assert [one["number"] for one in sent.json["fulfillments"]] == [1, 2]
    history = client.get(f"{path}/history").json["events"]
    assert [event["type"] for event in history] == ["order.imported", "order.fulfilled", "order.returned"]
    assert history[0]["data"] == partly_sent
    assert client.get(f"{path}?version=1").status_code == 404
    assert returned.status_code == 201
    assert runner.invoke(args=["verify"]).exit_code == 0


def test_the_event_of_an_old_order_has_waited_for_its_number_since_the_import(
    app: Flask, runner: FlaskCliRunner, imported: Callable[..., Result], documents: bytes
) -> None:
    delete_all_rows(app)
    started = datetime.now(UTC)

    imported(documents)

    with app.app_context():
        pending_since = oldest_pending()
        assert pending_since is not None and pending_since >= started


def test_documents_are_known_by_their_id(
    app: Flask, runner: FlaskCliRunner, imported: Callable[..., Result], documents: bytes
) -> None:
    delete_all_rows(app)
    lines = documents.splitlines()

    # A line may be repeated, next to the first one or in another import.
    first = imported(*lines[:4], lines[0], lines[3])
    second = imported(*lines, *lines)
    third = imported(*lines)

    assert first.stdout == summary(4, 2, 0)
    assert second.stdout == summary(len(LIVES) - 4, len(LIVES) + 4, 0)
    assert third.stdout == summary(0, len(LIVES), 0)
    assert exported(runner) == documents


def test_bodies_are_known_by_their_reference_or_their_text(
    runner: FlaskCliRunner, imported: Callable[..., Result]
) -> None:
    same = b'{"customer_id": "c", "items": [{"item_id": "i", "quantity": 1}]}'
    lines = [order(external_ref="r-1"), order(external_ref="r-1"), same, same, order(note="x"), b"", b"  "]

    first = imported(*lines)
    again = imported(*lines)
    one_more = imported(*lines, same)

    assert (first.exit_code, first.stdout) == (0, summary(4, 1, 0))
    assert (again.exit_code, again.stdout) == (0, summary(0, 5, 0))
    assert one_more.stdout == summary(1, 5, 0)
    assert runner.invoke(args=["verify"]).stdout == "5 orders verified, 0 differences.\n"


def test_a_reference_belongs_to_its_principal(client: FlaskClient, imported: Callable[..., Result]) -> None:
    lines = [order(external_ref="r-1"), order()]

    results = [imported(*lines, principal=principal) for principal in ("a", "b", "a")]

    assert [result.stdout for result in results] == [summary(2, 0, 0), summary(2, 0, 0), summary(0, 2, 0)]


@pytest.mark.parametrize("principal", ["", "p" * 129, "shop\nshop"])
def test_an_impossible_principal_is_refused(
    client: FlaskClient, imported: Callable[..., Result], principal: str
) -> None:
    result = imported(order(), principal=principal)

    assert (result.exit_code, result.stdout) == (2, "")
    assert "--principal: it must have 1 to 128 printable characters." in result.stderr
    assert client.get("/orders").json["orders"] == []


def test_invalid_lines_are_reported_with_their_number_and_reason_and_the_others_are_imported(
    client: FlaskClient, imported: Callable[..., Result]
) -> None:
    taken = client.post("/orders", json=order(external_ref="r-0")).json["id"]

    result = imported(
        order(note="first"),
        b"",
        b"{",
        order(quantity=1),
        [order()],
        order(external_ref="r-1"),
        order(external_ref="r-1", note="another"),
        order(external_ref="r-0", note="another"),
        order(items=[], note="\0"),
        b'{"customer_id": "\xff"}',
        order(note="last"),
    )

    created = client.get("/orders").json["orders"]
    r1 = next(order["id"] for order in created if order["external_ref"] == "r-1")
    assert (result.exit_code, result.stdout) == (1, summary(3, 0, 7))
    assert sorted(result.stderr.splitlines()) == [
        "line 10: Byte 17 of the line is not valid UTF-8.",
        "line 3: Expecting property name enclosed in double quotes at column 2.",
        f"line 4: #/quantity: {UNKNOWN_MEMBER}",
        "line 5: #: This must be an object.",
        f"line 7: Order {r1} already has this external_ref.",
        f"line 8: Order {taken} already has this external_ref.",
        "line 9: #/items: This must have 1 to 100 entries. #/note: This must not contain control characters or "
        "unpaired surrogates.",
    ]
    assert len(created) == 4


def changed(**members: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda document: document | members


def of_items(**members: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda document: document | {"items": [item | members for item in document["items"]]}


CONTRADICTIONS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "units without fulfillments": (
        of_items(fulfilled=1),
        "#/items: This contradicts other members of the document.",
    ),
    "more units than ordered": (of_items(fulfilled=10**6), "#/items: This contradicts other members of the document."),
    "lines out of order": (of_items(line=1), "#/items: This contradicts other members of the document."),
    "a status": (changed(status="cancelled"), "#/status: This contradicts other members of the document."),
    "a completed order": (changed(fulfillment_status="fulfilled"), "#/fulfillment_status: This contradicts other"),
    "totals": (
        changed(totals=None),
        '#/totals: This contradicts other members of the document. It should be {"items":',
    ),
    "allowed actions": (
        changed(allowed_actions=[]),
        '#/allowed_actions: This contradicts other members of the document. It should be ["cancel","confirm",',
    ),
    "an id of another time": (
        changed(id="00000000-0000-7000-8000-000000000000", created_at="2010-12-01T08:34:00.123456Z"),
        "#/id: This must be in lower case and begin with 012ca111-153b-774b, the time of created_at (UUIDv7).",
    ),
    "an id in capitals": (lambda order: order | {"id": order["id"].upper()}, "#/id: This must be in lower case and"),
    "a time written otherwise": (
        lambda order: order | {"updated_at": order["updated_at"].replace("Z", "+00:00")},
        '#/updated_at: This contradicts other members of the document. It should be "20',
    ),
    "fulfillments that do not count up": (
        lambda order: (
            order
            | {
                "fulfillments": [
                    {"number": 2, "status": "shipped", "tracking": None, "events": []}
                    | SENT
                    | {"created_at": order["created_at"]}
                ]
            }
        ),
        "#/fulfillments: This contradicts other members of the document.",
    ),
    "a version that no order has": (changed(version=20_001), "#/version: This must be from 1 to 20,000."),
    "an unknown member": (changed(colour="red"), "#/colour: Unknown member. Allowed: "),
    "a missing member": (
        lambda order: {name: order[name] for name in order if name != "version"},
        "#/version: This is",
    ),
    "another's reference": (
        lambda order: (
            order | {"id": order["id"][:-1] + ("1" if order["id"][-1] == "0" else "0"), "number": "261128-11111111"}
        ),
        "another order has this external_ref",
    ),
}


@pytest.mark.parametrize(("change", "named"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
@on_postgresql
def test_a_document_that_contradicts_itself_or_another_is_an_invalid_line(
    client: FlaskClient, runner: FlaskCliRunner, imported: Callable[..., Result], change: Any, named: str
) -> None:
    document = client.post("/orders", json=RICHEST).json

    result = imported(change(document), order())

    assert (result.exit_code, result.stdout) == (1, summary(1, 0, 1))
    assert result.stderr.startswith("line 1: ") and named.lower() in result.stderr.lower()
    assert runner.invoke(args=["verify"]).exit_code == 0


def test_the_documented_script_makes_documents_of_old_orders(
    client: FlaskClient, runner: FlaskCliRunner, imported: Callable[..., Result]
) -> None:
    script = re.search(r"```python\n(.*?)```", section("Import orders of another system"), re.DOTALL)
    assert script
    items = [
        {"item_id": "22914", "quantity": 3, "unit_price": 495},
        {"item_id": "21733", "title": "Mug", "quantity": 2, "unit_price": 0},
    ]
    old = [
        {"placed_at": "2010-12-01T08:34:00Z", "customer_id": "13047", "external_ref": "536368", "currency": "GBP"},
        {
            "placed_at": "2011-06-30T23:59:59.999999+02:00",
            "customer_id": "13047",
            "external_ref": "2",
            "currency": "JPY",
        },
        {"placed_at": "1970-01-01T00:00:00.000001Z", "customer_id": "17850", "external_ref": "3", "currency": "KWD"},
    ]
    file = b"\n".join(orjson.dumps(order | {"items": items}) for order in old)

    documents = subprocess.run([sys.executable, "-c", script[1]], input=file, capture_output=True, check=True).stdout
    first, again = imported(documents), imported(documents)

    assert (first.stdout, first.stderr, again.stdout) == (summary(3, 0, 0), "", summary(0, 3, 0))
    assert runner.invoke(args=["verify"]).exit_code == 0
    stored = client.get("/orders?sort=created_at").json["orders"]
    assert [(order["external_ref"], order["created_at"], order["payment_status"]) for order in stored] == [
        ("3", "1970-01-01T00:00:00.000001Z", "paid"),
        ("536368", "2010-12-01T08:34:00.000000Z", "paid"),
        ("2", "2011-06-30T21:59:59.999999Z", "paid"),
    ]


FULL_LIFE: list[tuple[str, str, Any]] = [
    ("POST", "/cancel", {"reason": "customer", "note": "all"}),
    ("POST", "/reopen", {"reason": "a mistake"}),
    ("POST", "/payments", {"type": "capture", "amount": 900, "reference": "p-1", "note": "by phone"}),
    ("POST", "/confirm", {}),
    ("POST", "/fulfillments", SENT | {"tracking": {"carrier": "DHL"}}),
    ("POST", "/fulfillments/1/events", {"type": "delivered", "description": "at the door"}),
    ("POST", "/fulfillments", SENT),
    ("POST", "/fulfillments/2/events", {"type": "cancelled"}),
    ("POST", "/returns", SENT | {"status": "expected", "reason": "broken"}),
    ("POST", "/cancel", {"reason": "staff", **SENT}),
    ("PUT", "/holds/review", {"kind": "review", "reason": "x", "until": "2099-01-01T00:00:00Z"}),
]
LATER, MUCH_LATER = "2026-11-29T00:00:00.000000Z", "2199-01-01T00:00:00.000000Z"
# Documents that the API cannot produce from the order of FULL_LIFE: a member, and its replacement.
IMPOSSIBLE: list[tuple[str, Any]] = [
    ("late", True),
    ("number", "261128-OOOOIIIL"),
    ("number", "a number of 15 "),
    ("updated_at", MUCH_LATER),
    ("holds/0/handle", "Not a handle"),
    ("holds/0/reason", ""),
    ("holds/0/placed_at", MUCH_LATER),
    ("holds", [{"handle": f"h-{n}", "kind": "other", "reason": None, "until": None, "placed_by": "x",
                "placed_at": "2026-11-28T00:00:00.000000Z"} for n in range(21)]),
    ("payments/0/occurred_at", MUCH_LATER),
    ("payments/0/created_at", MUCH_LATER),
    ("payments/0/waived", 1),
    ("payments/0/reference", ""),
    ("fulfillments/0/tracking", {}),
    ("fulfillments/0/items", []),
    ("fulfillments/0/items", [{"line": 1, "quantity": 1}] * 2),
    ("fulfillments/0/events/0/occurred_at", MUCH_LATER),
    ("fulfillments/0/events/0/description", ""),
    ("fulfillments/1/events", [{"type": "cancelled", "occurred_at": LATER, "description": None},
                               {"type": "shipped", "occurred_at": LATER, "description": None}]),
    ("fulfillments/1/events", [{"type": "delivered", "occurred_at": LATER, "description": None},
                               {"type": "cancelled", "occurred_at": LATER, "description": None}]),
    ("fulfillments/0/events", [{"type": "delivered", "occurred_at": LATER, "description": None}] * 201),
    ("fulfillments/0/created_at", MUCH_LATER),
    ("returns/0/items", []),
    ("returns/0/created_at", MUCH_LATER),
    ("cancellations/0/items", []),
    ("cancellations/0/created_at", MUCH_LATER),
    ("cancellations/0/reopened_at", MUCH_LATER),
    ("reopening/from_status", "pending"),
    ("reopening/reason", ""),
    ("reopening/at", MUCH_LATER),
]  # fmt: skip


def lived(client: FlaskClient) -> dict[str, Any]:
    """The document of an order after FULL_LIFE."""
    items = [{"item_id": "sku-1", "quantity": 5, "unit_price": 200}]
    path = client.post("/orders", json=RICHEST | {"items": items, "ship_by": MUCH_LATER}).headers["Location"]
    for method, action, body in FULL_LIFE:
        response = client.open(path + action, method=method, json=body)
        assert response.status_code in (200, 201), response.text
    document: dict[str, Any] = client.get(path).json
    return document


def replaced(document: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """The document with another value at the place."""
    copy: dict[str, Any] = orjson.loads(orjson.dumps(document))
    *steps, last = [int(step) if step.isdecimal() else step for step in place.split("/")]
    target: Any = copy
    for step in steps:
        target = target[step]
    target[last] = value
    return copy


@on_postgresql
def test_a_document_that_the_api_cannot_produce_is_an_invalid_line(
    app: Flask, client: FlaskClient, imported: Callable[..., Result]
) -> None:
    document = lived(client)
    delete_all_rows(app)

    for place, value in IMPOSSIBLE:
        result = imported(replaced(document, place, value))

        assert (result.exit_code, result.stdout) == (1, summary(0, 0, 1)), place
        assert "line 1: #/" in result.stderr, place
    assert imported(document).stdout == summary(1, 0, 0)


@on_postgresql
def test_an_order_larger_than_the_limits_of_the_api_is_an_invalid_line(
    app: Flask, client: FlaskClient, imported: Callable[..., Result]
) -> None:
    document = lived(client)
    delete_all_rows(app)
    one = {"number": 0, "reason": "x" * 2000, "status": "rejected", "created_at": document["created_at"]} | SENT
    names = list(document["returns"][0])
    many = [{name: (one | {"number": n})[name] for name in names} for n in range(2, 1200)]

    result = imported(document | {"returns": [*document["returns"], *many]})

    assert (result.exit_code, result.stdout) == (1, summary(0, 0, 1))
    assert "characters; the maximum is" in result.stderr


def places(value: Any, path: str = "") -> Iterator[str]:
    """The places of all values within a document."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in members:
        yield f"{path}/{name}".lstrip("/")
        yield from places(part, f"{path}/{name}")


@on_postgresql
def test_imported_orders_match_the_api_description_and_pass_verification(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner, imported: Callable[..., Result]
) -> None:
    document = lived(client)
    description = api_description(client)
    schema = {"$ref": "#/components/schemas/Order", "components": description["components"]}
    accepts = Draft202012Validator(schema, format_checker=FormatChecker()).is_valid
    values = st.sampled_from([
        None, "", " ", "x", "erased-0123456789abcdef", LATER, MUCH_LATER, "1970-01-01T00:00:00.000000Z", "\n", 0, 1, 2,
        -1, 2**31, 2**53, 1.5, True, False, [], {}, [{}], ["x"], {"carrier": "x"}, "cancelled", "completed", "shipped",
        "delivered", "refund", "expected", "rejected", "EUR", "JPY",
    ])  # fmt: skip

    @given(st.lists(st.tuples(st.sampled_from([*places(document)]), values), min_size=1, max_size=3))
    @settings(deadline=None)
    def check(changes: list[tuple[str, Any]]) -> None:
        delete_all_rows(app)
        changed = document
        for place, value in changes:
            with suppress(LookupError, TypeError):
                changed = replaced(changed, place, value)
        if imported(changed).exit_code:
            return
        order = client.get(f"/orders/{changed['id']}").json
        assert accepts(order), changes
        assert order == changed
        assert runner.invoke(args=["verify"]).exit_code == 0, changes
        assert client.get(f"/orders/{changed['id']}/history").status_code == 200
        for method, action, body in FULL_LIFE:
            assert client.open(f"/orders/{changed['id']}{action}", method=method, json=body).status_code < 500
        assert runner.invoke(args=["verify"]).exit_code == 0, changes

    check()


@on_postgresql
def test_a_document_without_one_of_its_members_is_an_invalid_line(
    client: FlaskClient, imported: Callable[..., Result]
) -> None:
    document = client.post("/orders", json=RICHEST).json
    incomplete = [
        *(
            {name: document[name] for name in document if name != missing}
            for missing in document.keys() - CONTENT.keys() - RECORDS.keys() - {"id"}  # tests/test_added_members.py
        ),
        *(
            document | {records: [{name: record[name] for name in record if name != missing}]}
            for records in ("items", "adjustments")
            for record in document[records][:1]
            for missing in record
        ),
    ]

    result = imported(*incomplete)

    assert result.stdout == summary(0, 0, len(incomplete))
    assert result.stderr.count("This is required.") == len(incomplete)


@on_postgresql
def test_an_order_rejected_by_the_database_is_reported_and_the_others_are_imported(
    app: Flask, imported: Callable[..., Result], documents: bytes
) -> None:
    delete_all_rows(app)
    lines = [*documents.splitlines(), order(customer_id="poison"), order(customer_id="cure")]
    with app.app_context(), db.engine.begin() as connection:
        poison = "status = 'cancelled' OR customer_id = 'poison'"
        connection.execute(text(f"ALTER TABLE orders ADD CONSTRAINT poison CHECK (NOT ({poison})) NOT VALID"))

    result = imported(*lines)

    with app.app_context(), db.engine.begin() as connection:
        connection.execute(text("ALTER TABLE orders DROP CONSTRAINT poison"))
    assert (result.exit_code, result.stdout) == (1, summary(len(LIVES), 0, 2))
    for fault in result.stderr.splitlines():
        assert 'new row for relation "orders" violates check constraint "poison"' in fault
        assert "c-123" not in fault  # the row is personal data


def test_an_unavailable_database_is_not_reported_as_an_invalid_line(
    runner: FlaskCliRunner,
    imported: Callable[..., Result],
    documents: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would be every line's."""

    def fail(_: Any) -> set[str]:
        raise PoolTimeout("no connection\nis free")

    for path in ("app.services.order_service.insert_orders", "app.services.order_import.restore_orders"):
        monkeypatch.setattr(path, fail)

    for line in (order(), documents):
        result = imported(line)

        assert (result.exit_code, result.stdout) == (1, "")
        assert "Run the same command again to continue." in result.stderr
        assert "line 1" not in result.stderr


@on_postgresql
def test_a_killed_import_resumes(
    app: Flask, database_url: str, runner: FlaskCliRunner, imported: Callable[..., Result]
) -> None:
    lines = [order(customer_id=f"c-{i}", external_ref=f"r-{i}" if i % 2 else None) for i in range(700)]
    command = [sys.executable, "-m", "flask", "--app", "wsgi", "orders", "import", "-"]
    environment = os.environ | {"DATABASE_URL": database_url, "AUTH": "off"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.writelines(orjson.dumps(line) + b"\n" for line in lines[:600])
        process.stdin.flush()  # not closed: it waits for the rest of its second batch
        while count(app) == 0 and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    before = count(app)

    result = imported(*lines)

    assert (before, process.returncode) == (500, -signal.SIGKILL)
    assert (result.exit_code, result.stdout) == (0, summary(200, 500, 0))
    assert runner.invoke(args=["verify"]).stdout == "700 orders verified, 0 differences.\n"


def count(app: Flask) -> int:
    with app.app_context(), db.engine.begin() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM orders")))


BOM = b"\xef\xbb\xbf"


def test_a_byte_order_mark_at_the_beginning_of_the_file_is_skipped(
    app: Flask, imported: Callable[..., Result], documents: bytes
) -> None:
    lines = [orjson.dumps(order(note=str(i))) for i in range(2)]
    with_mark = imported(BOM + lines[0], lines[1])
    without = imported(*lines)
    delete_all_rows(app)
    restored = imported(BOM + documents)
    only_a_mark = imported(BOM, lines[0])

    assert (with_mark.exit_code, with_mark.stdout) == (0, summary(2, 0, 0))
    assert without.stdout == summary(0, 2, 0)
    assert restored.stdout == summary(len(LIVES), 0, 0)
    assert only_a_mark.stdout == summary(1, 0, 0)


def test_a_byte_order_mark_anywhere_else_is_an_error_of_its_line(imported: Callable[..., Result]) -> None:
    result = imported(orjson.dumps(order()), BOM + orjson.dumps(order(note="2")))

    assert (result.exit_code, result.stdout) == (1, summary(1, 0, 1))
    assert result.stderr.startswith("line 2: ")


@pytest.mark.parametrize("created_at", [5, None, True, [], {}, "2026-11-22"])
def test_an_invalid_time_is_an_error_of_its_line(
    imported: Callable[..., Result], documents: bytes, created_at: Any
) -> None:
    first = orjson.loads(documents.splitlines()[0])

    result = imported(first | {"created_at": created_at})

    assert (result.exit_code, result.stdout) == (1, summary(0, 0, 1))
    assert "line 1: #/created_at: " in result.stderr
