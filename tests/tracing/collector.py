"""An OTLP/HTTP collector on loopback that keeps the spans it receives."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.receivers import Received, Receiver, receiver

SERVER, CLIENT = Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT


@dataclass(frozen=True)
class ReceivedSpan:
    """A span with its ids in hexadecimal, and its service."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    events: list[str]
    links: list[str]  # the ids of other spans
    status: int
    service: str


@dataclass(frozen=True)
class Collector:
    """A running collector."""

    receiver: Receiver

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a process that exports to it."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.receiver.port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }

    def spans(self, *, trace_id: str | None = None) -> list[ReceivedSpan]:
        received = [span for request in list(self.receiver.requests) for span in _spans(request)]
        return [span for span in received if trace_id in (None, span.trace_id)]


@contextmanager
def collector() -> Iterator[Collector]:
    """Run a collector until the block ends."""
    with receiver() as running:
        yield Collector(running)


def _spans(request: Received) -> Iterator[ReceivedSpan]:
    assert request.path == "/v1/traces" and request.headers["content-type"] == "application/x-protobuf"
    is_compressed = request.headers.get("content-encoding") == "gzip"
    exported = ExportTraceServiceRequest.FromString(gzip.decompress(request.body) if is_compressed else request.body)
    for resource in exported.resource_spans:
        service = _values(resource.resource.attributes)["service.name"]
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            yield ReceivedSpan(
                span.name, span.kind, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
                _values(span.attributes), [event.name for event in span.events],
                [link.span_id.hex() for link in span.links], span.status.code, service,
            )  # fmt: skip


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
