"""nginx refuses requests above the capacity of the service at once, and slow clients do not use any capacity."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from flask import Flask

from tests.nginx.conftest import nginx_without_service
from tests.support.databases import ORDER, create_order, creates_blocked
from tests.support.servers import GUNICORN, TIMEOUT, Server, running, wait_until

MAX_CONNS = 2
LARGE = {
    "customer_id": "c-1",
    "items": [{"item_id": f"sku-{n}", "title": "\N{PACKAGE}" * 200, "quantity": 1} for n in range(25)],
}


@pytest.fixture
def service(database_url: str, app: Flask) -> Iterator[Server]:
    """A service that processes two requests at a time."""
    with nginx_without_service(max_conns=MAX_CONNS) as nginx:
        settings = {"BIND": f"unix:{nginx.process.args[4]}/gunicorn.sock", "DATABASE_URL": database_url}
        limits = "-c lock_timeout=60s -c statement_timeout=60s"
        with running(*GUNICORN, port=nginx.port, WEB_CONCURRENCY="1", PGOPTIONS=limits, **settings):
            yield nginx


def test_above_the_capacity_requests_are_refused_but_probes_streams_and_exports_are_not(
    service: Server, database_url: str
) -> None:
    with ThreadPoolExecutor(MAX_CONNS + 1) as threads, creates_blocked(database_url):
        creates = [threads.submit(create_order, service) for _ in range(MAX_CONNS)]
        wait_until(lambda: service.request("GET", "/orders").status == 503)
        batch = threads.submit(service.request, "POST", "/orders/batch", {"orders": [ORDER]})
        refused = service.request("POST", "/orders", ORDER)
        others = [
            service.request("GET", path).status
            for path in ("/healthz", "/readyz", "/metrics", "/events?wait=1", "/orders/export")
        ]
        unknown = [
            service.request("GET", path).status for path in ("/orders/x/events", "/customers/%2F%3F/personal-data")
        ]
        assert not any(create.done() for create in creates)
    after = service.request("GET", "/orders").status

    assert (refused.status, refused.json["status"], refused.headers["Retry-After"]) == (503, 503, "1")
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert refused.json["type"] == "/problems/service-unavailable"
    assert (others, unknown) == ([200] * 5, [404, 200])
    assert [create.result().status for create in creates] == [201] * MAX_CONNS
    assert (batch.result().status, after) == (200, 200)


def test_slow_clients_use_no_capacity(service: Server) -> None:
    path = service.request("POST", "/orders", LARGE).headers["Location"]
    service.request("POST", "/orders/batch", {"orders": [LARGE] * 99})
    page = service.request("GET", "/orders?limit=100").body
    with ExitStack() as stack:
        readers = []

        def connect(request: bytes) -> socket.socket:
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(TIMEOUT)
            client.connect(("127.0.0.1", service.port))
            client.sendall(request)
            return client

        def read() -> bool:
            client = connect(b"GET /orders?limit=100 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            status = client.recv(len("HTTP/1.1 200"))
            # It is refused while nginx still receives the pages of the readers before it.
            assert status in (b"HTTP/1.1 200", b"HTTP/1.1 503")
            if status.endswith(b"200"):
                readers.append(client)
            return status.endswith(b"200")

        for _ in range(2 * MAX_CONNS):
            connect(b"POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        for _ in range(2 * MAX_CONNS):
            wait_until(read)
        wait_until(lambda: service.request("GET", path).status == 200)
        # No capacity was freed by the disconnection of a reader, which nginx does after 10 s.
        bodies = [b"".join(iter(lambda reader=reader: reader.recv(1 << 20), b"")) for reader in readers]

    assert all(body.endswith(page) for body in bodies)
    assert len(page) > 2_000_000
