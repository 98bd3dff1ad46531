"""The commands and the service on a root file system that is mounted read-only."""

import os
import tempfile
from collections.abc import Iterator

import pytest
from flask import Flask

from tests.support.commands import COMMANDS, run_python
from tests.support.credentials import api_key, bearer
from tests.support.marks import on_postgresql
from tests.support.servers import GUNICORN, free_port, running

pytestmark = on_postgresql


@pytest.fixture
def memory_directory() -> Iterator[str]:
    """The only directory that a container with a read-only root file system can write to."""
    parent = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="read-only-root-", dir=parent) as directory:
        yield directory


@pytest.mark.parametrize("command", [("db", "upgrade"), *COMMANDS.values()], ids=["upgrade", *COMMANDS])
def test_every_command_works_on_a_read_only_root_file_system(
    app: Flask, database_url: str, memory_directory: str, command: tuple[str, ...]
) -> None:
    ended = run_python(
        "-m", "tests.support.read_only_root", memory_directory, "flask", "--app", "wsgi", *command,
        DATABASE_URL=database_url, AUTH="required",
    )  # fmt: skip

    expected = 1 if "revoke" in command else 0  # the key does not exist
    assert (ended.returncode, "Traceback" in ended.stderr) == (expected, False), ended.stderr


def test_the_service_runs_on_a_read_only_root_file_system(app: Flask, database_url: str, memory_directory: str) -> None:
    port, key = free_port(), api_key(app, "orders:read")
    settings = {"DATABASE_URL": database_url, "AUTH": "required", "PORT": str(port), "WEB_CONCURRENCY": "2"}
    command = ("-m", "tests.support.read_only_root", "/dev/shm", *GUNICORN[1:])

    with running(*command, port=port, **settings, RATE_LIMIT_SERVICES="600") as server:
        response = server.request("GET", "/orders", headers=bearer(key))

    assert response.status == 200
    assert "q=600" in response.headers["RateLimit-Policy"]
