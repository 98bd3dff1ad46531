"""`flask webhooks listen` and `list`, beside a real service."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from pytest_httpserver import HTTPServer

from tests.support.commands import FLASK
from tests.support.credentials import api_key
from tests.support.event_streams import number_events
from tests.support.marks import on_sqlite
from tests.support.receivers import receiver
from tests.support.samples import MINIMAL
from tests.support.servers import (
    GUNICORN,
    ROOT,
    TIMEOUT,
    Server,
    environment,
    free_port,
    running,
    wait_until,
)
from tests.support.webhooks import create_webhook, webhook_rules


@pytest.fixture
def service(app: Flask, database_url: str) -> Iterator[Server]:
    """The service with authentication. The tests number the events, as its worker does."""
    api_key(app, "orders:read")  # without any key, a service with authentication does not start
    settings = {"DATABASE_URL": database_url, "WEB_CONCURRENCY": "1", "AUTH": "required"}
    with running(*GUNICORN, port=free_port(), **settings) as server:
        yield server


@contextmanager
def listening(service: Server, state: Path, forward: str, key: str, *options: str) -> Iterator[Any]:
    """Run the command until the block ends, then interrupt it. Yields its output so far."""
    words = [*FLASK, "webhooks", "listen", "--forward", forward, "--service", f"http://127.0.0.1:{service.port}"]
    environ = environment(ORDER_SERVICE_API_KEY=key)
    with tempfile.NamedTemporaryFile("r") as output:
        process = subprocess.Popen(
            [sys.executable, *words, "--state", str(state), *options],
            cwd=ROOT, env=environ, stdout=output.fileno(), stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            wait_until(lambda: "whsec_" in Path(output.name).read_text() or process.poll() is not None)
            yield lambda: Path(output.name).read_text()
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(TIMEOUT) == 0


def create_orders(client: FlaskClient, count: int) -> list[str]:
    """Create orders whose events are in the feed."""
    ids = [client.post("/orders", json=MINIMAL).json["id"] for _ in range(count)]
    number_events(client.application)
    return ids


def secret_in(output: str) -> str:
    [line] = [line for line in output.splitlines() if "whsec_" in line]
    return line.split()[-1]


@on_sqlite
def test_events_are_forwarded_signed_and_forwarding_continues_after_an_interruption(
    app: Flask, client: FlaskClient, service: Server, tmp_path: Path
) -> None:
    key, state = api_key(app, "events:read"), tmp_path / "state.json"
    with receiver() as program:
        before = create_orders(client, 2)
        with listening(service, state, program.url, key, "--after", "0") as output:
            first = create_orders(client, 2)
            wait_until(lambda: len(program.requests) == 4)
            wait_until(lambda: output().count(" 200 in ") == 4)
            secret = secret_in(output())
        missed = create_orders(client, 3)
        with listening(service, state, program.url, key) as output:
            last = create_orders(client, 1)
            wait_until(lambda: len(program.requests) == 8)
            assert secret_in(output()) == secret

    assert program.event_ids == [f"{order_id}:1" for order_id in (*before, *first, *missed, *last)]
    for request in program.requests:
        assert request.verify(secret)["type"] == "order.created"
    assert state.stat().st_mode & 0o077 == 0


@on_sqlite
def test_without_after_new_events_are_forwarded_and_an_unavailable_program_is_waited_for(
    app: Flask, client: FlaskClient, service: Server, tmp_path: Path
) -> None:
    key = api_key(app, "events:read")
    create_orders(client, 2)
    with receiver() as away:
        port, url = away.port, away.url
    with listening(service, tmp_path / "state.json", url, key, "--event", "order.confirmed") as output:
        wait_until((tmp_path / "state.json").exists)
        order_id = create_and_confirm(client)
        wait_until(lambda: "The program does not answer" in output())
        with receiver(port=port) as program:
            wait_until(lambda: f"{order_id}:2" in program.event_ids)

    assert {request.json["type"] for request in program.requests} == {"order.confirmed"}


def create_and_confirm(client: FlaskClient) -> str:
    [order_id] = create_orders(client, 1)
    client.post(f"/orders/{order_id}/confirm")
    number_events(client.application)
    return order_id


@on_sqlite
def test_a_service_that_refuses_the_key_ends_the_command(
    app: Flask, runner: FlaskCliRunner, service: Server, tmp_path: Path
) -> None:
    for key, words in (
        ("osk_wrong", "Pass a key with events:read as --api-key."),
        (api_key(app, "orders:read"), "The scope events:read is missing."),
    ):
        result = runner.invoke(
            args=["webhooks", "listen", "--forward", "http://127.0.0.1:1/", "--service",
                  f"http://127.0.0.1:{service.port}", "--api-key", key, "--state", str(tmp_path / "state.json")]
        )  # fmt: skip

        assert (result.exit_code, words in result.output) == (1, True), result.output


@pytest.mark.parametrize("content", ["", "x", "[]", "1", '{"after": "1"}'])
def test_an_invalid_state_file_is_refused_in_one_line(runner: FlaskCliRunner, tmp_path: Path, content: str) -> None:
    state = tmp_path / "state.json"
    state.write_text(content)

    result = runner.invoke(args=["webhooks", "listen", "--forward", "http://127.0.0.1:9/", "--state", str(state)])

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: {state} is not the state of an earlier run. Name another --state.\n"
    assert state.read_text() == content


def test_a_list_shows_the_health_of_each_webhook(app: Flask, client: FlaskClient, runner: FlaskCliRunner) -> None:
    with webhook_rules(app):
        webhook = create_webhook(client, "http://127.0.0.1:1/")

    result = runner.invoke(args=["webhooks", "list"])

    assert result.exit_code == 0
    assert result.stdout == f"{webhook['id']}  http://127.0.0.1:1/  enabled  healthy  last success never\n"


@on_sqlite
@pytest.mark.parametrize("body", ["<!doctype html>", "[]", "{}"])
def test_another_program_at_the_address_of_the_service_is_named(
    runner: FlaskCliRunner, httpserver: HTTPServer, tmp_path: Path, body: str
) -> None:
    httpserver.expect_request("/events").respond_with_data(body)
    service = httpserver.url_for("").rstrip("/")

    words = ["--forward", "http://127.0.0.1:9/hook", "--service", service, "--state", str(tmp_path / "state")]
    result = runner.invoke(args=["webhooks", "listen", *words])

    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"Error: {service} is not an order service")


@on_sqlite
def test_a_redirect_is_not_followed_with_the_key(
    runner: FlaskCliRunner, httpserver: HTTPServer, tmp_path: Path
) -> None:
    elsewhere = httpserver.url_for("/elsewhere")
    httpserver.expect_request("/events").respond_with_data(status=308, headers={"Location": elsewhere})
    service = httpserver.url_for("").rstrip("/")

    words = ["--forward", "http://127.0.0.1:9/hook", "--service", service, "--state", str(tmp_path / "state")]
    result = runner.invoke(args=["webhooks", "listen", *words])

    assert [request.path for request, _ in httpserver.log] == ["/events"]
    expected = f"Error: The service redirects to {elsewhere}. Pass its own address as --service."
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (1, expected)
