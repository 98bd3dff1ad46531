"""Delivering webhooks: the loop of a worker claims what is due, sends it, and stores the results.

An endpoint has at most CONCURRENCY requests open in a worker, and one after UNREACHABLE_AFTER failures in a row, so
that a slow or dead endpoint does not delay the others. The loop uses the database while requests are open.

Requests are greenlets of one thread, with gevent's own sockets, whether or not the process is patched: thousands can
wait for slow endpoints, and `gevent.Timeout` bounds all of a request together, the name resolution included. A thread
can do neither. The sender, after the loop, sends them to addresses that it has checked, within fixed limits. It follows
no redirect, and reads no proxy from the environment.
"""

import random
import re
import select
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ssl import CERT_REQUIRED, PROTOCOL_TLS_CLIENT, SSLError, TLSVersion
from typing import Any, TypeVar, cast

import gevent
import gevent.socket
import structlog
from gevent.event import Event
from gevent.lock import BoundedSemaphore
from gevent.ssl import SSLContext
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from app.models.webhook import UNREACHABLE_AFTER, RefusedURL, WebhookURL, check_addresses, parse_webhook_url
from app.services.credentials import SecretStore, UnreadableSecret, signed_headers
from app.services.webhook_queue import (
    Attempt,
    ClaimedDelivery,
    DueEndpoint,
    any_due,
    claim,
    complete,
    due_endpoints,
    fan_out,
    release,
)
from app.services.webhook_service import (
    ENDPOINTS_MAX,
    Resolver,
    end_impossible_pauses,
    prune_deliveries,
    resolve_host,
    webhook_rules,
)
from app.services.worker import SEQUENCING, Task
from app.tracing import delivery_span, propagation_headers, record_response

log = structlog.get_logger()

Result = TypeVar("Result")

CONCURRENCY = 10  # open requests of one endpoint in a worker
# Deliveries claimed for a fast endpoint: more than can be sent at once, so that it need not wait for the database, but
# no more than it accepts in CLAIM_SECONDS. A delivery that has waited that long, because the endpoint has become
# slower, is released: within that time it may still be sent after an erasure, or after the endpoint is deleted or
# disabled.
CLAIMED_MAX = 150
CLAIM_SECONDS = 1.0
OPEN_MAX = 5_000  # claimed deliveries in a worker
# Bytes of their bodies, some of which have a MiB. The sizes of the next bodies are known only once they are claimed: a
# claim assumes that each is as large as the largest one of the endpoint's last claim.
OPEN_BYTES_MAX = 64 * 1024**2
# Results in one transaction. Each has up to 50 attempts with responses of a KiB: those of thousands would exceed the
# time limit of a statement at each attempt to store them.
RESULTS_MAX = 200
_CALL_SECONDS = 1.0  # after which a call returns, although requests are open
_POLL_PAUSE = 0.05  # seconds between two checks for new deliveries while requests are open
_COLLECT_SECONDS = 0.02  # seconds to wait for further results, so that they share a transaction

REQUEST_SECONDS = 10.0  # for the whole request: name resolution, connection, TLS, response
_CONNECT_SECONDS = 3.0  # for one of several addresses
_ADDRESSES_MAX = 8  # addresses that are tried: a DNS response can have thousands, of other people's machines
RESPONSE_MAX = 64 * 1024  # bytes after the head that are read: body, sizes of chunks, trailers
RESPONSE_KEPT = 1024  # bytes of it that are stored
_HEAD_MAX = 64 * 1024  # bytes
_RECEIVE_SIZE = 16 * 1024  # bytes
_USER_AGENT = "order-service-webhooks/1.0"
_IDLE_CONNECTIONS_MAX = 16  # connections to one endpoint that are kept open
_IDLE_SECONDS = 15.0  # many servers close idle connections after 60 s or more, some after 20
_CONNECTION_SECONDS = 60.0  # that a connection is used; then the name is resolved again
_DELAY_SECONDS = re.compile("[0-9]{1,9}")
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]")


def webhook_tasks(config: Mapping[str, Any], observe: Callable[[Attempt], None]) -> tuple[Task, ...]:
    """The tasks of a worker: fill the queue, deliver, and delete old deliveries.

    `observe` is called after each request to an endpoint.
    """
    rules = webhook_rules(config)
    deliverer = WebhookDeliverer(WebhookSender(allow_private=rules.allow_private), rules.secrets, observe)
    return (
        Task("webhook queue", fan_out, idle_pause=1, woken_by=SEQUENCING),
        Task("webhooks", deliverer.run, idle_pause=0.5, woken_by="webhook queue", finish=deliverer.finish),
        Task("webhook pauses", end_impossible_pauses, idle_pause=600),
        Task("webhook retention", _Retention().run, idle_pause=3600),
    )


