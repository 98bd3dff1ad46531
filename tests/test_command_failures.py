"""What the flask commands do where the database or the disk is not as they need it: one line, never a traceback."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from tests.credentials import api_key, bearer
from tests.servers import GUNICORN, PATIENCE, ROOT, environment, free_port, running

FLASK = ("-m", "flask", "--app", "wsgi")
COMMANDS = {
    "seed": ("seed", "--orders", "5"),
    "export": ("orders", "export"),
    "import": ("orders", "import", "/dev/null"),
    "expire": ("orders", "expire", "--older-than", "30d"),
    "verify": ("verify",),
    "create": ("api-keys", "create", "--name", "shop", "--scope", "orders:read"),
    "list": ("api-keys", "list"),
    "revoke": ("api-keys", "revoke", "0123456789abcdef"),
}


def run(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a module of Python's as a user would."""
    env = environment(**settings)
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE
    )


@pytest.fixture
def memory_directory() -> Iterator[str]:
    """The one directory that a container with a read-only root file system can write to."""
    parent = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="read-only-root-", dir=parent) as directory:
        yield directory


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("command", [("db", "upgrade"), *COMMANDS.values()], ids=["upgrade", *COMMANDS])
def test_every_command_works_on_a_read_only_root_file_system(
    app: Flask, database_url: str, memory_directory: str, command: tuple[str, ...]
) -> None:
    ended = run("-m", "tests.read_only_root", memory_directory, "flask", "--app", "wsgi", *command,
                DATABASE_URL=database_url, AUTH="required")  # fmt: skip

    expected = 1 if "revoke" in command else 0  # there is no such key
    assert (ended.returncode, "Traceback" in ended.stderr) == (expected, False), ended.stderr


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_service_runs_on_a_read_only_root_file_system(
    app: Flask, database_url: str, memory_directory: str
) -> None:
    port, key = free_port(), api_key(app, "orders:read")
    settings = {"DATABASE_URL": database_url, "AUTH": "required", "PORT": str(port), "WEB_CONCURRENCY": "2"}
    command = ("-m", "tests.read_only_root", "/dev/shm", *GUNICORN[1:])

    with running(*command, port=port, **settings, RATE_LIMIT_SERVICES="600") as server:
        answer = server.ask("GET", "/orders", headers=bearer(key))

    assert answer.status == 200
    assert "q=600" in answer.headers["RateLimit-Policy"]
