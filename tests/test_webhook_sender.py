"""One request to an endpoint: to the checked address, with the host name, within its limits."""

import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import gevent
import pytest

from app.services import webhook_delivery
from app.services.webhook_delivery import Attempt, WebhookSender, tls_context
from tests.support.certificates import make_certificate
from tests.support.receivers import Received, receiver
from tests.support.servers import TIMEOUT
from tests.support.webhooks import resolve_to

NAME = "hooks.shop.com"


@pytest.fixture
def sender() -> Iterator[WebhookSender]:
    sender = WebhookSender(allow_private=True)
    yield sender
    sender.close()


def send(sender: WebhookSender, url: str, body: bytes = b"{}") -> Attempt:
    return sender.send(url, body, {"webhook-id": "1"})


def test_an_accepted_request_is_a_success(sender: WebhookSender) -> None:
    with receiver(lambda _: (202, b"thanks", {})) as endpoint:
        attempt = send(sender, endpoint.url + "?a=b", b'{"a":1}')

    [request] = endpoint.requests
    assert (attempt.succeeded, attempt.status, attempt.response, attempt.error) == (True, 202, "thanks", None)
    assert (request.path, request.body) == ("/hook?a=b", b'{"a":1}')
    assert request.headers["content-type"] == "application/json"
    assert request.headers["host"] == f"127.0.0.1:{endpoint.port}"


def test_connections_are_kept_open_and_used_again(sender: WebhookSender) -> None:
    with receiver() as endpoint:
        for _ in range(5):
            assert send(sender, endpoint.url).succeeded

    assert (len(endpoint.requests), endpoint.connections) == (5, 1)


def test_a_kept_connection_that_the_endpoint_has_closed_is_replaced_at_once(sender: WebhookSender) -> None:
    with receiver() as endpoint:
        send(sender, endpoint.url)
        port = endpoint.port
    with receiver(port=port) as endpoint:
        assert send(sender, endpoint.url).succeeded


def test_the_name_is_resolved_once_and_the_address_that_was_checked_is_connected() -> None:
    resolved = []

    def flip(host: str, port: int) -> list[str]:
        resolved.append((host, port))
        return [f"127.0.0.{len(resolved) + 1}"]

    sender = WebhookSender(allow_private=True, resolve=flip)
    with receiver(address="127.0.0.2") as checked, receiver(address="127.0.0.3", port=checked.port) as other:
        attempt = send(sender, f"http://{NAME}:{checked.port}/")
    sender.close()

    assert attempt.succeeded
    assert resolved == [(NAME, checked.port)]
    assert [request.headers["host"] for request in checked.requests] == [f"{NAME}:{checked.port}"]
    assert other.requests == []


def test_the_next_address_is_tried_if_one_does_not_respond() -> None:
    sender = WebhookSender(allow_private=True, resolve=resolve_to("127.0.0.2", "127.0.0.1"))
    with receiver() as endpoint:
        assert send(sender, f"http://{NAME}:{endpoint.port}/").succeeded
    sender.close()


def test_only_a_few_of_thousands_of_addresses_are_tried() -> None:
    # Without 127.0.0.1, where others may listen.
    addresses = [f"127.0.{i // 250 + 1}.{i % 250 + 1}" for i in range(2000)]
    with socket.create_server(("127.0.8.250", 0)) as last:  # the last of them; nobody listens at the others
        sender = WebhookSender(allow_private=True, resolve=resolve_to(*addresses))
        attempt = send(sender, f"http://{NAME}:{last.getsockname()[1]}/")

    assert attempt.error == "The connection was refused."


