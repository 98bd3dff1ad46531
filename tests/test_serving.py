"""The service with three servers, in real processes and on real ports."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from flask import Flask
from jsonschema import Draft202012Validator

from app.models.order_id import hash_key
from tests.support.commands import run_python
from tests.support.databases import migrated
from tests.support.marks import on_postgresql
from tests.support.servers import (
    GUNICORN,
    ROOT,
    SERVERS,
    TIMEOUT,
    Response,
    Server,
    environment,
    exchange,
    free_port,
    running,
    wait_until,
)

ORDER = {"customer_id": "c-1", "items": [{"item_id": "sku-1", "quantity": 2}]}
SECURITY = ("X-Content-Type-Options", "Referrer-Policy", "Content-Security-Policy")

ORIGIN = "https://shop.example"
each_command = pytest.mark.parametrize("command", SERVERS.values(), ids=SERVERS)


def is_run_by(name: str, server: Server) -> bool:
    return name in server.process.args


@pytest.fixture(scope="module")
def sqlite_database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return migrated(f"sqlite:///{tmp_path_factory.mktemp('serving')}/orders.db")


@pytest.fixture(scope="module")
def gunicorn(sqlite_database: str) -> Iterator[Server]:
    """Two workers on SQLite, for tests that need no separate database."""
    settings = {"DATABASE_URL": sqlite_database, "WEB_CONCURRENCY": "2", "CORS_ORIGINS": ORIGIN}
    with running(*GUNICORN, port=free_port(), **settings) as server:
        yield server
        assert_stops(server)


@pytest.fixture(scope="module", params=SERVERS)
def each_server(request: pytest.FixtureRequest, sqlite_database: str, gunicorn: Server) -> Iterator[Server]:
    """Each of the three servers, on SQLite, for tests without special settings."""
    if request.param == "gunicorn":
        yield gunicorn
        return
    settings = {"DATABASE_URL": sqlite_database, "CORS_ORIGINS": ORIGIN}
    with running(*SERVERS[request.param], port=free_port(), **settings) as server:
        yield server
        assert_stops(server)


def assert_stops(server: Server) -> None:
    """Assert that a server exits with status 0 on SIGINT, and has logged no traceback."""
    assert server.stop() == 0
    assert "Traceback" not in server.output()


def assert_serves_orders(server: Server, prefix: str = "") -> None:
    """Assert the responses that every server gives on every database."""
    key = {"Idempotency-Key": f"k-{server.port}"}
    created = server.request("POST", f"{prefix}/orders", ORDER, key)
    replayed = server.request("POST", f"{prefix}/orders", ORDER, key)
    read = server.request("GET", created.headers["Location"])
    listed = server.request("GET", f"{prefix}/orders?limit=1")
    invalid = server.request("POST", f"{prefix}/orders", {})

    assert (created.status, replayed.status, read.status, listed.status, invalid.status) == (201, 201, 200, 200, 400)
    assert created.headers["Location"].startswith(f"{prefix}/orders/")
    assert created.body == replayed.body == read.body
    assert listed.json["orders"] == [created.json]
    assert invalid.headers["Content-Type"] == "application/problem+json"


def test_every_server_gives_the_same_responses(each_server: Server) -> None:
    assert_serves_orders(each_server)


@each_command
@on_postgresql
def test_every_server_serves_under_a_prefix_and_stops(command: tuple[str, ...], app: Flask, database_url: str) -> None:
    port, prefix = free_port(), "/shop/api"
    settings = {"DATABASE_URL": database_url, "URL_PREFIX": prefix, "WEB_CONCURRENCY": "1"}
    with running(*command, port=port, **settings) as server:
        assert_serves_orders(server, prefix)
        removed = server.request("GET", "/orders", headers={"X-Forwarded-Prefix": prefix})
        outside = server.request("GET", "/orders")
        rejected = exchange(port, b"garbage\r\n\r\n").partition(b"\r\n\r\n")[2] if command == GUNICORN else None
        type_ = json.loads(rejected)["type"] if rejected else outside.json["type"]
        page = server.request("GET", type_)
        assert_stops(server)

    assert [response.status for response in (removed, outside, page)] == [200, 404, 200]


def test_a_path_with_two_leading_slashes_is_404(each_server: Server) -> None:
    paths = ["/%2Fhealthz", "/%2f%2Fmetrics", "/%2Forders"]
    if not is_run_by("flask", each_server):  # Python's own HTTP server replaces them by one slash
        paths += ["//healthz", "///metrics", "//orders", "//%2Forders", "//127.0.0.1/orders"]

    responses = {path: each_server.request("GET", path) for path in paths}

    assert {path: response.status for path, response in responses.items()} == dict.fromkeys(paths, 404)
    assert {response.json["type"] for response in responses.values()} == {"/problems/not-found"}


def test_a_too_large_body_is_413_with_and_without_content_length(each_server: Server) -> None:
    huge = json.dumps(ORDER).encode() + b" " * 10_000_000  # the first part would be a valid order
    head = f"POST /orders HTTP/1.1\r\nHost: 127.0.0.1:{each_server.port}\r\nContent-Type: application/json\r\n".encode()
    sized = head + f"Content-Length: {len(huge)}\r\n\r\n".encode() + huge
    chunked = head + f"Transfer-Encoding: chunked\r\n\r\n{len(huge):x}\r\n".encode() + huge + b"\r\n0\r\n\r\n"

    statuses = [status_of(each_server.port, request) for request in (sized, chunked)]
    afterwards = each_server.request("POST", "/orders", ORDER)

    # Under uvicorn's WSGI interface a body without a length is no body.
    assert statuses == [413, 400 if is_run_by("uvicorn", each_server) else 413]
    assert afterwards.status == 201


def test_responses_with_and_without_a_body_are_sent_at_once(gunicorn: Server) -> None:
    created = gunicorn.request("POST", "/orders", ORDER)
    path, tag = created.headers["Location"], created.headers["ETag"]
    head = f"{{}} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{{}}\r\n"
    with socket.create_connection(("127.0.0.1", gunicorn.port), timeout=TIMEOUT) as connection:

        def first_piece(method: str, header: str = "") -> bytes:
            connection.sendall(head.format(method, header).encode())
            return connection.recv(65536)

        for _ in range(20):
            assert first_piece("GET").partition(b"\r\n\r\n")[2] == created.body
        headers_alone = first_piece("HEAD"), first_piece("GET", f"If-None-Match: {tag}\r\n")

    assert [int(piece.split()[1]) for piece in headers_alone] == [200, 304]
    assert all(piece.endswith(b"\r\n\r\n") for piece in headers_alone)


def test_a_response_without_a_body_has_the_headers_of_one_with_a_body(each_server: Server) -> None:
    """RFC 9110 §15.4.5: a cache takes over the headers of a 304."""
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}
    path = each_server.request("POST", "/orders", ORDER).headers["Location"]

    empty = [each_server.request("OPTIONS", path), each_server.request("OPTIONS", path, headers=preflight)]
    for found in (path, "/docs", "/docs/start.js", "/openapi.json", "/problems", "/problems/not-found"):
        whole = each_server.request("GET", found)
        unchanged = each_server.request("GET", found, headers={"If-None-Match": whole.headers["ETag"]})
        assert (whole.status, unchanged.status, unchanged.body) == (200, 304, b""), found
        for name in (*SECURITY, "Cache-Control", "ETag", "Vary"):
            assert unchanged.headers.get_all(name) == whole.headers.get_all(name), (found, name)
        assert "no-cache" in whole.headers["Cache-Control"]
        assert len(whole.headers.get_all("Date")) == 1
        empty.append(unchanged)

    assert [response.status for response in empty[:2]] == [204, 204]
    assert not [response for response in empty if "Content-Type" in response.headers]
    for response in empty[:2]:
        assert [response.headers.get_all(name) for name in SECURITY] == [
            ["nosniff"], ["no-referrer"], ["default-src 'none'; frame-ancestors 'none'"]
        ]  # fmt: skip


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_responses_of_probes_are_not_cached(gunicorn: Server, path: str) -> None:
    assert gunicorn.request("GET", path).headers["Cache-Control"] == "no-store"


def status_of(port: int, request: bytes) -> int:
    """The status of the response, which may come before the request is complete; the server may then close."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as connection:
        with suppress(ConnectionError):
            connection.sendall(request)
        return int(connection.recv(12).split()[1])


