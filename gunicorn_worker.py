"""gunicorn's gevent worker with llhttp (httptools), the HTTP parser of Node.js, in place of gunicorn's own.

gunicorn's own parser is written in Python, so a request takes five times as many instructions. Its worker also has no
deadline for a slow head or body, and answers a malformed request with HTML.

A connection is served in this order: `Connection` receives bytes, `RequestParser` parses them into requests, the
application answers through `Response`, and the rest of the body is discarded. llhttp decides what is HTTP (RFC 9112),
without any of its leniencies; this module decides what the server allows: sizes, time limits, keep-alive, headers of a
proxy. What cannot be served is answered with a problem document (RFC 9457), and the connection closes.

Of gunicorn's settings it uses `keepalive`, `limit_request_*`, `max_requests`, `forwarded_allow_ips` (exact addresses)
and those of the process; not its hooks around a request, access log, SCRIPT_NAME, TLS, HTTP/2 or the PROXY protocol.
"""

import fcntl
import io
import json
import mmap
import os
import re
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property, lru_cache, partial
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import gevent
import httptools
from gevent.server import StreamServer
from gunicorn import util
from gunicorn.http.wsgi import base_environ
from gunicorn.workers.ggevent import GeventWorker

READ_SIZE = 16_384  # bytes; pipelined requests within them are parsed at once
MAX_HEAD_SIZE = 65_536  # bytes of a head; nginx passes 32 KiB and adds its own fields
MAX_BODY_SIZE = 16 * 1024 * 1024  # bytes; above the application's own limits (8 MiB for a batch), whose errors say more
MIN_BODY_RATE = 65_536  # bytes a second: each such part of a body, received or sent, extends its deadline by a second
LARGE_PART = 65_536  # bytes; a larger part is not joined to the head: the copy would stay in memory for a slow client
LINGER_TIMEOUT = 2.0  # seconds for a client that is still sending to receive a response before the connection closes
FAIRNESS_PAUSE = 1e-6  # seconds; after sleep(0) the event loop would not poll sockets (app/http/requests.py)
GREENLET_EXITS = (gevent.GreenletExit, SystemExit)  # by which gunicorn ends a request; the worker continues
PROTOCOLS = {"1.1": "HTTP/1.1", "1.0": "HTTP/1.0"}  # by llhttp's name of the version
KEEP_ALIVE_OPTIONS = {"", "keep-alive", "upgrade", "http2-settings", "te"}  # of Connection; any other closes it
SINGLE_FIELDS = {"HTTP_HOST", "CONTENT_TYPE"}  # fields without a list syntax; llhttp refuses a second Content-Length
URL_PREFIX = os.environ.get("URL_PREFIX", "").rstrip("/")
PROBLEM_PAGES = f"{URL_PREFIX}/problems"  # whose paths are the problem types
PROBLEM_TYPES = {  # slugs and titles of app/errors.py
    400: ("bad-request", "Bad request"),
    408: ("request-timeout", "Request timeout"),
    413: ("content-too-large", "The body is too large"),
    500: ("internal-error", "Internal error"),
    503: ("service-unavailable", "Temporarily unavailable"),
}
PROBES = {prefix + path for prefix in ("", URL_PREFIX) for path in ("/healthz", "/readyz", "/metrics")}
HANDOVER_POLL = 0.05  # seconds
OVERLOAD_LOG_INTERVAL = 1.0  # seconds between two log lines about overload
WATCH_CLOSING = "order_service.watch_closing"  # WSGI environment key (app/http/streams.py)
READABLE = 1  # event of gevent's loop
EVALUATED_FIELDS = {*util.hop_headers, "content-length"}  # of a response; all others are sent as they are
NO_BODY = ("1", "204", "304")  # the beginnings of statuses whose responses have none
PRINTABLE = bytes(range(0x20, 0x7F))
# A host in brackets or a reg-name, and a port (RFC 9110 §7.2, RFC 3986 §3.2.2). Empty for a URI without an authority.
HOST = re.compile(r"(?:\[[0-9A-Za-z:._~!$&'()*+,;=-]+\]|(?:[0-9A-Za-z._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?")
# The line of a request whose method llhttp does not know.
REQUEST_LINE = re.compile(rb"(?:\r\n)?[!#$%&'*+.^_`|~0-9A-Za-z-]+ [!-~]+ HTTP/1\.[01]\r\n")
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")  # the rule of app/telemetry.py


