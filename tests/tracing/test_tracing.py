"""One trace from a client's `traceparent` through the request and its SQL to the delivery of the webhook.

Real processes export to a collector by OTLP/HTTP; the official protobuf package reads what it receives.
"""

import json
import signal
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from uuid import uuid4

import pytest
from flask import Flask
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from app.db.engine import db
from app.models import OrderEvent
from tests.support.commands import run_python
from tests.support.marks import on_sqlite
from tests.support.receivers import receiver
from tests.support.samples import MINIMAL
from tests.support.servers import GUNICORN, TIMEOUT, Server, free_port, running, running_worker, wait_until
from tests.tracing.collector import CLIENT, SERVER, Collector, ReceivedSpan, collector

CALLER = "00f067aa0ba902b7"
CANARY = "canary"


@pytest.fixture(scope="module")
def traces() -> Iterator[Collector]:
    with collector() as running_collector:
        yield running_collector


@pytest.fixture(scope="module")
def service(app: Flask, database_url: str, traces: Collector) -> Iterator[Server]:
    settings = {"DATABASE_URL": database_url, "WEB_CONCURRENCY": "1", "WEBHOOKS_ALLOW_PRIVATE": "1"}
    with running(*GUNICORN, port=free_port(), LOG_LEVEL="info", **settings, **traces.settings) as server:
        yield server


@pytest.fixture
def worker(app: Flask, database_url: str, traces: Collector) -> Iterator[Server]:
    settings = {"DATABASE_URL": database_url, "WEBHOOKS_ALLOW_PRIVATE": "1", "OTEL_SERVICE_NAME": "orders-worker"}
    with running_worker(**settings, **traces.settings) as running_worker_process:
        yield running_worker_process


@pytest.fixture
def trace_id() -> str:
    return uuid4().hex


def traceparent(trace_id: str, *, flags: str = "01") -> dict[str, str]:
    return {"traceparent": f"00-{trace_id}-{CALLER}-{flags}"}


def await_span(traces: Collector, trace_id: str, found: Callable[[ReceivedSpan], bool]) -> ReceivedSpan:
    wait_until(lambda: any(map(found, traces.spans(trace_id=trace_id))))
    return next(filter(found, traces.spans(trace_id=trace_id)))


def server_span(traces: Collector, trace_id: str) -> ReceivedSpan:
    return await_span(traces, trace_id, lambda span: span.kind == SERVER)


def delivery_span(traces: Collector, trace_id: str) -> ReceivedSpan:
    return await_span(traces, trace_id, lambda span: "event_id" in span.attributes)


