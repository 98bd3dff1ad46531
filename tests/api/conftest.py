"""A running service, and the Node.js and Python tools of this directory's package.json and requirements.txt."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask

from tests.support.servers import GUNICORN, ROOT, TIMEOUT, Server, free_port, running

HERE = Path(__file__).parent
TOOLS = ROOT / ".venv" / "api" / "bin"  # node and the Python tools; `make api-test` installs them
PROGRAMS = HERE / "node_modules" / ".bin"

Tool = Callable[..., str]


@pytest.fixture(scope="session")
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture(scope="module")
def service(app: Flask, database_url: str) -> Iterator[Server]:
    port = free_port()
    with running(*GUNICORN, port=port, DATABASE_URL=database_url, WEB_CONCURRENCY="1") as server:
        yield server


@pytest.fixture(scope="module")
def directory(service: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the description of the running service, in which Node.js finds the packages."""
    directory = tmp_path_factory.mktemp("api")
    (directory / "openapi.json").write_bytes(service.request("GET", "/openapi.json").body)
    (directory / "package.json").write_text('{"type": "module"}')
    (directory / "node_modules").symlink_to(HERE / "node_modules")
    return directory


@pytest.fixture(scope="module")
def run(directory: Path) -> Tool:
    """Runs a tool in the directory and returns what it prints. Fails with its output if it fails."""

    def run(tool: str, *arguments: str, **environment: str) -> str:
        program = TOOLS / tool if (TOOLS / tool).exists() else PROGRAMS / tool
        environ = os.environ | {"PATH": f"{TOOLS}:{os.environ['PATH']}"} | environment
        ended = subprocess.run(
            [program, *arguments], cwd=directory, env=environ, capture_output=True, text=True, timeout=4 * TIMEOUT
        )
        assert ended.returncode == 0, f"{tool} {' '.join(arguments)}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    return run