class RequestError(Exception):
    """A request that the server answers without the application, closing the connection."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class ConnectionLost(OSError):
    """The client has closed the connection, or no longer receives the response."""


class Listener(StreamServer):  # type: ignore[misc]  # gevent has no types
    """Accepts the connections of a worker. gunicorn creates it as `server_class`."""

    def __init__(self, listener: Any, *, handler_class: "HttptoolsWorker", spawn: Any, **_: Any) -> None:
        self._worker = handler_class
        environ = handler_class.listener_environ(listener)
        super().__init__(listener, handle=partial(handler_class.serve_connection, environ), spawn=spawn)

    @property
    def max_accept(self) -> int:
        """Connections to accept in one pass of the event loop.

        One if the worker is idle, so that several workers share connections evenly. A pass takes longer the more
        requests are in progress: at one a pass, connections would wait for seconds in an overloaded worker's backlog.
        """
        return 1 + self._worker.requests_in_progress // 2


class Handover:
    """At a reload, the old workers accept connections until a new one does.

    gunicorn stops the old workers as soon as it has forked the new ones, which still have to load the application:
    nobody would accept connections for seconds. Workers are compared by `age`, gunicorn's number of a worker. The
    master creates the object, and shares its memory with all workers.
    """

    def __init__(self) -> None:
        # The age of the last worker before the latest reload, and the age of the newest worker that serves.
        self._ages = memoryview(mmap.mmap(-1, 16)).cast("Q")

    def begin(self, last_age: int) -> None:
        """Called in the master at a reload, before it forks the new workers."""
        self._ages[0] = last_age

    def complete(self, age: int) -> None:
        """Called by each worker that is ready to accept connections."""
        self._ages[1] = max(self._ages[1], age)

    def is_pending(self, age: int) -> bool:
        """Whether a worker of this age is older than the latest reload, and no newer one serves."""
        last_age, serving_age = self._ages
        return age <= last_age and serving_age <= last_age


class HttptoolsWorker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """The worker class in `gunicorn.conf.py`."""

    server_class = Listener

    # Seconds. Between requests a connection may be idle for `keepalive`.
    head_timeout = 10.0  # for a whole request head, and from accepting a connection to its first request's
    body_timeout = 10.0  # for a whole body, read or discarded, in any coding; MIN_BODY_RATE extends it
    send_timeout = 30.0  # for a client to receive another part of a response; MIN_BODY_RATE extends it for all of them

    # Requests of this worker that are in the application at the same time. Further ones are answered 503 at once: in a
    # queue they would wait longer than their clients do. gunicorn.conf.py sets it.
    max_requests_in_progress = 0  # 0 means no limit
    requests_in_progress = 0
    refused_requests = 0  # since the last log line about them
    refusals_logged_at = 0.0  # time.monotonic()
    cors_origins: frozenset[str] = frozenset()  # whose scripts may read the refusal
    refusals: Any = None  # a counter of prometheus_client, if the application has one
    rejections: Any = None  # a counter with the label `status` for malformed and unsupported requests, if there is one
    sample_process: Any = None  # a function that records the application's metrics of this process, if it has any

    handover = Handover()
    stopping: Any = None  # a greenlet, after TERM at a reload

    def handle_exit(self, sig: int, frame: Any) -> None:
        """On TERM, stop accepting connections; at a reload, once a newer worker accepts them.

        The master sends TERM again when it is stopped, and after `graceful_timeout`: then stop at once.
        """
        if self.stopping is None and self.handover.is_pending(self.age):
            self.stopping = gevent.spawn(self._stop_after_handover)
        else:
            super().handle_exit(sig, frame)

    def _stop_after_handover(self) -> None:
        while self.handover.is_pending(self.age):
            gevent.sleep(HANDOVER_POLL)
        self.log.info("Worker stopping after the reload (pid: %s)", self.pid)
        self.alive = False

    def notify(self) -> None:
        """Called every second: update the heartbeat that gunicorn's master checks, and sample the process."""
        super().notify()
        if self.sample_process is not None:
            self.sample_process()

    @property
    def wsgi_handler(self) -> "HttptoolsWorker":
        """The handler of connections that gunicorn passes to `server_class`."""
        return self

    @cached_property
    def limits(self) -> "Limits":
        cfg = self.cfg
        field_sizes = cfg.limit_request_line, cfg.limit_request_field_size
        return Limits(*field_sizes, cfg.limit_request_fields, cfg.keepalive, frozenset(("", *cfg.forwarded_allow_ips)))

    def listener_environ(self, listener: Any) -> dict[str, Any]:
        """The WSGI environment (PEP 3333) as far as it is the same for all requests to a listening socket."""
        environ = {**base_environ(self.cfg), "wsgi.multithread": True, "wsgi.url_scheme": "http", "SCRIPT_NAME": ""}
        address = listener.getsockname()
        if not isinstance(address, tuple):  # a Unix socket
            return {**environ, "SERVER_NAME": "localhost", "SERVER_PORT": "80", "REMOTE_ADDR": ""}
        return {**environ, "SERVER_NAME": address[0], "SERVER_PORT": str(address[1])}

    def serve_connection(self, environ: dict[str, Any], client: Any, address: Any) -> None:
        """Serve a connection until one of its ends closes it."""
        if isinstance(address, tuple):
            environ = {**environ, "REMOTE_ADDR": address[0], "REMOTE_PORT": str(address[1])}
        connection = Connection(self, client, environ)
        try:
            connection.serve()
        except GREENLET_EXITS:
            pass
        except OSError as error:  # the client is gone
            self.log.debug("Closing a connection: %s", error)
        except Exception:
            self.log.exception("Error serving a connection")
        finally:
            util.close(client)

    def count_request(self) -> None:
        """Count a request; after `max_requests` the worker stops and gunicorn replaces it."""
        self.nr += 1
        if self.nr == self.max_requests:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False

    def is_overloaded(self, environ: dict[str, Any]) -> bool:
        """Whether to refuse the request, because the limit of requests in progress is reached."""
        limit = self.max_requests_in_progress
        return 0 < limit <= self.requests_in_progress and environ["PATH_INFO"] not in PROBES

    def refuse_overload(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        """A WSGI application for requests beyond the limit. Clients may keep their connections."""
        self.refused_requests += 1
        if self.refusals is not None:
            self.refusals.inc()
        now = time.monotonic()
        if now - self.refusals_logged_at >= OVERLOAD_LOG_INTERVAL:
            self.log.warning("Overloaded: refused %d requests.", self.refused_requests)
            self.refused_requests, self.refusals_logged_at = 0, now
        request_id = request_id_of(environ)
        body = problem_body(OVERLOADED, request_id)
        headers = [("Content-Length", str(len(body))), ("Retry-After", "1"), ("X-Request-Id", request_id)]
        headers += PROBLEM_HEADERS
        if self.cors_origins:
            headers.append(("Vary", "Origin"))
        if (origin := environ.get("HTTP_ORIGIN")) in self.cors_origins:
            headers += ("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", EXPOSED_HEADERS)
        start_response("503 Service Unavailable", headers)
        return [body]


class Limits(NamedTuple):
    """gunicorn's settings, copied because each access to them is slow."""

    line_size: int  # bytes of a request line
    field_size: int  # bytes of a header field
    fields: int
    keepalive: float  # seconds
    proxies: frozenset[str]  # addresses whose X-Forwarded-Proto is trusted; a Unix socket's is empty


def request_id_of(environ: dict[str, Any]) -> str:
    """The id of a request: its X-Request-Id, if that is safe in a log line and in a header, or a new one."""
    request_id: str = environ.get("HTTP_X_REQUEST_ID", "")
    return request_id if REQUEST_ID.fullmatch(request_id) else uuid4().hex


class Request:
    """A request, which may be incomplete."""

    __slots__ = ("environ", "target", "body", "body_size", "body_started", "complete", "keep_alive",
                 "expects_continue", "error")  # fmt: skip

    def __init__(self, environ: dict[str, Any]) -> None:
        self.environ = environ
        self.target = b""
        self.body: list[bytes] = []  # parts that have not been read
        self.body_size = 0  # bytes received
        self.body_started: float | None = None  # when the server began to wait for it, as time.monotonic()
        self.complete = False
        self.keep_alive = False
        self.expects_continue = False
        self.error: RequestError | None = None  # why the rest of its body cannot be read


NO_REQUEST = Request({})  # before the first request of a connection


class RequestParser:
    """Parses the requests of a connection. llhttp calls the methods that begin with `on_`."""

    __slots__ = ("requests", "error", "is_idle", "_llhttp", "_request", "_base_environ", "_environ", "_limits",
                 "_max_target_size", "_max_field_size", "_fields", "_overhead")  # fmt: skip

    def __init__(self, limits: Limits, environ: dict[str, Any]) -> None:
        self.requests: list[Request] = []  # those whose heads are complete, in order, until the connection takes them
        self.error: RequestError | None = None  # why the following bytes are not a request
        self.is_idle = True  # between requests
        self._llhttp = httptools.HttpRequestParser(self)
        self._request = NO_REQUEST  # the last request
        self._base_environ = environ
        self._limits = limits
        self._max_target_size = limits.line_size - len("GET  HTTP/1.1")
        self._max_field_size = limits.field_size - len(": \r\n")
        self._environ: dict[str, Any]  # of the last request, until its head is complete
        self._fields = 0  # of its head
        self._overhead = 0  # bytes received since the last complete head or part of a body, which are limited

    @property
    def incomplete_environ(self) -> dict[str, Any]:
        """The environment of the last request as far as it is parsed; empty if the request is complete."""
        return {} if self._request.complete else self._request.environ

    def feed(self, data: bytes) -> None:
        """Parse received bytes. Errors are stored in `error`, because requests before them are answered first."""
        self.is_idle = False
        self._overhead += len(data)
        try:
            self._llhttp.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, RequestError):
                raise
            self.error = error.__context__
        except httptools.HttpParserError as error:
            self.error = RequestError(HTTPStatus.BAD_REQUEST, f"{error}.")
            is_unknown_method = isinstance(error, httptools.HttpParserInvalidMethodError) and not self.requests
            if is_unknown_method and REQUEST_LINE.match(data):  # RFC 9110 §9.1
                self.error = RequestError(HTTPStatus.NOT_IMPLEMENTED, "The method is unknown.")
        if self._overhead > MAX_HEAD_SIZE and self.error is None:
            self.error = fields_too_large(self._limits)

    def _decline_upgrade(self, remaining: bytes) -> None:
        """Stay with HTTP/1.1 (RFC 9110 §7.8). llhttp stops before the body of such a request: a new parser reads it."""
        declined = self.requests.pop()
        self._llhttp = httptools.HttpRequestParser(self)
        head = b"POST / HTTP/1.1\r\nHost: a\r\n"
        if "CONTENT_LENGTH" in declined.environ:
            head += b"Content-Length: " + declined.environ["CONTENT_LENGTH"].encode() + b"\r\n"
        if "HTTP_TRANSFER_ENCODING" in declined.environ:
            head += b"Transfer-Encoding: chunked\r\n"
        self._llhttp.feed_data(head + b"\r\n")
        self._request.environ, self._request.keep_alive = declined.environ, declined.keep_alive
        self._request.expects_continue = declined.expects_continue
        if remaining:
            self.feed(remaining)

    def on_message_begin(self) -> None:
        self._environ = self._base_environ.copy()
        self._request = Request(self._environ)
        self.is_idle = False
        self._fields = 0

    def on_url(self, part: bytes) -> None:
        request = self._request
        request.environ["REQUEST_METHOD"] = self._llhttp.get_method().decode()
        request.target += part
        if len(request.target) > self._max_target_size:
            detail = f"The request target is longer than {self._max_target_size:,} bytes."
            raise RequestError(HTTPStatus.REQUEST_URI_TOO_LONG, detail)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        if len(name) + len(value) > self._max_field_size:
            raise fields_too_large(self._limits)
        key = environ_key(name)
        if key is None:
            return
        environ, text = self._environ, value.rstrip().decode("latin-1")
        if key not in environ:
            environ[key] = text
        elif key in SINGLE_FIELDS:
            raise RequestError(HTTPStatus.BAD_REQUEST, f"Duplicate {name.decode('latin-1').title()} header.")
        elif self._fields > self._limits.fields:
            raise fields_too_large(self._limits)
        else:
            environ[key] += f",{text}"  # RFC 9110 §5.3

    def on_headers_complete(self) -> None:
        request, environ, limits = self._request, self._environ, self._limits
        if self._fields > limits.fields:
            raise fields_too_large(limits)
        version = self._llhttp.get_http_version()
        if version not in PROTOCOLS:
            detail = f"The supported versions are {' and '.join(PROTOCOLS.values())}."
            raise RequestError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, detail)
        environ["SERVER_PROTOCOL"] = PROTOCOLS[version]
        check_head(environ, version)
        set_target(environ, request.target.decode("latin-1"))
        if environ.get("HTTP_X_FORWARDED_PROTO") == "https" and environ["REMOTE_ADDR"] in limits.proxies:
            environ["wsgi.url_scheme"] = "https"
        request.keep_alive = self._llhttp.should_keep_alive() and limits.keepalive > 0
        if "HTTP_CONNECTION" in environ:
            options = {option.strip(" \t") for option in environ["HTTP_CONNECTION"].lower().split(",")}
            request.keep_alive = request.keep_alive and options <= KEEP_ALIVE_OPTIONS
        request.expects_continue = "HTTP_EXPECT" in environ and version == "1.1"
        self._overhead = 0
        self._environ = {}  # receives trailers, which are ignored
        self.requests.append(request)

    def on_body(self, part: bytes) -> None:
        request = self._request
        request.body_size += len(part)
        if request.body_size > MAX_BODY_SIZE:
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is larger than {MAX_BODY_SIZE:,} bytes.")
        request.body.append(part)
        self._overhead = 0

    def on_message_complete(self) -> None:
        self._request.complete = self.is_idle = True
        self._overhead = 0


