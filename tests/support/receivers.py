"""Receivers of webhooks: real servers on loopback, in threads, with the responses that a test needs."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
from standardwebhooks import Webhook


@dataclass
class Received:
    """A request that a receiver got."""

    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def event_id(self) -> str:
        return self.headers["webhook-id"]

    def verify(self, secret: str) -> Any:
        """The payload, verified by the reference library. Raises WebhookVerificationError."""
        return Webhook(secret).verify(self.body, self.headers)


# Responds to a request with a status, and optionally a body and headers.
Answer = Callable[[Received], "int | tuple[int, bytes, dict[str, str]]"]


def accept(_request: Received) -> int:
    return 200


@dataclass
class Receiver:
    """A running receiver and its requests, in the order of arrival."""

    server: ThreadingHTTPServer
    scheme: str
    answer: Answer
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    closed_connections: int = 0

    @property
    def port(self) -> int:
        return self.server.server_address[1]

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/hook"

    @property
    def event_ids(self) -> list[str]:
        return [request.event_id for request in self.requests]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Some tests abort connections on purpose."""


@contextmanager
def receiver(
    answer: Answer = accept, *, address: str = "127.0.0.1", port: int = 0, context: ssl.SSLContext | None = None
) -> Iterator[Receiver]:
    """Run a receiver until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # head and body in one packet

        def setup(self) -> None:
            super().setup()
            running.connections += 1

        def finish(self) -> None:
            super().finish()
            running.closed_connections += 1

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            received = Received(self.path, headers, body)
            running.requests.append(received)
            answered = running.answer(received)
            status, content, others = (answered, b"", {}) if isinstance(answered, int) else answered
            if not status:  # abort the connection
                self.close_connection = True
                with suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | others).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    server = _Server((address, port), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    running = Receiver(server, "http" if context is None else "https", answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