@each_command
def test_an_unmigrated_database_ends_the_start_with_one_line(command: tuple[str, ...], tmp_path: Path) -> None:
    ended = run_python(*command, DATABASE_URL=f"sqlite:///{tmp_path}/empty.db", WEB_CONCURRENCY="1")

    assert ended.returncode != 0
    assert len(re.findall("run `flask db upgrade`", ended.stderr)) == 1
    assert "Traceback" not in ended.stderr


def shared_directory(pid: int) -> Path:
    """The directory of the files that gunicorn's workers share, whose lock the master has open."""
    files = (Path(os.readlink(file)) for file in Path(f"/proc/{pid}/fd").iterdir())
    [directory] = [file.parent for file in files if file.name == "lock"]
    return directory


def has_exited(child: int) -> bool:
    """Whether a process has exited, and its parent does not know yet."""
    return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("number", [signal.SIGCONT, signal.SIGTERM], ids=["running", "stopping"])
def test_workers_that_fail_to_start_together_end_the_server_without_a_traceback(tmp_path: Path, number: int) -> None:
    """gunicorn finds that a worker has failed while it stops, because of another worker or of a signal."""
    settings = environment(DATABASE_URL=f"sqlite:///{tmp_path}/empty.db", WEB_CONCURRENCY="2", PORT=str(free_port()))
    with (tmp_path / "output").open("wb") as log:
        process = subprocess.Popen([sys.executable, *GUNICORN], cwd=ROOT, env=settings, stdout=log, stderr=log)
    server = Server(process, 0, log)
    try:
        wait_until(lambda: len(server.children()) == 2)
        process.send_signal(signal.SIGSTOP)
        workers = server.children()
        directory = shared_directory(process.pid)
        wait_until(lambda: all(map(has_exited, workers)))
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)

        assert process.wait(TIMEOUT) == 1
    finally:
        process.kill()
    assert server.output().count("run `flask db upgrade`") == 2
    assert "Traceback" not in server.output()
    assert not directory.exists()


