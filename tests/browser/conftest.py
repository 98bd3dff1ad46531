"""A real browser, and the service as it is started by hand."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from flask import Flask

from tests.support.servers import GUNICORN, TIMEOUT, Server, free_port, running

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Page:
    """What a page had become, and what the browser had to say of it."""

    content: str
    console: list[str]


@pytest.fixture(scope="session")
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def service(app: Flask, database_url: str) -> Iterator[Server]:
    port = free_port()
    with running(*GUNICORN, port=port, PORT=str(port), DATABASE_URL=database_url, WEB_CONCURRENCY="1") as server:
        yield server


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[str], Page]:
    """Opens an address, and waits for its scripts."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    assert program, "no browser is installed: apt-get install chromium"

    def browse(address: str) -> Page:
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += [f"--user-data-dir={tmp_path}", "--enable-logging=stderr", "--v=0", "--no-first-run"]
        command += ["--virtual-time-budget=20000"]
        ended = subprocess.run(
            [*command, "--dump-dom", address], capture_output=True, text=True, timeout=6 * TIMEOUT, check=True
        )
        return Page(ended.stdout, [line for line in ended.stderr.splitlines() if "CONSOLE" in line])

    return browse
