"""The export of everything that is stored about a customer; after an erasure, nothing of it remains."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import text

from app.db.engine import db
from app.models import Erasure
from app.models.order import RUNNING
from app.models.principal import ANONYMOUS, SCOPES
from app.services import personal_data
from app.services.webhook_service import WebhookRules, create_endpoint
from tests.support.actions import order_after, send_action
from tests.support.credentials import api_key, bearer, token
from tests.support.databases import gunicorn
from tests.support.personal_data import CUSTOMER, add_versions, canary, live, personal_order, traces
from tests.support.samples import MINIMAL, error_locations, slug
from tests.support.webhooks import PUBLIC_ADDRESS, SECRETS, URL, queue_events, resolve_to


def path_of(customer_id: str) -> str:
    return f"/customers/{quote(customer_id, safe='')}/personal-data"


def exported(client: FlaskClient, customer_id: str, query: str = "", **headers: str) -> list[dict[str, Any]]:
    response = client.get(path_of(customer_id) + query, headers=headers)
    assert (response.status_code, response.mimetype) == (200, "application/x-ndjson"), response.text
    return [json.loads(line) for line in response.text.splitlines()]


def kinds(lines: list[dict[str, Any]]) -> str:
    """The kinds of the lines: o for an order, e for an event or an erasure."""
    return "".join(kind[0] for line in lines for kind in line)


@pytest.fixture
def shop(secure_app: Flask) -> dict[str, str]:
    return bearer(api_key(secure_app, *SCOPES, name="shop"))


def test_the_export_has_every_order_of_the_customer_and_its_history(client: FlaskClient) -> None:
    paths = [order_after(client, "update", "confirm"), order_after(client)]
    order_after(client, customer_id="c-2")

    lines = exported(client, "c-1")

    assert kinds(lines) == "oeeeoe"
    assert [line["order"] for line in lines if "order" in line] == [client.get(path).json for path in paths]
    assert [line["event"] for line in lines if "event" in line] == [
        event for path in paths for event in client.get(f"{path}/history").json["events"]
    ]


def test_a_customer_without_orders_is_an_empty_export(client: FlaskClient) -> None:
    order_after(client)

    assert exported(client, "C-1") == exported(client, "nobody") == []


@pytest.mark.parametrize("customer_id", ["a/b", "/a", "a/", "//", "%2F", "a b", "é", "a?b#c", "personal-data"])
def test_the_id_of_the_customer_may_have_any_characters(client: FlaskClient, customer_id: str) -> None:
    order_after(client, customer_id=customer_id)

    assert kinds(exported(client, customer_id)) == "oe"


@pytest.mark.parametrize("page_bytes", [1, 256 * 1024])
def test_a_long_history_is_read_page_by_page(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, page_bytes: int
) -> None:
    monkeypatch.setattr(personal_data, "EXPORT_PAGE_BYTES", page_bytes)
    path = client.post("/orders", json=personal_order()).headers["Location"]
    add_versions(app, path.removeprefix("/orders/"), 250, note_length=500)

    versions = [line["event"]["version"] for line in exported(client, CUSTOMER) if "event" in line]

    assert versions == list(range(1, 252))


def test_an_export_resumes_after_an_order(client: FlaskClient) -> None:
    paths = [order_after(client, "update") for _ in range(3)]
    complete = exported(client, "c-1")

    rest = exported(client, "c-1", f"?after={paths[0].removeprefix('/orders/').upper()}")

    assert rest == complete[3:]


@pytest.mark.parametrize(("query", "name"), [("?after=x", "after"), ("?limit=1", "limit")])
def test_an_invalid_parameter_is_refused(client: FlaskClient, query: str, name: str) -> None:
    assert error_locations(client.get(path_of("c-1") + query)) == {name}


def test_customers_export_their_own_data_as_they_may_see_it(secure_client: FlaskClient, shop: dict[str, str]) -> None:
    own = bearer(token(customer="c-1", scope="privacy:export orders:write"))
    path = secure_client.post("/orders", json=MINIMAL, headers=own).headers["Location"]
    send_action(secure_client, path, "hold", **shop)

    full, visible = exported(secure_client, "c-1", **shop), exported(secure_client, "c-1", **own)

    assert [line["event"]["actor"] for line in full if "event" in line] == ["customer:c-1", "service:shop"]
    assert [line["event"]["actor"] for line in visible if "event" in line] == ["customer:c-1", "service"]
    assert "check" in json.dumps(full) and "check" not in json.dumps(visible)


def test_customers_cannot_export_the_data_of_others(secure_client: FlaskClient, shop: dict[str, str]) -> None:
    secure_client.post("/orders", json=MINIMAL, headers=shop)
    other = bearer(token(customer="c-2", scope="privacy:export"))

    assert slug(secure_client.get(path_of("c-1"), headers=other)) == (403, "forbidden")
    assert exported(secure_client, "c-2", **other) == []


def test_a_service_learns_to_which_webhooks_the_orders_were_sent_and_a_customer_does_not(
    secure_app: Flask, secure_client: FlaskClient, shop: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(personal_data, "_DELIVERIES_PAGE", 2)
    own = bearer(token(customer="c-1", scope="privacy:export"))
    path = secure_client.post("/orders", json=MINIMAL, headers=shop).headers["Location"]
    send_action(secure_client, path, "confirm", **shop)
    with secure_app.app_context():
        rules = WebhookRules(SECRETS, True, resolve_to(PUBLIC_ADDRESS))
        content = {"url": URL, "payload": "thin"}
        endpoints = [create_endpoint(content, principal=ANONYMOUS, rules=rules)["id"] for _ in range(2)]
        queue_events()

    full, visible = exported(secure_client, "c-1", **shop), exported(secure_client, "c-1", **own)

    assert (kinds(full), kinds(visible)) == ("oeedddd", "oee")
    deliveries = [line["delivery"] for line in full if "delivery" in line]
    sent = [(one["order_id"], one["version"], one["endpoint_id"], one["status"]) for one in deliveries]
    order_id = path.removeprefix("/orders/")
    assert sent == [(order_id, version, endpoint, "pending") for version in (1, 2) for endpoint in sorted(endpoints)]


def test_a_running_erasure_is_part_of_the_export_and_a_finished_one_leaves_nothing(
    secure_app: Flask, secure_client: FlaskClient, shop: dict[str, str]
) -> None:
    path = secure_client.post("/orders", json=MINIMAL, headers=shop).headers["Location"]
    send_action(secure_client, path, "cancel", **shop)
    with secure_app.app_context(), db.session.begin():
        times = {"created_at": "2026-11-22T09:41:07.000000Z"}
        row = {"id": "019dab70-c2b3-7c51-b9f8-1d6f2a6c3e11", "customer_id": "c-1", "alias": "erased-1"}
        row |= {"actor": "service:shop", "status": RUNNING}
        columns = row | {"orders": 0, "erased_version": 0} | times
        names = ", ".join(columns)
        values = ", ".join(f":{name}" for name in columns)
        db.session.execute(text(f"INSERT INTO {Erasure.__tablename__} ({names}) VALUES ({values})"), columns)

    [*_, last] = exported(secure_client, "c-1", **shop)
    assert last == {"erasure": {name: row[name] for name in ("id", "status", "actor")} | {"orders": 0} | times}

    assert secure_client.delete(path_of("c-1"), headers=shop).json["status"] == "done"
    assert exported(secure_client, "c-1", **shop) == []


@pytest.mark.parametrize("command", ["export", "erase"])
@pytest.mark.parametrize("customer_id", ["", "c" * 65])
def test_the_commands_refuse_an_invalid_customer_id(runner: FlaskCliRunner, command: str, customer_id: str) -> None:
    result = runner.invoke(args=["privacy", command, customer_id])

    assert (result.exit_code, result.stdout) == (2, "")
    assert "'CUSTOMER_ID': This must have 1 to 64 characters." in result.stderr


def test_the_command_exports_the_same_as_the_api_for_a_service(
    client: FlaskClient, runner: FlaskCliRunner, tmp_path: Any
) -> None:
    order_after(client, "hold")
    expected = client.get(path_of("c-1")).text

    printed = runner.invoke(args=["privacy", "export", "c-1"])
    written = runner.invoke(args=["privacy", "export", "c-1", "--output", str(tmp_path / "c-1")])

    assert (printed.exit_code, printed.stdout, printed.stderr) == (0, expected, "3 lines exported.\n")
    assert (written.exit_code, (tmp_path / "c-1").read_text()) == (0, expected)


# What an erasure keeps of an order (docs/personal-data.md).
KEPT = {
    "id", "order_id", "number", "external_ref", "channel", "currency", "item_id", "country", "type", "allowed_actions",
    "status", "from_status", "fulfillment_status", "payment_status", "return_status", "handle", "kind",
    "reference", "method",
}  # fmt: skip
TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
REPEATED = {"changes"}  # the differences between two snapshots


def personal_texts(value: Any, member: str = "") -> Iterator[str]:
    """The texts of a JSON value that an erasure must remove, wherever they are."""
    if isinstance(value, dict):
        for name in value.keys() - REPEATED:
            yield from personal_texts(value[name], name)
    elif isinstance(value, list):
        for part in value:
            yield from personal_texts(part, member)
    elif isinstance(value, str) and member not in KEPT and not TIME.fullmatch(value):
        yield value


def test_after_an_erasure_no_table_file_or_log_contains_anything_of_the_export(app: Flask, database_url: str) -> None:
    shop = bearer(api_key(app, *SCOPES, name="shop"))
    with gunicorn(database_url) as server:

        def send(path: str, body: Any = None, method: str = "POST") -> Any:
            media_type = "application/merge-patch+json" if method == "PATCH" else "application/json"
            headers = {"Content-Type": media_type, "Idempotency-Key": canary()}
            response = server.request(method, path, body, shop | headers)
            assert response.status < 300, response.body
            return response

        for end in ("complete", "cancel"):
            live(send, end=end)
        export = send(path_of(CUSTOMER), method="GET").body.decode()
        erasure = send(path_of(CUSTOMER), method="DELETE")
        while erasure.json["status"] != "done":
            erasure = send(f"/erasures/{erasure.json['id']}", method="GET")
        server.stop()
        log = server.output()

    assert traces(app) == []
    lines = [json.loads(line) for line in export.splitlines()]
    request_ids = {line["event"]["request_id"] for line in lines if "event" in line}
    texts = {text for line in lines for text in personal_texts(line)}
    texts -= {"service:shop", "customer"}  # the actor, and the reason of a cancellation
    assert len(texts) > 40 and request_ids < texts
    rows = all_rows(app)
    assert [text for text in texts if text in rows] == []
    assert [text for text in texts - request_ids if text in log] == []  # a log has only the ids of requests


def all_rows(app: Flask) -> str:
    """All rows of all tables as text."""
    with app.app_context(), db.engine.connect() as connection:
        tables = db.metadata.sorted_tables
        return "".join(repr(connection.execute(text(f"SELECT * FROM {table.name}")).all()) for table in tables)
