"""Slow readers on a real server: they use little memory and no transaction, and delay no other client."""

import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from flask import Flask
from sqlalchemy import insert, select, text, update

from app import create_app
from app.db.engine import db
from app.models import Order, OrderEvent
from app.models.principal import ANONYMOUS
from app.services.order_service import CreateRequest, new_order
from app.services.order_storage import insert_orders
from tests.hostile.probe import Probe, Target
from tests.support.applications import close_connections
from tests.support.databases import migrated, new_database
from tests.support.marks import on_postgresql
from tests.support.samples import LARGE, MINIMAL
from tests.support.servers import GUNICORN, Server, free_port, running

READERS = 40


LARGE_ORDERS = 1000


@pytest.fixture(scope="module")
def large(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """The application with its own database of nearly 50 MB of orders, for all tests."""
    is_sqlite = database_url.startswith("sqlite")
    file = tmp_path_factory.mktemp("large") / "orders.db"
    url = migrated(f"sqlite:///{file}" if is_sqlite else new_database(database_url, "large"))
    app = create_app({"DATABASE_URL": url, "AUTH": "off", "TESTING": True})
    with app.app_context():
        for _ in range(10):
            insert_orders([new_order(CreateRequest(LARGE, ANONYMOUS)) for _ in range(LARGE_ORDERS // 10)])
    yield app
    close_connections(app)


@pytest.fixture
def large_url(large: Flask) -> str:
    url: str = large.config["DATABASE_URL"]
    return url


@contextmanager
def one_worker(database_url: str, **settings: str) -> Iterator[Server]:
    port = free_port()
    given = {"PORT": str(port), "DATABASE_URL": database_url, "WEB_CONCURRENCY": "1", "DATABASE_POOL_SIZE": "2"}
    with running(*GUNICORN, port=port, **(given | settings)) as server:
        yield server


def slow_reader(server: Server, path: str) -> socket.socket:
    """A client that has sent its request and received the first bytes of the response, in a window of a few KiB."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(60)
    client.connect(("127.0.0.1", server.port))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    return client


def rest_of(client: socket.socket) -> bytes:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # and now reads fast
    received = b""
    while part := client.recv(1 << 20):
        received += part
    return received


def resident_bytes(server: Server) -> int:
    """Of the one worker."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return sum(int(Path(f"/proc/{child}/statm").read_text().split()[1]) * 4096 for child in children)


def fewest_open_transactions(app: Flask) -> int:
    """The minimum of many checks: reading a page opens one for a moment."""
    return min(_open_transactions(app) for _ in range(20) if time.sleep(0.05) is None)


def _open_transactions(app: Flask) -> int:
    with app.app_context(), db.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            return 0
        others = "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid()"
        return int(connection.scalar(text(f"{others} AND backend_type = 'client backend'")) or 0)


@pytest.mark.parametrize("form", ["ndjson", "csv"])
def test_forty_slow_exports_use_little_memory_and_block_no_other_request(
    large: Flask, large_url: str, form: str
) -> None:
    with one_worker(large_url, EXPORT_STREAMS=str(READERS)) as server, ExitStack() as stack:
        server.request("GET", f"/orders/export?format={form}&limit=100")
        before = resident_bytes(server)
        readers = [
            stack.enter_context(closing(slow_reader(server, f"/orders/export?format={form}"))) for _ in range(READERS)
        ]
        heads = [reader.recv(16) for reader in readers]
        grown = 0
        with Probe(Target(server)) as probe:
            for _ in range(20):
                for reader in readers:
                    reader.recv(1024)
                assert server.request("POST", "/orders", MINIMAL | {"customer_id": "c-2"}).status == 201
                grown = max(grown, resident_bytes(server) - before)
                time.sleep(0.1)
        transactions = fewest_open_transactions(large)

    assert set(heads) == {b"HTTP/1.1 200 OK\r"}
    assert grown < 100 * 2**20, grown
    assert transactions == 0
    assert probe.failures == [] and probe.waits


def test_a_slow_export_is_complete(large_url: str) -> None:
    with one_worker(large_url) as server, closing(slow_reader(server, "/orders/export")) as client:
        client.recv(1)
        time.sleep(0.5)
        received = rest_of(client)

    assert received.endswith(b"0\r\n\r\n")
    assert received.count(b'"customer_id":"c-1"') == LARGE_ORDERS


def test_a_principal_has_a_limited_number_of_concurrent_exports(large_url: str) -> None:
    with one_worker(large_url, EXPORT_STREAMS="2") as server:
        with closing(slow_reader(server, "/orders/export")) as first:
            with closing(slow_reader(server, "/orders/export")) as second:
                assert first.recv(12) == second.recv(12) == b"HTTP/1.1 200"
                refused = server.request("GET", "/orders/export")
            deadline = time.monotonic() + 30  # it notices when it sends again
            while (again := server.request("HEAD", "/orders/export")).status == 429 and time.monotonic() < deadline:
                time.sleep(0.05)
        for _ in range(5):
            assert server.request("HEAD", "/orders/export").status == 200

    assert (refused.status, refused.json["type"]) == (429, "/problems/too-many-requests")
    assert int(refused.headers["Retry-After"]) >= 1
    assert again.status == 200


def test_an_export_that_takes_too_long_ends_without_its_last_chunk(large_url: str) -> None:
    with one_worker(large_url, EXPORT_SECONDS="1") as server:
        with closing(slow_reader(server, "/orders/export")) as client:
            client.recv(1)
            time.sleep(1.5)
            received = rest_of(client)
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
            connection.request("GET", "/orders/export")
            response = connection.getresponse()
            response.read(1)
            time.sleep(1.5)
            with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
                response.read()
        output = server.output()

    assert b"TTP/1.1 200 OK\r\n" in received[:100]
    assert not received.endswith(b"0\r\n\r\n")
    assert output.count('"event":"export aborted"') == 2
    assert "Traceback" not in output


def test_an_export_ends_without_its_last_chunk_if_the_database_fails(large: Flask, large_url: str) -> None:
    with one_worker(large_url) as server, closing(slow_reader(server, "/orders/export")) as client:
        client.recv(1)
        with large.app_context(), db.engine.begin() as connection:
            connection.execute(text("ALTER TABLE order_events RENAME TO order_events_away"))
        try:
            received = rest_of(client)
        finally:
            with large.app_context(), db.engine.begin() as connection:
                connection.execute(text("ALTER TABLE order_events_away RENAME TO order_events"))
        again = server.request("GET", "/orders/export?limit=1")
        output = server.output()

    assert not received.endswith(b"0\r\n\r\n")
    assert b'"customer_id":"c-1"' in received
    assert output.count('"event":"export aborted"') == 1
    assert "Traceback" not in output
    assert again.status == 200


@on_postgresql
def test_an_export_survives_the_loss_of_its_connections(large: Flask, large_url: str) -> None:
    with one_worker(large_url) as server, closing(slow_reader(server, "/orders/export")) as client:
        client.recv(1)
        with large.app_context(), db.engine.begin() as connection:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            connection.execute(text(f"{others} AND backend_type = 'client backend'"))
        received = rest_of(client)

    assert received.endswith(b"0\r\n\r\n")
    assert received.count(b'"customer_id":"c-1"') == LARGE_ORDERS


@pytest.fixture
def long_history(app: Flask) -> str:
    """The path of an order of 10,000 versions."""
    order = new_order(CreateRequest(MINIMAL | {"note": "n" * 2000}, ANONYMOUS))
    with app.app_context():
        insert_orders([order])
        with db.engine.begin() as connection:
            [first] = connection.execute(select(OrderEvent.__table__).where(OrderEvent.order_id == order.id)).all()
            columns = {**first._mapping, "type": "order.updated"}
            document = orjson.loads(first.snapshot)
            versions = [
                columns | {"version": version, "snapshot": orjson.dumps(document | {"version": version}).decode()}
                for version in range(2, 10_001)
            ]
            connection.execute(insert(OrderEvent), versions)
            connection.execute(update(Order).where(Order.id == order.id).values(version=10_000))
    return f"/orders/{order.id}"


def test_a_history_of_ten_thousand_versions_is_read_by_slow_clients(
    app: Flask, database_url: str, long_history: str
) -> None:
    with one_worker(database_url) as server, ExitStack() as stack:
        path = f"{long_history}/history?limit=100"
        readers = [stack.enter_context(closing(slow_reader(server, path))) for _ in range(10)]
        for reader in readers:
            reader.recv(1)
        seen: list[int] = []
        query = ""
        while query is not None:
            page: dict[str, Any] = server.request("GET", path + query).json
            seen += [event["version"] for event in page["events"]]
            query = page["next_cursor"] and f"&cursor={page['next_cursor']}"
        transactions = fewest_open_transactions(app)
        whole = [rest_of(reader) for reader in readers]

    assert seen == list(range(1, 10_001))
    assert transactions == 0
    assert all(body.endswith(b'"}') for body in whole)
