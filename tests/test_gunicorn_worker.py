"""The HTTP worker: it parses requests like gunicorn's own parser, and loses no request."""

import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest
from gevent import GreenletExit
from gunicorn.config import Config
from gunicorn.http import RequestParser
from gunicorn.http.wsgi import create
from hypothesis import example, given
from hypothesis import strategies as st

import gunicorn_worker
from app.errors import problem_types
from tests.support.servers import TIMEOUT
from tests.support.worker import Application, worker_of

NAMES = ("Host", "host", "Content-Type", "Content-Length", "content-length", "Idempotency-Key", "X-Forwarded-Proto",
         "X-Forwarded-Ssl", "Connection", "Transfer-Encoding", "Expect", "Upgrade", "X_Forwarded_For", "Script_Name",
         "A", "1", "", "a b", "a:", "é", "Cookie ")  # fmt: skip
VALUES = ("a", "0", "17", "+1", "1_0", "1,1", "-1", "", " ", "a b", " a\t", "http", "https", "chunked", "100-continue",
          "keep-alive", "close", "é", "\x00", "\x7f", "a\rb", "a\nb", "a\r\n b", "\r\nB: b")  # fmt: skip
SEPARATORS = (": ", ":", " :", ":\t", "", ":  ")
TARGETS = ("/", "/orders", "/orders?limit=1", "/a%20b%2F", "//a", "/a?b?c", "/a#b", "/?", "*", "http://a/b", "a:1", "",
           "/é", "/a b", "/%zz", "/;a=b")  # fmt: skip
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "DELETE", "TRACE", "CONNECT", "get", "", "P OST")
VERSIONS = ("HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.10", "http/1.1", "")
LINE_ENDS = ("\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "\r\r\n")

lines = st.tuples(st.sampled_from(NAMES), st.sampled_from(SEPARATORS), st.sampled_from(VALUES)).map("".join)
request_lines = st.tuples(*map(st.sampled_from, (METHODS, TARGETS, VERSIONS))).map(" ".join)
usual = st.just("GET /orders HTTP/1.1") | st.just("POST /orders?a=b HTTP/1.1")


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Request heads of clients and of attackers; most are well-formed in most of their parts."""
    head = [draw(usual | request_lines), *draw(st.lists(st.just("Host: a") | lines, max_size=4))]
    ends = draw(st.lists(st.sampled_from(LINE_ENDS), min_size=len(head), max_size=len(head)))
    text = "".join(line + end for line, end in zip(head, ends, strict=True))
    return text.encode("latin-1").removesuffix(b"\r\n")


LIMITS = gunicorn_worker.Limits(line_size=8190, field_size=8190, fields=100, keepalive=1, proxies=frozenset([""]))


def environ_of_gunicorn(head: bytes) -> dict[str, Any]:
    """The environ that gunicorn creates for a request from a Unix socket. Raises the error with which it refuses it."""
    configuration = Config()
    configuration.set("forwarder_headers", "")
    configuration.set("secure_scheme_headers", {"X-FORWARDED-PROTO": "https"})
    request = next(RequestParser(configuration, iter([head + b"\r\n\r\n"]), ""))
    return create(request, None, "", "/a.sock", configuration)[1]  # type: ignore[no-any-return]


def environ_of_the_worker(head: bytes) -> dict[str, Any] | None:
    parser = gunicorn_worker.RequestParser(LIMITS, {"REMOTE_ADDR": ""})
    parser.feed(head + b"\r\n\r\n")
    return parser.requests[0].environ if parser.requests else None


@given(heads())
@example(b"GET / HTTP/1.1\r\nHost: a\r\nnocolon")
@example(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked")
@example(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6")
@example(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 5")
@example(b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c")
def test_a_request_means_the_same_to_gunicorn(head: bytes) -> None:
    ours = environ_of_the_worker(head)

    if ours is not None:
        theirs = environ_of_gunicorn(head)
        if ours["RAW_URI"].startswith("http:"):  # RFC 9112 §3.2.2: such a target replaces Host
            theirs["HTTP_HOST"] = ours["HTTP_HOST"]
        assert {name: theirs.get(name) for name in ours} == ours
        assert {name for name in theirs if name.startswith(("HTTP_", "CONTENT_"))} <= ours.keys()


USUAL = (
    b"POST /orders?a=%20b HTTP/1.1\r\nHost: a:80\r\nX-Request-Id: id-1\r\ncontent-type: application/json\r\n"
    b"CONTENT-LENGTH:7"
)


def test_the_usual_request() -> None:
    assert environ_of_the_worker(USUAL) == {
        "REMOTE_ADDR": "",
        "REQUEST_METHOD": "POST",
        "RAW_URI": "/orders?a=%20b",
        "PATH_INFO": "/orders",
        "QUERY_STRING": "a=%20b",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "a:80",
        "HTTP_X_REQUEST_ID": "id-1",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": "7",
    }


def echo(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Responds with the method, the path and, unless the body is to be left unread, its beginning."""
    body = b"%s %s " % (environ["REQUEST_METHOD"].encode(), environ["PATH_INFO"].encode())
    if environ["PATH_INFO"] != "/unread":
        body += environ["wsgi.input"].read()[:9]
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


@contextmanager
def connection_to(application: Application, *, timeout: int = TIMEOUT, sent: bytes = b"") -> Iterator[socket.socket]:
    """A client's socket to a worker that serves the application, once the client has sent something."""
    ours, theirs = socket.socketpair()
    ours.sendall(sent)
    unix = socket.socket(socket.AF_UNIX)
    with worker_of(application, keepalive=timeout, timeout=timeout) as worker, ours, unix:
        ours.settimeout(TIMEOUT)
        serving = threading.Thread(target=worker.serve_connection, args=(worker.listener_environ(unix), theirs, ""))
        serving.start()
        yield ours
        ours.close()
        serving.join(TIMEOUT)
        assert not serving.is_alive()


def receive_all(connection: socket.socket) -> bytes:
    """All bytes until the server closes the connection."""
    received = b""
    while part := connection.recv(65_536):
        received += part
    return received


def response_to(sent: bytes, application: Application = echo) -> bytes:
    """The response to these bytes, after which the client sends no more."""
    with connection_to(application) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return receive_all(connection)


def bodies(responses: bytes) -> list[bytes]:
    """The bodies of responses of `echo`, which have a length."""
    found = []
    while responses:
        head, _, rest = responses.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        found.append(rest[:length])
        responses = rest[length:]
    return found


PLAIN = b"POST /plain HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
UNREAD = b"POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
CHUNKED = b"POST /chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"


def test_responses_to_pipelined_requests_are_in_order() -> None:
    responses = response_to(PLAIN + UNREAD + PLAIN + CHUNKED + PLAIN)

    plain, chunked = b"POST /plain abc", b"POST /chunked abc"
    assert bodies(responses) == [plain, b"POST /unread ", plain, chunked, plain]


@pytest.mark.parametrize("request_", [PLAIN, UNREAD, CHUNKED], ids=["plain", "unread", "chunked"])
def test_a_request_may_arrive_in_pieces_of_any_size(request_: bytes) -> None:
    expected = bodies(response_to(request_)) * 2

    for size in (1, 7, 50, len(request_) - 1):
        with connection_to(echo) as connection:
            for piece in pieces_of(request_ * 2, size):
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            assert bodies(receive_all(connection)) == expected


def pieces_of(sent: bytes, size: int) -> list[bytes]:
    return [sent[start : start + size] for start in range(0, len(sent), size)]  # noqa: E203


def test_the_unread_rest_of_a_large_body_is_skipped() -> None:
    large = b"POST /%s HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000

    read, unread, after = bodies(response_to(large % b"read" + large % b"unread" + PLAIN))

    assert read == b"POST /read xxxxxxxxx"
    assert (unread, after) == (b"POST /unread ", b"POST /plain abc")


def test_a_client_that_sends_more_than_the_server_skips_gets_its_response(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gunicorn_worker, "MAX_BODY_SIZE", 100_000)
    large = b"POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000

    assert bodies(response_to(large)) == [b"POST /unread "]


def test_a_body_that_ends_early_closes_the_connection() -> None:
    assert bodies(response_to(PLAIN[:-1])) == [b"POST /plain ab"]


@pytest.mark.parametrize("given", ["close", "Close", "keep-alive, close", "x"])
def test_the_connection_is_closed_for_connection_close_and_unknown_options(given: str) -> None:
    asked = PLAIN.replace(b"\r\nHost", f"\r\nConnection: {given}\r\nHost".encode())

    response = response_to(asked + PLAIN)

    assert bodies(response) == [b"POST /plain abc"]
    assert b"\r\nConnection: close\r\n" in response


def test_an_old_clients_connection_is_closed() -> None:
    assert bodies(response_to(b"GET /old HTTP/1.0\r\n\r\n" + PLAIN)) == [b"GET /old "]


def test_a_client_that_expects_100_continue_gets_it() -> None:
    with connection_to(echo) as connection:
        connection.sendall(PLAIN[:-3].replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        interim = connection.recv(100)
        connection.sendall(b"abc")
        connection.shutdown(socket.SHUT_WR)

        assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert bodies(receive_all(connection)) == [b"POST /plain abc"]


def streaming(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Type", "text/csv")])
    yield from (b"a", b"", b"b" * 20)


def test_a_body_of_unknown_length_is_sent_in_chunks_and_keeps_the_connection() -> None:
    responses = response_to(PLAIN + PLAIN, streaming)

    assert responses.count(b"\r\nTransfer-Encoding: chunked\r\n") == 2
    assert responses.count(b"\r\n\r\n1\r\na\r\n14\r\n" + b"b" * 20 + b"\r\n0\r\n\r\n") == 2


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_a_response_without_a_body_ends_with_its_head(status: str) -> None:
    def without(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response(status, [])
        return []

    responses = response_to(PLAIN + PLAIN, without)

    assert responses.count(f"HTTP/1.1 {status}\r\n".encode()) == 2
    assert b"chunked" not in responses and responses.endswith(b"GMT\r\n\r\n")


def test_a_response_to_head_has_the_length_and_no_body() -> None:
    responses = response_to(PLAIN.replace(b"POST", b"HEAD") * 2)

    assert responses.count(b"\r\nContent-Length: 15\r\n") == 2
    assert b"abc" not in responses


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"HEAD / HTTP/1.1\r\n\r\n", 400),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\nA: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (b"HEAD /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"HEAD /" + b"a" * 17_000, 414),
        (b"HEAD /broken HTTP/1.1\r\nHost: a\r\n\r\n", 500),
    ],
)
def test_a_refused_head_request_gets_no_body(sent: bytes, status: int) -> None:
    response = response_to(sent, failing(Closing(None)))

    assert response.startswith(b"HTTP/1.1 %d " % status)
    assert response.endswith(b"\r\n\r\n") and b"\r\nContent-Length: " in response


def test_a_problem_of_the_worker_has_the_title_of_its_type() -> None:
    titles = {f"/problems/{kind.slug}": kind.title for kind in problem_types()}
    problems = [json.loads(gunicorn_worker.problem_body(gunicorn_worker.OVERLOADED, "id"))]
    for status in HTTPStatus:
        problems.append(json.loads(gunicorn_worker.problem_body(gunicorn_worker.RequestError(status, "a"), "id")))

    typed = [problem for problem in problems if problem["type"] != "about:blank"]
    assert {problem["status"] for problem in typed} == {400, 408, 413, 500, 503}
    assert [problem["title"] for problem in typed] == [titles[problem["type"]] for problem in typed]


class Closing:
    """Pieces of a body that fail at None, and record whether they were closed."""

    def __init__(self, *pieces: bytes | None) -> None:
        self.pieces = pieces
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if piece is None:
                raise RuntimeError("broken")
            yield piece

    def close(self) -> None:
        self.closed = True


def failing(pieces: Closing, *headers: tuple[str, str]) -> Application:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Closing:
        start_response("200 OK", list(headers))
        return pieces

    return application


def test_an_application_that_fails_before_its_response_is_a_500() -> None:
    pieces = Closing(None)

    response = response_to(PLAIN + PLAIN, failing(pieces))

    assert response.startswith(b"HTTP/1.1 500 ") and response.count(b"HTTP/1.1 ") == 1
    assert pieces.closed


@pytest.mark.parametrize("headers", [[], [("Content-Length", "9")]], ids=["chunked", "with a length"])
def test_an_aborted_response_does_not_look_complete(headers: list[tuple[str, str]]) -> None:
    pieces = Closing(b"a", None)

    response = response_to(PLAIN + PLAIN, failing(pieces, *headers))

    assert response.startswith(b"HTTP/1.1 200 ") and response.count(b"HTTP/1.1 ") == 1
    assert not response.endswith(b"0\r\n\r\n")
    assert pieces.closed


def ending_with(error: BaseException) -> Application:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"a"
        raise error

    return application


TOO_MUCH = failing(Closing(*[b"x" * 1_000_000] * 50))  # for a client that does not read


@pytest.mark.parametrize("application", [ending_with(RuntimeError()), ending_with(GreenletExit()), TOO_MUCH])
def test_a_partial_response_resets_the_connection_of_an_http_1_0_client(application: Application) -> None:
    """Its body ends with the connection: after a normal close, a part would look complete."""
    with socket.create_server(("127.0.0.1", 0)) as listener, worker_of(application, timeout=1) as worker:
        with socket.create_connection(listener.getsockname(), TIMEOUT) as client:
            accepted, address = listener.accept()
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            worker.serve_connection(worker.listener_environ(listener), accepted, address)
            with pytest.raises(ConnectionResetError):
                receive_all(client)


def test_a_response_that_the_application_aborts_before_it_has_started_is_a_500() -> None:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        raise ConnectionAbortedError

    assert response_to(PLAIN, application).startswith(b"HTTP/1.1 500 ")


@pytest.mark.parametrize("ended", [SystemExit, GreenletExit])
def test_a_request_that_gunicorn_aborts_does_not_stop_its_worker(ended: type[BaseException]) -> None:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        raise ended

    assert response_to(PLAIN + PLAIN, application) == b""


def test_a_failure_after_the_response_sends_no_second_response() -> None:
    pieces = Closing(b"a")
    pieces.close = lambda: 1 / 0  # type: ignore[assignment,method-assign]

    response = response_to(PLAIN + PLAIN, failing(pieces, ("Content-Length", "1")))

    assert response.startswith(b"HTTP/1.1 200 ") and response.endswith(b"\r\n\r\na")


def test_headers_of_the_server_are_sent_once() -> None:
    theirs = [("Date", "x"), ("Server", "x"), ("Connection", "x"), ("Keep-Alive", "x"), ("Transfer-Encoding", "x")]

    response = response_to(PLAIN, failing(Closing(b"a"), *theirs, ("Content-Length", "1")))

    assert b": x\r\n" not in response
    assert response.count(b"\r\nDate: ") == 1


def received_at(rate: int, size: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many bytes of a response, with its head, a client receives that reads so many a second of the worker's clock.

    The worker's limit is TIMEOUT and, for 100,000 bytes, another second.
    """
    received = 0
    clock = SimpleNamespace(monotonic=lambda: received / rate, time=time.time)
    monkeypatch.setattr(gunicorn_worker, "time", clock)
    monkeypatch.setattr(gunicorn_worker, "MIN_BODY_RATE", 100_000)
    large = failing(Closing(b"x" * size), ("Content-Length", str(size)))
    with connection_to(large, sent=PLAIN.replace(b"Host", b"Connection: close\r\nHost")) as connection:
        while part := connection.recv(10_000):
            received += len(part)
    return received


def test_a_slow_client_receives_the_whole_of_a_large_response(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 100_000 * 2 * TIMEOUT  # in two thirds of the time for one part and this many bytes

    assert received_at(size // (2 * TIMEOUT), size, monkeypatch) > size


def test_a_client_that_receives_a_large_response_too_slowly_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 100_000 * 2 * TIMEOUT

    assert 0 < received_at(size // (8 * TIMEOUT), size, monkeypatch) < size


def test_a_client_that_sends_the_rest_of_an_unread_body_too_slowly_is_disconnected() -> None:
    with connection_to(echo, timeout=1) as connection:
        connection.sendall(UNREAD.replace(b": 3", b": 1000000"))
        response = connection.recv(1000)
        with pytest.raises(OSError):
            for _ in range(10 * TIMEOUT):
                time.sleep(0.1)
                connection.sendall(b"x")

    assert bodies(response) == [b"POST /unread "]


def test_a_response_shorter_than_its_length_closes_the_connection() -> None:
    response = response_to(PLAIN + PLAIN, failing(Closing(b"a"), ("Content-Length", "2")))

    assert response.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "\x00"])
def test_a_header_with_a_line_break_is_never_sent(value: str) -> None:
    response = response_to(PLAIN, failing(Closing(b"a"), ("A", value)))

    assert response.startswith(b"HTTP/1.1 500 ")
    assert b"Set-Cookie" not in response


@pytest.mark.parametrize(("peer", "scheme"), [("", "https"), ("127.0.0.1", "https"), ("192.0.2.1", "http")])
def test_only_a_local_proxy_may_set_the_scheme(peer: str, scheme: str) -> None:
    seen = []

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        seen.append((environ["wsgi.url_scheme"], environ["REMOTE_ADDR"]))
        start_response("204 No Content", [])
        return []

    ours, theirs = socket.socketpair()
    family = socket.AF_INET if peer else socket.AF_UNIX
    with worker_of(application) as worker, ours, socket.socket(family) as listener:
        ours.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-Proto: https\r\n\r\n")
        worker.serve_connection(worker.listener_environ(listener), theirs, (peer, 1) if peer else "")

    assert seen == [(scheme, peer)]


def test_the_last_request_of_a_worker_that_is_to_stop_closes_the_connection() -> None:
    ours, theirs = socket.socketpair()
    with worker_of(echo, max_requests=2) as worker, ours, socket.socket(socket.AF_UNIX) as listener:
        ours.sendall(PLAIN * 3)
        worker.serve_connection(worker.listener_environ(listener), theirs, "")
        responses = receive_all(ours)

    assert bodies(responses) == [b"POST /plain abc"] * 2
    assert responses.count(b"\r\nConnection: close\r\n") == 1
    assert not worker.alive


def test_a_connection_that_has_waited_for_events_is_not_closed_after_it_promised_to_stay_open() -> None:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        if environ["PATH_INFO"] == "/wait":
            environ[gunicorn_worker.WATCH_CLOSING](lambda: None)
        start_response("200 OK", [("Content-Length", "2")])
        yield b"a"
        if environ["PATH_INFO"] == "/stop":
            worker.alive = False
        yield b"b"

    ours, theirs = socket.socketpair()
    with worker_of(application) as worker, ours, socket.socket(socket.AF_UNIX) as listener:
        ours.sendall(b"".join(PLAIN.replace(b"/plain", path) for path in (b"/wait", b"/stop", b"/last")))
        worker.serve_connection(worker.listener_environ(listener), theirs, "")
        responses = receive_all(ours)

    assert bodies(responses) == [b"ab"] * 3
    assert responses.count(b"\r\nConnection: close\r\n") == 1


POST_HEAD = b"POST /post HTTP/1.1\r\nHost: a\r\n"
CHUNKED_HEAD = POST_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
AMBIGUOUS = {
    "length and chunks": POST_HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST_HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": POST_HEAD + b"Content-Length: 0\r\nContent-Length: 40\r\n\r\n",
    "the same length twice": POST_HEAD + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "a list of lengths": POST_HEAD + b"Content-Length: 0, 40\r\n\r\n",
    "a signed length": POST_HEAD + b"Content-Length: +0\r\n\r\n",
    "a space before the colon": POST_HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded header": POST_HEAD + b"A: b\r\n Content-Length: 40\r\n\r\n",
    "a bare LF after a header": POST_HEAD + b"A: b\nContent-Length: 40\r\n\r\n",
    "a bare LF after the request line": b"GET /post HTTP/1.1\nHost: a\r\n\r\n",
    "a bare CR in a header": POST_HEAD + b"A: b\rContent-Length: 40\r\n\r\n",
    "a NUL": POST_HEAD + b"A: \x00\r\n\r\n",
    "a coding before chunked": POST_HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a coding after chunked": POST_HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked twice": POST_HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a coding like chunked": POST_HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": CHUNKED_HEAD.replace(b"1.1", b"1.0") + b"0\r\n\r\n",
    "a hexadecimal prefix": CHUNKED_HEAD + b"0x0\r\n\r\n",
    "a space after a size": CHUNKED_HEAD + b"0 \r\n\r\n",
    "a bare LF after a size": CHUNKED_HEAD + b"0\n\n",
    "a bare LF in an extension": CHUNKED_HEAD + b"1;a\nb\r\nx\r\n0\r\n\r\n",
    "an extension without end": CHUNKED_HEAD + b'1;a="\r\nx\r\n0\r\n\r\n',
    "no line end after a chunk": CHUNKED_HEAD + b"1\r\nxx\r\n0\r\n\r\n",
    "a negative size": CHUNKED_HEAD + b"-1\r\n\r\n",
    "a size beyond 64 bits": CHUNKED_HEAD + b"10000000000000000\r\n\r\n",
    "a length as trailer": CHUNKED_HEAD + b"0\r\nContent-Length: 40\r\n\r\n",
    "two hosts": POST_HEAD + b"Host: b\r\n\r\n",
    "two content types": POST_HEAD + b"Content-Type: a\r\nContent-Type: b\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("sent", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_an_ambiguous_request_is_refused_and_the_last_of_its_connection(sent: bytes) -> None:
    responses = response_to(PLAIN + sent + SMUGGLED)

    first, _, refusal = responses.partition(b"POST /plain abc")
    assert first.startswith(b"HTTP/1.1 200 ")
    assert re.match(rb"HTTP/1\.1 (400|501) ", refusal)
    assert b"\r\nContent-Type: application/problem+json\r\n" in refusal and b"\r\nConnection: close\r\n" in refusal
    assert refusal.count(b"HTTP/1.1 ") == 1
    assert b"smuggled" not in responses


@pytest.mark.parametrize("header", ["Script_Name: /a", "Script-Name: /a", "X-Forwarded-Prefix: /a", "Path_Info: /a"])
def test_no_header_changes_the_path_or_its_prefix(header: str) -> None:
    environ = environ_of_the_worker(f"GET /b HTTP/1.1\r\nHost: a\r\n{header}".encode())

    assert environ is not None
    assert (environ.get("SCRIPT_NAME"), environ["PATH_INFO"]) == (None, "/b")


def test_header_names_with_underscores_are_dropped() -> None:
    environ = environ_of_the_worker(b"GET / HTTP/1.1\r\nHost: a\r\nContent_Length: 1\r\nX_Request_Id: b\r\nA-B: c")

    assert environ is not None
    assert {name for name in environ if name.startswith(("HTTP_", "CONTENT_"))} == {"HTTP_HOST", "HTTP_A_B"}


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]
)
def test_an_offer_to_upgrade_is_declined_and_the_body_read(framing: bytes) -> None:
    offer = b"POST /offer HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n" + framing

    assert bodies(response_to(offer + PLAIN)) == [b"POST /offer abc", b"POST /plain abc"]
    for size in (1, 7):
        with connection_to(echo) as connection:
            for piece in pieces_of(offer + PLAIN, size):
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            assert bodies(receive_all(connection)) == [b"POST /offer abc", b"POST /plain abc"]


def test_an_unread_body_gets_no_100_continue() -> None:
    expecting = UNREAD.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n").removesuffix(b"abc")

    response = response_to(expecting)

    assert response.startswith(b"HTTP/1.1 200 ") and b"\r\nConnection: close\r\n" in response


def test_an_old_client_may_keep_its_connection() -> None:
    kept = b"GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"

    responses = response_to(kept * 2)

    assert bodies(responses) == [b"GET /old "] * 2
    assert responses.count(b"\r\nConnection: keep-alive\r\n") == 2


def test_for_http_1_0_a_body_of_unknown_length_ends_with_the_connection() -> None:
    response = response_to(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", streaming)

    assert response.endswith(b"\r\n\r\na" + b"b" * 20)
    assert b"chunked" not in response and b"\r\nConnection: close\r\n" in response


def responses_in_time(*begun: bytes) -> list[bytes]:
    """All responses to incomplete requests, each on its own connection; the worker waits for a second."""
    with ExitStack() as stack:
        connections = [stack.enter_context(connection_to(echo, timeout=1, sent=sent)) for sent in begun]
        return [receive_all(connection) for connection in connections]


def test_a_head_that_does_not_arrive_in_time_ends_the_connection() -> None:
    nothing, half, after_another = responses_in_time(b"", b"GET / HTTP", PLAIN + b"GET / HTTP")

    assert nothing == b""
    assert half.startswith(b"HTTP/1.1 408 ")
    assert [after_another.count(b"HTTP/1.1 %d " % status) for status in (200, 408)] == [1, 1]


EXPECTING = PLAIN[:-3].replace(b"Host", b"Expect: 100-continue\r\nHost")


def test_a_body_that_does_not_arrive_in_time_is_408() -> None:
    for received in responses_in_time(PLAIN[:-1], CHUNKED[:-4], CHUNKED[:-12], EXPECTING):
        assert received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("begun", "endless"),
    [
        (b"GET /", b"a"),
        (b"GET / HTTP/1.1\r\n", b"a"),
        (b"GET / HTTP/1.1\r\nHost: ", b"a"),
        (b"GET / HTTP/1.1\r\n", b"A: b\r\n"),
        (b"", b"\r\n"),
        (CHUNKED_HEAD + b"1;", b"a"),
        (CHUNKED_HEAD, b"0"),
        (CHUNKED_HEAD + b"0\r\nA: ", b"a"),
        (CHUNKED_HEAD + b"0\r\n", b"A: b\r\n"),
        (CHUNKED_HEAD, b"4000\r\n" + b"x" * 0x4000 + b"\r\n"),
    ],
)
def test_an_endless_request_is_rejected(begun: bytes, endless: bytes) -> None:
    with connection_to(echo) as connection:
        connection.sendall(begun)
        with suppress(OSError):
            for _ in range(400):
                connection.sendall(endless * (65_536 // len(endless)))
        received = receive_all(connection)

    assert re.match(rb"HTTP/1\.1 (400|413|414|431) ", received)


def test_the_application_may_write_and_may_replace_a_response_that_has_not_begun() -> None:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "9")])
        try:
            raise RuntimeError("replaced")
        except RuntimeError:
            write = start_response("201 Created", [("Content-Length", "2")], sys.exc_info())
        write(b"a")
        return [b"b"]

    responses = response_to(PLAIN * 2, application)

    assert responses.count(b"HTTP/1.1 201 Created\r\n") == 2
    assert responses.count(b"\r\n\r\nab") == 2


def test_requests_before_a_malformed_one_get_responses() -> None:
    responses = response_to(PLAIN * 3 + b"garbage\r\n\r\n")

    assert responses.count(b"HTTP/1.1 200 ") == 3
    assert responses.count(b"HTTP/1.1 400 ") == 1


def test_an_idle_worker_accepts_one_connection_at_a_time_and_a_busy_one_many() -> None:
    with worker_of(echo, workers=2) as worker, socket.create_server(("127.0.0.1", 0)) as listening:
        listener = gunicorn_worker.HttptoolsWorker.server_class(
            listening, handler_class=worker.wsgi_handler, spawn="default"
        )
        idle = listener.max_accept
        worker.requests_in_progress = 100
        busy = listener.max_accept
        listener.close()

    assert (idle, busy) == (1, 51)