def check_head(environ: dict[str, Any], version: str) -> None:
    """Raise RequestError if the server does not support what the head requires."""
    if "HTTP_HOST" in environ:
        check_host(environ["HTTP_HOST"])
    elif version == "1.1":  # RFC 9112 §3.2
        raise RequestError(HTTPStatus.BAD_REQUEST, "The Host header is missing.")
    if environ["REQUEST_METHOD"] == "CONNECT":
        raise RequestError(HTTPStatus.NOT_IMPLEMENTED, "This server is not a proxy.")
    if "HTTP_TRANSFER_ENCODING" in environ:
        if version == "1.0":  # RFC 9112 §6.1: an intermediary may disagree about its end
            raise RequestError(HTTPStatus.BAD_REQUEST, "HTTP/1.0 has no Transfer-Encoding. Send a Content-Length.")
        if environ["HTTP_TRANSFER_ENCODING"].lower() != "chunked":
            raise RequestError(HTTPStatus.NOT_IMPLEMENTED, "The only supported Transfer-Encoding is chunked.")
    if "HTTP_EXPECT" in environ and environ["HTTP_EXPECT"].lower() != "100-continue":
        raise RequestError(HTTPStatus.EXPECTATION_FAILED, "The only supported expectation is 100-continue.")


def set_target(environ: dict[str, Any], target: str) -> None:
    """Set path and query from the request target (RFC 9112 §3.2). Raises RequestError where it is malformed."""
    environ["RAW_URI"] = target
    path, _, query = target.partition("?")
    if "#" in target or (target[0] != "/" and (target, environ["REQUEST_METHOD"]) != ("*", "OPTIONS")):
        try:
            url = urlsplit(target)
        except ValueError:
            url = urlsplit("")
        if "#" in target or url.scheme not in ("http", "https") or not url.netloc or not HOST.fullmatch(url.netloc):
            raise RequestError(HTTPStatus.BAD_REQUEST, "The request target is malformed.")
        environ["HTTP_HOST"] = url.netloc  # RFC 9112 §3.2.2
        path, query = url.path or "/", url.query
    environ["PATH_INFO"] = util.unquote_to_wsgi_str(path) if "%" in path else path
    environ["QUERY_STRING"] = query


