"""Signing one request and sending it to an endpoint: to an address that has been checked, within fixed limits.

Requests run in greenlets with gevent's own sockets, whether or not the process is patched: thousands can wait for slow
endpoints, and `gevent.Timeout` bounds all of a request together, the name resolution included. A thread can do neither.
No redirect is followed, and no proxy is read from the environment.

Secrets and signatures: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import hmac
import re
import secrets
import select
import socket
import time
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from ssl import CERT_REQUIRED, PROTOCOL_TLS_CLIENT, SSLError, TLSVersion
from typing import Any

import gevent
import gevent.socket
from cryptography.fernet import Fernet, InvalidToken
from gevent.ssl import SSLContext
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from app.config import RANDOM_KEY_PREFIX
from app.models.webhook_url import RefusedURL, WebhookURL, check_addresses, parse_webhook_url

REQUEST_SECONDS = 10.0  # for the whole request: name resolution, connection, TLS, response
_CONNECT_SECONDS = 3.0  # for one of several addresses
_ADDRESSES_MAX = 8  # addresses that are tried: a DNS response can have thousands, of other people's machines
RESPONSE_MAX = 64 * 1024  # bytes after the head that are read: body, sizes of chunks, trailers
RESPONSE_KEPT = 1024  # bytes of it that are stored
_HEAD_MAX = 64 * 1024  # bytes
_RECEIVE_SIZE = 16 * 1024  # bytes
_USER_AGENT = "order-service-webhooks/1.0"
_IDLE_MAX = 16  # connections to one endpoint that are kept open
_IDLE_SECONDS = 15.0  # many servers close idle connections after 60 s or more, some after 20
_CONNECTION_SECONDS = 60.0  # that a connection is used; then the name is resolved again
_SECONDS = re.compile("[0-9]{1,9}")
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]")
_SECRET_PREFIX = "whsec_"  # the prefix that the specification gives every secret  # nosec B105
_SECRET_BYTES = 32  # the specification: 24 to 64
_PLAIN, _ENCRYPTED = "plain:", "fernet:"

# The addresses of a host. Raises OSError.
Resolver = Callable[[str, int], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Attempt:
    """The result of one request: `status` and `response`, the beginning of the body; or `error`, why there is none.

    `retry_after` is in seconds.
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
    """The addresses of a host. Other greenlets run meanwhile, and `gevent.Timeout` bounds it, whether or not the
    process is patched. Raises OSError.
    """
    addresses = gevent.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(address[0] for *_, address in addresses))


def tls_context() -> SSLContext:
    """TLS 1.2 or newer, with the certificate authorities of the system; SSL_CERT_FILE names others."""
    context = SSLContext(PROTOCOL_TLS_CLIENT)
    context.minimum_version = TLSVersion.TLSv1_2
    context.verify_mode = CERT_REQUIRED
    context.load_default_certs()
    return context


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
                outcome = _outcome(self._post(url, body, headers))
        except gevent.Timeout:
            outcome = {"error": f"No complete response within {REQUEST_SECONDS:.0f} seconds."}
        except (OSError, RefusedURL, InvalidResponse) as error:
            outcome = {"error": _explain(error)}
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
            if reusable and len(idle) < _IDLE_MAX:
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


def _outcome(response: _Response) -> dict[str, Any]:
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
    if _SECONDS.fullmatch(value):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # OverflowError: a number of any length
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
    return "The response is not valid HTTP."


class UnreadableSecret(Exception):
    """The secret was encrypted with another SECRET_KEY. It must be rotated."""


def new_secret() -> str:
    """A random secret, `whsec_` and base64."""
    return _SECRET_PREFIX + b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signed_headers(message_id: str, body: bytes, *, timestamp: int, secrets: Sequence[str]) -> dict[str, str]:
    """The headers of a request, with one signature for each secret. `timestamp` is in seconds since 1970."""
    content = f"{message_id}.{timestamp}.".encode() + body
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(_signature(content, secret) for secret in secrets),
    }


def _signature(content: bytes, secret: str) -> str:
    key = b64decode(secret.removeprefix(_SECRET_PREFIX))
    return "v1," + b64encode(hmac.digest(key, content, "sha256")).decode()


class SecretStore:
    """Seals secrets for the database and opens them again.

    With a SECRET_KEY they are encrypted and authenticated with a key derived from it: a copy of the database alone
    reveals none. Anyone who also has the settings of the service, or runs code in it, can read them all. Without a
    SECRET_KEY they are stored in plain text, and anyone who can read the database can sign.
    """

    def __init__(self, secret_key: str) -> None:
        self._fernet: Fernet | None = None
        if not secret_key.startswith(RANDOM_KEY_PREFIX):
            key = blake2b(secret_key.encode(), digest_size=32, person=b"webhook secrets").digest()
            self._fernet = Fernet(urlsafe_b64encode(key))

    def seal(self, secret: str) -> str:
        """The text to store."""
        if self._fernet is None:
            return _PLAIN + secret
        return _ENCRYPTED + self._fernet.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """The secret in a stored text. Raises UnreadableSecret."""
        if sealed.startswith(_PLAIN):
            return sealed.removeprefix(_PLAIN)
        if self._fernet is None:
            raise UnreadableSecret
        try:
            return self._fernet.decrypt(sealed.removeprefix(_ENCRYPTED)).decode()
        except InvalidToken:
            raise UnreadableSecret from None
