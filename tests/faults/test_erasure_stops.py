"""A real server is stopped or killed while it erases orders with many versions: the erasure is completed later."""

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.routes import customer_routes
from tests.support.actions import event_types
from tests.support.personal_data import CUSTOMER, add_versions, canary, personal_order, traces
from tests.support.servers import GUNICORN, ROOT, TIMEOUT, Response, Server, environment, free_port, running

ERASE = f"/customers/{CUSTOMER}/personal-data"
ORDERS, VERSIONS = 3, 3_000  # together about 60 MB of snapshots
SERVER = (*GUNICORN[:-1], "tests.support.short_requests:app")


def erase_in_background(server: Server) -> tuple[threading.Thread, list[Response]]:
    """A running erasure request, and its future response, which is missing if the connection breaks."""
    responses: list[Response] = []

    def send() -> None:
        with suppress(OSError, http.client.HTTPException):
            responses.append(server.request("DELETE", ERASE))

    thread = threading.Thread(target=send)
    thread.start()
    time.sleep(0.1)
    return thread, responses


def worker_of(server: Server) -> int:
    """The process id of the only worker."""
    return int(re.findall(r"Booting worker with pid: (\d+)", server.output())[-1])


def peak_memory(pid: int) -> int:
    """The largest resident memory that the process ever had, in bytes."""
    with open(f"/proc/{pid}/status") as status:
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read())[0]) * 1024


def test_an_erasure_survives_a_kill_and_a_stop(app: Flask, client: FlaskClient, database_url: str) -> None:
    for _ in range(ORDERS):
        path = client.post("/orders", json=personal_order()).headers["Location"]
        client.post(f"{path}/cancel", json={"reason": "other", "note": canary()})
        add_versions(app, path.rpartition("/")[2], VERSIONS, note_length=2000)
    settings = {"DATABASE_URL": database_url, "WEB_CONCURRENCY": "1"}

    port = free_port()
    with running(*SERVER, port=port, PORT=str(port), **settings) as server:
        killed, _ = erase_in_background(server)
        os.kill(worker_of(server), signal.SIGKILL)
        killed.join()
        while server.output().count("Booting worker") < 2:
            time.sleep(0.05)
        server.request("GET", "/healthz")  # answered when the new worker has loaded the application
        before = peak_memory(worker_of(server))
        stopped, responses = erase_in_background(server)
        meanwhile = server.request("GET", "/healthz")
        growth = peak_memory(worker_of(server)) - before
        server.process.send_signal(signal.SIGTERM)
        stopped.join()
        status = server.process.wait(TIMEOUT)
    command = [sys.executable, "-m", "flask", "--app", "wsgi", "privacy", "resume"]
    resumed = subprocess.run(command, cwd=ROOT, env=environment(**settings), capture_output=True, text=True)

    assert meanwhile.status == 200
    assert growth < 100_000_000
    assert ([response.status for response in responses], status) == ([202], 0)
    assert resumed.returncode == 0, resumed.stderr
    assert traces(app) == []
    assert app.test_cli_runner().invoke(args=["verify"]).output.endswith(f"{ORDERS} orders verified, 0 differences.\n")
    assert [order["status"] for order in client.get("/orders").json["orders"]] == ["cancelled"] * ORDERS


def test_concurrent_processes_erase_each_order_once(
    app: Flask, client: FlaskClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for _ in range(20):
        paths.append(client.post("/orders", json=personal_order()).headers["Location"])
        client.post(f"{paths[-1]}/cancel", json={"reason": "other"})
    monkeypatch.setattr(customer_routes, "REQUEST_SECONDS", 0)
    location = client.delete(ERASE).headers["Location"]

    command = [sys.executable, "-m", "flask", "--app", "wsgi", "privacy", "resume"]
    settings = environment(DATABASE_URL=database_url)
    processes = [subprocess.Popen(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE) for _ in range(3)]
    outputs = [process.communicate(timeout=TIMEOUT)[0] for process in processes]

    # On SQLite one may find the file in use by another that rewrites it; that one then completes the erasure.
    assert 0 in [process.returncode for process in processes], outputs
    assert client.get(location).json["status"] == "done"
    assert [event_types(client, path).count("order.erased") for path in paths] == [1] * len(paths)
    assert traces(app) == []
    assert app.test_cli_runner().invoke(args=["verify"]).exit_code == 0


def test_other_requests_are_served_between_the_steps_of_an_erasure(
    app: Flask, client: FlaskClient, database_url: str
) -> None:
    for _ in range(10):
        path = client.post("/orders", json=personal_order()).headers["Location"]
        client.post(f"{path}/cancel", json={"reason": "other"})
    add_versions(app, path.rpartition("/")[2], VERSIONS, note_length=2000)

    port = free_port()
    probes = 0
    with running(*GUNICORN, port=port, PORT=str(port), DATABASE_URL=database_url, WEB_CONCURRENCY="1") as server:
        erasing, responses = erase_in_background(server)
        while erasing.is_alive():
            assert server.request("GET", "/healthz").status == 200
            probes += 1
        erasing.join()

    assert [response.status for response in responses] in ([200], [202])
    assert probes > 10