@lru_cache(maxsize=64)
def check_host(host: str) -> None:
    """Raise RequestError if a Host header is malformed (RFC 9112 §3.2)."""
    if not HOST.fullmatch(host):
        raise RequestError(HTTPStatus.BAD_REQUEST, "The Host header is malformed.")


@lru_cache(maxsize=512)  # the names that clients use; other names only evict them
def environ_key(name: bytes) -> str | None:
    """The WSGI name of a header field; None for a name with an underscore: WSGI names do not tell it from a hyphen."""
    key = name.decode("latin-1").upper().replace("-", "_")
    if b"_" in name:
        return None
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"


def fields_too_large(limits: Limits) -> RequestError:
    return RequestError(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        f"The header fields exceed a limit: {limits.fields} fields, {limits.field_size:,} bytes for each, "
        f"{MAX_HEAD_SIZE:,} bytes together.",
    )


class Connection:
    """A client's connection: receives requests within their deadlines, and has each answered in turn."""

    __slots__ = ("worker", "_client", "_parser", "_watcher", "_is_stream", "_in_progress", "_requests_at_receive")

    def __init__(self, worker: HttptoolsWorker, client: Any, environ: dict[str, Any]) -> None:
        self.worker = worker
        self._client = client
        self._parser = RequestParser(worker.limits, environ)
        self._watcher: Any = None  # detects that the client closes the connection while a response waits
        self._is_stream = False  # whether the response is an event stream, or has waited for an event
        self._in_progress = False  # whether a request counts as in progress
        self._requests_at_receive = -2  # the worker's count of requests when this connection last received data

    def serve(self) -> None:
        """Answer requests until the connection is to be closed. Raises ConnectionLost."""
        request: Request | None = None
        try:
            request = self._next_request(idle_timeout=self.worker.head_timeout)
            while request and self._answer(request):
                if self._parser.requests:
                    gevent.sleep(FAIRNESS_PAUSE)  # a client that pipelines waits in turn with the others
                request = None
                request = self._next_request(idle_timeout=self.worker.limits.keepalive)
        except RequestError as error:
            self._refuse(error, request.environ if request else self._parser.incomplete_environ)

    def _next_request(self, *, idle_timeout: float) -> Request | None:
        """The next request whose head is complete, or None if no further one will come."""
        parser = self._parser
        deadline = None
        while not parser.requests:
            if parser.error:
                raise parser.error
            if parser.is_idle:
                seconds = idle_timeout
            else:
                deadline = deadline or time.monotonic() + self.worker.head_timeout
                seconds = deadline - time.monotonic()
            try:
                data = self._receive(seconds)
            except TimeoutError:
                if parser.is_idle:
                    return None
                raise RequestError(HTTPStatus.REQUEST_TIMEOUT, "The request head did not arrive in time.") from None
            if not data:
                return None
            parser.feed(data)
        return parser.requests.pop(0)

    def _answer(self, request: Request) -> bool:
        """Have the application answer a request. Returns whether the connection can take another."""
        if self._parser.error and not request.complete:
            raise self._parser.error
        self.worker.count_request()
        response = Response(self, request)
        try:
            self._call_application(request, response)
        except (ConnectionLost, *GREENLET_EXITS):
            self._reset_if_partial(response)
            raise
        except BaseException as error:
            aborted = response.started and isinstance(error, ConnectionAbortedError)  # on purpose, by the application
            if request.error is None and not aborted:
                self.worker.log.exception("Error handling a %s request", request.environ["REQUEST_METHOD"])
            if response.started:  # too late for another status
                self._reset_if_partial(response)
                return False
            internal = RequestError(
                HTTPStatus.INTERNAL_SERVER_ERROR, "The service failed unexpectedly. The error is logged."
            )
            raise (request.error or internal) from error
        # The request that follows a response with keep-alive is answered even if the worker is stopping: a proxy would
        # not repeat a POST whose connection is closed. A stream may have ended because the worker stops; its GET is
        # repeated.
        can_continue = response.keep_alive and (self.worker.alive or not self._is_stream)
        if can_continue and (request.complete or self._discard_body(request)):
            return True
        if not request.complete or self._parser.requests or self._parser.error:
            self._linger()
        return False

    def _call_application(self, request: Request, response: "Response") -> None:
        environ = request.environ
        if request.complete:
            environ["wsgi.input"] = io.BytesIO(b"".join(request.body))
            request.body.clear()
        else:
            environ["wsgi.input"] = io.BufferedReader(BodyReader(self, request))
        environ[WATCH_CLOSING] = self.watch_closing
        self._is_stream = False
        worker = self.worker
        if worker.is_overloaded(environ):
            parts: Iterable[bytes] = worker.refuse_overload(environ, response.start_response)
        else:
            worker.requests_in_progress += 1
            self._in_progress = True
            try:
                parts = worker.wsgi(environ, response.start_response)
            finally:
                self._leave_progress()
        try:
            response.send(parts)
        finally:
            if self._watcher is not None:
                self._stop_watching()
            if hasattr(parts, "close"):
                parts.close()

    def _leave_progress(self) -> None:
        """No longer count the request as in progress: its response is being sent, or it waits for events."""
        if self._in_progress:
            self._in_progress = False
            self.worker.requests_in_progress -= 1

    def watch_closing(self, callback: Callable[[], object]) -> None:
        """Call back if the client closes the connection before the response ends.

        Otherwise, a response that waits for something to send would notice it only when it sends next.
        """
        self._is_stream = True
        self._leave_progress()
        self._watcher = gevent.get_hub().loop.io(self._client.fileno(), READABLE)
        self._watcher.start(self._check_closing, callback)

    def _check_closing(self, callback: Callable[[], object]) -> None:
        """Called by the event loop when the connection is readable: if there is no data, the client has closed it."""
        size = fcntl.ioctl(self._client.fileno(), termios.FIONREAD, bytes(4))
        self._stop_watching()  # even if the client has already sent another request
        if not any(size):
            gevent.spawn(callback)

    def _stop_watching(self) -> None:
        self._watcher.stop()
        self._watcher.close()
        self._watcher = None

    def receive_body(self, request: Request) -> bytes:
        """The next part of a body; empty at its end, or if the client ends it before its Content-Length.

        Raises RequestError where it is malformed or late.
        """
        while not request.body and not request.complete:
            try:
                if not self._receive_more(request):
                    return b""
            except RequestError as error:
                request.error = error
                raise
        return request.body.pop(0) if request.body else b""

    def _receive_more(self, request: Request) -> bool:
        """Receive more of a body. Returns False if the client has closed the connection. Raises RequestError."""
        now = time.monotonic()
        if request.body_started is None:
            request.body_started = now
        if self._parser.error:
            raise self._parser.error
        if request.expects_continue and not request.body_size:
            request.expects_continue = False
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        deadline = request.body_started + self.worker.body_timeout + request.body_size / MIN_BODY_RATE
        try:
            data = self._receive(deadline - now)
        except TimeoutError:
            raise RequestError(HTTPStatus.REQUEST_TIMEOUT, "The body did not arrive in time.") from None
        except OSError:
            data = b""
        if not data:
            request.error = RequestError(HTTPStatus.BAD_REQUEST, "The body is incomplete.")
            if "CONTENT_LENGTH" not in request.environ:
                raise request.error
            return False
        self._parser.feed(data)
        return True

    def _discard_body(self, request: Request) -> bool:
        """Receive what the application did not read, before the next request. Returns whether all of it arrived."""
        with suppress(RequestError):
            while not request.complete and self.receive_body(request):
                pass
        return request.complete

    def _receive(self, seconds: float) -> bytes:
        """Bytes from the client; empty if it has closed the connection. Raises TimeoutError after `seconds`."""
        if seconds <= 0:
            raise TimeoutError
        self._client.settimeout(seconds)
        data: bytes = self._client.recv(READ_SIZE)
        # Other connections first: a client that always has more to send would occupy the worker. If the worker has
        # served another request since this connection last received data, the others have had their turn.
        if data and self.worker.nr - self._requests_at_receive <= 1:
            gevent.sleep(0)
        self._requests_at_receive = self.worker.nr
        return data

    def send(self, data: bytes) -> None:
        """Send all bytes. A client that receives nothing for `send_timeout`, or is too slow, does not get the rest.

        Raises ConnectionLost.
        """
        try:
            self._client.settimeout(self.worker.send_timeout)
            sent = self._client.send(data)
            if sent < len(data):
                self._send_rest(memoryview(data)[sent:])
        except OSError as error:
            raise ConnectionLost(str(error)) from error

    def _send_rest(self, data: memoryview) -> None:
        """Send what did not fit into the socket's buffer. It is in memory until then: several MiB for a batch."""
        deadline = time.monotonic() + self.worker.send_timeout + len(data) / MIN_BODY_RATE
        while data:
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                raise TimeoutError("The client receives the response too slowly.")
            self._client.settimeout(min(self.worker.send_timeout, seconds))
            data = data[self._client.send(data) :]

    def _reset_if_partial(self, response: "Response") -> None:
        """Make close() reset the TCP connection if a client would take its end for the end of the body (RFC 9112
        §8)."""
        if response.started and not response.is_framed:
            with suppress(OSError):
                self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _refuse(self, error: RequestError, environ: dict[str, Any]) -> None:
        """Answer with a problem document, and let the client read it."""
        request_id = request_id_of(environ)
        self.worker.log.info("Refused the request %s: %d %s", request_id, error.status, error.detail)
        if self.worker.rejections is not None:
            self.worker.rejections.labels(error.status.value).inc()
        self.send(problem_response(error, request_id, with_body=environ.get("REQUEST_METHOD") != "HEAD"))
        self._linger()

    def _linger(self) -> None:
        """Discard what the client still sends: closing with bytes unread would lose the response (RFC 9112 §9.6)."""
        deadline = time.monotonic() + LINGER_TIMEOUT
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_WR)
            while self._receive(deadline - time.monotonic()):
                pass


