"""Sending one request to an endpoint: to an address that has been checked, within fixed limits.

Requests run in greenlets with gevent's own sockets, whether or not the process is patched: thousands can wait for slow
endpoints, and `gevent.Timeout` bounds all of a request together, the name resolution included. A thread can do neither.
`http.client` follows no redirect and reads no proxy from the environment.
"""

import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, RemoteDisconnected
from ssl import CERT_REQUIRED, PROTOCOL_TLS_CLIENT, SSLError, TLSVersion
from typing import Any

import gevent
import gevent.socket
from gevent.ssl import SSLContext

from app.models.webhook_url import RefusedURL, WebhookURL, check_addresses, parse_webhook_url

REQUEST_SECONDS = 10.0  # for the whole request: name resolution, connection, TLS, response
RESPONSE_MAX = 64 * 1024  # bytes of the body that are read
RESPONSE_KEPT = 1024  # bytes of it that are stored
_USER_AGENT = "order-service-webhooks/1.0"
_IDLE_MAX = 16  # connections to one endpoint that are kept open
_IDLE_SECONDS = 15.0  # many servers close idle connections after 60 s or more, some after 20
_CONNECTION_SECONDS = 60.0  # that a connection is used; then the name is resolved again
_SECONDS = re.compile("[0-9]{1,9}")
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]")

# The addresses of a host. Raises OSError.
Resolver = Callable[[str, int], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one request.

    Either `status` and `response`, the beginning of the body, or `error`, why there was no response. `retry_after` is
    in seconds.
    """

    at: datetime
    milliseconds: int
    status: int | None = None
    response: str | None = None
    error: str | None = None
    retry_after: float | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the endpoint has accepted the event."""
        return self.status is not None and 200 <= self.status < 300


def resolve_host(host: str, port: int) -> list[str]:
    """The addresses of a host. In a process that gevent has patched, other greenlets run meanwhile. Raises OSError."""
    return _unique(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


def resolve_in_greenlet(host: str, port: int) -> list[str]:
    """The addresses of a host. Other greenlets run meanwhile. Raises OSError."""
    return _unique(gevent.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


def _unique(found: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(address[0] for *_, address in found))


def tls_context() -> SSLContext:
    """TLS 1.2 or newer, with the certificate authorities of the system; SSL_CERT_FILE names others."""
    context = SSLContext(PROTOCOL_TLS_CLIENT)
    context.minimum_version = TLSVersion.TLSv1_2
    context.verify_mode = CERT_REQUIRED
    context.load_default_certs()
    return context


class CheckedConnection(HTTPConnection):
    """A connection to one of some addresses. SNI and the name in the certificate are the URL's host."""

    def __init__(self, url: WebhookURL, addresses: Sequence[str], context: SSLContext | None) -> None:
        super().__init__(url.host, url.port)
        self.opened_at = self.used_at = time.monotonic()
        self._url, self._addresses, self._context = url, addresses, context

    def connect(self) -> None:
        """Connect to the first address that answers; no name is resolved."""
        connection = self._connect_to(*self._addresses)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_hostname=self._url.host)
        self.sock: Any = connection

    def _connect_to(self, address: str, *others: str) -> Any:
        try:
            return gevent.socket.create_connection((address, self._url.port))
        except OSError:
            if not others:
                raise
        return self._connect_to(*others)

    def is_reusable(self) -> bool:
        """Whether the connection is young enough for another request."""
        now = time.monotonic()
        return now - self.opened_at < _CONNECTION_SECONDS and now - self.used_at < _IDLE_SECONDS


class WebhookSender:
    """Sends requests, and keeps connections open for the next ones. It belongs to one thread."""

    def __init__(
        self, *, allow_private: bool, resolve: Resolver = resolve_in_greenlet, context: SSLContext | None = None
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
                outcome = self._post(url, body, headers)
        except gevent.Timeout:
            outcome = {"error": f"No complete response within {REQUEST_SECONDS:.0f} seconds."}
        except (OSError, HTTPException, ValueError) as error:
            outcome = {"error": _explain(error)}
        return Attempt(at, round((time.perf_counter() - started) * 1000), **outcome)

    def close(self) -> None:
        """Close all idle connections."""
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    def _post(self, text: str, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        url = parse_webhook_url(text, allow_private=self._allow_private)
        sent = {
            "Host": url.netloc,
            "Content-Type": "application/json",
            "User-Agent": _USER_AGENT,
            "Accept-Encoding": "identity",
            **headers,
        }
        idle = self._take_idle(text)
        if idle is not None:
            # The endpoint may have closed it at any time; an event that it did receive keeps its webhook-id.
            with suppress(RemoteDisconnected, ConnectionResetError, BrokenPipeError, SSLError):
                return self._exchange(idle, text, url, body, sent)
        return self._exchange(self._connect(url), text, url, body, sent)

    def _connect(self, url: WebhookURL) -> CheckedConnection:
        """Resolve the host once, check every address, and prepare a connection to one of them."""
        addresses = self._resolve(url.host, url.port)
        check_addresses(addresses, allow_private=self._allow_private)
        return CheckedConnection(url, addresses, self._context if url.scheme == "https" else None)

    def _exchange(
        self, connection: CheckedConnection, text: str, url: WebhookURL, body: bytes, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        reusable = False
        try:
            connection.request("POST", url.target, body, dict(headers))
            response = connection.getresponse()
            content = response.read(RESPONSE_MAX)
            reusable = response.isclosed() and not response.will_close
        finally:  # also after gevent.Timeout
            if not reusable:
                connection.close()
        self._keep(text, connection)
        return _outcome(response, content)

    def _take_idle(self, url: str) -> CheckedConnection | None:
        connections = self._idle.get(url, [])
        while connections:
            connection = connections.pop()
            if connection.is_reusable():
                return connection
            connection.close()
        return None

    def _keep(self, url: str, connection: CheckedConnection) -> None:
        connections = self._idle.setdefault(url, [])
        if connection.sock is None or len(connections) >= _IDLE_MAX:
            connection.close()
            return
        connection.used_at = time.monotonic()
        connections.append(connection)

    def close_idle(self) -> None:
        """Close the connections that have been idle for too long."""
        for url, connections in list(self._idle.items()):
            for connection in [one for one in connections if not one.is_reusable()]:
                connections.remove(connection)
                connection.close()
            if not connections:
                del self._idle[url]


def _outcome(response: HTTPResponse, content: bytes) -> dict[str, Any]:
    text = _CONTROL_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", content[:RESPONSE_KEPT].decode(errors="replace"))
    return {"status": response.status, "response": text, "retry_after": _retry_after(response.getheader("Retry-After"))}


def _retry_after(value: str | None) -> float | None:
    """The seconds in a Retry-After header, a number or a date (RFC 9110 §10.2.3); None without a valid one."""
    if value is None:
        return None
    if _SECONDS.fullmatch(value):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _explain(error: Exception) -> str:
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
    return f"The response is not valid HTTP: {type(error).__name__}."