def below(parent: ReceivedSpan, spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
    """The descendants of a span."""
    children = [span for span in spans if span.parent_id == parent.span_id]
    return children + [span for child in children for span in below(child, spans)]


def test_a_trace_goes_from_the_client_to_the_webhook(
    service: Server, worker: Server, traces: Collector, trace_id: str, app: Flask
) -> None:
    with receiver() as endpoint:
        service.request("POST", "/webhooks", {"url": endpoint.url})
        created = service.request("POST", "/orders", MINIMAL, traceparent(trace_id))
        wait_until(lambda: endpoint.requests)

    request, delivery = server_span(traces, trace_id), delivery_span(traces, trace_id)
    statements = [span for span in below(request, traces.spans()) if "db.query.text" in span.attributes]
    assert (request.name, request.parent_id, request.service) == ("POST /orders", CALLER, "order-service")
    assert request.attributes["http.response.status_code"] == 201
    assert request.attributes["request_id"] == created.headers["X-Request-Id"]
    assert any("INSERT INTO order_events" in span.attributes["db.query.text"] for span in statements)
    assert (delivery.name, delivery.kind, delivery.parent_id) == ("POST", CLIENT, request.span_id)
    assert (delivery.service, delivery.attributes["event_id"]) == ("orders-worker", f"{created.json['id']}:1")
    assert endpoint.requests[0].headers["traceparent"] == f"00-{trace_id}-{delivery.span_id}-01"


def test_a_failed_delivery_is_an_error_in_its_trace(
    service: Server, worker: Server, traces: Collector, trace_id: str, app: Flask
) -> None:
    with receiver(lambda _: 500) as endpoint:
        service.request("POST", "/webhooks", {"url": endpoint.url})
        service.request("POST", "/orders", MINIMAL, traceparent(trace_id))

        delivery = delivery_span(traces, trace_id)

    assert (delivery.status, delivery.attributes["error.type"]) == (Status.STATUS_CODE_ERROR, "500")


def test_an_event_of_a_change_has_the_span_of_its_request(
    service: Server, traces: Collector, trace_id: str, app: Flask
) -> None:
    order_id = service.request("POST", "/orders", MINIMAL).json["id"]
    service.request("POST", f"/orders/{order_id}/confirm", headers=traceparent(trace_id))

    request = server_span(traces, trace_id)
    assert request.attributes["order_id"] == order_id
    with app.app_context():
        event = db.session.get_one(OrderEvent, (order_id, 2))
        assert event.traceparent == f"00-{trace_id}-{request.span_id}-01"


def test_the_commit_of_a_transaction_is_in_its_trace(service: Server, traces: Collector, trace_id: str) -> None:
    service.request("POST", "/webhooks", {"url": "http://127.0.0.1:1/"}, traceparent(trace_id))

    spans = below(server_span(traces, trace_id), traces.spans())
    assert any("COMMIT" in span.events for span in spans)
    assert any("INSERT INTO webhook_endpoints" in span.attributes.get("db.query.text", "") for span in spans)


def test_requests_that_share_a_commit_are_linked(service: Server, traces: Collector, app: Flask) -> None:
    ids = [uuid4().hex for _ in range(20)]
    create_at_once(service, ids)

    requests = {span.span_id: span for span in (server_span(traces, trace_id) for trace_id in ids)}
    commits = [span for span in traces.spans() if span.name == "group commit" and span.trace_id in ids]
    callers = [(caller, commit) for commit in commits for caller in commit.links]
    assert callers and len(commits) + len(callers) == len(ids)
    for caller, commit in callers:
        assert commit.span_id in requests[caller].links


def create_at_once(service: Server, trace_ids: list[str]) -> None:
    """Create an order in each trace. The last bytes of the requests arrive together, on open connections."""
    body = json.dumps(MINIMAL).encode()
    length = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    connections = [HTTPConnection("127.0.0.1", service.port, timeout=TIMEOUT) for _ in trace_ids]
    for connection, trace_id in zip(connections, trace_ids, strict=True):
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        connection.request("POST", "/orders", body[:-1], length | traceparent(trace_id))
    for connection in connections:
        connection.send(body[-1:])
    for connection in connections:
        assert connection.getresponse().status == 201
        connection.close()


def test_log_lines_have_the_id_of_the_trace(service: Server, traces: Collector, trace_id: str) -> None:
    service.request("GET", "/orders", headers=traceparent(trace_id) | {"X-Request-Id": trace_id})
    service.request("GET", "/orders", headers={"X-Request-Id": "own"})

    lines = {line.get("request_id"): line for line in service.log_lines(awaited='"own"')}
    assert lines[trace_id]["trace_id"] == trace_id
    assert server_span(traces, lines["own"]["trace_id"]).attributes["request_id"] == "own"


def test_probes_and_unsampled_requests_are_not_exported(service: Server, traces: Collector, trace_id: str) -> None:
    unsampled = uuid4().hex
    for path in ("/healthz", "/readyz", "/metrics"):
        service.request("GET", path, headers=traceparent(unsampled))
    service.request("GET", "/orders", headers=traceparent(unsampled, flags="00"))
    service.request("GET", "/orders", headers=traceparent(trace_id))

    assert server_span(traces, trace_id)
    assert traces.spans(trace_id=unsampled) == []


def test_spans_contain_no_personal_data(service: Server, traces: Collector, trace_id: str, app: Flask) -> None:
    headers = traceparent(trace_id) | {"User-Agent": CANARY, "Cookie": CANARY, "baggage": f"name={CANARY}"}
    personal = MINIMAL | {"customer_id": f"c-{CANARY}", "note": CANARY, "external_ref": CANARY}
    for number in range(2):  # the second one is a conflict
        service.request("POST", "/orders", personal, headers | {"Idempotency-Key": f"{CANARY}-{number}"})
    paths = ("orders?customer_id={}", "orders/search?q={}", "{}", "orders/{}", "orders/by-ref/{}", "customers/{}/x",
             "customers/{}/personal-data")  # fmt: skip
    for path in paths:
        service.request("GET", f"/{path.format(CANARY)}", headers=headers)
    service.request("PROPFIND", f"/{CANARY}", headers=headers)

    def of_requests() -> list[ReceivedSpan]:
        return [span for span in traces.spans(trace_id=trace_id) if span.kind == SERVER]

    wait_until(lambda: len(of_requests()) == len(paths) + 3)
    assert CANARY not in repr(traces.spans())


@on_sqlite
def test_a_server_that_stops_exports_its_last_spans(app: Flask, database_url: str, trace_id: str) -> None:
    with collector() as traces:
        settings = traces.settings | {"OTEL_BSP_SCHEDULE_DELAY": "3600000", "WEB_CONCURRENCY": "1"}
        with running(*GUNICORN, port=free_port(), DATABASE_URL=database_url, **settings) as server:
            server.request("POST", "/orders", MINIMAL, traceparent(trace_id))
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(TIMEOUT) == 0

        assert server_span(traces, trace_id).name == "POST /orders"


@on_sqlite
def test_an_unavailable_collector_fails_no_request(app: Flask, database_url: str) -> None:
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_BSP_SCHEDULE_DELAY": "10"}
    with running(*GUNICORN, port=free_port(), DATABASE_URL=database_url, WEB_CONCURRENCY="1", **settings) as server:
        assert {server.request("POST", "/orders", MINIMAL).status for _ in range(20)} == {201}
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(TIMEOUT) == 0


@pytest.mark.parametrize("extra", [{}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_without_an_endpoint_nothing_is_traced(extra: dict[str, str]) -> None:
    settings = extra | ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"} if extra else {})
    done = run_python(
        "-c", "from app import create_app, tracing; create_app(); print(tracing.is_tracing())", **settings
    )

    assert done.stdout == "False\n"