@contextmanager
def tls_receiver(directory: Path, name: str) -> Iterator[Any]:
    """A receiver with a certificate for the name, a context that trusts it, and the names that clients sent (SNI)."""
    certificate, key = make_certificate(directory, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    names: list[str] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    trusting = tls_context()
    trusting.load_verify_locations(certificate)
    with receiver(context=context) as endpoint:
        yield endpoint, trusting, names


def test_over_tls_the_host_name_is_sent_and_verified(tmp_path: Path) -> None:
    with tls_receiver(tmp_path, NAME) as (endpoint, context, names):
        sender = WebhookSender(allow_private=True, resolve=resolve_to("127.0.0.1"), context=context)
        attempts = [send(sender, f"https://{NAME}:{endpoint.port}/") for _ in range(2)]
        sender.close()

    assert all(attempt.succeeded for attempt in attempts), attempts
    assert names == [NAME]
    assert [request.headers["host"] for request in endpoint.requests] == [f"{NAME}:{endpoint.port}"] * 2


@pytest.mark.parametrize("trusted", [True, False])
def test_a_certificate_of_another_name_or_authority_is_refused(tmp_path: Path, trusted: bool) -> None:
    with tls_receiver(tmp_path, "other.shop.com") as (endpoint, context, _):
        context = context if trusted else tls_context()
        sender = WebhookSender(allow_private=True, resolve=resolve_to("127.0.0.1"), context=context)
        attempt = send(sender, f"https://{NAME}:{endpoint.port}/")

    assert attempt.error == "TLS failed: CERTIFICATE_VERIFY_FAILED."
    assert endpoint.requests == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(sender: WebhookSender, status: int) -> None:
    with receiver() as other, receiver(lambda _: (status, b"", {"Location": other.url})) as endpoint:
        attempt = send(sender, endpoint.url)

    assert (attempt.succeeded, attempt.status, other.requests) == (False, status, [])


def test_a_proxy_of_the_environment_is_not_used(sender: WebhookSender, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as proxy, receiver() as endpoint:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert send(sender, endpoint.url).succeeded

    assert proxy.requests == []


def test_the_first_kilobyte_of_a_response_is_kept_without_control_characters(sender: WebhookSender) -> None:
    with receiver(lambda _: (500, b"\0\x1b[2J\xff\xed\xa0\x80" + b"x" * 5000, {})) as endpoint:
        attempt = send(sender, endpoint.url)

    assert attempt.response is not None and len(attempt.response) <= 1024
    assert attempt.response.startswith("��[2J") and attempt.response.endswith("xxx")


@pytest.mark.parametrize(
    ("start", "rest"),
    [
        (b"", b"10000\r\n" + b"x" * 0x10000 + b"\r\n"), (b"1;a=", b"x" * 0x10000), (b"0\r\na: ", b"x" * 0x10000),
    ],
    ids=["chunks", "chunk extension", "trailer"],
)  # fmt: skip
def test_at_most_64_kib_of_a_response_are_read(sender: WebhookSender, start: bytes, rest: bytes) -> None:
    sent = []

    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + start)
        while sum(sent) < 32 * 1024 * 1024:
            sent.append(connection.send(rest))

    with raw_server(flood) as port:
        attempt = send(sender, f"http://127.0.0.1:{port}/")

    assert attempt.succeeded
    assert sum(sent) < 16 * 1024 * 1024  # what fits into the buffers of both sockets


def test_unsolicited_data_on_a_kept_connection_is_not_a_response(sender: WebhookSender) -> None:
    answered, timed_out = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        answered.wait(TIMEOUT)
        connection.sendall(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        timed_out.set()

    with raw_server(serve) as port:
        first = send(sender, f"http://127.0.0.1:{port}/")
        answered.set()
        assert timed_out.wait(TIMEOUT)
        second = send(sender, f"http://127.0.0.1:{port}/")

    assert (first.status, second.status) == (200, 200)


@pytest.mark.parametrize("following", [b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 1\r\n\r\nx", b"garbage"])
def test_data_after_a_response_in_one_packet_is_discarded(sender: WebhookSender, following: bytes) -> None:
    connections: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        connections.append(stack.enter_context(connection.dup()))  # it stays open
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + following)

    with ExitStack() as stack, raw_server(serve) as port:
        attempts = [send(sender, f"http://127.0.0.1:{port}/") for _ in range(2)]

    assert [(attempt.status, attempt.response) for attempt in attempts] == [(200, "ok")] * 2
    assert len(connections) == 2


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that reads a request and then calls `serve` with the connection."""

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                received = chunk = connection.recv(65536)
                while chunk and not received.endswith(b"\r\n\r\n{}"):  # unread data would reset the connection
                    received += (chunk := connection.recv(65536))
                serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def drip(text: bytes) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        for byte in itertools.cycle(text):  # until the client closes the connection
            connection.send(bytes([byte]))
            time.sleep(0.02)

    return serve


@pytest.mark.parametrize(
    "serve",
    [
        drip(b"HTTP/1.1 200 OK\r\n"), drip(b"HTTP/1.1 100 Continue\r\n\r\n"), lambda connection: connection.recv(1),
        lambda connection: (connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"), connection.recv(1)),
    ],
    ids=["slow head", "endless continue", "silence", "silent body"],
)  # fmt: skip
def test_a_request_is_aborted_at_its_deadline_even_if_the_endpoint_responds_slowly(
    sender: WebhookSender, monkeypatch: pytest.MonkeyPatch, serve: Any
) -> None:
    monkeypatch.setattr(webhook_delivery, "REQUEST_SECONDS", 0.3)
    with raw_server(serve) as port:
        attempt = send(sender, f"http://127.0.0.1:{port}/")

    assert attempt.error is not None and attempt.error.startswith("No complete response within")


def test_the_time_of_a_request_includes_the_resolution_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(_host: str, _port: int) -> list[str]:
        gevent.sleep(5)
        return ["127.0.0.1"]

    monkeypatch.setattr(webhook_delivery, "REQUEST_SECONDS", 0.1)
    attempt = send(WebhookSender(allow_private=True, resolve=wait), "http://a.shop.com/")

    assert attempt.error is not None and attempt.error.startswith("No complete response within")


@pytest.mark.parametrize(
    "answer",
    [b"", b"\r\n", b"garbage\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n",
     b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", b"HTTP/1.1 200 OK\r\na: " + b"b" * 70000 + b"\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
     b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"],
)  # fmt: skip
def test_a_response_that_is_not_http_is_a_failure(sender: WebhookSender, answer: bytes) -> None:
    with raw_server(lambda connection: connection.sendall(answer)) as port:
        attempt = send(sender, f"http://127.0.0.1:{port}/")

    assert attempt.error is not None and not attempt.succeeded


def test_a_response_with_an_incomplete_body_counts_by_its_status(sender: WebhookSender) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"
    with raw_server(lambda connection: connection.sendall(answer)) as port:
        attempt = send(sender, f"http://127.0.0.1:{port}/")

    assert (attempt.succeeded, attempt.response) == (True, "x")


def test_a_connection_that_is_refused_is_a_failure(sender: WebhookSender) -> None:
    with receiver() as endpoint:
        url = endpoint.url

    assert send(sender, url).error == "The connection was refused."


def in_the_future() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("120", 120, 120),
        (" 120 \t", 120, 120),
        ("0", 0, 0),
        (in_the_future, 3000, 3600),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(sender: WebhookSender, value: Any, low: int, high: int) -> None:
    text = value if isinstance(value, str) else value()
    with receiver(lambda _: (503, b"", {"Retry-After": text})) as endpoint:
        attempt = send(sender, endpoint.url)

    assert attempt.retry_after is not None and low <= attempt.retry_after <= high


@pytest.mark.parametrize(
    "value",
    [
        "soon", "-1", "1.5", "99999999999", "Wed, 99 Oct 2015 07:28:00 GMT", f"Wed, 21 Oct {'9' * 20} 07:28:00 GMT",
        f"Wed, 21 Oct 2015 07:28:00 +{'9' * 30}",
    ],
)  # fmt: skip
def test_an_invalid_retry_after_is_ignored(sender: WebhookSender, value: str) -> None:
    with receiver(lambda _: (503, b"", {"Retry-After": value})) as endpoint:
        assert send(sender, endpoint.url).retry_after is None


def test_many_requests_are_open_at_once(sender: WebhookSender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_delivery, "REQUEST_SECONDS", 2.0 * TIMEOUT)
    together = threading.Barrier(50, timeout=TIMEOUT)

    def answer_together(_request: Received) -> int:
        together.wait()
        return 200

    with receiver(answer_together) as endpoint:
        greenlets = [gevent.spawn(send, sender, endpoint.url) for _ in range(50)]
        gevent.joinall(greenlets)

    assert all(greenlet.value.succeeded for greenlet in greenlets)
