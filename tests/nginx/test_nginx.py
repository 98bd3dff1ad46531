"""The service behind nginx as in production: requests that nginx passes on, and responses of nginx itself."""

import gzip
import http.client
import io
import json
import re
import shutil
import signal
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlencode

import pytest
from flask import Flask

from app.db.engine import db
from app.errors import problem_types
from app.models.order import Order
from app.models.principal import ANONYMOUS
from app.services.order_actions import expire_orders
from app.services.order_service import CreateRequest, new_order
from app.services.order_storage import insert_orders
from tests.nginx.conftest import nginx_without_service
from tests.support.event_streams import number_events, open_stream
from tests.support.samples import LARGE
from tests.support.search import project
from tests.support.servers import (
    GUNICORN,
    TIMEOUT,
    Response,
    Server,
    exchange,
    free_port,
    running,
    send_request,
    wait_until,
)

ORDER = {"customer_id": "c-1", "items": [{"item_id": "sku-1", "quantity": 2}]}


def in_chunks(size: int) -> Iterator[bytes]:
    """A body without a Content-Length."""
    head = json.dumps(ORDER).encode()[:-1]
    yield head
    yield from (b" " * 1000 for _ in range((size - len(head)) // 1000))
    yield b"}"


def test_orders_are_created_replayed_read_and_listed(service: Server, app: Flask) -> None:
    created = service.request("POST", "/orders", ORDER, {"Idempotency-Key": "k-1"})
    replayed = service.request("POST", "/orders", ORDER, {"Idempotency-Key": "k-1"})
    service.request("POST", "/orders", ORDER)
    read = service.request("GET", created.headers["Location"])
    unchanged = service.request("GET", created.headers["Location"], headers={"If-None-Match": created.headers["ETag"]})
    page = service.request("GET", "/orders?limit=1")
    next_page = service.request("GET", re.fullmatch(r'<(?:http://[^/]+)?(/.*)>; rel="next"', page.headers["Link"])[1])

    assert (created.status, replayed.status, read.status, unchanged.status) == (201, 201, 200, 304)
    assert created.body == replayed.body == read.body
    assert replayed.headers["Idempotent-Replayed"] == "true"
    assert read.headers["ETag"] == created.headers["ETag"] == '"1"'
    assert next_page.json["orders"] == [created.json]


def test_lists_are_compressed_and_orders_keep_their_strong_tag(service: Server) -> None:
    accepted = {"Accept-Encoding": "gzip"}
    for _ in range(5):
        order = service.request("POST", "/orders", ORDER | {"note": "n" * 2000}, accepted)
    read = service.request("GET", order.headers["Location"], headers=accepted)
    listed = service.request("GET", "/orders?limit=5", headers=accepted)
    exported = service.request("GET", "/orders/export", headers=accepted)

    assert read.headers["ETag"] == order.headers["ETag"] == '"1"' and "Content-Encoding" not in read.headers
    for coded in (listed, exported):
        assert coded.headers["Content-Encoding"] == "gzip" and "Accept-Encoding" in coded.headers["Vary"]
    assert len(json.loads(gzip.decompress(listed.body))["orders"]) == 5
    assert gzip.decompress(exported.body).count(b"\n") >= 5


@pytest.mark.parametrize(("text", "safe"), [("日" * 100, ""), ("(:)" * 166, "(:)")], ids=["encoded", "as it is"])
def test_a_long_query_has_a_link_to_the_next_page(service: Server, app: Flask, text: str, safe: str) -> None:
    metadata = {f"k{number}": text for number in range(8)}
    for _ in range(2):
        service.request("POST", "/orders", ORDER | {"metadata": metadata})
    project(app)
    query = urlencode({f"metadata.{key}": value for key, value in metadata.items()}, safe=safe)

    first = service.request("GET", f"/orders/search?limit=1&{query}")
    second = service.request("GET", first.headers["Link"].partition(">")[0].removeprefix("<"))

    assert [len(page.json["orders"]) for page in (first, second)] == [1, 1]


def test_a_client_of_http_1_0_needs_no_host(service: Server) -> None:
    assert exchange(service.port, b"GET /readyz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("path", ["/orders/export", "/customers/c-1/personal-data"])
def test_http_1_0_gets_no_export_since_an_aborted_one_would_look_complete(service: Server, path: str) -> None:
    refused = exchange(service.port, f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())

    assert refused.startswith(b"HTTP/1.1 505 ") and b"\r\nContent-Type: application/problem+json\r\n" in refused
    assert b"requires HTTP/1.1" in refused


@pytest.mark.parametrize("method", ["DELETE", "HEAD", "OPTIONS"])
def test_http_1_0_may_make_other_requests_for_personal_data(service: Server, method: str) -> None:
    head = f"{method} /customers/c-1/personal-data HTTP/1.0\r\nHost: localhost\r\n\r\n"

    assert exchange(service.port, head.encode()).startswith(b"HTTP/1.1 2")


def test_a_chunked_body_arrives_complete(service: Server) -> None:
    created = service.request("POST", "/orders", in_chunks(60_000))

    assert created.status == 201


def test_no_body_of_an_order_is_written_to_the_disk() -> None:
    with nginx_without_service() as nginx:
        shutil.rmtree(Path(nginx.process.args[4]) / "body")  # type: ignore[index, arg-type]
        bodies = b" " * 65_536, iter([b" " * 512] * 128)
        statuses = [nginx.request("POST", "/orders", body).status for body in bodies]

    assert statuses == [502, 502]  # 500 if it had to be written


def test_a_batch_may_be_larger_than_an_order(service: Server) -> None:
    results = service.request("POST", "/orders/batch", {"orders": [ORDER | {"note": "n" * 2000}] * 100})

    assert [result["status"] for result in results.json["results"]] == [201] * 100


def test_a_batch_of_actions_may_be_larger_than_an_order(service: Server) -> None:
    created = service.request("POST", "/orders", ORDER).json
    action = {"order_id": created["id"], "action": "update", "patch": {"note": "n" * 2000}}

    results = service.request("POST", "/orders/actions", {"actions": [action] * 100})

    assert results.status == 200, results.body
    assert [result["status"] for result in results.json["results"]] == [200] * 100


def test_the_services_own_problems_pass_unchanged(service: Server) -> None:
    missing = service.request("GET", "/orders/00000000-0000-7000-8000-000000000000")
    slashes = service.request("GET", "/orders//")

    assert missing.headers["Content-Type"] == "application/problem+json"
    assert (missing.status, missing.json["type"]) == (404, "/problems/order-not-found")
    assert slashes.status == 404


ENCODED = [("a/b", "a%2Fb"), ("/a//", "%2Fa%2F%2f"), ("a%2Fb", "a%252Fb"), ("ä b?#", "%C3%A4%20b%3F%23")]


@pytest.mark.parametrize(("reference", "encoded"), ENCODED)
def test_an_order_is_found_by_a_reference_with_any_characters(service: Server, reference: str, encoded: str) -> None:
    created = service.request("POST", "/orders", ORDER | {"external_ref": reference})

    found = service.request("GET", f"/orders/by-ref/{encoded}")

    assert (found.status, found.body) == (200, created.body)


@pytest.mark.parametrize(("customer", "encoded"), ENCODED)
def test_a_customer_is_exported_and_erased_by_an_id_with_any_characters(
    service: Server, customer: str, encoded: str
) -> None:
    order = service.request("POST", "/orders", ORDER | {"customer_id": customer}).headers["Location"]
    service.request("POST", f"{order}/cancel", {"reason": "customer"})

    exported = service.request("GET", f"/customers/{encoded}/personal-data")
    erased = service.request("DELETE", f"/customers/{encoded}/personal-data")

    assert exported.body.count(b"\n") == 3
    assert (erased.status, erased.json["orders"]) == (200, 1)
    assert service.request("GET", order).json["customer_id"].startswith("erased-")


def test_many_orders_are_erased_without_a_time_out(service: Server, app: Flask) -> None:
    many = [ORDER | {"customer_id": "c-many", "note": "personal"}] * 300
    assert service.request("POST", "/orders/batch", {"orders": many}).status == 200
    with app.app_context():
        assert sum(expire_orders(older_than=timedelta(0))) >= len(many)

    response = service.request("DELETE", "/customers/c-many/personal-data")
    responses, location = [response], response.headers["Location"]
    while responses[-1].json["status"] == "running":
        responses.append(service.request("GET", location))

    assert response.status == (202 if len(responses) > 1 else 200)
    assert {response.status for response in responses[1:]} <= {200}
    assert (responses[-1].json["status"], responses[-1].json["orders"]) == ("done", len(many))
    assert service.request("GET", "/orders?customer_id=c-many").json["orders"] == []


TITLES = {f"/problems/{kind.slug}": kind.title for kind in problem_types()}
HEAD = b"Host: a\r\nConnection: close\r\nX-Request-Id: id-1\r\n"
REFUSED = {
    "garbage": (b"garbage\r\n\r\n", 400, "/problems/bad-request", None),
    "no path": (b"OPTIONS * HTTP/1.1\r\n" + HEAD + b"\r\n", 400, "/problems/bad-request", None),
    "no host": (b"GET /orders HTTP/1.1\r\n\r\n", 400, "/problems/bad-request", "/orders"),
    "method": (b"TRACE /orders HTTP/1.1\r\n" + HEAD + b"\r\n", 405, "/problems/method-not-allowed", "/orders"),
    "tunnel": (b"CONNECT /orders HTTP/1.1\r\n" + HEAD + b"\r\n", 405, "/problems/method-not-allowed", "/orders"),
    "tunnel to a host": (b"CONNECT a:80 HTTP/1.1\r\n" + HEAD + b"\r\n", 400, "/problems/bad-request", None),
    "body": (
        b"POST /orders?a=%22 HTTP/1.1\r\n" + HEAD + b"Content-Length: 65537\r\n\r\n" + b" " * 65537,
        413,
        "/problems/content-too-large",
        "/orders",
    ),
    "request line": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HEAD + b"\r\n", 414, "about:blank", None),
    "field": (b'GET /"x HTTP/1.1\r\nA: ' + b"a" * 9000 + b"\r\n" + HEAD + b"\r\n", 431, "about:blank", None),
    "coding": (b"POST /orders HTTP/1.1\r\nTransfer-Encoding: x\r\n" + HEAD + b"\r\n", 501, "about:blank", "/orders"),
    "version": (b"GET /orders HTTP/3.0\r\n" + HEAD + b"\r\n", 505, "about:blank", None),
}


UNSPECIFIC = {"The request was refused before it reached the service."}


@pytest.mark.parametrize(("sent", "status", "type_", "instance"), REFUSED.values(), ids=REFUSED)
def test_a_request_rejected_by_nginx_is_a_problem(
    nginx: Server, sent: bytes, status: int, type_: str, instance: str | None
) -> None:
    head, _, body = exchange(nginx.port, sent).decode().partition("\r\n\r\n")

    assert head.startswith(f"HTTP/1.1 {status} ")
    assert "\r\nContent-Type: application/problem+json\r\n" in head
    assert "\r\nServer: nginx\r\n" in head  # and no version
    problem = json.loads(body)
    assert problem["detail"].endswith(".") and problem["detail"] not in UNSPECIFIC
    assert problem["title"] == TITLES.get(type_, problem["title"])
    assert (problem["status"], problem["type"], problem.get("instance")) == (status, type_, instance)
    assert f"\r\nX-Request-Id: {problem['request_id']}\r\n" in f"{head}\r\n"
    allow = "\r\nAllow: DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT\r\n"
    assert (allow in head) == ("\r\nAllow:" in head) == (status == 405)


def test_a_chunked_body_that_is_too_large_is_a_problem(service: Server) -> None:
    refused = service.request("POST", "/orders", in_chunks(70_000))

    assert refused.status == 413
    assert refused.json["type"] == "/problems/content-too-large"


def test_events_pass_at_once_in_a_stream_and_to_a_waiting_reader(service: Server, app: Flask) -> None:
    order = service.request("POST", "/orders", ORDER).headers["Location"]
    number_events(app)
    with open_stream(service.port, "/events?after=0") as stream, ThreadPoolExecutor(1) as threads:
        assert next(stream).type == "order.created"
        waiting = threads.submit(service.request, "GET", "/events?after=latest&wait=20")
        wait_until(lambda: b"\nevent_streams 2.0\n" in service.request("GET", "/metrics").body)
        service.request("POST", f"{order}/confirm")
        number_events(app)

        assert next(stream).type == "order.confirmed"
        assert [event["type"] for event in waiting.result().json["events"]] == ["order.confirmed"]


def test_only_allowed_addresses_read_the_metrics(service: Server) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", service.port, source_address=("127.0.0.2", 0))) as stranger:
        stranger.request("GET", "/metrics")
        response = stranger.getresponse()
        problem = json.load(response)

    assert (response.status, problem["status"], problem["title"]) == (403, 403, "Forbidden")
    assert service.request("GET", "/metrics").status == 200


SPELLINGS = {
    "as it is": ("/metrics", 403),
    "with a query": ("/metrics?x=1", 403),
    "with a fragment": ("/metrics#x", 403),
    "absolute": ("http://a/metrics", 403),
    "encoded letter": ("/%6Detrics", 403),
    "encoded letter, lower case": ("/%6detrics", 403),
    "all encoded": ("/%6d%65%74%72%69%63%73", 403),
    "dot segment": ("/./metrics", 403),
    "encoded dot segment": ("/%2e/metrics", 403),
    "parent": ("/orders/../metrics", 403),
    "encoded parent": ("/orders/%2e%2e/metrics", 403),
    "encoded parent, upper case": ("/orders/%2E%2E/metrics", 403),
    "encoded parent and slash": ("/orders%2F..%2Fmetrics", 403),
    "two slashes": ("//metrics", 404),
    "three slashes": ("///metrics", 404),
    "encoded slash": ("/%2Fmetrics", 404),
    "encoded slash, lower case": ("/%2fmetrics", 404),
    "two encoded slashes": ("/%2F%2fmetrics", 404),
    "absolute, two slashes": ("http://a//metrics", 404),
    "slashes and a dot segment": ("//./metrics", 404),
    "a dot segment, then slashes": ("/.//metrics", 404),
    "a parent, then slashes": ("/orders/..//metrics", 404),
    "slashes inside": ("/orders//../metrics", 404),
    "host in the path": ("//metrics/", 404),
    "a slash behind": ("/metrics/", 404),
    "an encoded slash behind": ("/metrics%2F", 404),
    "parameter": ("/metrics;x=1", 404),
    "empty parameter": ("/metrics;", 404),
    "encoded parameter": ("/metrics%3Bx", 404),
    "encoded query": ("/metrics%3Fx", 404),
    "encoded fragment": ("/metrics%23x", 404),
    "a dot behind": ("/metrics.", 404),
    "an encoded dot behind": ("/metrics%2E", 404),
    "upper case": ("/METRICS", 404),
    "a blank behind": ("/metrics%20", 404),
    "a line break behind": ("/metrics%0A", 404),
    "encoded twice": ("/%256Detrics", 404),
    "slash encoded twice": ("/%252Fmetrics", 404),
    "backslash": ("/\\metrics", 404),
    "encoded backslash": ("/%5Cmetrics", 404),
    "overlong slash": ("/%C0%AFmetrics", 404),
    "below another": ("/x/metrics", 404),
    "a NUL behind": ("/metrics%00", 400),
    "above the root": ("/../metrics", 400),
    "encoded above the root": ("/%2e%2e/metrics", 400),
    "no slash": ("%2Fmetrics", 400),
}


@pytest.mark.parametrize(("target", "status"), SPELLINGS.values(), ids=SPELLINGS)
def test_no_spelling_of_a_path_bypasses_a_rule(service: Server, target: str, status: int) -> None:
    """127.0.0.2 stands for another machine."""
    request = f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()

    response = exchange(service.port, request, address="127.0.0.2")

    assert int(response.split()[1]) == status
    assert b"http_request_duration" not in response


@pytest.mark.parametrize("path", ["//orders", "/%2Forders", "///healthz", "//orders/batch", "//", "/.problem"])
def test_two_slashes_and_internal_paths_are_404(service: Server, path: str) -> None:
    response = service.request("GET", path)

    assert (response.status, response.json["type"], response.json["instance"]) == (404, "/problems/not-found", path)
    assert response.json["title"] == TITLES["/problems/not-found"]


def statuses_of(port: int, count: int, *, address: str) -> tuple[Counter[bytes], bytes]:
    """The statuses of a number of requests on one connection from the address, and all received bytes."""
    request = b"GET /healthz HTTP/1.1\r\nHost: a\r\n"
    with socket.create_connection(("127.0.0.1", port), TIMEOUT, source_address=(address, 0)) as connection:
        connection.sendall((request + b"\r\n") * (count - 1) + request + b"Connection: close\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    return Counter(re.findall(rb"HTTP/1.1 (\d{3})", received)), received


def test_an_address_over_its_rate_limit_is_429_and_no_other(service: Server) -> None:
    """127.0.0.4 stands for another machine, from which no other test sends; 127.0.0.1 is not limited."""
    flooding, received = statuses_of(service.port, 1000, address="127.0.0.4")
    others = [statuses_of(service.port, n, address=f"127.0.0.{last}")[0] for n, last in ((1, 3), (1000, 1))]

    assert flooding.keys() == {b"200", b"429"} and flooding.total() == 1000
    assert 401 <= flooding[b"200"] < 410  # one more is allowed in each minute
    assert others == [{b"200": 1}, {b"200": 1000}]
    refused = received.rpartition(b"HTTP/1.1 429")[2]
    assert b"Content-Type: application/problem+json" in refused and b"Retry-After: 1\r\n" in refused
    assert b'"type":"/problems/too-many-requests"' in refused and b"X-Content-Type-Options: nosniff" in refused


def flood(port: int, address: str, header: str = "X: x") -> bytes:
    """The responses to 800 requests on one connection, of which about 400 may come at once."""
    request = f"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Test-Address: {address}\r\n{header}\r\n"
    return exchange(port, f"{request}\r\n".encode() * 799 + f"{request}Connection: close\r\n\r\n".encode())


def count_of_200(port: int, address: str) -> int:
    return flood(port, address).count(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("flooding", "same", "other"),
    [
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::7", "2001:db8:1:3::7"),
        ("2001:db8:1::1", "2001:db8:1::2:3", "2001:db8:2::1"),
        ("2001:db8::1", "2001:db8::9:9:9:9", "2001:db9::1"),
        ("198.51.100.1", "198.51.100.1", "198.51.100.2"),
    ],
)
def test_an_ipv6_network_counts_as_one_address(service: Server, flooding: str, same: str, other: str) -> None:
    assert count_of_200(service.port, flooding) >= 401

    assert count_of_200(service.port, same) < 401 <= count_of_200(service.port, other)


def test_nginx_also_listens_on_ipv6(service: Server) -> None:
    with closing(http.client.HTTPConnection("::1", service.port, timeout=TIMEOUT)) as connection:
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200


SHOP = "https://shop.example"


def cors(response: Response) -> dict[str, list[str]]:
    names = ("Access-Control-Allow-Origin", "Access-Control-Expose-Headers", "Vary")
    return {name: response.headers.get_all(name, []) for name in names}


def own_errors(nginx: Server, origin: dict[str, str]) -> Iterator[Response]:
    """Responses of nginx itself."""
    yield nginx.request("GET", "//orders", headers=origin)
    yield nginx.request("GET", "/metrics", headers=origin | {"X-Test-Address": "192.0.2.1"})
    yield nginx.request("TRACE", "/orders", headers=origin)
    yield nginx.request("POST", "/orders", b" " * 70_000, origin)
    [header] = [f"{name}: {value}" for name, value in origin.items()] or ["X: x"]
    refused = flood(nginx.port, "192.0.2.2", header).rpartition(b"HTTP/1.1 429")[2]
    head, _, body = refused.partition(b"\r\n\r\n")
    yield Response(429, http.client.parse_headers(io.BytesIO(head.partition(b"\r\n")[2] + b"\r\n\r\n")), body)


@pytest.mark.parametrize("origin", [SHOP, "https://evil.example", "null", None])
def test_responses_of_nginx_itself_have_cors_headers(service: Server, origin: str | None) -> None:
    errors = list(own_errors(service, {"Origin": origin} if origin else {}))
    with nginx_without_service() as nginx:
        errors.append(nginx.request("GET", "/orders", headers={"Origin": origin} if origin else {}))

    assert [error.status for error in errors] == [404, 403, 405, 413, 429, 502]
    allowed = {
        "Access-Control-Allow-Origin": [SHOP] if origin == SHOP else [],
        "Access-Control-Expose-Headers": ["Allow, Retry-After, X-Request-Id"] if origin == SHOP else [],
        "Vary": ["Origin"],
    }
    for error in errors:
        assert cors(error) == allowed


def test_responses_of_the_service_allow_the_origin_once(service: Server) -> None:
    for path in ("/orders", "/nothing", "/orders/x"):
        headers = cors(service.request("GET", path, headers={"Origin": SHOP}))
        assert headers["Access-Control-Allow-Origin"] == [SHOP]
        assert len(headers["Access-Control-Expose-Headers"]) == 1


def test_nginx_serves_tls_and_redirects_to_it_as_described_in_the_file() -> None:
    with nginx_without_service(tls_port=(port := free_port())) as nginx:
        directory = Path(nginx.process.args[4])  # type: ignore[index, arg-type]
        trusted = ssl.create_default_context(cafile=directory / "localhost.crt")
        trusted.set_alpn_protocols(["h2"])
        with socket.create_connection(("localhost", port), TIMEOUT) as connection:
            with trusted.wrap_socket(connection, server_hostname="localhost") as encrypted:
                protocol = encrypted.selected_alpn_protocol()
        without_tls = send_request(port, "GET", "/orders")
        redirected = nginx.request("GET", "/orders?limit=1", headers={"Host": "shop.example"})
        batch = nginx.request("POST", "/orders/batch", {"orders": [LARGE] * 200})
        log = (directory / "access.log").read_text()

    assert protocol == "h2"
    assert (without_tls.status, without_tls.json["type"]) == (400, "/problems/bad-request")
    assert (redirected.status, redirected.headers["Location"]) == (308, "https://shop.example/orders?limit=1")
    assert redirected.headers["Server"] == "nginx"  # and no version
    assert batch.status == 308
    assert log == ""  # it would have addresses and queries


@pytest.mark.parametrize(
    "sent",
    [
        *(REFUSED[name][0] for name in sorted(REFUSED.keys() - {"body"})),  # no body is read
        b"GET /.problem HTTP/1.1\r\n" + HEAD + b"\r\n",
    ],
)
def test_a_request_rejected_by_the_redirect_to_tls_is_a_problem(redirect: Server, sent: bytes) -> None:
    head, _, body = exchange(redirect.port, sent).decode().partition("\r\n\r\n")

    assert "\r\nContent-Type: application/problem+json\r\n" in head
    problem = json.loads(body)
    assert problem["status"] == int(head.split()[1]) and problem["detail"] not in UNSPECIFIC


@pytest.fixture(scope="module")
def redirect() -> Iterator[Server]:
    with nginx_without_service(tls_port=free_port()) as nginx:
        yield nginx


def test_no_log_contains_personal_data_of_a_client(app: Flask) -> None:
    """Each kind of error is caused by a request with personal data in address, path, query, Host and body."""
    head = "{} /customers/canary/personal-data?x=canary HTTP/1.1\r\nHost: canary\r\nX-Test-Address: 203.0.113.99\r\n"

    def send(port: int, method: str, more: str = "Connection: close\r\n\r\n") -> int:
        response = exchange(port, (head.format(method) + more).encode())
        return int(response.split()[1]) if response else 0

    with nginx_without_service() as nginx, socket.socket(socket.AF_UNIX) as upstream:
        directory, port = Path(nginx.process.args[4]), nginx.port  # type: ignore[index, arg-type]
        statuses = [send(port, "GET")]  # there is no socket
        upstream.bind(str(directory / "gunicorn.sock"))
        (directory / "gunicorn.sock").chmod(0o777)
        statuses.append(send(port, "GET"))  # nobody listens
        upstream.settimeout(TIMEOUT)
        upstream.listen()
        breaking = threading.Thread(target=lambda: upstream.accept()[0].close())
        breaking.start()
        statuses.append(send(port, "GET"))  # it closes the connection
        breaking.join()
        upstream.close()
        statuses.append(send(port, "POST", "Content-Length: 70000\r\nConnection: close\r\n\r\ncanary"))
        statuses.append(send(port, "POST", "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\ncanary\r\n"))
        statuses.append(send(port, "TRACE"))
        statuses.append(send(port, "GET", "canary canary\r\n\r\n"))
        statuses.append(send(port, "GET", "Host: canary\r\n\r\n"))
        statuses.append(nginx.request("GET", "/metrics?canary", headers={"X-Test-Address": "203.0.113.99"}).status)
        count_of_200(port, "203.0.113.99")
        shutil.rmtree(directory / "body")
        large = json.dumps({"note": "canary" * 20_000}).encode()
        statuses.append(nginx.request("POST", "/orders/batch", large).status)  # it cannot be buffered
        logs = [path.read_text() for path in directory.glob("*.log")]
        written = "".join((*logs, nginx.output()))

    assert statuses == [502, 502, 502, 413, 400, 405, 400, 400, 403, 500]
    assert written.count('"event":"nginx"') > 450
    assert not re.findall("(?i).*(?:canary|203\\.0\\.113|127\\.0\\.0\\.1).*", written)


def test_under_a_prefix_every_link_leads_through_nginx(database_url: str, app: Flask) -> None:
    prefix = "/shop/api"
    with nginx_without_service(prefix) as nginx:
        absent = nginx.request("GET", f"{prefix}/orders")
        bind = f"unix:{nginx.process.args[4]}/gunicorn.sock"  # type: ignore[index, str-bytes-safe]
        settings = {"BIND": bind, "DATABASE_URL": database_url, "WEB_CONCURRENCY": "1", "URL_PREFIX": prefix}
        # nginx has no path without the prefix, so the readiness is requested here.
        with running(*GUNICORN, port=nginx.port, status=404, **settings):
            deadline = time.monotonic() + TIMEOUT
            while nginx.request("GET", f"{prefix}/readyz").status != 200 and time.monotonic() < deadline:
                time.sleep(0.05)
            created = [nginx.request("POST", f"{prefix}/orders", ORDER) for _ in range(2)][-1]
            read = nginx.request("GET", created.headers["Location"])
            next_path = re.findall("<(.*)>", nginx.request("GET", f"{prefix}/orders?limit=1").headers["Link"])[0]
            missing = nginx.request("GET", f"{prefix}/orders/x")
            to_docs = nginx.request("GET", f"{prefix}/").headers["Location"]
            found = [nginx.request("GET", path).status for path in (next_path, missing.json["type"], to_docs)]
            types = [nginx.request("GET", problem.json["type"]).status for problem in (absent, missing)]
            erased = nginx.request("DELETE", f"{prefix}/customers/%2Fa%2F%2Fb/personal-data")
            hidden = [f"{prefix}//metrics", f"{prefix}{prefix}/metrics", f"{prefix}/%2Fmetrics", "//metrics", "/orders"]
            lost = [nginx.request("GET", path, headers={"X-Forwarded-Prefix": prefix}).status for path in hidden]
            denied = nginx.request("GET", f"{prefix}/metrics", headers={"X-Test-Address": "192.0.2.1"}).status

    assert (absent.status, absent.json["type"]) == (502, f"{prefix}/problems/service-unavailable")
    assert (created.status, read.body) == (201, created.body)
    assert created.headers["Location"].startswith(f"{prefix}/orders/")
    assert (missing.json["instance"], to_docs) == (f"{prefix}/orders/x", f"{prefix}/docs")
    assert (found, types, erased.status) == ([200] * 3, [200] * 2, 200)
    assert (lost, denied) == ([404] * 5, 403)


def test_a_slow_export_arrives_complete_and_an_aborted_one_is_recognizable(database_url: str, app: Flask) -> None:
    with app.app_context():
        for _ in range(10):
            insert_orders([new_order(CreateRequest(LARGE, ANONYMOUS)) for _ in range(100)])
    with nginx_without_service() as nginx:
        bind = f"unix:{nginx.process.args[4]}/gunicorn.sock"  # type: ignore[index, str-bytes-safe]
        settings = {"BIND": bind, "DATABASE_URL": database_url, "WEB_CONCURRENCY": "1"}
        with running(*GUNICORN, port=nginx.port, **settings):
            with closing(http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=TIMEOUT)) as connection:
                connection.request("GET", "/orders/export")
                slow = connection.getresponse()
                whole = slow.read(1)
                time.sleep(1)  # nginx reads no more than fits into its buffers and the kernel's
                whole += slow.read()
        with running(*GUNICORN, port=nginx.port, EXPORT_SECONDS="1", **settings) as service:
            with closing(http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=TIMEOUT)) as connection:
                connection.request("GET", "/orders/export")
                response = connection.getresponse()
                response.read(1)
                time.sleep(1)  # longer than the limit, which the service sees when it can send again
                with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
                    response.read()
            wait_until(lambda: '"event":"export aborted"' in service.output())

    assert (slow.status, whole.count(b"\n")) == (200, 1000)


def test_without_the_service_nginx_returns_503_with_retry_after() -> None:
    with nginx_without_service() as nginx:
        response = nginx.request("POST", "/orders", ORDER, {"X-Request-Id": "id-1"})
        batch = nginx.request("POST", "/orders/batch", b" " * 1_000_000)

    assert batch.status == batch.json["status"] == 502
    assert response.status == response.json["status"] == 502
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Retry-After"] == "1"
    assert response.json["type"] == "/problems/service-unavailable"
    assert response.json["instance"] == "/orders"
    assert response.json["request_id"] == response.headers["X-Request-Id"] == "id-1"


@pytest.mark.parametrize(("given", "kept"), [("id-1", True), ('"quoted"', False), ("a" * 129, False), (None, False)])
def test_a_valid_request_id_is_kept_and_an_invalid_one_replaced(service: Server, given: str | None, kept: bool) -> None:
    response = service.request("GET", "/healthz", headers={"X-Request-Id": given} if given else {})

    [request_id] = response.headers.get_all("X-Request-Id")
    assert (request_id == given) is kept
    assert kept or re.fullmatch("[0-9a-f]{32}", request_id)
    wait_until(lambda: f'"request_id":"{request_id}"' in service.output())


def test_clients_that_send_headers_slowly_delay_no_other_client(service: Server) -> None:
    with ExitStack() as slow:
        for _ in range(200):
            connection = slow.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=TIMEOUT))
            connection.sendall(b"GET /orders HTTP/1.1\r\nHost: ")

        responses = [service.request("POST", "/orders", ORDER) for _ in range(20)]

    assert {response.status for response in responses} == {201}


def test_a_reload_under_load_loses_no_request(service: Server, app: Flask) -> None:
    seen: Counter[int | str] = Counter()
    enough = threading.Event()

    def send() -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=TIMEOUT)) as connection:
            while not enough.is_set():
                try:
                    connection.request("POST", "/orders", json.dumps(ORDER), {"Content-Type": "application/json"})
                    response = connection.getresponse()
                    response.read()
                    seen[response.status] += 1
                except OSError as error:
                    seen[repr(error)] += 1

    clients = [threading.Thread(target=send) for _ in range(8)]
    for client in clients:
        client.start()
    for reloads in (1, 2, 3):
        old = set(service.children())
        service.process.send_signal(signal.SIGHUP)
        wait_for_workers(service, 2 + 2 * reloads)
    wait_until(lambda: not old & set(service.children()))
    enough.set()
    for client in clients:
        client.join()

    assert seen.keys() == {201}
    with app.app_context():
        assert db.session.query(Order).count() == seen[201]


def wait_for_workers(service: Server, number: int) -> None:
    deadline = time.monotonic() + TIMEOUT
    while service.output().count("Booting worker") < number:
        assert time.monotonic() < deadline, service.output()
        time.sleep(0.05)
