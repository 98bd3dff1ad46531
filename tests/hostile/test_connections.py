"""Clients that send without a pause, or very slowly, delay no others."""

import os
import selectors
import socket
import threading
import time
from contextlib import ExitStack, suppress

import pytest

from tests.hostile.probe import Probe, Target, together
from tests.support.servers import TIMEOUT, send_request

SECONDS = float(os.environ.get("SECONDS_EACH", "10"))  # of a pipelining attack
MAX_TURN = 1000  # requests of the attack that may be served while another client waits for one
HEAD = b"POST /orders HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
SLOW = {
    "head": b"POST /orders HTTP/1.1\r\nHost: ",
    "Content-Length": HEAD + b"Content-Length: 60000\r\n\r\n{",
    "chunked": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n{",
    "chunk size": HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
    "chunk extension": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;",
    "Expect": HEAD + b"Expect: 100-continue\r\nContent-Length: 60000\r\n\r\n",
    "HTTP/1.0": HEAD.replace(b"1.1", b"1.0") + b"Content-Length: 60000\r\n\r\n{",
    "upgrade": HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 60000\r\n\r\n{",
    "unread": HEAD.replace(b"application/json", b"text/plain") + b"Content-Length: 60000\r\n\r\n{",
    "closing": HEAD.replace(b"Host", b"Connection: close\r\nHost") + b"Content-Length: 60000\r\n\r\n{",
}


def pipeline(port: int, request: bytes) -> int:
    """Send requests without waiting for responses, and read these as they arrive. Returns their number."""
    responses = 0
    deadline = time.monotonic() + SECONDS
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as connection:

        def send() -> None:
            with suppress(OSError):
                while time.monotonic() < deadline:
                    connection.sendall(request * 1000)

        sender = threading.Thread(target=send)
        sender.start()
        while time.monotonic() < deadline and (received := connection.recv(65_536)):
            responses += received.count(b"HTTP/1.1 ")
        connection.shutdown(socket.SHUT_RDWR)
        sender.join()
    return responses


@pytest.mark.parametrize("connections", [1, 16])
@pytest.mark.parametrize(
    "request_",
    [
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ],
    ids=["probe", "unknown path", "chunked"],
)
def test_clients_that_pipeline_wait_in_turn(target: Target, request_: bytes, connections: int) -> None:
    counts: list[int] = []
    with Probe(target) as probe:
        together(connections, lambda: counts.append(pipeline(target.port, request_)))

    print(f"{probe.report()}, {sum(counts):,} requests of the attack")
    assert sum(counts) < MAX_TURN * len(probe.waits)
    assert probe.growth < 100


def drip(port: int, beginnings: list[bytes], probe: Probe) -> int:
    """Send each beginning on its own connection, then a byte per second until the service has closed all connections.

    Returns how many probes got a response while all were open.
    """
    byte_due, answered = 0.0, 0
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for beginning in beginnings:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT))
            connection.sendall(beginning)
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ)
        before = len(probe.waits) + 1  # one may have been sent before
        deadline = time.monotonic() + TIMEOUT
        while selector.get_map():
            assert time.monotonic() < deadline, f"{len(selector.get_map())} connections are still open"
            for key, _ in selector.select(timeout=0.1):
                if is_closed(key.fileobj):
                    answered = answered or len(probe.waits) - before
                    selector.unregister(key.fileobj)
            if time.monotonic() > byte_due:
                byte_due = time.monotonic() + 1
                for key in selector.get_map().values():
                    with suppress(OSError):
                        key.fileobj.send(b"1")  # type: ignore[union-attr]
    return answered


def is_closed(connection: socket.socket) -> bool:
    try:
        return not connection.recv(65_536)
    except OSError:
        return True


# nginx buffers the bodies of such clients: the service gets only complete ones.
@pytest.mark.parametrize("target", ["bare"], indirect=True)
def test_slow_clients_are_disconnected_after_the_limit_and_delay_no_others(target: Target) -> None:
    beginnings = [beginning for beginning in SLOW.values() for _ in range(50)]
    with Probe(target) as probe:
        answered = drip(target.port, beginnings, probe)

    print(probe.report())
    assert answered > 0
    assert send_request(target.port, "GET", "/healthz").status == 200
