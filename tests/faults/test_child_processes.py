"""The processes of `flask verify` are interrupted and killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flask import Flask
from flask.testing import FlaskClient

from app.services.verification import RANGE_SIZE
from tests.support.commands import FLASK
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL
from tests.support.servers import ROOT, TIMEOUT, environment

VERIFY = (sys.executable, *FLASK, "verify", "--jobs", "2")


def create_two_ranges(client: FlaskClient) -> None:
    """More orders than one process verifies at a time: for fewer, none is started."""
    assert client.post("/orders/batch", json={"orders": [MINIMAL] * (RANGE_SIZE + 1)}).status_code == 200


@contextmanager
def verifying(database_url: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A running verification and its child processes, which have only just been started."""
    settings = environment(DATABASE_URL=database_url, LOG_LEVEL="error")
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(VERIFY, cwd=ROOT, env=settings, start_new_session=True, **streams) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + TIMEOUT
        try:
            while len(pids := [int(pid) for pid in children.read_text().split() if is_child_process(pid)]) < 2:
                assert process.poll() is None and time.monotonic() < deadline, process.stderr
                time.sleep(0.001)
            yield process, pids
        finally:
            process.kill()


def is_child_process(pid: str) -> bool:
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


def wait_for_exit(pids: list[int]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "child processes remain"
        time.sleep(0.01)


@on_sqlite
def test_ctrl_c_ends_all_processes_without_a_traceback(app: Flask, client: FlaskClient, database_url: str) -> None:
    create_two_ranges(client)
    with verifying(database_url) as (process, pids):
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=TIMEOUT)

        assert (process.returncode, stdout, stderr.strip()) == (1, "", "Aborted!")
        wait_for_exit(pids)


@on_sqlite
def test_a_killed_child_process_is_an_error(app: Flask, client: FlaskClient, database_url: str) -> None:
    create_two_ranges(client)
    with verifying(database_url) as (process, pids):
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=TIMEOUT)

        assert (process.returncode, stdout) == (1, "")
        assert stderr.startswith("Error: A child process ended with exit status -9 before its work was done.")


@on_sqlite
def test_child_processes_do_not_outlive_a_killed_command(app: Flask, client: FlaskClient, database_url: str) -> None:
    create_two_ranges(client)
    with verifying(database_url) as (process, pids):
        process.kill()

        wait_for_exit(pids)
