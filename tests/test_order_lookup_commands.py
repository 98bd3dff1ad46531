"""`flask orders get`, `list` and `tail`, which an operator uses instead of SQL."""

import json
import signal
import subprocess
import sys
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner

from tests.support.commands import FLASK, on_terminal
from tests.support.event_streams import number_events
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL
from tests.support.search import project
from tests.support.servers import ROOT, TIMEOUT, environment

PRICED = MINIMAL | {
    "currency": "EUR",
    "items": [{"item_id": "sku-1", "title": "Mug", "quantity": 2, "unit_price": 1250}],
}


def create(client: FlaskClient, **members: Any) -> dict[str, Any]:
    order: dict[str, Any] = client.post("/orders", json=PRICED | members).json
    return order


@pytest.mark.parametrize("name", ["id", "number", "external_ref"])
def test_get_finds_an_order_by_its_id_number_or_reference(
    client: FlaskClient, runner: FlaskCliRunner, name: str
) -> None:
    order = create(client, external_ref="web-77")
    create(client)

    result = runner.invoke(args=["orders", "get", order[name]])

    assert json.loads(result.stdout) == order


def test_get_finds_an_order_by_the_longest_reference(client: FlaskClient, runner: FlaskCliRunner) -> None:
    order = create(client, external_ref="r" * 64)

    result = runner.invoke(args=["orders", "get", "r" * 64])

    assert result.exit_code == 0 and json.loads(result.stdout) == order


def test_get_shows_an_earlier_version(client: FlaskClient, runner: FlaskCliRunner) -> None:
    order = create(client)
    client.post(f"/orders/{order['id']}/confirm")

    result = runner.invoke(args=["orders", "get", order["id"], "--version", "1"])

    assert json.loads(result.stdout) == order


@pytest.mark.parametrize("name", ["261128-00000000", "", "r" * 65])
def test_an_unknown_order_is_one_line(runner: FlaskCliRunner, name: str) -> None:
    result = runner.invoke(args=["orders", "get", name])

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: No order has the id, number or external reference {name!r}.\n"


def test_list_prints_the_newest_orders_that_match(client: FlaskClient, runner: FlaskCliRunner) -> None:
    orders = [create(client, channel=channel) for channel in ("web", "app", "web", "web")]
    client.post(f"/orders/{orders[3]['id']}/confirm")

    result = runner.invoke(args=["orders", "list", "--channel", "web", "--status", "pending,cancelled", "--limit", "2"])

    assert [json.loads(line) for line in result.stdout.splitlines()] == [orders[2], orders[0]]


def test_find_prints_the_orders_that_have_the_words(app: Flask, client: FlaskClient, runner: FlaskCliRunner) -> None:
    ada = create(client, shipping_address={"name": "Ada Lovelace", "country": "GB"})
    create(client, shipping_address={"name": "Grace Hopper", "country": "US"})
    project(app)
    create(client, shipping_address={"name": "Ada Lovelace", "country": "GB"})
    number_events(app)

    result = runner.invoke(args=["orders", "find", "love", "ADA"])

    assert [json.loads(line) for line in result.stdout.splitlines()] == [ada]
    assert result.stderr == "The search is 1 event behind: is `flask worker` running?\n"


def test_invalid_filters_are_one_line_that_names_all_of_them(runner: FlaskCliRunner) -> None:
    result = runner.invoke(args=["orders", "list", "--status", "open", "--created-from", "yesterday"])

    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "--status: " in result.stderr and "--created-from: " in result.stderr


def test_errors_of_too_long_words_name_the_argument(runner: FlaskCliRunner) -> None:
    result = runner.invoke(args=["orders", "find", "x" * 201])

    assert (result.exit_code, result.stderr) == (1, "Error: TEXT: This must have at most 200 characters.\n")


@pytest.mark.parametrize("command", [("orders", "tail"), ("broker", "replay")])
def test_a_number_beyond_the_feed_is_refused_and_the_range_of_the_feed_is_shown(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner, command: tuple[str, ...]
) -> None:
    create(client)
    number_events(app)

    result = runner.invoke(args=[*command, "--after", "2"])

    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("Error: --after must be from 0 to 1: ")


@on_sqlite
def test_a_terminal_shows_tables(app: Flask, client: FlaskClient, database_url: str) -> None:
    order = create(client, external_ref="web\u202e7")

    listed = on_terminal("orders", "list", database_url=database_url)
    shown = on_terminal("orders", "get", order["number"], database_url=database_url)

    header, row = listed.splitlines()
    assert header.split()[:4] == ["NUMBER", "CREATED", "CUSTOMER", "STATUS"]
    assert row.index("pending") == header.index("STATUS") and "2500 EUR" in row
    assert shown.startswith(f"{order['number']}  pending, unfulfilled, unpaid, none\n")
    assert "order.created" in shown and "\u202e" not in shown


@on_sqlite
def test_tail_shows_on_a_terminal_the_time_that_a_recovery_needs(
    app: Flask, client: FlaskClient, database_url: str
) -> None:
    """docs/operations.md, Point-in-time recovery."""
    order = create(client)
    number_events(app)

    shown = on_terminal("orders", "tail", "--after", "0", database_url=database_url, lines=1)

    assert shown.split()[:4] == ["1", order["created_at"], "order.created", order["number"]]


def test_tail_prints_new_events_until_ctrl_c(app: Flask, client: FlaskClient, database_url: str) -> None:
    command = (*FLASK, "orders", "tail", "--event", "order.created", "--after", "0")
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment(DATABASE_URL=database_url), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        order = create(client)
        client.post(f"/orders/{order['id']}/confirm")
        number_events(app)
        first = json.loads(process.stdout.readline())
        second = create(client)
        number_events(app)
        next_one = json.loads(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=TIMEOUT)

    assert [(event["type"], event["order_id"]) for event in (first, next_one)] == [
        ("order.created", order["id"]),
        ("order.created", second["id"]),
    ]
    assert (process.returncode, rest, errors) == (0, "", "Stopped.\n")
