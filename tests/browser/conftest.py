"""A real browser, and the service as started by a user."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from flask import Flask
from playwright.sync_api import Browser, sync_playwright

from tests.support.servers import GUNICORN, TIMEOUT, Server, free_port, running

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Page:
    """A loaded page, and the messages of the browser about it."""

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


@pytest.fixture(scope="session")
def program() -> str:
    """The path of the browser."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    assert program, "no browser is installed: apt-get install chromium"
    return program


@pytest.fixture(scope="session")
def chromium(program: str) -> Iterator[Browser]:
    """A browser that tests drive; each opens contexts of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def browse(program: str, tmp_path: Path) -> Callable[[str], Page]:
    """Opens an address, and waits for its scripts."""

    def browse(address: str) -> Page:
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += [f"--user-data-dir={tmp_path}", "--enable-logging=stderr", "--v=0", "--no-first-run"]
        command += ["--virtual-time-budget=20000"]
        ended = subprocess.run(
            [*command, "--dump-dom", address], capture_output=True, text=True, timeout=6 * TIMEOUT, check=True
        )
        return Page(ended.stdout, [line for line in ended.stderr.splitlines() if "CONSOLE" in line])

    return browse