class BodyReader(io.RawIOBase):
    """A body that is received as the application reads it."""

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self._request = request
        self._part = b""  # received and not read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what has arrived; returns 0 at the body's end. Raises TimeoutError, and OSError if the
        body is malformed."""
        if not self._part:
            worker = self._connection.worker
            worker.requests_in_progress -= 1  # meanwhile: slow clients must not make the service refuse others
            try:
                self._part = self._connection.receive_body(self._request)
            except RequestError as error:
                error_class = TimeoutError if error.status == HTTPStatus.REQUEST_TIMEOUT else OSError
                raise error_class(error.detail) from error
            finally:
                worker.requests_in_progress += 1
        size = min(len(buffer), len(self._part))
        buffer[:size], self._part = self._part[:size], self._part[size:]
        return size


class Response:
    """A response on its way to the client: its head and the beginning of its body go out together."""

    __slots__ = ("keep_alive", "started", "is_framed", "_connection", "_request", "_status", "_headers", "_length",
                 "_sent", "_has_body", "_chunked")  # fmt: skip

    def __init__(self, connection: Connection, request: Request) -> None:
        self.keep_alive = False
        self.started = False  # whether the client may have seen some of it
        self.is_framed = False  # whether its head states where the body ends; if not, the end of the connection does
        self._connection = connection
        self._request = request
        self._status = ""
        self._headers: list[str] = []
        self._length: int | None = None  # bytes of the body, if the application says so
        self._sent = 0  # bytes of the body
        self._has_body = request.environ["REQUEST_METHOD"] != "HEAD"
        self._chunked = False

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """Store the status and the header fields (PEP 3333), except the hop-by-hop fields, which the server sets."""
        if self.started:
            raise exc_info[1] if exc_info else AssertionError("The response has started.")
        self._status, lines, self._length = status, [], None
        for name, value in headers:
            lower = name.lower()
            if lower in EVALUATED_FIELDS:
                if lower != "content-length":
                    continue
                self._length = int(value)
            lines.append(f"{name}: {value}")
        if status.startswith(NO_BODY):
            self._has_body = False
            if status[:3] != "304":  # RFC 9110 §8.6
                lines = [line for line in lines if not line.lower().startswith("content-length:")]
        self._headers = lines
        return self.write

    def send(self, parts: Iterable[bytes]) -> None:
        """Send the application's response. Raises ConnectionLost."""
        for part in parts:
            if part:
                self.write(part)
        last = b"" if self.started else self._start()
        if self._chunked:
            last += b"0\r\n\r\n"
        if last:
            self._connection.send(last)
        if self._has_body and not self._chunked and self._sent != self._length:
            self.keep_alive = False  # only the end of the connection ends the body

    def write(self, part: bytes) -> None:
        """Send a part of the body, a small one at the beginning together with the head."""
        head = b"" if self.started else self._start()
        if not self._has_body:
            part = b""
        elif self._chunked:
            part = b"%x\r\n%b\r\n" % (len(part), part) if part else b""  # an empty chunk would end the body
        elif self._length is not None:
            part = part[: self._length - self._sent]
        self._sent += len(part)
        if head and len(part) > LARGE_PART:
            self._connection.send(head)
            head = b""
        if head or part:
            self._connection.send(head + part)

    def _start(self) -> bytes:
        """The head, now that it is final."""
        request, worker = self._request, self._connection.worker
        is_http_1_0 = request.environ["SERVER_PROTOCOL"] == "HTTP/1.0"
        self._chunked = self._has_body and self._length is None and not is_http_1_0
        self.is_framed = self._length is not None or self._chunked or not self._has_body
        can_continue = request.complete or (request.error is None and not request.expects_continue)
        self.keep_alive = request.keep_alive and worker.alive and self.is_framed and can_continue
        lines = [f"HTTP/1.1 {self._status}", date_line(int(time.time())), *self._headers]
        if self._chunked:
            lines.append("Transfer-Encoding: chunked")
        if not self.keep_alive:
            lines.append("Connection: close")
        elif is_http_1_0:
            lines.append("Connection: keep-alive")
        head = "\r\n".join(lines).encode("latin-1")
        if len(head.translate(None, PRINTABLE)) != 2 * (len(lines) - 1):  # CR and LF between the lines
            raise ValueError("A header has a character that is not printable ASCII.")
        self.started = True
        return head + b"\r\n\r\n"