# gunicorn.conf.py reads the settings for gunicorn, and wsgi.py for every other server.
INVALID_SETTINGS = [
    ("gunicorn", {"DATABASE_POOL_SIZE": "many"}, "DATABASE_POOL_SIZE is 'many'"),
    ("gunicorn", {"SCRIPT_NAME": "/shop"}, "SCRIPT_NAME is set.* Set URL_PREFIX instead"),
    ("flask", {"SCRIPT_NAME": "/shop"}, "SCRIPT_NAME is set.* Set URL_PREFIX instead"),
    ("uvicorn", {"DATABASE_POOL_SIZE": "many"}, "DATABASE_POOL_SIZE is 'many'"),
]


@pytest.mark.parametrize(("name", "settings", "message"), INVALID_SETTINGS)
def test_an_invalid_setting_ends_the_start_with_one_line(name: str, settings: dict[str, str], message: str) -> None:
    ended = run_python(*SERVERS[name], WEB_CONCURRENCY="1", **settings)

    assert ended.returncode != 0
    assert len(re.findall(message, ended.stderr)) == 1
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("option", ["--certfile", "--keyfile"])
def test_gunicorn_does_not_start_with_a_certificate_that_it_would_not_use(option: str) -> None:
    ended = run_python(*GUNICORN, option, __file__, WEB_CONCURRENCY="1", PORT=str(free_port()))

    assert ended.returncode == 1
    assert ended.stderr.endswith("order service: certfile or keyfile is set. Remove it: TLS ends at the proxy.\n")
    assert "Traceback" not in ended.stderr and "Listening" not in ended.stderr


def test_a_setting_that_gunicorn_itself_needs_is_checked_too() -> None:
    ended = run_python(*GUNICORN, WEB_CONCURRENCY="513")

    assert ended.returncode != 0
    assert ended.stderr == "order service: WEB_CONCURRENCY is '513'; it must be an integer from 0 to 512.\n"


