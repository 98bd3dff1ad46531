"""gunicorn's workers end and are replaced while clients send requests."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.credentials import AUDIENCE, ISSUER, SECRET_KEY, SIGNING_KEY, bearer, hashed, public_pem, token
from tests.support.databases import ORDER, migrated
from tests.support.servers import GUNICORN, TIMEOUT, Server, environment, free_port, running, wait_until

PERSON = "erika@mail.example"


@pytest.fixture
def sqlite_database(tmp_path: Path) -> str:
    return migrated(f"sqlite:///{tmp_path}/orders.db")


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_that_is_still_arriving_gets_a_response_before_the_worker_stops(
    sqlite_database: str, signal_: signal.Signals
) -> None:
    port, body = free_port(), json.dumps(ORDER).encode()
    head = (
        "POST /orders HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    settings = {"DATABASE_URL": sqlite_database, "WEB_CONCURRENCY": "1"}
    with (
        running(*GUNICORN, port=port, **settings) as server,
        socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as connection,
    ):
        connection.sendall(head.encode())
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"  # the application reads the body
        connection.sendall(body[:10])
        server.process.send_signal(signal_)
        if signal_ == signal.SIGHUP:
            wait_until(lambda: "Worker stopping after the reload" in server.output())
        time.sleep(1.5)  # the worker checks once a second
        connection.sendall(body[10:])
        received = b"".join(iter(lambda: connection.recv(65536), b""))

    assert received.startswith(b"HTTP/1.1 201 ")
    assert b"\r\nConnection: close\r\n" in received


def test_the_old_workers_serve_until_the_new_ones_have_loaded_the_application(sqlite_database: str) -> None:
    settings = {"DATABASE_URL": sqlite_database, "WEB_CONCURRENCY": "2"}
    with running(*GUNICORN, port=free_port(), **settings) as server:
        old = set(server.children())
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(server.children()) == 4)
        new = set(server.children()) - old
        for pid in new:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(
            12
        )  # a worker checks once a second whether it has been stopped; on a busy machine, loading takes long
        try:
            statuses = {server.request("GET", "/healthz").status for _ in range(20)}
            serving = set(server.children())
        finally:
            for pid in new:
                os.kill(pid, signal.SIGCONT)
        wait_until(lambda: set(server.children()) == new)
        after = server.request("GET", "/healthz").status

    assert (statuses, serving, after) == ({200}, old | new, 200)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_stopped_while_its_workers_start_kills_no_worker(
    sqlite_database: str, stop: signal.Signals, tmp_path: Path
) -> None:
    port = free_port()
    log = tmp_path / "log"
    with log.open("w") as stream:
        environ = environment(PORT=str(port), DATABASE_URL=sqlite_database, WEB_CONCURRENCY="2")
        process = subprocess.Popen([sys.executable, *GUNICORN], env=environ, stdout=stream, stderr=stream)
    wait_until(lambda: log.read_text().count("Booting worker") == 2)

    process.send_signal(stop)
    process.wait(2 * TIMEOUT)

    # The master kills the workers that are left after the graceful time-out, and those log no end.
    ended = log.read_text()
    assert ended.count("Worker exiting") + ended.count("was sent SIGTERM") + ended.count("was sent SIGQUIT") == 2


def denied_principals(server: Server) -> set[str]:
    lines = server.log_lines(awaited='"denied"')
    return {line["principal"] for line in lines if line["event"] == "denied"}


@pytest.mark.parametrize("secret", ["", SECRET_KEY], ids=["random", "set"])
def test_a_person_is_one_hash_in_all_workers_and_after_a_reload(sqlite_database: str, secret: str) -> None:
    settings = {
        "AUTH": "required", "JWT_PUBLIC_KEY": public_pem(SIGNING_KEY), "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE,
        "WEB_CONCURRENCY": "2", "DATABASE_URL": sqlite_database, "SECRET_KEY": secret,
    }  # fmt: skip
    headers = bearer(token(customer=PERSON))
    with running(*GUNICORN, port=free_port(), **settings) as server:
        workers = set(server.children())
        for _ in range(20):
            server.request("GET", "/orders/x", headers=headers)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not workers & set(server.children()))
        for _ in range(20):
            server.request("GET", "/orders/x", headers=headers)
        principals = denied_principals(server)

    [principal] = principals
    assert re.fullmatch("[0-9a-f]{16}", principal)
    assert not secret or principal == hashed(f"customer:{PERSON}")
