"""Fixtures of all tests: both databases, created by the migrations; loopback only; Hypothesis profiles."""

import gc
import ipaddress
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from hypothesis import HealthCheck, settings

from app.config import SETTINGS
from app.routes import customer_routes
from tests.support.applications import Applications
from tests.support.databases import memory_directory
from tests.support.postgres import private_postgres
from tests.support.servers import TIMEOUT
from tests.support.tables import delete_all_rows

# Until all tests are loaded: it takes a quarter of that time, and what is loaded stays in memory (see wsgi.py).
gc.disable()
# Settings in the environment are for the user's own service. Few tests are about authentication.
for name in SETTINGS.keys() - {"DATABASE_POOLER"}:  # tests/pgbouncer/pooler.py sets it
    os.environ.pop(name, None)
os.environ["AUTH"] = "off"
if "TEST_LOG_LEVEL" in os.environ:  # a long run would print millions of lines (make fuzz-model)
    os.environ["LOG_LEVEL"] = os.environ["TEST_LOG_LEVEL"]
# The response to an erasure is 200 even on a busy machine. Tests of 202 set their own limit.
customer_routes.REQUEST_SECONDS = TIMEOUT

# Seconds of one test with its fixtures. The longest takes 15 on an idle machine.
os.environ.setdefault("PYTEST_TIMEOUT", "300")

# No deadline: the first example fills caches and opens connections. The tables are emptied once per test.
COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
settings.register_profile("default", max_examples=25, derandomize="CI" in os.environ, **COMMON)
settings.register_profile("long", max_examples=2000, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def _refuse_the_network(event: str, args: tuple[Any, ...]) -> None:
    """Allow connections to loopback only: a test must not depend on another machine."""
    if event in {"socket.connect", "socket.sendto"} and args[0].family in {socket.AF_INET, socket.AF_INET6}:
        host = args[1][0]
        if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
            raise RuntimeError(f"a test tried to reach {host}")


# An audit hook sees every socket of the process, even those that a library opens without socket.socket.
sys.addaudithook(_refuse_the_network)


def pytest_collection_finish() -> None:
    """Freeze the loaded modules, as a worker does (gunicorn.conf.py), so that they are not collected again."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="session")
def sqlite_url() -> Iterator[str]:
    """A file in memory if there is space: on a disk, each change would wait for the disk."""
    with tempfile.TemporaryDirectory(prefix="sqlite-", dir=memory_directory()) as directory:
        yield f"sqlite:///{directory}/orders.db"


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """The server at TEST_DATABASE_URL, whose orders the tests delete, or a private one."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
    else:
        with private_postgres() as url:
            yield url


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Each database in turn. The fixture is requested by name, so that PostgreSQL starts only if a test needs it."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(scope="session")
def applications() -> Iterator[Applications]:
    """Each application is created once, even if tests alternate between the databases."""
    with Applications() as applications:
        yield applications


# Not for the session: pytest would keep it for a directory that overrides `database_url`.
@pytest.fixture(scope="module")
def app(applications: Applications, database_url: str) -> Flask:
    return applications.migrated(database_url)


@pytest.fixture(scope="module")
def secure_app(app: Flask, applications: Applications, database_url: str) -> Flask:
    """The same database with AUTH=required (tests/support/credentials.py has the keys)."""
    return applications.secure(database_url)


@pytest.fixture
def secure_client(secure_app: Flask) -> FlaskClient:
    return secure_app.test_client()


@pytest.fixture(autouse=True)
def empty_tables(request: pytest.FixtureRequest) -> None:
    """Delete all rows before each test, so that the rows of a failed test can be inspected afterwards."""
    if "app" in request.fixturenames:
        delete_all_rows(request.getfixturevalue("app"))


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def runner(app: Flask) -> FlaskCliRunner:
    return app.test_cli_runner()