class _Retention:
    """Deletes old deliveries, a batch with each call."""

    def __init__(self) -> None:
        self._batches: Iterator[int] | None = None

    def run(self) -> bool:
        """Delete a batch, and return whether there may be more."""
        batches, self._batches = self._batches or prune_deliveries(), None  # after an error, the next call starts over
        if next(batches, None) is not None:
            self._batches = batches
        return self._batches is not None


@dataclass(slots=True)
class _EndpointState:
    """What a worker has claimed for one endpoint, and how the endpoint responds."""

    sending: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(CONCURRENCY))
    claimed: int = 0
    largest: int = 1  # bytes of a body of the last claim
    unstored: int = 0  # results
    milliseconds: int = round(1000 * CLAIM_SECONDS)  # of the last request; at first, a slow one is expected
    failing: bool = False  # the last request failed

    def capacity(self, endpoint: DueEndpoint) -> int:
        """How many more deliveries may be claimed for the endpoint."""
        if endpoint.consecutive_failures >= UNREACHABLE_AFTER:
            return 1 - self.claimed
        if self.failing or endpoint.consecutive_failures:
            # The results of its open requests may pause it once they are stored.
            return 0 if self.claimed or self.unstored else CONCURRENCY
        claimed_max = min(CLAIMED_MAX, int(CONCURRENCY * 1000 * CLAIM_SECONDS / max(self.milliseconds, 1)))
        if claimed_max <= CONCURRENCY:
            return CONCURRENCY - self.claimed
        return claimed_max - self.claimed if self.claimed < claimed_max / 2 else 0  # few large claims


