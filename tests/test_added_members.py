"""A release may add members to the order. Orders stored before, whose documents lack them, still work."""

from typing import Any

import orjson
import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import update

from app.db.engine import db
from app.models import EVENTS, ORDERS
from app.models.order import CONTENT, RECORDS
from app.services.order_service import content_columns, item_columns, order_fingerprint
from tests.support.actions import send_action
from tests.support.commands import on_terminal
from tests.support.credentials import bearer, token
from tests.support.samples import MINIMAL
from tests.support.tables import delete_all_rows

KEY = {"Idempotency-Key": "k-1"}


@pytest.fixture(params=CONTENT | RECORDS)
def member(request: pytest.FixtureRequest) -> str:
    """A member of the order that stands for an added one."""
    return str(request.param)


@pytest.fixture
def order(app: Flask, client: FlaskClient, member: str) -> dict[str, Any]:
    """An order from before the member was added."""
    order: dict[str, Any] = client.post("/orders", json=MINIMAL, headers=KEY).json
    document = orjson.dumps({name: value for name, value in order.items() if name != member}).decode()
    content = {name: value for name, value in content_columns(MINIMAL).items() if name != member}
    earlier_fingerprint = order_fingerprint(content, item_columns(MINIMAL))
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(update(EVENTS).values(snapshot=document))
        connection.execute(update(ORDERS).values(fingerprint=earlier_fingerprint))
    assert member not in client.get(f"/orders/{order['id']}").json
    return order


def test_an_order_from_before_a_member_was_added_is_valid(order: dict[str, Any], runner: FlaskCliRunner) -> None:
    verified = runner.invoke(args=["verify"])

    assert verified.exit_code == 0, verified.output


def test_a_change_adds_the_member_without_a_value(
    order: dict[str, Any], client: FlaskClient, runner: FlaskCliRunner
) -> None:
    confirmed = send_action(client, f"/orders/{order['id']}", "confirm")

    assert confirmed.status_code == 200, confirmed.text
    changed = {"status": "confirmed", "version": 2}
    volatile = {name: confirmed.json[name] for name in ("allowed_actions", "updated_at")}
    assert orjson.dumps(confirmed.json) == orjson.dumps(order | changed | volatile)
    verified = runner.invoke(args=["verify"])
    assert verified.exit_code == 0, verified.output


def test_the_request_that_created_it_is_still_a_replay(order: dict[str, Any], client: FlaskClient) -> None:
    replay = client.post("/orders", json=MINIMAL, headers=KEY)

    assert (replay.status_code, replay.json["id"]) == (201, order["id"])
    assert replay.headers["Idempotent-Replayed"] == "true"


def test_its_customer_can_read_it(order: dict[str, Any], secure_client: FlaskClient) -> None:
    customer = bearer(token(customer=order["customer_id"]))

    read = secure_client.get(f"/orders/{order['id']}", headers=customer)
    history = secure_client.get(f"/orders/{order['id']}/history", headers=customer)

    assert (read.status_code, history.status_code) == (200, 200), read.text
    assert read.json["status"] == "pending"


def test_the_commands_show_it_on_a_terminal(app: Flask, client: FlaskClient, database_url: str) -> None:
    order = client.post("/orders", json=MINIMAL).json
    added = CONTENT | RECORDS
    document = orjson.dumps({name: value for name, value in order.items() if name not in added}).decode()
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(update(EVENTS).values(snapshot=document))

    for command in (("orders", "get", order["id"]), ("orders", "list")):
        assert order["number"] in on_terminal(*command, database_url=database_url)


def test_an_export_from_before_can_be_imported(
    member: str, app: Flask, client: FlaskClient, runner: FlaskCliRunner
) -> None:
    order = client.post("/orders", json=MINIMAL).json
    delete_all_rows(app)

    document = {name: value for name, value in order.items() if name != member}
    imported = runner.invoke(args=["orders", "import", "-"], input=orjson.dumps(document))

    assert imported.exit_code == 0, imported.output
    assert client.get(f"/orders/{order['id']}").json == order
