"""Request ids, logs (one line a request) and Prometheus metrics. None of them contains personal data."""

import io
import logging
import os
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any, TextIO
from uuid import uuid4

import orjson
import structlog
from flask import Flask, Request, Response, current_app, g, has_request_context
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from sqlalchemy.pool import QueuePool
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from app.db import batching
from app.db.engine import db, loggable_message
from app.http.application import WITHOUT_PREFIX
from app.http.auth import loggable_customer
from app.http.requests import current_globals, current_request
from app.models.event import REQUEST_ID_MAX
from app.models.order_id import parse_uuid
from app.services.webhook_queue import Attempt
from app.tracing import current_trace_id, end_server_span, is_tracing, start_server_span, trace_id_of

REQUEST_ID = "X-Request-Id"
_VALID_REQUEST_ID = re.compile(rf"[A-Za-z0-9._:-]{{1,{REQUEST_ID_MAX}}}")  # safe in a log line and in a header

# Time series of the histogram in one process: their space is reserved (shared_files.py).
_SERIES_MAX = 250
REQUESTS = Histogram(
    "http_request_duration_seconds",
    "Time from the arrival of a request in the worker to its response.",
    ["method", "route", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
POOL = Gauge("database_connections_in_use", "Connections checked out of the pool.", multiprocess_mode="livesum")
MEMORY = Gauge("worker_resident_memory_bytes", "Resident memory of all workers.", multiprocess_mode="livesum")
# A counter keeps the time of workers that have ended. A gauge would fall when a worker ends, and rate() would take that
# for a counter reset.
CPU = Counter("worker_cpu_seconds", "CPU time of the web workers, including those that have ended.")
STREAMS = Gauge("event_streams", "Open event streams, and requests that wait for events.", multiprocess_mode="livesum")
REFUSED = Counter("http_requests_refused", "Requests beyond MAX_REQUESTS_IN_PROGRESS, answered 503.")
REJECTED = Counter(
    "http_requests_rejected", "Requests that the worker itself answers: malformed, too large, incomplete.", ["status"]
)
STARTS = Counter("web_worker_starts", "Web workers that were started, including those that have ended.")
LOST_LINES = Counter("log_lines_lost", "Log lines that could not be written.")
LOST_SAMPLES = Counter("metric_samples_lost", "Requests whose duration could not be recorded.")
GROUP_COMMITS = Counter(
    "group_commits",
    "Statements that store concurrent creates or changes, by how many they store: 1, up to 2, up to 4, …",
    ["operation", "size"],
)
GROUP_COMMIT_ITEMS = Counter("group_commit_items", "Creates or changes that these statements store.", ["operation"])
TASKS = Histogram(
    "worker_task_duration_seconds",
    "Time of one call of a worker's task.",
    ["task"],
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2, 5, 30),
)
FAILED_TASKS = Counter("worker_task_failures", "Calls of a worker's tasks that failed.", ["task"])
DELIVERIES = Histogram(
    "webhook_request_duration_seconds",
    "Time of one request to a webhook's endpoint, by its outcome: 2xx, 4xx, …, or no response.",
    ["outcome"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 15),
)
_LOGGED_IDS = ("order_id", "erasure_id", "webhook_id")
_CAUSES_MAX = 10  # exceptions of a chain in one log entry
_RESOURCE_EXISTS = (409, 412)  # client error statuses that imply that the path names an existing resource
_SAMPLE_INTERVAL = 1.0  # seconds between two samples of the worker's CPU time, memory and connections
_last_sample = _counted_cpu_seconds = 0.0
_log: FilteringBoundLogger = structlog.get_logger()  # bound once, by configure_logging
_log_request: Callable[..., Any] = _log.info


def init_app(app: Flask) -> None:
    """Configure the logs, and log and measure every request."""
    configure_logging(app.config["LOG_LEVEL"], app.config["LOG_FORMAT"])
    STARTS.inc()
    app.extensions["refused_requests"] = REFUSED  # for the server, which refuses them
    app.extensions["rejected_requests"] = REJECTED
    app.extensions["sample_process"] = partial(_sample_idle_process, app)  # for the server, which calls it regularly
    app.before_request(_start_request)
    app.after_request(_finish_request)


def _start_request() -> None:
    request, context = current_request(), current_globals()
    request_id = request.environ.get("HTTP_X_REQUEST_ID")
    context.request_id = request_id if request_id and _VALID_REQUEST_ID.fullmatch(request_id) else uuid4().hex
    context.started_at = time.perf_counter()
    if is_tracing():
        _start_span(request)
    elif "HTTP_TRACEPARENT" in request.environ and (trace_id := trace_id_of(request.environ["HTTP_TRACEPARENT"])):
        context.trace_id = trace_id


def _start_span(request: Request) -> None:
    route = request.url_rule.rule if request.url_rule else None
    if route in WITHOUT_PREFIX:  # probes
        return
    method = request.method if route else "_OTHER"  # OpenTelemetry's name for unknown methods
    context = current_globals()
    attributes = {"http.request.method": method, "url.scheme": request.scheme, "request_id": context.request_id}
    if route:
        attributes["http.route"] = route
    headers = {name.lower(): value for name, value in request.headers}
    context.span = start_server_span(f"{method} {route}" if route else method, headers, attributes)
    context.trace_id = current_trace_id()


def _finish_request(response: Response) -> Response:
    """Measure and log the request. No failure here changes the response, which may acknowledge a stored order."""
    request, context = current_request(), current_globals()
    seconds = time.perf_counter() - context.started_at
    status, route = response.status_code, request.url_rule.rule if request.url_rule else "(none)"
    method = request.method if request.url_rule else "(any)"  # an invented method must not create a time series
    try:
        duration_series(method, route, status).observe(seconds)
        _sample_process()
    except Exception:  # the shared directory has been removed, or the disk is full
        LOST_SAMPLES.inc()
    response.headers.add(REQUEST_ID, context.request_id)
    ids = _loggable_ids(request.view_args, status) if request.view_args and method != "OPTIONS" else {}
    if "trace_id" in context:
        ids["trace_id"] = context.trace_id
    if "span" in context:
        end_server_span(context.span, status, ids)
    try:
        (_log.error if status >= 500 else _log_request)(
            "request",
            method=request.method[:16],
            route=route,
            status=status,
            ms=round(seconds * 1000, 2),
            **ids,
            request_id=context.request_id,
        )
    except Exception:
        LOST_LINES.inc()
    return response


@cache  # bounded by _SERIES_MAX time series
def duration_series(method: str, route: str, status: int) -> Histogram:
    if duration_series.cache_info().currsize >= _SERIES_MAX:
        return REQUESTS.labels("(any)", "(any)", "(any)")
    return REQUESTS.labels(method, route, status)


def _loggable_ids(view_args: dict[str, Any], status: int) -> dict[str, str]:
    """Return the service's own ids in the path, and the hash of a customer id.

    An id that does not exist is omitted: a client may have sent any text in its place.
    """
    ids: dict[str, str] = {}
    if status < 400 or status in _RESOURCE_EXISTS or status >= 500:
        ids = {name: view_args[name] for name in _LOGGED_IDS if name in view_args and parse_uuid(view_args[name])}
    if "customer_id" in view_args:
        ids["customer"] = loggable_customer(view_args["customer_id"])
    return ids


def _sample_idle_process(app: Flask) -> None:
    """Call `_sample_process` without a request: a worker may have none, after its streams have ended."""
    with suppress(Exception), app.app_context():  # the next request counts lost samples
        _sample_process()


def _sample_process() -> None:
    """Record the worker's CPU time, memory, connections and batches, at most once in _SAMPLE_INTERVAL."""
    global _last_sample, _counted_cpu_seconds
    now = time.monotonic()
    if now - _last_sample < _SAMPLE_INTERVAL:
        return
    _last_sample = now
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = usage.ru_utime + usage.ru_stime
    CPU.inc(cpu_seconds - _counted_cpu_seconds)
    _counted_cpu_seconds = cpu_seconds
    MEMORY.set(_resident_bytes())
    for operation, size in list(batching.BATCHES):
        count = batching.BATCHES.pop((operation, size))
        GROUP_COMMITS.labels(operation, 1 << (size - 1).bit_length()).inc(count)
        GROUP_COMMIT_ITEMS.labels(operation).inc(size * count)
    STREAMS.set(current_app.extensions["event_streams"].slots.occupied_count)
    if isinstance(db.engine.pool, QueuePool):
        POOL.set(db.engine.pool.checkedout())


def observe_task(name: str, seconds: float, failed: bool) -> None:
    """Measure a call of a worker's task."""
    TASKS.labels(name).observe(seconds)
    if failed:
        FAILED_TASKS.labels(name).inc()


def observe_delivery(attempt: Attempt) -> None:
    """Measure a request to a webhook's endpoint."""
    outcome = "no response" if attempt.status is None else f"{attempt.status // 100}xx"
    DELIVERIES.labels(outcome).observe(attempt.milliseconds / 1000)


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # outside Linux only the peak is available
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def render_metrics() -> bytes:
    """Render all metrics in the Prometheus text format, summed over this machine's workers.

    Without a shared directory, or after its removal, only this worker's metrics are rendered.
    """
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    try:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
    except (OSError, ValueError):
        return generate_latest(REGISTRY)


def configure_logging(level: str, line_format: str) -> None:
    """Log to standard error, so that a command's output stays clean: as JSON objects, or for people (`console`)."""
    output = standard_error()
    processors: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_request_ids,
        _format_exception,
    ]
    if line_format == "console":
        renderer: list[Processor] = [structlog.dev.ConsoleRenderer(colors=output.isatty())]
    else:
        renderer = [structlog.processors.JSONRenderer(serializer=_to_json)]
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*processors, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=output),
    )
    global _log, _log_request
    _log = structlog.get_logger().bind()
    _log_request = _log.info if line_format == "console" or threshold > logging.INFO else _json_line_writer(output)
    # The standard library's logging, which libraries use, has the same format.
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=processors,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)