class WebhookDeliverer:
    """Delivers webhooks in the thread that calls it."""

    def __init__(self, sender: "WebhookSender", secrets: SecretStore, observe: Callable[[Attempt], None]) -> None:
        self._sender = sender
        self._secrets = secrets
        self._observe = observe
        self._endpoints: defaultdict[str, _EndpointState] = defaultdict(_EndpointState)
        self._open_bytes = 0  # of the bodies of what is claimed
        self._results: list[tuple[ClaimedDelivery, Attempt | None]] = []  # None: not sent
        self._finished = Event()
        self._stopping = False

    def run(self) -> bool:
        """Deliver due events for up to a second. Returns whether requests are open or more events are due.

        Open requests continue with the next call. Raises DATABASE_ERRORS; results that could not be stored are kept for
        the next call.
        """
        # First, not only when all is sent: one slow endpoint keeps the worker busy for as long as it has events.
        self._sender.close_idle()
        self._forget_idle_endpoints()
        # Before a claim: while they cannot be stored, more would be sent without a limit, and those whose leases have
        # ended again.
        self._store_results()
        deadline = time.monotonic() + _CALL_SECONDS
        while time.monotonic() < deadline:
            claimed = self._claim()
            if not claimed and not self._is_busy():
                return False
            self._wait(_POLL_PAUSE)
            self._store_results()
        return True

    def finish(self) -> None:
        """Complete the open requests, and release deliveries that were claimed and not sent."""
        self._stopping = True
        deadline = time.monotonic() + REQUEST_SECONDS + 1
        while self._is_busy() and time.monotonic() < deadline:
            self._wait(_POLL_PAUSE)
            self._store_results()
        self._sender.close()

    def _claim(self) -> int:
        """Claim and begin to send what is due, and return its number."""
        if not _in_thread(any_due, datetime.now(UTC)):
            return 0
        total = 0
        endpoints = _in_thread(due_endpoints, datetime.now(UTC))
        random.shuffle(endpoints)  # the first ones may use all of the capacity: they must not be the same each time
        for endpoint in endpoints:
            state = self._endpoints[endpoint.id]
            limit = min(state.capacity(endpoint), OPEN_MAX - self._claimed(), self._fitting(state.largest))
            if limit <= 0:
                continue
            claimed_at, deliveries = time.monotonic(), _in_thread(claim, endpoint, limit)
            for delivery in deliveries:
                state.claimed += 1
                self._open_bytes += len(delivery.body)
                gevent.spawn(self._deliver, delivery, state, claimed_at)
            if deliveries:
                state.largest = max(len(delivery.body) for delivery in deliveries)
            total += len(deliveries)
        return total

    def _forget_idle_endpoints(self) -> None:
        """Remove the states of endpoints without open requests, if some must be of endpoints that were deleted."""
        if len(self._endpoints) > ENDPOINTS_MAX:
            idle = [id for id, state in self._endpoints.items() if not state.claimed and not state.unstored]
            for endpoint_id in idle:
                del self._endpoints[endpoint_id]

    def _claimed(self) -> int:
        return sum(state.claimed for state in self._endpoints.values())

    def _is_busy(self) -> bool:
        return bool(self._claimed() or self._results)

    def _fitting(self, largest: int) -> int:
        """How many more bodies of the length `largest` fit into OPEN_BYTES_MAX; at least one if none is open."""
        fitting = (OPEN_BYTES_MAX - self._open_bytes) // largest
        return fitting if self._open_bytes else max(fitting, 1)

    def _deliver(self, delivery: ClaimedDelivery, state: _EndpointState, claimed_at: float) -> None:
        """Send a delivery as soon as the endpoint has fewer than CONCURRENCY open requests."""
        attempt = None
        try:
            with state.sending:
                if not self._stopping and time.monotonic() - claimed_at < CLAIM_SECONDS:
                    attempt = self._send(delivery)
                    self._observe(attempt)
                    state.milliseconds, state.failing = attempt.milliseconds, not attempt.succeeded
        finally:
            state.claimed -= 1
            self._open_bytes -= len(delivery.body)
            state.unstored += 1
            self._results.append((replace(delivery, body=b""), attempt))  # the body has been sent
            self._finished.set()

    def _send(self, delivery: ClaimedDelivery) -> Attempt:
        now = datetime.now(UTC)
        try:
            secrets = self._open(*delivery.endpoint.secrets)
        except UnreadableSecret:
            return Attempt(now, 0, error="Not sent: SECRET_KEY has changed, so the secret is lost. Rotate the secret.")
        headers = signed_headers(
            delivery.event_id, delivery.body, timestamp=int(now.timestamp()), secrets=secrets
        )  # a timestamp for each attempt: receivers refuse old ones
        try:
            with delivery_span(delivery.traceparent, _span_attributes(delivery)):
                attempt = self._sender.send(delivery.endpoint.url, delivery.body, headers | propagation_headers())
                record_response(attempt.status)
                return attempt
        except Exception as error:  # without an attempt, the delivery would be due again at once, endlessly
            log.error("webhook request failed", endpoint_id=delivery.endpoint.id, exc_info=error)
            return Attempt(now, 0, error="The request failed because of an error in the service. It is logged.")

    def _open(self, sealed: str, *previous: str) -> list[str]:
        """The secrets to sign with. Raises UnreadableSecret for the current one; an unreadable previous one is left
        out."""
        secrets = [self._secrets.open(sealed)]
        with suppress(UnreadableSecret):
            secrets += map(self._secrets.open, previous)
        return secrets

    def _wait(self, seconds: float) -> None:
        """Let the requests run for up to `seconds`, or until one, and others shortly after it, have finished."""
        if self._finished.wait(seconds):
            gevent.sleep(_COLLECT_SECONDS)
        self._finished.clear()

    def _store_results(self) -> None:
        for _ in range(0, len(self._results), RESULTS_MAX):  # what finishes meanwhile may be left to the next call
            self._store_page()

    def _store_page(self) -> None:
        results = self._results[:RESULTS_MAX]
        # Attempts last: after an error everything is repeated, and an endpoint would count its failures twice.
        unsent = [delivery for delivery, attempt in results if attempt is None]
        if unsent:
            _in_thread(release, unsent)
        sent = [(delivery, attempt) for delivery, attempt in results if attempt is not None]
        if sent:
            _in_thread(complete, sent)
        del self._results[: len(results)]
        for delivery, _ in results:
            self._endpoints[delivery.endpoint.id].unstored -= 1


def _span_attributes(delivery: ClaimedDelivery) -> dict[str, Any]:
    return {
        "http.request.method": "POST",
        "http.request.resend_count": delivery.attempt_count,
        "webhook_id": delivery.endpoint.id,
        "event_id": delivery.event_id,
    }


