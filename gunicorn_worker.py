"""gunicorn's gevent worker, with a short way for plain requests.

A request is plain where nothing in it calls for a decision: its head is there at once, in HTTP/1.1 and printable ASCII,
no header stands twice, the length of its body is told, and there is no transfer coding, expectation or upgrade. That is
all that nginx and well-behaved clients send. With the first other request, the connection goes to gunicorn's own
parser for good, and so do all refusals and oddities of HTTP (RFC 9112).

It serves what `gunicorn.conf.py` sets. Of what that leaves alone, the short way does not look at gunicorn's hooks
around a request, its access log (the application logs by itself), SCRIPT_NAME, HTTP/2, the PROXY protocol, and limits
below gunicorn's own.
"""

import errno
import io
import re
import time
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any

from gevent import GreenletExit
from gunicorn import util
from gunicorn.http.wsgi import base_environ
from gunicorn.workers.ggevent import GeventWorker

_READ = 65_536  # bytes: a head and the largest order, at once
_HEAD_MAX, _LINES_MAX = 8_190, 101  # what is larger may still be allowed: gunicorn counts exactly
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_NAME = re.compile(r"[A-Z][A-Z0-9-]*")  # no underscore: in the environment it would be taken for a dash
# X-Forwarded-Proto is decided on here: nginx always sends it.
_DECISIVE = {"EXPECT", "TRANSFER-ENCODING", "UPGRADE", "X-FORWARDED-PROTOCOL", "X-FORWARDED-SSL"}
_LENGTH = re.compile(r"[0-9]{1,15}")
_PRINTABLE = bytes(range(0x20, 0x7F))
_NO_BODY = ("1", "204", "304")  # the beginnings of statuses: 1xx
_ENDED = (GreenletExit, SystemExit)  # by which gunicorn ends one request; the worker's others are to be finished
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """The worker; `gunicorn.conf.py` names it."""

    @cached_property
    def _base_environ(self) -> dict[str, Any]:
        scheme = "https" if self.cfg.is_ssl else "http"
        same_for_all = {"wsgi.multithread": True, "wsgi.url_scheme": scheme, "SCRIPT_NAME": ""}
        return {**base_environ(self.cfg), **same_for_all}

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve a connection until one of its ends closes it."""
        client.settimeout(self.cfg.keepalive)  # also between parts of a body, and until some of an answer was taken
        rest = None
        try:
            rest = self._serve_plain_requests(_connection_environ(self._base_environ, listener, addr), client)
        except _ENDED:
            pass
        except TimeoutError:
            self.log.debug("Closing a connection whose client is too slow.")
        except OSError as error:
            if error.errno not in _GONE:
                self.log.exception("Socket error processing request.")
        except Exception as error:
            self.handle_error(None, client, addr, error)
        finally:
            if rest is None:
                util.close(client)
        if rest is not None:
            super().handle(listener, _Unread(client, rest), addr)

    def _serve_plain_requests(self, environ: dict[str, Any], client: Any) -> Any:
        """Answer as long as requests are plain; what was read of another one, or None where the connection is over."""
        received = client.recv(_READ)
        while received:
            end = received.find(b"\r\n\r\n")
            request = read_head(received[:end], environ) if 0 < end <= _HEAD_MAX else None
            if request is None:
                return received
            if request.get("HTTP_X_FORWARDED_PROTO") == "https" and self._is_proxy(request["REMOTE_ADDR"]):
                request["wsgi.url_scheme"] = "https"
            length, begun = int(request.get("CONTENT_LENGTH", 0)), received[end + 4:]
            body = _Body(client, begun, length)
            request["wsgi.input"] = io.BytesIO(begun) if len(begun) == length else io.BufferedReader(body)
            self.nr += 1
            if self.nr >= self.max_requests:
                self.alive = False
            keep = self.alive and request.get("HTTP_CONNECTION", "").lower() in ("", "keep-alive")
            if not self._answer(client, request, keep=keep) or not body.discard(seconds=self.cfg.keepalive):
                return None
            received = begun[length:] or client.recv(_READ)
        return None

    def _is_proxy(self, address: str) -> bool:
        """Whether it is a socket file's or one of the addresses that may tell the scheme; networks do not count."""
        return address == "" or address in self.cfg.forwarded_allow_ips

    def _answer(self, client: Any, environ: dict[str, Any], *, keep: bool) -> bool:
        """Answer a request; whether the connection can take another."""
        answer, method = _Answer(client), environ["REQUEST_METHOD"]
        try:
            pieces = self.wsgi(environ, answer.start_response)
            try:
                answer.send(pieces, keep=keep, headers_only=method == "HEAD")
            finally:
                if hasattr(pieces, "close"):
                    pieces.close()
        except (OSError, *_ENDED):
            raise  # the client's fault, and nobody's
        except BaseException:
            self.log.exception("Error handling a %s request", method)
            if not answer.begun:  # else it is too late for another status
                util.write_error(client, 500, "Internal Server Error", "")
            return False
        return keep and answer.whole


def _connection_environ(base: dict[str, Any], listener: Any, addr: Any) -> dict[str, Any]:
    """What all requests of a connection have in common."""
    address = listener.getsockname()
    if not isinstance(address, tuple):  # a socket file
        return base | {"SERVER_NAME": "localhost", "SERVER_PORT": "80", "REMOTE_ADDR": ""}
    server = {"SERVER_NAME": address[0], "SERVER_PORT": str(address[1])}
    return base | server | {"REMOTE_ADDR": addr[0], "REMOTE_PORT": str(addr[1])}