def _json_line_writer(file: TextIO) -> Callable[..., None]:
    """Return a function that writes an info line as structlog's processors would. With those, a create takes 5 % more
    instructions, and a read 10 % more."""

    def write(event: str, **members: Any) -> None:
        line = {"event": event, "level": "info", "timestamp": datetime.now(UTC)} | members
        file.write(orjson.dumps(line, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE).decode())
        file.flush()

    return write


def _to_json(value: Any, default: Any, **_: Any) -> str:
    return orjson.dumps(value, default=default).decode()


def _add_request_ids(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    if has_request_context() and "request_id" in g:
        event.setdefault("request_id", g.request_id)
        trace_id = g.get("trace_id")
    else:
        trace_id = current_trace_id()
    if trace_id:
        event.setdefault("trace_id", trace_id)
    return event


def _format_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Format the tracebacks of an exception and its causes, root cause first, without messages that may quote data."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]
    parts: list[str] = []
    while isinstance(error, BaseException) and len(parts) < _CAUSES_MAX:
        lines = "".join(traceback.format_tb(error.__traceback__))
        message = loggable_message(error)
        name = f"{type(error).__module__}.{type(error).__qualname__}" + (f": {message}" if message else "")
        parts.insert(0, f"Traceback (most recent call last):\n{lines}{name}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if parts:
        event["exception"] = "\n\n".join(parts)
    return event


def standard_error() -> TextIO:
    """Return standard error as a stream that counts lines it cannot write in LOST_LINES instead of raising.

    If standard error is closed, the stream discards everything. A stream without a file is returned unchanged.
    """
    stream: Any = sys.stderr  # None if it is closed
    if isinstance(getattr(stream, "buffer", None), LossyFile):
        return sys.stderr
    try:
        descriptor = -1 if stream is None else stream.fileno()
    except (OSError, ValueError):
        return sys.stderr
    file: Any = LossyFile(descriptor)
    return io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", write_through=True)


class LossyFile(io.RawIOBase):
    """A file descriptor to which every write succeeds: a full disk or a broken pipe must not fail a request.

    Nothing is buffered, so lost data takes no memory and does not appear later.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._line_is_partial = False  # the file ends within a line whose rest was lost

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        """Write all data, or count a lost line. Returns the length of the data in both cases."""
        content = b"\n" + bytes(data) if self._line_is_partial else bytes(data)
        offset = 0
        try:
            while offset < len(content):
                offset += os.write(self._descriptor, content[offset:])
            self._line_is_partial = False
        except OSError:
            self._line_is_partial = self._line_is_partial or offset > 0
            LOST_LINES.inc()
        return len(data)
