"""OpenTelemetry traces, which are optional: without requirements-tracing.txt nothing is imported or recorded.

Spans contain no personal data. The published instrumentations of WSGI, Flask and SQLAlchemy record paths, queries,
addresses and the messages of database errors, which may quote rows, and see none of the statements that go to the
driver directly (app/db/statements.py). So the service starts its spans itself.
"""

import atexit
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from app.config import StartupError

try:
    from opentelemetry import context, propagate, trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError:
    trace = None

TRACEPARENT_MAX = 55  # characters of a traceparent of version 00 (W3C Trace Context §3.2)
_TRACEPARENT = re.compile("(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_ENDPOINTS = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_DEFAULT_SERVICE_NAME = "order-service"  # OTEL_SERVICE_NAME
_FINAL_EXPORT_TIMEOUT = 2.0  # seconds for the last spans of a process
_NO_SPAN: AbstractContextManager[Any] = nullcontext()
_tracer: Any = None  # None: nothing is recorded


def init_tracing() -> None:
    """Export spans by OTLP/HTTP if an OTEL_EXPORTER_OTLP_… endpoint is set, once in a process.

    The exporter reads the other OTEL_… settings. Raises StartupError if OpenTelemetry is not installed.
    """
    global _tracer
    if _tracer is not None or not _is_configured():
        return
    if trace is None:
        raise StartupError(
            f"{' or '.join(_ENDPOINTS)} is set, but OpenTelemetry is missing: "
            "run `pip install -r requirements-tracing.txt`."
        )
    resource = Resource.create()
    if resource.attributes[SERVICE_NAME].startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: _DEFAULT_SERVICE_NAME}))
    exporter = OTLPSpanExporter()
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    atexit.register(_export_last_spans, provider, exporter)
    _tracer = provider.get_tracer("order-service")


def _export_last_spans(provider: Any, exporter: Any) -> None:
    """Export what is left when the process ends. The exporter would try to reach its collector for 20 s."""
    timer = threading.Timer(_FINAL_EXPORT_TIMEOUT, exporter.shutdown)
    timer.daemon = True
    timer.start()
    provider.shutdown()
    timer.cancel()


def _is_configured() -> bool:
    return (
        any(os.environ.get(name) for name in _ENDPOINTS)
        and os.environ.get("OTEL_TRACES_EXPORTER") != "none"
        and os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true"
    )


def is_tracing() -> bool:
    """Whether spans are recorded."""
    return _tracer is not None


def start_server_span(name: str, headers: Mapping[str, str], attributes: Mapping[str, Any]) -> tuple[Any, object]:
    """Start the span of a request, a child of the caller's span that its headers name, and make it the current span.

    Call `end_server_span` with the result.
    """
    span = _tracer.start_span(
        name, context=propagate.extract(headers), kind=trace.SpanKind.SERVER, attributes=attributes
    )
    return span, context.attach(trace.set_span_in_context(span))


def end_server_span(span_and_token: tuple[Any, object], status: int, attributes: Mapping[str, Any]) -> None:
    """End the span that `start_server_span` returned, with the status of the response."""
    span, token = span_and_token
    span.set_attributes({"http.response.status_code": status, **attributes})
    if status >= 500:
        _record_error(span, str(status))
    span.end()
    context.detach(token)


def span(name: str, *, links: Sequence[Any] = ()) -> AbstractContextManager[Any]:
    """A span for the duration of the block, as a child of the current span. Without a current span nothing is recorded,
    so that a worker's polls create no traces."""
    if current_span_context() is None:
        return _NO_SPAN
    return _span(name, trace.SpanKind.INTERNAL, links=links)


def statement_span(sql: str, system: str) -> AbstractContextManager[Any]:
    """A span for one SQL statement, like `span`. Statements contain no values: they have parameters."""
    if current_span_context() is None:
        return _NO_SPAN
    attributes = {"db.system.name": system, "db.query.text": sql}
    return _span(sql.split(None, 1)[0].upper(), trace.SpanKind.CLIENT, attributes=attributes)


def delivery_span(traceparent: str | None, attributes: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """A span for one request to a webhook's endpoint, in the trace of the request that caused the event."""
    if _tracer is None:
        return _NO_SPAN
    parent = TraceContextTextMapPropagator().extract({"traceparent": traceparent} if traceparent else {})
    return _span("POST", trace.SpanKind.CLIENT, parent=parent, attributes=attributes)


def record_response(status: int | None) -> None:
    """Record the status of a response in the current span, that of its request; None means no response."""
    if _tracer is None:
        return
    current = trace.get_current_span()
    if status is not None:
        current.set_attribute("http.response.status_code", status)
    if status is None or status >= 300:
        _record_error(current, "no response" if status is None else str(status))


@contextmanager
def _span(
    name: str, kind: Any, *, parent: Any = None, attributes: Mapping[str, Any] | None = None, links: Sequence[Any] = ()
) -> Iterator[Any]:
    with _tracer.start_as_current_span(
        name,
        context=parent,
        kind=kind,
        attributes=attributes,
        links=[trace.Link(span_context) for span_context in links],
        record_exception=False,  # messages may quote data
        set_status_on_exception=False,
    ) as new_span:
        try:
            yield new_span
        except Exception as error:
            _record_error(new_span, type(error).__qualname__)
            raise


def _record_error(span: Any, error_type: str) -> None:
    span.set_attribute("error.type", error_type)
    span.set_status(trace.StatusCode.ERROR)


def add_span_event(name: str) -> None:
    """Add an event to the current span, at the present time."""
    trace.get_current_span().add_event(name)


def current_span_context() -> Any:
    """The context of the current span, for links to it; None if there is no current span."""
    if _tracer is None:
        return None
    current = trace.get_current_span().get_span_context()
    return current if current.is_valid else None


def link_to(span_context: Any) -> None:
    """Link the current span to another one, given by `current_span_context`; None is ignored."""
    if span_context is not None:
        trace.get_current_span().add_link(span_context)


def current_traceparent() -> str | None:
    """The current span as a `traceparent`, to be stored with an event; None if there is no current span."""
    return propagation_headers().get("traceparent")


def propagation_headers() -> dict[str, str]:
    """The headers with which the receiver of a request continues the trace; empty if there is no current span."""
    headers: dict[str, str] = {}
    if _tracer is not None:
        TraceContextTextMapPropagator().inject(headers)
    return headers


def current_trace_id() -> str | None:
    """The trace id of the current span, 32 hexadecimal digits; None if there is no current span."""
    current = current_span_context()
    return None if current is None else trace.format_trace_id(current.trace_id)


def trace_id_of(traceparent: str) -> str | None:
    """The trace id in a `traceparent` header; None if it is invalid (W3C Trace Context §3.2)."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return match[1] if match else None
