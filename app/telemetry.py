"""What the operators see: a request id, one log line a request, metrics. No personal data in any of them."""

import io
import logging
import os
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TextIO
from uuid import uuid4

import orjson
import structlog
from flask import Flask, Response, g, has_request_context
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from sqlalchemy.pool import QueuePool
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from app.db.engine import db
from app.db.errors import loggable_message
from app.http.application import current_request
from app.http.auth import loggable_customer
from app.models.order_id import parse_uuid

REQUEST_ID = "X-Request-Id"
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")  # what can stand in a log line and a header without harm

# The help stands beside each of a series' 14 numbers, in space that is reserved (shared_files.py).
_SERIES_MAX = 250
REQUESTS = Histogram(
    "http_request_duration_seconds",
    "Time from a request's arrival in the worker to its answer.",
    ["method", "route", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
POOL = Gauge("database_connections_in_use", "Connections taken from the pool.", multiprocess_mode="livesum")
MEMORY = Gauge("worker_resident_memory_bytes", "Resident memory of all workers.", multiprocess_mode="livesum")
CPU = Gauge("worker_cpu_seconds", "Processor time used by the live workers.", multiprocess_mode="livesum")
LOST_LINES = Counter("log_lines_lost", "Lines of the log that could not be written.")
LOST_SAMPLES = Counter("metric_samples_lost", "Requests that could not be measured.")
_OWN_IDS = ("order_id", "erasure_id")
_CAUSES_MAX = 10  # of one exception
_FOUND = (409, 412)  # statuses of errors that tell of something that exists
_SAMPLE_SECONDS = 1.0  # how often a worker looks at itself, at most
_last_sample = 0.0
_log: FilteringBoundLogger = structlog.get_logger()  # bound once and for all when the logs are configured
_request_line: Callable[..., Any] = _log.info


def init_app(app: Flask) -> None:
    """Configure the logs and watch every request of the application."""
    configure_logging(app.config["LOG_LEVEL"], app.config["LOG_FORMAT"])
    app.before_request(_begin)
    app.after_request(_end)


def _begin() -> None:
    given = current_request().environ.get("HTTP_X_REQUEST_ID")
    context = g._get_current_object()  # as current_request does
    context.request_id = given if given is not None and _SANE_ID.fullmatch(given) else uuid4().hex
    context.started = time.perf_counter()


def _end(response: Response) -> Response:
    """Measure and log the request. Whatever fails here, the answer stays as it is: it may tell of a stored order."""
    asked, context = current_request(), g._get_current_object()
    seconds = time.perf_counter() - context.started
    status, route = response.status_code, asked.url_rule.rule if asked.url_rule else "(none)"
    method = asked.method if asked.url_rule else "(any)"  # a made-up method must not become a time series
    try:
        _series(method, route, status).observe(seconds)
        _sample_process()
    except Exception:  # a directory that was removed, a file that cannot grow
        LOST_SAMPLES.inc()
    response.headers.add(REQUEST_ID, context.request_id)
    try:
        (_log.error if status >= 500 else _request_line)(
            "request",
            method=asked.method[:16],
            route=route,
            status=status,
            ms=round(seconds * 1000, 2),
            **(_ids(asked.view_args, status) if asked.view_args and method != "OPTIONS" else {}),
            request_id=context.request_id,
        )
    except Exception:
        LOST_LINES.inc()
    return response


@lru_cache(maxsize=None)  # as many as there are routes, methods and statuses
def _series(method: str, route: str, status: int) -> Histogram:
    if _series.cache_info().currsize >= _SERIES_MAX:
        return REQUESTS.labels("(any)", "(any)", "(any)")
    return REQUESTS.labels(method, route, status)


def _ids(view_args: dict[str, Any], status: int) -> dict[str, str]:
    """The ids in the path that are this service's own, and a customer's as a hash. What names nothing was typed by
    somebody, and may be anything."""
    ids: dict[str, str] = {}
    if status < 400 or status in _FOUND or status >= 500:
        ids = {name: view_args[name] for name in _OWN_IDS if name in view_args and parse_uuid(view_args[name])}
    if "customer_id" in view_args:
        ids["customer"] = loggable_customer(view_args["customer_id"])
    return ids


def _sample_process() -> None:
    global _last_sample
    now = time.monotonic()
    if now - _last_sample < _SAMPLE_SECONDS:
        return
    _last_sample = now
    usage = resource.getrusage(resource.RUSAGE_SELF)
    CPU.set(usage.ru_utime + usage.ru_stime)
    MEMORY.set(_resident_bytes())
    if isinstance(db.engine.pool, QueuePool):
        POOL.set(db.engine.pool.checkedout())


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux: the peak is better than nothing
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def render_metrics() -> bytes:
    """All metrics in the Prometheus text format, summed over the workers of this machine; this worker's alone where
    they share no directory, or it was removed."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    try:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
    except (OSError, ValueError):
        return generate_latest(REGISTRY)


def standard_error() -> TextIO:
    """Standard error, with lines that cannot be written counted instead of raised."""
    return lossy(sys.stderr, on_loss=LOST_LINES.inc)


def configure_logging(level: str, style: str) -> None:
    """Log to standard error, so that what a command prints stays clean: JSON objects, or lines for people."""
    output = standard_error()
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_request_id,
        _format_exception,
    ]
    if style == "console":
        last: list[Processor] = [structlog.dev.ConsoleRenderer(colors=output.isatty())]
    else:
        last = [structlog.processors.JSONRenderer(serializer=_json)]
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=output),
    )
    global _log, _request_line
    _log = structlog.get_logger().bind()
    _request_line = _log.info if style == "console" or threshold > logging.INFO else _json_line(output)
    # What libraries log with the standard module takes the same form.
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)


def _json_line(file: TextIO) -> Callable[..., None]:
    """Writes a line as the processors would make it: they take three times as long, and every request has one."""

    def write(event: str, **members: Any) -> None:
        line = {"event": event, "level": "info", "timestamp": datetime.now(UTC)} | members
        file.write(orjson.dumps(line, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE).decode())
        file.flush()

    return write


def _json(value: Any, default: Any, **_: Any) -> str:
    return orjson.dumps(value, default=default).decode()


def _add_request_id(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    if "request_id" not in event and has_request_context() and "request_id" in g:
        event["request_id"] = g.request_id
    return event


def _format_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The tracebacks of an exception and its causes, the first one first; not what they say, which may quote data."""
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


class _LossyFile(io.RawIOBase):
    """A file descriptor to which writing always succeeds.

    The disk may be full, the reader of a pipe dead, the descriptor closed. Nothing is buffered: what has been dropped
    does not come back later, and takes no memory.
    """

    def __init__(self, descriptor: int, on_loss: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._on_loss = on_loss
        self._torn = False  # whether the beginning of a line stands alone in the file

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        """Write it all or call `on_loss`; the length, as if all had been written."""
        rest = b"\n" + bytes(data) if self._torn else bytes(data)
        written = 0
        try:
            while written < len(rest):
                written += os.write(self._descriptor, rest[written:])
            self._torn = False
        except OSError:
            self._torn = self._torn or written > 0
            self._on_loss()
        return len(data)


def lossy(stream: TextIO | None, *, on_loss: Callable[[], None]) -> TextIO:
    """The stream, or what writes to its file, with `on_loss` called for whatever could not be written.

    None is what Python makes of a standard error that is closed: then everything is lost. A stream without a file is
    returned as it is.
    """
    if stream is not None and isinstance(getattr(stream, "buffer", None), _LossyFile):
        return stream
    try:
        descriptor = -1 if stream is None else stream.fileno()
    except (OSError, ValueError):
        assert stream is not None
        return stream
    file: Any = _LossyFile(descriptor, on_loss)
    return io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", write_through=True)