def read_head(head: bytes, environ: dict[str, Any]) -> dict[str, Any] | None:
    """The environment (PEP 3333) of a request with this head, on top of the connection's; None if it is not plain."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if not _are_plain(head, lines) or len(words) != 3:
        return None
    method, target, version = words
    if method not in _METHODS or target[:1] != "/" or "#" in target or version != "HTTP/1.1":
        return None
    request = environ.copy()
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        key = _environ_key(name)
        if not colon or key is None or key in request:
            return None
        request[key] = value.strip(" ")
    if "HTTP_HOST" not in request or not _LENGTH.fullmatch(request.get("CONTENT_LENGTH", "0")):
        return None
    path, _, request["QUERY_STRING"] = target.partition("?")
    request["PATH_INFO"] = util.unquote_to_wsgi_str(path) if "%" in path else path
    request["REQUEST_METHOD"], request["SERVER_PROTOCOL"] = method, version
    return request


def _are_plain(head: bytes, lines: list[str]) -> bool:
    """Whether the lines are of printable ASCII, and nothing but CR and LF together ends them."""
    return len(lines) <= _LINES_MAX and head.translate(None, _PRINTABLE) == b"\r\n" * (len(lines) - 1)


@lru_cache(maxsize=512)  # the names that clients use; whoever sends others only makes them forgotten
def _environ_key(name: str) -> str | None:
    """The environment's name of a header; None where the header, or its name, is not plain."""
    upper = name.upper()
    if upper in _DECISIVE or not _NAME.fullmatch(upper):
        return None
    key = upper.replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"


class _Body(io.RawIOBase):
    """A body of which the beginning has been received.

    Where the client is too slow for the rest, the body ends early, as if it had closed: whoever reads it must look at
    the length, and the connection is of no further use.
    """

    def __init__(self, client: Any, begun: bytes, length: int) -> None:
        self._client = client
        self._begun = begun[:length]
        self.left = max(length - len(begun), 0)  # bytes that are still to be received

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what there is, at most to the end of the body; 0 at its end."""
        if self._begun:
            size = min(len(buffer), len(self._begun))
            buffer[:size], self._begun = self._begun[:size], self._begun[size:]
            return size
        if not self.left:
            return 0
        try:
            size = int(self._client.recv_into(memoryview(buffer)[: self.left]))
        except TimeoutError:
            size = 0
        self.left -= size
        return size

    def discard(self, *, seconds: float) -> bool:
        """Receive what was not read, for a client may look at the answer only then; whether it all came in time."""
        deadline = time.monotonic() + seconds
        while self.left and time.monotonic() < deadline and (part := self._client.recv(min(self.left, _READ))):
            self.left -= len(part)
        return not self.left


class _Answer:
    """An answer on its way to the client: its head and the beginning of its body go out together."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lines: list[str] = []  # of the head
        self._length: int | None = None  # of the body, in bytes
        self.begun = False  # whether the client may have seen some of it
        self.whole = False  # whether the client knows where it ended

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """Take the head (PEP 3333) without what is the server's to say, as gunicorn does. There is no `write`: nothing
        uses it that is younger than WSGI."""
        self._lines = [f"HTTP/1.1 {status}", _date(int(time.time()))]
        for name, value in headers:
            lower = name.lower()
            if lower == "content-length":
                self._length = int(value)
            if lower not in util.hop_headers:
                self._lines.append(f"{name}: {value}")

    def send(self, pieces: Iterable[bytes], *, keep: bool, headers_only: bool) -> None:
        """Send the head with the first piece, and then the others as they come."""
        parts = iter(pieces)
        first = next(parts, b"")
        no_body = headers_only or self._lines[0].startswith(_NO_BODY, len("HTTP/1.1 "))
        chunked = self._length is None and not no_body
        head = self._head(keep, chunked)
        self.begun = True
        if no_body:
            self._send(head)
            self.whole = True
        elif chunked:
            self._send(head + _chunk(first))
            for part in parts:
                self._send(_chunk(part))
            self._send(b"0\r\n\r\n")
            self.whole = True
        else:
            self._send(head + first)
            sent = len(first)
            for part in parts:
                self._send(part)
                sent += len(part)
            self.whole = sent == self._length

    def _head(self, keep: bool, chunked: bool) -> bytes:
        lines = self._lines
        if chunked:
            lines.append("Transfer-Encoding: chunked")
        if not keep:
            lines.append("Connection: close")
        head = "\r\n".join(lines).encode("latin-1")
        if head.translate(None, _PRINTABLE) != b"\r\n" * (len(lines) - 1):
            raise ValueError("A header has a character that is not printable ASCII.")
        return head + b"\r\n\r\n"

    def _send(self, data: bytes) -> None:
        """Send it all. The time limit is for each part that the client takes: `sendall` has one for them together."""
        sent = self._client.send(data)
        while sent < len(data):
            sent += self._client.send(memoryview(data)[sent:])


def _chunk(part: bytes) -> bytes:
    """A part of a body without a length (RFC 9112 §7.1); an empty one would end it."""
    return b"%x\r\n%b\r\n" % (len(part), part) if part else b""


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return f"Date: {util.http_date(second)}"


class _Unread:
    """A client's socket with what has been read of it already."""

    def __init__(self, client: Any, received: bytes) -> None:
        self._client = client
        self._received = received

    def recv(self, size: int) -> bytes:
        if not self._received:
            return self._client.recv(size)  # type: ignore[no-any-return]
        part, self._received = self._received[:size], self._received[size:]
        return part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)
