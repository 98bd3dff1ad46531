"""Telemetry: logs without personal data, request ids, metrics."""

import io
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client import REGISTRY
from sqlalchemy import text

from app import telemetry
from app.db.batching import BATCHES
from app.db.engine import db
from app.models.principal import ANONYMOUS
from app.services import order_service
from app.telemetry import configure_logging
from tests.support.commands import run_python
from tests.support.samples import MINIMAL, RICHEST, slug
from tests.support.worker import worker_of

ABSENT = "0199c7a4-0000-7000-8000-000000000000"
CANARY = "canary"

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def logged(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """Reads the lines that the service has logged since the test began."""
    stream = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        configure_logging("info", "json")
    yield lambda: [orjson.loads(line) for line in stream.getvalue().splitlines()]
    configure_logging("info", "json")


def test_a_request_is_one_log_line(client: FlaskClient, logged: Lines) -> None:
    created = client.post("/orders", json=MINIMAL)
    client.get(created.headers["Location"])
    client.get("/nothing")

    create, read, nothing = logged()
    assert (create["event"], create["level"]) == ("request", "info")
    assert (create["method"], create["route"], create["status"]) == ("POST", "/orders", 201)
    assert create["request_id"] == created.headers["X-Request-Id"]
    assert create["ms"] > 0 and create["timestamp"].endswith("Z")
    assert (read["route"], read["order_id"]) == ("/orders/<order_id>", created.json["id"])
    assert (nothing["route"], nothing["status"]) == ("(none)", 404)


@pytest.mark.parametrize("given", ["a", "8e03978e-40d5-43e8-bc93-6894a57f9324", "A.b_c:d-9", "x" * 128])
def test_a_valid_request_id_is_adopted(client: FlaskClient, logged: Lines, given: str) -> None:
    response = client.get("/healthz", headers={"X-Request-Id": given})

    assert response.headers["X-Request-Id"] == given
    assert logged()[-1]["request_id"] == given


@pytest.mark.parametrize("given", ["", " ", "a b", "é", "x" * 129, "a\tb", '"a"', "a,b", "${jndi:x}", "<script>"])
def test_any_other_request_id_is_replaced(client: FlaskClient, logged: Lines, given: str) -> None:
    response = client.get("/healthz", headers={"X-Request-Id": given})

    generated = response.headers["X-Request-Id"]
    assert len(generated) == 32 and generated.isalnum()
    assert logged()[-1]["request_id"] == generated


TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("given", [f"00-{TRACE_ID}-{SPAN_ID}-01", f"01-{TRACE_ID}-{SPAN_ID}-00-later-versions"])
def test_a_line_has_the_trace_id_of_the_request(client: FlaskClient, logged: Lines, given: str) -> None:
    client.get("/orders", headers={"traceparent": given})

    assert logged()[-1]["trace_id"] == TRACE_ID


@pytest.mark.parametrize(
    "given",
    ["", TRACE_ID, f"ff-{TRACE_ID}-{SPAN_ID}-01", f"00-{TRACE_ID.upper()}-{SPAN_ID}-01", f"00-{'0' * 32}-{SPAN_ID}-01",
     f"00-{TRACE_ID}-{'0' * 16}-01", f"00-{TRACE_ID}-{SPAN_ID}-0", f"00-{TRACE_ID}-{SPAN_ID}-01\n"],
)  # fmt: skip
def test_an_invalid_traceparent_is_ignored(app: Flask, logged: Lines, given: str) -> None:
    app.test_client().get("/orders", environ_overrides={"HTTP_TRACEPARENT": given})

    assert "trace_id" not in logged()[-1]


def test_a_start_with_an_endpoint_for_traces_and_without_opentelemetry_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry.py").write_text("raise ModuleNotFoundError(__name__)")
    endpoint = "os.environ['OTEL_EXPORTER_OTLP_ENDPOINT'] = 'http://127.0.0.1:1'"
    # Without an endpoint, an application needs no OpenTelemetry.
    program = f"import os; from app import create_app; create_app(); {endpoint}; import wsgi"
    ended = run_python("-c", program, PYTHONPATH=str(tmp_path))

    assert ended.returncode == 3
    assert ended.stderr == (
        "order service: OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set, but OpenTelemetry is "
        "missing: run `pip install -r requirements-tracing.txt`.\n"
    )


def with_canaries(value: Any) -> Any:
    """The same body with a canary in every free text."""
    if isinstance(value, dict):
        kept = {"currency", "country", "type", "ship_by", "deliver_by", "order_id", "relation"}
        return {name: part if name in kept else with_canaries(part) for name, part in value.items()}
    if isinstance(value, list):
        return [with_canaries(part) for part in value]
    return f"{CANARY} {value}"[:20] if isinstance(value, str) else value


PERSONAL = with_canaries(RICHEST)


def test_no_log_line_contains_text_of_the_customer(client: FlaskClient, logged: Lines) -> None:
    key = {"Idempotency-Key": f"{CANARY}-key"}
    statuses = [
        client.post("/orders", json=PERSONAL, headers=key).status_code,
        client.post("/orders", json=PERSONAL, headers=key).status_code,
        client.post("/orders", json=PERSONAL | {"note": CANARY}, headers=key).status_code,
        client.post("/orders", json=PERSONAL).status_code,
        client.post("/orders", json=PERSONAL | {CANARY: 1, "customer_id": CANARY + "\0"}).status_code,
        client.post("/orders", data=f'{{"{CANARY}":'.encode(), content_type="application/json").status_code,
        client.get("/orders", query_string={"customer_id": CANARY, "external_ref": CANARY}).status_code,
        client.get("/orders", query_string={"status": CANARY, CANARY: CANARY}).status_code,
        client.get(f"/orders/{CANARY}").status_code,
        client.get(f"/{CANARY}").status_code,
        client.get("/healthz", headers={"User-Agent": CANARY, "X-Request-Id": f"{CANARY} {CANARY}"}).status_code,
    ]

    assert statuses == [201, 201, 422, 409, 400, 400, 200, 400, 404, 404, 200]
    lines = logged()
    assert len(lines) == len(statuses)
    assert CANARY not in repr(lines)


# Errors that no request can cause: the database itself is broken.
BREAK = {
    "postgresql": "ALTER TABLE order_items ADD CONSTRAINT broken CHECK (item_id NOT LIKE 'canary%')",
    "sqlite": "CREATE TRIGGER broken BEFORE INSERT ON order_items BEGIN SELECT RAISE(ABORT, 'broken'); END",
}
MEND = {"postgresql": "ALTER TABLE order_items DROP CONSTRAINT broken", "sqlite": "DROP TRIGGER broken"}


@pytest.fixture
def broken_database(app: Flask) -> Iterator[None]:
    def execute(statements: dict[str, str]) -> None:
        with app.app_context(), db.engine.begin() as connection:
            connection.execute(text(statements[connection.dialect.name]))

    execute(BREAK)
    yield
    execute(MEND)


@pytest.mark.usefixtures("broken_database")
@pytest.mark.parametrize("path", ["/orders", "/orders/batch"])
def test_a_database_error_is_logged_without_the_row_it_is_about(client: FlaskClient, logged: Lines, path: str) -> None:
    response = client.post(path, json=PERSONAL if path == "/orders" else {"orders": [PERSONAL]})

    if path == "/orders":
        assert slug(response) == (500, "internal-error")
    else:
        assert [result["status"] for result in response.json["results"]] == [500]
    failure, request = logged()
    assert "broken" in failure["exception"] and "Traceback" in failure["exception"]
    assert failure["request_id"] == request["request_id"] == response.headers["X-Request-Id"]
    assert CANARY not in repr([failure, request]) + response.text


def test_an_unexpected_error_is_logged_with_its_traceback(
    app: Flask, client: FlaskClient, logged: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(app.config, "PROPAGATE_EXCEPTIONS", False)
    monkeypatch.setattr(order_service, "new_order", lambda _: 1 / 0)

    response = client.post("/orders", json=PERSONAL)

    failure, request = logged()
    assert slug(response) == (500, "internal-error")
    assert (failure["level"], request["level"], request["status"]) == ("error", "error", 500)
    assert "ZeroDivisionError" in failure["exception"]
    assert failure["request_id"] == request["request_id"] == response.json["request_id"]
    assert CANARY not in repr([failure, request])


def test_console_lines_have_the_same_content_as_json_lines(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        configure_logging("info", "console")
        client.get("/healthz", headers={"X-Request-Id": "r-1"})
    configure_logging("info", "json")

    [line] = stream.getvalue().splitlines()
    for part in ("request", "method=GET", "route=/healthz", "status=200", "request_id=r-1"):
        assert part in line


def sample(client: FlaskClient, line: str) -> float:
    """The value of a metric."""
    found = [text for text in client.get("/metrics").text.splitlines() if text.startswith(line + " ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


def test_requests_are_counted_by_route_and_status(client: FlaskClient) -> None:
    series = {
        'http_request_duration_seconds_count{method="POST",route="/orders",status="201"}': 2,
        'http_request_duration_seconds_count{method="GET",route="/orders/<order_id>",status="404"}': 1,
        'http_request_duration_seconds_count{method="(any)",route="(none)",status="404"}': 2,
        'http_request_duration_seconds_bucket{le="+Inf",method="POST",route="/orders",status="201"}': 2,
    }
    before = {line: sample(client, line) for line in series}

    for _ in range(2):
        client.post("/orders", json=MINIMAL)
        client.open("/nothing", method="MADEUP")
    client.get(f"/orders/{ABSENT}")

    assert {line: sample(client, line) - before[line] for line in series} == series


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each request take a sample, even after a test that left the time of the last sample in the future."""
    monkeypatch.setattr(telemetry, "_SAMPLE_INTERVAL", -math.inf)


@pytest.mark.usefixtures("sampling")
def test_the_creates_and_changes_of_a_statement_are_counted(client: FlaskClient) -> None:
    sample(client, "")
    series = {
        'group_commits_total{operation="create",size="1"}': 2,
        'group_commit_items_total{operation="create"}': 2,
        'group_commits_total{operation="change",size="1"}': 1,
        'group_commit_items_total{operation="change"}': 1,
    }
    before = {line: sample(client, line) for line in series}

    client.post("/orders", json=MINIMAL)
    created = client.post("/orders", json=MINIMAL)
    client.post(f"{created.headers['Location']}/confirm")

    assert {line: sample(client, line) - before[line] for line in series} == series


@pytest.mark.parametrize(("size", "label"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (100, 128)])
@pytest.mark.usefixtures("sampling")
def test_the_size_of_a_statement_is_counted_by_powers_of_two(client: FlaskClient, size: int, label: int) -> None:
    line = f'group_commits_total{{operation="create",size="{label}"}}'
    before = sample(client, line)

    BATCHES["create", size] += 3
    client.get("/healthz")

    assert sample(client, line) - before == 3


def test_a_worker_without_requests_is_measured_with_its_heartbeat(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_SAMPLE_INTERVAL", -math.inf)
    slots = app.extensions["event_streams"].slots
    values: list[float | None] = []
    with worker_of(app.wsgi_app) as worker:
        worker.ppid, worker.sample_process = os.getppid(), app.extensions["sample_process"]
        with slots.occupied(ANONYMOUS):
            worker.notify()
            values.append(REGISTRY.get_sample_value("event_streams"))
        worker.notify()
        values.append(REGISTRY.get_sample_value("event_streams"))

    assert values == [1, 0]


def test_the_process_and_the_pool_are_measured(client: FlaskClient) -> None:
    client.get("/orders")

    assert sample(client, "worker_resident_memory_bytes") > 10_000_000
    assert sample(client, "worker_cpu_seconds_total") > 0
    assert client.get("/metrics").headers["Content-Type"].startswith("text/plain")
    assert "database_connections_in_use" in client.get("/metrics").text
