"""Above its capacity the service answers 503 at once instead of queueing."""

import json
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from flask import Flask

from tests.support.databases import ORDER, create_order, creates_blocked
from tests.support.event_streams import number_events
from tests.support.marks import on_postgresql, on_sqlite
from tests.support.servers import GUNICORN, TIMEOUT, Response, Server, exchange, free_port, running, wait_until

LIMIT = 2
ORIGIN = "https://shop.example"
FEW_FILES = ("bash", "-c", 'ulimit -Sn 300; ulimit -Hn 300; exec "$0" "$@"', sys.executable, *GUNICORN)


@pytest.fixture(scope="module")
def server(database_url: str, app: Flask) -> Iterator[Server]:
    """One worker that processes two requests at the same time."""
    settings = {"DATABASE_URL": database_url, "WEB_CONCURRENCY": "1", "MAX_REQUESTS_IN_PROGRESS": str(LIMIT)}
    limits = "-c lock_timeout=60s -c statement_timeout=60s"
    with running(*GUNICORN, port=free_port(), CORS_ORIGINS=ORIGIN, PGOPTIONS=limits, **settings) as server:
        yield server


@contextmanager
def at_the_limit(server: Server, url: str) -> Iterator[list[Future[Response]]]:
    """The worker processes as many requests as it may until the block ends."""
    with ThreadPoolExecutor(LIMIT) as threads, creates_blocked(url):
        waiting = [threads.submit(create_order, server) for _ in range(LIMIT)]
        wait_until(lambda: server.request("GET", "/orders").status == 503)
        yield waiting


def test_requests_above_the_limit_are_refused_and_later_ones_are_served(server: Server, database_url: str) -> None:
    with at_the_limit(server, database_url) as waiting:
        refused = server.request("GET", "/orders", headers={"Origin": ORIGIN, "X-Request-Id": "refused-1"})
        probe = server.request("GET", "/healthz")
        assert not any(request.done() for request in waiting)
    created = [request.result() for request in waiting]
    read = [server.request("GET", response.headers["Location"]) for response in created]
    metrics = server.request("GET", "/metrics").body.decode()

    assert (refused.status, refused.headers["Retry-After"], probe.status) == (503, "1", 200)
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert refused.headers["Access-Control-Expose-Headers"] == "Retry-After, X-Request-Id"
    assert refused.headers["X-Request-Id"] == refused.json["request_id"] == "refused-1"
    assert (refused.json["type"], refused.json["status"]) == ("/problems/service-unavailable", 503)
    assert [response.status for response in created] == [201] * LIMIT
    assert [response.status for response in read] == [200] * LIMIT
    assert "http_requests_refused_total" in metrics


def test_a_refused_client_keeps_its_connection(server: Server, database_url: str) -> None:
    body = json.dumps(ORDER).encode()
    create = b"POST /orders HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    with at_the_limit(server, database_url):
        received = exchange(server.port, 2 * (create % (len(body), body)) + b"HEAD /orders HTTP/1.0\r\n\r\n")

    assert received.count(b"HTTP/1.1 503 Service Unavailable\r\n") == 3
    assert received.endswith(b"\r\n\r\n")  # the response to HEAD has no body


def answers(clients: list[socket.socket], path: str) -> list[bytes]:
    """The status lines of requests that all clients send at the same time."""
    for client in clients:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return [client.recv(1000).partition(b"\r\n")[0] for client in clients]


@on_postgresql  # SQLite's files are open from the start
def test_connections_of_clients_leave_file_descriptors_for_the_database(database_url: str, app: Flask) -> None:
    settings = {"DATABASE_URL": database_url, "WEB_CONCURRENCY": "1"}
    with running(*FEW_FILES, port=free_port(), **settings) as server, ExitStack() as stack:
        address = ("127.0.0.1", server.port)
        clients = [stack.enter_context(socket.create_connection(address, TIMEOUT)) for _ in range(400)]
        healths = answers(clients[:160], "/healthz")
        readings = answers(clients[:10], "/readyz")
        lines = server.output().splitlines()

    assert set(healths + readings) == {b"HTTP/1.1 200 OK"}
    assert all(line.startswith("{") for line in lines), lines  # and no traceback about a connection


@on_sqlite
def test_open_event_streams_do_not_block_other_requests(database_url: str, app: Flask) -> None:
    settings = {"DATABASE_URL": database_url, "WEB_CONCURRENCY": "1", "EVENT_STREAMS": "1000"}
    with running(*FEW_FILES, port=free_port(), **settings) as server, ExitStack() as stack:
        statuses = set()
        for _ in range(100):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), TIMEOUT))
            client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
            statuses.add(client.recv(1000).split()[1])
        ready = server.request("GET", "/readyz")

    assert (statuses, ready.status) == ({b"200", b"503"}, 200)


def test_requests_that_wait_for_events_do_not_count_towards_the_limit(server: Server, app: Flask) -> None:
    waiting = []
    with ThreadPoolExecutor(LIMIT) as threads:
        for count in range(1, LIMIT + 1):  # one after the other: until it waits, each is in progress
            waiting.append(threads.submit(server.request, "GET", "/events?after=latest&wait=20"))
            wait_until(
                lambda count=count: f"event_streams {count}.0" in server.request("GET", "/metrics").body.decode()
            )
        listed = server.request("GET", "/orders")
        created = server.request("POST", "/orders", ORDER)
        number_events(app)  # ends the waiting

    assert (listed.status, created.status) == (200, 201)
    assert [request.result().status for request in waiting] == [200] * LIMIT