def _in_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function that uses the database in a thread of gevent's pool, so that open requests continue meanwhile.

    It runs in a copy of this thread's context, which has the application's session. The caller waits, so that two
    threads never use the session at the same time.
    """
    result, error = gevent.get_hub().threadpool.apply(copy_context().run, (_result_or_error, function, *arguments))
    if error is not None:
        raise error
    return cast(Result, result)


def _result_or_error(function: Callable[..., Result], *arguments: Any) -> tuple[Result | None, Exception | None]:
    """The result or the error: gevent would print the traceback of an exception that leaves the thread."""
    try:
        return function(*arguments), None
    except Exception as error:
        return None, error


class InvalidResponse(Exception):
    """The response is not HTTP, or its head is too large."""


class _Response:
    """A response while it is read; the methods are callbacks of llhttp's parser."""

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self.status = 0
        self.head_size = self.body_size = 0  # bytes received; the body's with its coding
        self.body = b""
        self.retry_after: str | None = None
        self.in_body = self.is_complete = self._keeps_alive = False

    def feed(self, data: bytes) -> None:
        """Parse the next part. Raises InvalidResponse.

        What follows the end of the response is discarded, and the connection is not used again (RFC 9112 §6.3).
        """
        if self.in_body:
            self.body_size += len(data)
        else:
            self.head_size += len(data)
        if self.head_size > _HEAD_MAX:
            raise InvalidResponse("The head is too large.")
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as error:  # it was not requested
            raise InvalidResponse(str(error)) from None
        except HttpParserError as error:
            if not self.is_complete:
                raise InvalidResponse(str(error)) from None
            self._keeps_alive = False

    def allows_reuse(self) -> bool:
        """Whether the connection can be used for another request."""
        return self.is_complete and self._keeps_alive

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise InvalidResponse("Another response follows.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self.retry_after = value.decode("latin-1").strip()  # llhttp keeps the space at its end

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self.in_body = self.status >= 200  # 1xx: another head follows (RFC 9110 §15.2)
        self._keeps_alive = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.is_complete = self.in_body


class CheckedConnection:
    """A connection to one of some addresses that have been checked.

    The Host header, SNI and the name in the certificate are the URL's. The request is written here, since every part of
    it has been checked, and llhttp parses the response: `http.client` takes 0.3 ms more for a request.
    """

    def __init__(self, url: WebhookURL, addresses: Sequence[str], context: SSLContext | None) -> None:
        connection = _connect(url.port, *addresses)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._socket = context.wrap_socket(connection, server_hostname=url.host) if context else connection
        except BaseException:
            connection.close()
            raise
        self._opened_at = self._used_at = time.monotonic()
        self._head = (
            f"POST {url.target} HTTP/1.1\r\nHost: {url.netloc}\r\nUser-Agent: {_USER_AGENT}\r\n"
            "Content-Type: application/json\r\nAccept-Encoding: identity\r\n"
        )

    def post(self, body: bytes, headers: Mapping[str, str]) -> _Response:
        """Send a request and read its response. Raises OSError and InvalidResponse."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._socket.sendall(f"{self._head}{lines}Content-Length: {len(body)}\r\n\r\n".encode("ascii") + body)
        response = _Response()
        while not response.is_complete and response.body_size < RESPONSE_MAX:
            data = self._socket.recv(_RECEIVE_SIZE)
            if not data and not response.head_size:
                raise ConnectionResetError("The connection was closed without a response.")
            if not data and not response.in_body:
                raise InvalidResponse("The response ends within its head.")
            if not data:
                break
            response.feed(data)
        self._used_at = time.monotonic()
        return response

    def is_reusable(self) -> bool:
        """Whether the connection is young enough for another request, and nothing has come since the last one.

        Some servers send an unsolicited 408 before they close an idle connection. It would be taken for the response to
        the next request.
        """
        now = time.monotonic()
        is_young = now - self._opened_at < _CONNECTION_SECONDS and now - self._used_at < _IDLE_SECONDS
        received = select.poll()
        received.register(self._socket.fileno(), select.POLLIN)
        return is_young and not received.poll(0)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _connect(port: int, address: str, *others: str) -> Any:
    """Connect to the first address that responds; no name is resolved."""
    try:
        connection = gevent.socket.create_connection((address, port), _CONNECT_SECONDS if others else None)
        connection.settimeout(None)  # gevent.Timeout bounds the rest
        return connection
    except OSError:
        if not others:
            raise
    return _connect(port, *others)


def tls_context() -> SSLContext:
    """TLS 1.2 or newer, with the certificate authorities of the system; SSL_CERT_FILE names others."""
    context = SSLContext(PROTOCOL_TLS_CLIENT)
    context.minimum_version = TLSVersion.TLSv1_2
    context.verify_mode = CERT_REQUIRED
    context.load_default_certs()
    return context


class WebhookSender:
    """Sends requests, and keeps connections open for the next ones. It belongs to one thread."""

    def __init__(
        self, *, allow_private: bool, resolve: Resolver = resolve_host, context: SSLContext | None = None
    ) -> None:
        self._allow_private = allow_private
        self._resolve = resolve
        self._context = context or tls_context()
        self._idle: dict[str, list[CheckedConnection]] = {}  # by URL

    def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> Attempt:
        """Send one POST request. Never raises for what the endpoint does."""
        at, started = datetime.now(UTC), time.perf_counter()
        outcome: dict[str, Any]
        try:
            with gevent.Timeout(REQUEST_SECONDS):
                outcome = _response_outcome(self._post(url, body, headers))
        except gevent.Timeout:
            outcome = {"error": f"No complete response within {REQUEST_SECONDS:.0f} seconds."}
        except (OSError, RefusedURL, InvalidResponse) as error:
            outcome = {"error": _failure_reason(error)}
        return Attempt(at, round((time.perf_counter() - started) * 1000), **outcome)

    def close(self) -> None:
        """Close all idle connections."""
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    def close_idle(self) -> None:
        """Close the connections that have been idle for too long."""
        for url, connections in list(self._idle.items()):
            for connection in [idle for idle in connections if not idle.is_reusable()]:
                connections.remove(connection)
                connection.close()
            if not connections:
                del self._idle[url]

    def _post(self, url: str, body: bytes, headers: Mapping[str, str]) -> _Response:
        idle = self._pop_idle(url)
        if idle is not None:
            # The endpoint may have closed it at any time; an event that it did receive keeps its webhook-id.
            with suppress(ConnectionError, SSLError):
                return self._exchange(idle, url, body, headers)
        return self._exchange(self._open(url), url, body, headers)

    def _open(self, text: str) -> CheckedConnection:
        """Check the URL, resolve its host once, check every address, and connect to one of them."""
        url = parse_webhook_url(text, allow_private=self._allow_private)
        addresses = self._resolve(url.host, url.port)
        check_addresses(addresses, allow_private=self._allow_private)
        return CheckedConnection(url, addresses[:_ADDRESSES_MAX], self._context if url.scheme == "https" else None)

    def _exchange(self, connection: CheckedConnection, url: str, body: bytes, headers: Mapping[str, str]) -> _Response:
        reusable = False
        try:
            response = connection.post(body, headers)
            reusable = response.allows_reuse()
        finally:  # also after gevent.Timeout
            idle = self._idle.setdefault(url, [])
            if reusable and len(idle) < _IDLE_CONNECTIONS_MAX:
                idle.append(connection)
            else:
                connection.close()
        return response

    def _pop_idle(self, url: str) -> CheckedConnection | None:
        connections = self._idle.get(url, [])
        while connections:
            connection = connections.pop()
            if connection.is_reusable():
                return connection
            connection.close()
        return None


def _response_outcome(response: _Response) -> dict[str, Any]:
    text = response.body[:RESPONSE_KEPT].decode(errors="replace")
    return {
        "status": response.status,
        "response": _CONTROL_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", text),
        "retry_after": _retry_after(response.retry_after),
    }


def _retry_after(value: str | None) -> float | None:
    """The seconds in a Retry-After header, a number or a date (RFC 9110 §10.2.3); None without a valid one."""
    if value is None:
        return None
    if _DELAY_SECONDS.fullmatch(value):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # OverflowError: a number of any length
        return None
    if moment.tzinfo is None:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _failure_reason(error: Exception) -> str:
    if isinstance(error, RefusedURL):
        return f"Not sent: {error}"
    if isinstance(error, socket.gaierror):
        return "The host name cannot be resolved."
    if isinstance(error, SSLError):
        return f"TLS failed: {error.reason or type(error).__name__}."
    if isinstance(error, ConnectionRefusedError):
        return "The connection was refused."
    if isinstance(error, OSError):
        return f"The connection failed: {error.strerror or type(error).__name__}."
    return "The response is not valid HTTP."