def test_the_metrics_are_those_of_all_workers(gunicorn: Server) -> None:
    def count() -> float:
        metrics = gunicorn.request("GET", "/metrics").body.decode()
        line = r'http_request_duration_seconds_count{method="GET",route="/orders",status="200"} (.+)'
        found = re.search(line, metrics)
        return float(found[1]) if found else 0

    before = count()

    for _ in range(40):
        gunicorn.request("GET", "/orders?limit=1")

    assert count() - before == 40
    pids = {line["pid"] for line in gunicorn.log_lines(awaited="Booting worker") if line["event"].startswith("Booting")}
    assert len(pids) == 2


def test_a_request_is_one_line_of_json_with_its_id(gunicorn: Server) -> None:
    given = gunicorn.request("POST", "/orders", ORDER, {"X-Request-Id": "given-1"})
    unnamed = gunicorn.request("GET", "/nowhere")

    assert given.headers["X-Request-Id"] == "given-1"
    second = unnamed.headers["X-Request-Id"]
    lines = {line.get("request_id"): line for line in gunicorn.log_lines(awaited=second)}
    assert (lines["given-1"]["method"], lines["given-1"]["status"]) == ("POST", 201)
    assert lines[second]["status"] == 404


@pytest.mark.parametrize(
    ("sent", "status", "type_"),
    [
        (b"garbage\r\n\r\n", 400, "/problems/bad-request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400, "/problems/bad-request"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414, "about:blank"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431, "about:blank"),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "/problems/bad-request"),
        (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501, "about:blank"),
    ],
    ids=["request line", "header", "long line", "large header", "host", "method"],
)
def test_a_request_rejected_by_the_worker_is_a_problem(gunicorn: Server, sent: bytes, status: int, type_: str) -> None:
    head, _, body = exchange(gunicorn.port, sent).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Type: application/problem+json" in head
    assert all(name.encode() in head for name in (*SECURITY, "Cache-Control: no-store"))
    problem = json.loads(body)
    assert (problem["status"], problem["type"]) == (status, type_)
    components = gunicorn.request("GET", "/openapi.json").json["components"]
    Draft202012Validator({"$ref": "#/components/schemas/Problem", "components": components}).validate(problem)
    assert f"\r\nX-Request-Id: {problem['request_id']}\r\n".encode() in head + b"\r\n"
    assert f"Refused the request {problem['request_id']}: {status} " in gunicorn.output()
    assert f'http_requests_rejected_total{{status="{status}"}}' in gunicorn.request("GET", "/metrics").body.decode()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\nA: b\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\nExpect: tea\r\n\r\n", 417),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n%b\r\n\r\nno colon\r\n\r\n", 400),
    ],
)
def test_a_request_rejected_by_the_worker_keeps_its_id(gunicorn: Server, sent: bytes, status: int) -> None:
    """A second request has its own id."""
    last = exchange(gunicorn.port, sent % b"X-Request-Id: given-7").rpartition(b"HTTP/1.1")[2]

    assert last.startswith(b" %d " % status)
    assert (b"\r\nX-Request-Id: given-7\r\n" in last) == (b"healthz" not in sent)