PROBLEM_HEADERS = (
    ("Content-Type", "application/problem+json"),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
)
EXPOSED_HEADERS = "Retry-After, X-Request-Id"
OVERLOADED = RequestError(
    HTTPStatus.SERVICE_UNAVAILABLE, "Too many requests are in progress. Send the request again after Retry-After."
)


def problem_body(error: RequestError, request_id: str) -> bytes:
    """The problem document of an error."""
    slug, title = PROBLEM_TYPES.get(error.status, (None, error.status.phrase))  # RFC 9457 §4.2.1
    problem = {
        "type": f"{PROBLEM_PAGES}/{slug}" if slug else "about:blank",
        "title": title,
        "status": error.status.value,
        "detail": error.detail,
        "request_id": request_id,
    }
    return json.dumps(problem).encode()


def problem_response(error: RequestError, request_id: str, *, with_body: bool) -> bytes:
    """The whole response to a request that the server refuses by itself."""
    status, body = error.status, problem_body(error, request_id)
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        date_line(int(time.time())),
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in PROBLEM_HEADERS),
        f"X-Request-Id: {request_id}",
        "Connection: close",
    )
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body if with_body else b"")


@lru_cache(maxsize=1)
def date_line(second: int) -> str:
    return f"Date: {util.http_date(second)}"
