"""`valgrind --tool=callgrind … python -m tests.cost.counted_requests`: counts the instructions of requests.

Each kind of request has its own dump, named after the kind. The application is called as a server calls it,
with what nginx adds to a request, on the database of DATABASE_URL.
"""

import gc
import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count, cycle
from typing import Any

from flask import Flask

from app import create_app
from app.db import statements
from app.http import auth
from app.services.credentials import create_api_key
from tests.support.worker import worker_of

COUNTED = 100  # requests of each kind, so many that the commands to valgrind hardly count
_UNCOUNTED = 10  # before them, that fill the caches
_ORDER = (
    b'{"customer_id":"c-17","currency":"EUR","items":[{"item_id":"sku-1","quantity":2,"unit_price":1250},'
    b'{"item_id":"sku-2","quantity":1,"unit_price":990},{"item_id":"sku-3","quantity":3,"unit_price":75}]}'
)
_HEAD = (
    b"GET /orders/019dab70-c2b3-7c51-b9f8-1d6f2a6c3e11 HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: 127.0.0.1\r\n"
    b"X-Forwarded-Host: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Request-Id: 0123456789abcdef\r\nAccept: */*\r\n\r\n"
)
_ENVIRON = {
    "SCRIPT_NAME": "", "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "127.0.0.1",
    "HTTP_X_FORWARDED_HOST": "127.0.0.1", "HTTP_X_FORWARDED_PROTO": "http",
    "HTTP_X_REQUEST_ID": "0123456789abcdef0123456789abcdef", "wsgi.version": (1, 0), "wsgi.url_scheme": "http",
    "wsgi.errors": sys.stderr, "wsgi.multithread": True, "wsgi.multiprocess": True, "wsgi.run_once": False,
}  # fmt: skip


def ask(app: Flask, method: str, path: str, *, query: str = "", body: bytes = b"", **headers: str) -> dict[str, str]:
    """The headers of the response, which must be successful."""
    environ: dict[str, Any] = _ENVIRON | headers | {"wsgi.input": io.BytesIO(body)}
    environ |= {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query}
    if body:
        environ |= {"CONTENT_LENGTH": str(len(body)), "CONTENT_TYPE": "application/json"}
    answered: list[Any] = []
    b"".join(app(environ, lambda *head: answered.extend(head)))  # type: ignore[arg-type,return-value]
    assert answered[0][0] == "2", answered
    return dict(answered[1])


def empty_application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """An application that does nothing, with as many headers as an order has."""
    start_response("200 OK", [("Content-Length", "0"), *((f"Header-{i}", "value") for i in range(8))])
    return []


def bare_flask() -> Flask:
    """The smallest Flask view: the unit for all others, so that figures are comparable between Python builds."""
    app = Flask("bare")
    app.add_url_rule("/orders/<order_id>", "order", lambda order_id: order_id)
    return app


class Client:
    """A client's socket that sends requests one after another."""

    def __init__(self) -> None:
        self._requests = count()

    def recv(self, size: int) -> bytes:
        number = next(self._requests) % 2  # one request a connection
        return b"" if number else _HEAD

    def send(self, data: bytes) -> int:
        return len(data)

    def settimeout(self, seconds: float) -> None:
        pass

    def close(self) -> None:
        pass


def kinds() -> Iterator[tuple[str, Callable[[], object]]]:
    """The kinds of requests; each call makes one."""
    app, bare, number = create_app({"AUTH": "off"}), bare_flask(), count()

    def create() -> str:
        key = f"{os.getpid()}-{next(number)}"
        return ask(app, "POST", "/orders", body=_ORDER, HTTP_IDEMPOTENCY_KEY=key)["Location"]

    addresses = [create() for _ in range(COUNTED + _UNCOUNTED)]
    read, confirmed, client = cycle(addresses), iter(addresses), Client()
    yield "bare", lambda: ask(bare, "GET", addresses[0])
    with worker_of(empty_application) as worker, socket.socket(socket.AF_UNIX) as listener:
        environ = worker.listener_environ(listener)
        yield "serve", lambda: worker.serve_connection(environ, client, "")
    yield "create", create
    yield "read", lambda: ask(app, "GET", next(read))
    protected = create_app({"AUTH": "required"})
    with protected.app_context():
        key = create_api_key("reader", scopes=["orders:read"], expires_in=None)
    yield "read_with_key", lambda: ask(protected, "GET", next(read), HTTP_AUTHORIZATION=f"Bearer {key}")
    yield "list", lambda: ask(app, "GET", "/orders", query="limit=20")
    yield "confirm", lambda: ask(app, "POST", f"{next(confirmed)}/confirm")


def control(*words: str) -> None:
    """Send a command to the valgrind that runs this process."""
    subprocess.run(["callgrind_control", *words, str(os.getpid())], stdout=subprocess.DEVNULL, check=True)


def main() -> None:
    # Below valgrind, a request takes so long that each would send the notification that a process sends every 0.1 s.
    statements.NOTIFY_PAUSE = 3600
    auth.KEY_SECONDS = 3600  # and many requests would read the API key, where one a second does otherwise
    for kind, request in kinds():
        gc.collect()
        gc.freeze()
        gc.disable()
        for _ in range(_UNCOUNTED):
            request()
        control("-i", "on")
        for _ in range(COUNTED):
            request()
        control("-d", kind)
        control("-i", "off")


if __name__ == "__main__":
    main()