def test_options_of_the_service_lists_all_methods(gunicorn: Server) -> None:
    answers = {
        method: exchange(gunicorn.port, method + b" * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        for method in (b"OPTIONS", b"GET")
    }

    assert answers[b"OPTIONS"].startswith(b"HTTP/1.1 204 ")
    assert b"\r\nAllow: DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT\r\n" in answers[b"OPTIONS"]
    assert b"\r\nX-Request-Id: " in answers[b"OPTIONS"]
    assert answers[b"GET"].startswith(b"HTTP/1.1 400 ")


@on_postgresql
def test_a_request_that_waits_in_the_database_delays_no_other(app: Flask, database_url: str) -> None:
    """With one worker, a driver or lock that does not cooperate with gevent would block all clients for a minute."""
    responses: list[Response] = []
    limits = "-c lock_timeout=60s -c statement_timeout=60s"
    url = database_url.replace("+psycopg", "")
    with (
        running(
            *GUNICORN, port=free_port(), PGOPTIONS=limits, DATABASE_URL=database_url, WEB_CONCURRENCY="1"
        ) as server,
        psycopg.connect(url) as outside,
        psycopg.connect(url, autocommit=True) as observer,
    ):
        order = server.request("POST", "/orders", ORDER).json
        key_hash = hash_key("k", principal="anonymous", operation="create")
        outside.execute("UPDATE orders SET idempotency_key_hash = %s WHERE id = %s", [key_hash, order["id"]])
        twin = threading.Thread(
            target=lambda: responses.append(server.request("POST", "/orders", ORDER, {"Idempotency-Key": "k"}))
        )
        twin.start()
        waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'order-service' AND wait_event_type = 'Lock'"
        while not observer.execute(waiting).fetchone():
            assert twin.is_alive(), responses
            time.sleep(0.01)

        others = [server.request("GET", path) for path in ("/healthz", f"/orders/{order['id']}", "/orders")]

        assert [other.status for other in others] == [200, 200, 200]
        assert twin.is_alive()
        outside.rollback()
        twin.join()
    assert responses[0].status == 201


CHUNKED = (
    "POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    "Transfer-Encoding: chunked\r\n\r\n"
)
MALFORMED_CHUNKS = (
    b"x\r\n",
    b"-1\r\n",
    b"0x1\r\n \r\n0\r\n\r\n",
    b"2\r\n{}x",
    b"2\n{}\n0\n\n",
    b"2 \r\n{}\r\n0\r\n\r\n",
)


def exchange_chunks(server: Server, path: str, chunks: bytes) -> tuple[int, dict[str, object]]:
    """Status and document of the response to a chunked request."""
    head, _, body = exchange(server.port, CHUNKED.format(path).encode() + chunks).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_an_empty_chunked_body_is_no_body(gunicorn: Server) -> None:
    path = gunicorn.request("POST", "/orders", ORDER).headers["Location"]

    without_type = CHUNKED.format(f"{path}/confirm").replace("Content-Type: application/json\r\n", "")
    confirmed = exchange(gunicorn.port, without_type.encode() + b"0\r\n\r\n")
    refused = exchange_chunks(gunicorn, f"{path}/complete", b'7\r\n{"a":1}\r\n0\r\n\r\n')

    assert confirmed.startswith(b"HTTP/1.1 200 ")
    assert (refused[0], refused[1]["type"]) == (400, "/problems/invalid-request")


@pytest.mark.parametrize("chunks", MALFORMED_CHUNKS)
@pytest.mark.parametrize("valid", [b"", b"2\r\n{}\r\n"], ids=["first", "second"])
def test_malformed_chunks_are_400(gunicorn: Server, valid: bytes, chunks: bytes) -> None:
    assert exchange_chunks(gunicorn, "/orders", valid + chunks)[0] == 400


def test_malformed_chunks_that_arrive_later_are_400(gunicorn: Server) -> None:
    with socket.create_connection(("127.0.0.1", gunicorn.port), timeout=TIMEOUT) as connection:
        expecting = CHUNKED.replace("Host:", "Expect: 100-continue\r\nHost:")
        connection.sendall(expecting.format("/orders").encode())
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"  # the service reads the body now
        connection.sendall(b"2\r\n{}\r\n")
        connection.sendall(b"x\r\n")
        received = b"".join(iter(lambda: connection.recv(65536), b""))

    assert received.startswith(b"HTTP/1.1 400 ")
    assert json.loads(received.partition(b"\r\n\r\n")[2])["type"] == "/problems/bad-request"
    assert "Traceback" not in gunicorn.output()


def test_a_request_without_host_is_400(gunicorn: Server) -> None:
    assert exchange(gunicorn.port, b"GET /healthz HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert exchange(gunicorn.port, b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_connection_close_with_an_unread_body_delivers_the_response(gunicorn: Server) -> None:
    """A server that closes with bytes unread resets the connection, which takes the response from the client."""
    head = (
        b"POST /orders HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: text/plain\r\n"
        b"Content-Length: 4000000\r\n\r\n"
    )
    for _ in range(5):
        received = exchange(gunicorn.port, head + b"x" * 4_000_000)

        assert received.startswith(b"HTTP/1.1 415 ") and received.endswith(b"}")
