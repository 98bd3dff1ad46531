"""The responses of the worker, byte for byte, compared with gunicorn's gevent worker; each difference has a reason."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.workers.ggevent import GeventWorker

from gunicorn_worker import HttptoolsWorker

TIMEOUT = 10  # seconds


def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    """Responds with the request, in the format that the path names."""
    path = environ["PATH_INFO"]
    if path == "/fails":
        raise RuntimeError("broken")
    body = b"" if path == "/unread" else environ["wsgi.input"].read()
    names = {"REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "SCRIPT_NAME", "RAW_URI", "wsgi.url_scheme"}
    given = {
        name: value
        for name, value in environ.items()
        if name in names or name.startswith(("HTTP_", "CONTENT_", "REMOTE_"))
    }
    content = json.dumps([given, body.decode("latin-1")], sort_keys=True).encode()
    status, headers, parts = RESPONSES.get(path, ("200 OK", ["Content-Length: LENGTH"], [b"BODY"]))
    fields = [tuple(header.replace("LENGTH", str(len(content))).split(": ", 1)) for header in headers]
    start_response(status, fields)
    yield from (part.replace(b"BODY", content) for part in parts)


RESPONSES: dict[str, tuple[str, list[str], list[bytes]]] = {
    "/chunked": ("200 OK", [], [b"a", b"", b"BODY"]),
    "/empty": ("200 OK", [], []),
    "/empty-length": ("200 OK", ["Content-Length: 0"], []),
    "/parts": ("200 OK", ["Content-Length: 3"], [b"a", b"b", b"c"]),
    "/too-short": ("200 OK", ["Content-Length: 3"], [b"ab"]),
    "/too-long": ("200 OK", ["Content-Length: 3"], [b"abcdef"]),
    "/too-many-parts": ("200 OK", ["Content-Length: 3"], [b"abc", b"def"]),
    "/no-content": ("204 No Content", [], []),
    "/no-content-body": ("204 No Content", ["Content-Length: 1"], [b"a"]),
    "/not-modified": ("304 Not Modified", ['ETag: "1"'], []),
    "/not-modified-length": ("304 Not Modified", ["Content-Length: 3"], []),
    "/hop-by-hop": ("200 OK", ["Content-Length: 1", "Connection: x", "Keep-Alive: x", "Transfer-Encoding: x"], [b"a"]),
    "/own-date": ("200 OK", ["Content-Length: 1", "Date: x", "Server: x"], [b"a"]),
    "/repeated": ("200 OK", ["Content-Length: 1", "Set-Cookie: a=1", "Set-Cookie: b=2"], [b"a"]),
    "/no-reason": ("299", ["Content-Length: 1"], [b"a"]),
    "/line-break": ("200 OK", ["Content-Length: 1", "A: b\r\nC: d"], [b"a"]),
    "/control": ("200 OK", ["Content-Length: 1", "A: \x01"], [b"a"]),
    "/latin-1": ("200 OK", ["Content-Length: 1", "A: \xe9"], [b"a"]),
    "/error": ("500 Internal Server Error", ["Content-Length: 1"], [b"a"]),
}

HOST = b"Host: a\r\n"
GET = b"GET /get HTTP/1.1\r\n" + HOST + b"\r\n"
POST = b"POST /post HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc"
CHUNKED = b"POST /chunks HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
UNREAD = b"POST /unread HTTP/1.1\r\n" + HOST


def request_lines() -> Iterator[bytes]:
    for method in (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"QUERY", b"PROPFIND",
                   b"CONNECT", b"FOO", b"get", b"G3T", b"", b"GE T", b"GET\t"):  # fmt: skip
        yield method + b" /a HTTP/1.1"
    for target in (b"/", b"/a?b=c", b"/a?b?c", b"/a?", b"/?a", b"//a", b"///", b"/a//b", b"/a%20b", b"/a%2Fb", b"/%zz",
                   b"/%", b"/%C3%A9", b"/a;b=c", b"/.", b"/../a", b"/a/./b", b"/a:b@c", b"/a|b", b"/{a}", b"/\"a\"",
                   b"/a\\b", b"/a#b", b"/\xc3\xa9", b"/\x01", b"/\x7f", b"/a b", b"*", b"http://b/a", b"http://b",
                   b"http://b?c", b"https://b:1/a", b"HTTP://b/a", b"http://c@b/a", b"http:///a", b"http://[::1]/a",
                   b"http://[/a", b"ftp://b/a", b"a", b"a:1", b"?a", b"",
                   b"/" + b"a" * 8000, b"/" + b"a" * 9000):  # fmt: skip
        yield b"GET " + target + b" HTTP/1.1"
    yield b"OPTIONS * HTTP/1.1"
    for version in (b"HTTP/1.0", b"HTTP/0.9", b"HTTP/1.2", b"HTTP/1.10", b"HTTP/2.0", b"HTTP/3", b"http/1.1", b"HTTP/1",
                    b"HTTP1.1", b"RTSP/1.0", b"ICE/1.0", b"HTTP/1.1 ", b"HTTP/1.1 x", b""):  # fmt: skip
        yield b"GET /a " + version
    yield from (b"GET /a", b"GET  /a HTTP/1.1", b"GET /a  HTTP/1.1", b" GET /a HTTP/1.1", b"GET /a\tHTTP/1.1", b"\x00")


HEADERS = (
    b"A: b", b"A:b", b"A:  b  ", b"A:\tb\t", b"A:", b"A: ", b"a-b: c", b"A-1: c", b"A_B: c", b"Content_Length: 1",
    b"A : b", b" A: b", b"\tA: b", b"A: b\r\n c", b"A: b\r\n\tc", b"A", b": b", b"A b: c", b"A(: b", b"A\x00: b",
    b"A\xe9: b", b"A: \xe9", b"A: \x00", b"A: \x01", b"A: \x7f", b"A: b\tc", b"A: b\rc", b"A: b\nB: c", b"A: b\r\r",
    b"A: b\r\nA: c", b"A: b\r\na: c", b"Cookie: a=1\r\nCookie: b=2", b"Host: b", b"host: a", b"Host:",
    b"Content-Type: a\r\nContent-Type: b", b"Content-Type: a/b; c=d", b"Authorization: a\r\nAuthorization: b",
    b"Script-Name: /a", b"SCRIPT_NAME: /a", b"Path-Info: /b", b"Remote-Addr: x", b"X-Forwarded-For: x",
    b"X-Forwarded-Proto: https", b"X-Forwarded-Proto: http", b"X-Forwarded-Proto: HTTPS",
    b"X-Forwarded-Proto: https\r\nX-Forwarded-Proto: http", b"X-Forwarded-Proto: https, http",
    b"X-Forwarded-Protocol: ssl", b"X-Forwarded-Ssl: on", b"X-Forwarded-Prefix: /a", b"Forwarded: proto=https",
    b"Upgrade: h2c", b"Connection: Upgrade\r\nUpgrade: h2c", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c",
    b"Connection: Upgrade\r\nUpgrade: websocket", b"TE: trailers", b"Trailer: A", b"Accept-Encoding: gzip",
    b"Expect: 100-continue", b"Expect: 100-Continue", b"Expect: x", b"Expect:",
    b"A: " + b"b" * 8000, b"A: " + b"b" * 9000, b"A" * 9000 + b": b",
    b"\r\n".join(b"A%d: b" % i for i in range(99)), b"\r\n".join(b"A%d: b" % i for i in range(101)),
    b"\r\n".join(b"A%d: %s" % (i, b"b" * 7000) for i in range(20)),
)  # fmt: skip

HOSTS = (
    b"a.example", b"a.example:8000", b"a:", b"127.0.0.1", b"[::1]", b"[::1]:80", b"[v1.a:b]", b"a_b", b"a%20b", b"a.",
    b"", b":80", b"a,b", b"a;b", b"a b", b"a/b", b"a?b", b"a#b", b"c@a", b"a:b", b"a:80:90", b"a%", b"a%zz", b"[a",
    b"[]", b"[::1", b"::1", b"[::1]a", b"a\\b", b"a<b>", b"http://a", b"a\"b", b"\xc3\xa9",
)  # fmt: skip

CONNECTIONS = (
    b"keep-alive", b"Keep-Alive", b"close", b"Close", b"keep-alive, close", b"close, keep-alive", b"x", b"", b"TE",
)  # fmt: skip

LENGTHS = (
    b"Content-Length: 3", b"Content-Length:3", b"content-length: 3", b"Content-Length: 003", b"Content-Length: 3 ",
    b"Content-Length: +3", b"Content-Length: -3", b"Content-Length: 3.0", b"Content-Length: 0x3",
    b"Content-Length: 3,3",
    b"Content-Length: 1_0", b"Content-Length: a", b"Content-Length:", b"Content-Length: 3\r\nContent-Length: 3",
    b"Content-Length: 3\r\nContent-Length: 4", b"Content-Length : 3", b"Content-Length: 99999999999999999999",
    b"Content-Length: \xb2", b"Content-Length: 3\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 3", b"Content-Length: 3\r\nTransfer-Encoding: identity",
    b"Content-Length: 0", b"Content-Length: 2", b"Content-Length: 4",
)  # fmt: skip

CODINGS = (
    b"chunked", b"Chunked", b" chunked ", b"chunked,", b",chunked", b"chunked, chunked", b"chunked, identity",
    b"identity",
    b"gzip", b"gzip, chunked", b"chunked, gzip", b"x", b"", b"xchunked", b"chunked;a=b", b"\"chunked\"",
    b"chunked\r\nTransfer-Encoding: chunked", b"chunked\r\nTransfer-Encoding: x", b"\x0bchunked", b"chun\tked",
)  # fmt: skip

BODIES = (
    b"0\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n", b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"A\r\n0123456789\r\n0\r\n\r\n",
    b"a\r\n0123456789\r\n0\r\n\r\n", b"003\r\nabc\r\n0\r\n\r\n", b"3\r\nabc\r\n000\r\n\r\n", b"0x3\r\nabc\r\n0\r\n\r\n",
    b"+3\r\nabc\r\n0\r\n\r\n", b"-3\r\nabc\r\n0\r\n\r\n", b"3 \r\nabc\r\n0\r\n\r\n", b" 3\r\nabc\r\n0\r\n\r\n",
    b"3\t\r\nabc\r\n0\r\n\r\n", b"\r\nabc\r\n0\r\n\r\n", b"x\r\nabc\r\n0\r\n\r\n", b"3\nabc\n0\n\n",
    b"3\r\nabc\n0\r\n\r\n",
    b"3\rabc\r\n0\r\n\r\n", b"3\r\nabcd\r\n0\r\n\r\n", b"3\r\nab\r\n0\r\n\r\n", b"3\r\nabc0\r\n\r\n",
    b"3;a\r\nabc\r\n0\r\n\r\n", b"3;a=b\r\nabc\r\n0\r\n\r\n", b"3;a=\"b;c\"\r\nabc\r\n0\r\n\r\n",
    b"3;\r\nabc\r\n0\r\n\r\n",
    b"3 ;a\r\nabc\r\n0\r\n\r\n", b"3; a\r\nabc\r\n0\r\n\r\n", b"3;a\nabc\r\n0\r\n\r\n", b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    b"3;\x00\r\nabc\r\n0\r\n\r\n", b"3;a=\"\r\nabc\r\n0\r\n\r\n", b"0;a=b\r\n\r\n", b"3\r\nabc\r\n0\r\nA: b\r\n\r\n",
    b"3\r\nabc\r\n0\r\nContent-Length: 3\r\n\r\n", b"3\r\nabc\r\n0\r\nHost: b\r\n\r\n",
    b"3\r\nabc\r\n0\r\nA_B: b\r\n\r\n",
    b"3\r\nabc\r\n0\r\nA : b\r\n\r\n", b"3\r\nabc\r\n0\r\nA\r\n\r\n", b"3\r\nabc\r\n0\r\nA: b\n\r\n",
    b"ffffffffffffffff\r\nabc\r\n0\r\n\r\n", b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    b"3\r\nabc\r\n", b"3\r\nabc\r\n0\r\n", b"3\r\nab", b"3", b"",
)  # fmt: skip

SEQUENCES = (
    GET * 2, GET * 5, POST * 3, POST + GET, CHUNKED + b"0\r\n\r\n" + GET, CHUNKED + b"3\r\nabc\r\n0\r\n\r\n" + POST,
    CHUNKED + b"0\r\nA: b\r\n\r\n" + GET, GET + b"garbage\r\n\r\n", GET + b"\r\n" + GET, b"\r\n" + GET, b"\n" + GET,
    b"\r\n\r\n" + GET, b"\r\n", b"", b"G", b"GET / HTTP/1.1\r\nHost", POST + b"x", GET[:-2],
    UNREAD + b"Content-Length: 3\r\n\r\nabc" + GET,
    UNREAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + GET,
    UNREAD + b"Content-Length: 100\r\n\r\nabc", UNREAD + b"Content-Length: 3\r\nConnection: close\r\n\r\nabc" + GET,
    UNREAD + b"Transfer-Encoding: chunked\r\n\r\nx", UNREAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /a HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /a HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", b"POST /a HTTP/1.0\r\n\r\nabc",
    b"GET /a HTTP/1.0\r\n\r\n" + GET,
    b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + GET, b"GET /fails HTTP/1.1\r\nHost: a\r\n\r\n" + GET,
    b"POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"GET /a HTTP/1.1\r\n\r\n",
    b"GET /a HTTP/1.0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc" + GET,
    b"POST /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n0\r\n\r\n" + GET,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n" + GET,
    b"\x16\x03\x01\x02\x00\x01\x00\x01",
    GET.replace(b"\r\n", b"\n"), GET.replace(b"\r\n\r\n", b"\n\n"), GET.replace(b"\r\n", b"\r"),
)  # fmt: skip


def requests() -> Iterator[bytes]:
    for line in request_lines():
        yield line + b"\r\n" + HOST + b"\r\n"
    for header in HEADERS:
        yield b"GET /a HTTP/1.1\r\n" + HOST + header + b"\r\n\r\n"
    for value in CONNECTIONS:
        for version in (b"1.1", b"1.0"):
            yield b"GET /a HTTP/" + version + b"\r\n" + HOST + b"Connection: " + value + b"\r\n\r\n" + GET
    for length in LENGTHS:
        yield b"POST /a HTTP/1.1\r\n" + HOST + length + b"\r\n\r\nabc"
    for coding in CODINGS:
        yield b"POST /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: " + coding + b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    for body in BODIES:
        yield CHUNKED + body
    for path in RESPONSES:
        for method, version in ((b"GET", b"1.1"), (b"HEAD", b"1.1"), (b"GET", b"1.0")):
            yield method + b" " + path.encode() + b" HTTP/" + version + b"\r\n" + HOST + b"\r\n"
    yield from SEQUENCES
    yield from map(b"GET /host HTTP/1.1\r\nHost: %b\r\n\r\n".__mod__, HOSTS)


def wire(worker_class: type[GeventWorker], sent: bytes) -> bytes:
    """All responses of a worker of this class to the bytes, after which the client sends no more."""
    configuration = Config()
    for name, value in {"forwarder_headers": "", "limit_request_line": 8190, "keepalive": TIMEOUT}.items():
        configuration.set(name, value)
    worker = worker_class(1, 1, [], None, 30, configuration, Logger(configuration))
    worker.log.error_log.disabled = True
    worker.wsgi = application
    ours, theirs = socket.socketpair()
    with closing(worker.tmp), ours, socket.socket(socket.AF_UNIX) as listener:
        ours.settimeout(TIMEOUT)
        if isinstance(worker, HttptoolsWorker):
            serve = partial(worker.serve_connection, worker.listener_environ(listener))
        else:
            serve = partial(worker.handle, listener)
        serving = threading.Thread(target=serve, args=(theirs, ""))
        serving.start()
        ours.sendall(sent)
        ours.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: ours.recv(65_536), b""))
        serving.join(TIMEOUT)
    return received


HEAD = re.compile(rb"HTTP/1\.\d (\d{3}[^\r\n]*)\r\n((?:[^\r\n]+\r\n)*)\r\n")
# Everywhere: gunicorn names itself, names keep-alive, which is what HTTP/1.1 means anyway, repeats the client's version
# (RFC 9110 §6.2: a server sends its own), and puts its own headers first.
NOT_OURS = re.compile(rb"(Date: .*|Server: gunicorn|Connection: keep-alive)")


def normalized(received: bytes) -> bytes:
    """The response without general differences: gunicorn's errors are HTML pages, the worker's problem documents."""

    def sort_head(head: re.Match[bytes]) -> bytes:
        lines = sorted(line for line in head[2].splitlines() if not NOT_OURS.fullmatch(line))
        return b"\r\n".join([head[1], *lines, b"", b""])

    plain = HEAD.sub(sort_head, received)
    own_error = rb"(\d{3})[^\r\n]*\r\n(?=[^{]*?(text/html|problem\+json)).*"
    return re.sub(own_error, rb"\1 of the server", plain, flags=re.DOTALL)


# All other differences: patterns of the requests, and the reason.
DIFFERENCES = {
    "llhttp knows the registered methods, in upper case; others are 501 (RFC 9110 §9.1)": [rb"^(FOO|G3T|get) "],
    "A Host that is no host with a port is 400 (RFC 9112 §3.2)": [
        rb"^GET /host HTTP/1\.1\r\nHost: (a b|a/b|a\?b|a#b|c@a|a:b|a:80:90|a%|a%zz|\[a|\[\]|\[::1|::1|\[::1\]a)\r",
        rb'^GET /host HTTP/1\.1\r\nHost: (a\\b|a<b>|http://a|a"b|\xc3\xa9)\r',
    ],
    "CONNECT is for proxies": [rb"^CONNECT "],
    "A request target has no fragment": [rb"/a#b"],
    "A target in absolute form replaces Host (RFC 9112 §3.2.2); it is of http, with a host and no user": [
        rb"^GET (https?|HTTP|ftp)://(b|c@b|/a|\[::1\])[^ ]* HTTP"
    ],
    "Versions that are not served are 505": [rb"^GET /a HTTP/(0\.9|2\.0)", rb"^GET /a\r\n"],
    "There is no HTTP/1.2": [rb"HTTP/1\.2"],
    "llhttp reads RTSP/1.0, too, which is answered as HTTP/1.0": [rb"RTSP/1\.0"],
    "RFC 9112 §3 lets a server take several spaces for one": [rb"^GET  /a", rb"/a  HTTP"],
    "Blank lines before a request are skipped (RFC 9112 §2.2)": [rb"^\n", rb"^(\r\n){2}G"],
    "HTTP/1.1 requires Host (RFC 9112 §3.2)": [rb"^GET /a HTTP/1\.1\r\n\r\n"],
    "Of two contradictory schemes neither is believed": [rb"Proto: https\r\nX-Forwarded-Proto"],
    "X-Forwarded-Proto alone tells the scheme: it is what nginx sets": [rb"X-Forwarded-(Protocol|Ssl)"],
    "A head may have 64 KiB; gunicorn takes 800": [rb"\r\nA19: b{7000}"],
    "100 Continue is sent when the application reads a body that has not come (RFC 9110 §10.1.1)": [
        rb" HTTP/1\.1\r\nHost: a\r\nExpect: 100-"
    ],
    "close among other options closes, and so do unknown options": [
        rb"^GET /a HTTP/1\.1\r\nHost: a\r\nConnection: (keep-alive, close|close, keep-alive|x)\r"
    ],
    "A length that no 64 bits hold is 400": [rb"Content-Length: 9{20}"],
    "What follows a request and is none is 400, and not just closed on": [
        rb"^POST /(a|post) HTTP/1\.1\r\nHost: a\r\nContent-Length: ([02]\r\n\r\nabc|3\r\n\r\nabcx)$",
        rb"^\x16",
        rb"HTTP/1\.1\r(?!\n)",
    ],
    "A response to a body that ended early says that it is the last": [rb"a\r\nContent-Length: 4\r\n\r\nabc$"],
    "Codings other than chunked are 501, also before it; lists that chunked does not end are 400": [
        rb"Transfer-Encoding: (chunked,|identity|gzip|gzip, chunked|)\r\n\r\n3\r",
        rb"chunked\r\nTransfer-Encoding: x",
    ],
    "Chunks that are malformed or end early are 400, and not just closed on": [
        rb"\r\n\r\n3\nabc",
        rb"\r\n\r\nf{16}",
        rb"^POST /chunks HTTP/1\.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n(3\r\nabc\r\n|3\r\nab|3|)$",
    ],
    "llhttp takes no spaces around the semicolon of a chunk extension": [rb"3 ;a\r", rb"3; a\r"],
    "A malformed body that came with its head is refused at once": [rb"^POST /unread .*\r\n\r\nx$"],
    "Trailers are ignored, whatever their names": [rb"0\r\nHost: b"],
    "Sizes of chunks are in lower case": [rb"^GET /chunked HTTP/1\.1"],
    "Response headers are printable ASCII: what the application sends otherwise is a mistake": [rb"/latin-1"],
}


def test_the_worker_sends_the_same_as_gunicorn_except_for_the_listed_differences() -> None:
    patterns = [re.compile(pattern, re.DOTALL) for group in DIFFERENCES.values() for pattern in group]
    unlisted, untrue, found = [], [], set()

    sent = list(requests())
    for request in sent:
        matching = [pattern for pattern in patterns if pattern.search(request)]
        theirs, ours = normalized(wire(GeventWorker, request)), normalized(wire(HttptoolsWorker, request))
        found.update(matching)
        if ours != theirs and not matching:
            unlisted.append((request[:200], theirs, ours))
        if ours == theirs and matching:
            untrue.append(request[:200])

    assert len(sent) >= 300
    assert unlisted == []
    assert untrue == []
    assert found == set(patterns)
