"""Processes die at any moment, and nothing acknowledged is lost or duplicated.

`make faults` kills each of them ten times; KILLS=3 is the short form.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from glob import glob
from pathlib import Path

import psycopg
import pytest

from tests.faults.checks import SETTINGS, assert_each_order_once, assert_tables_valid
from tests.faults.traffic import Traffic
from tests.support.databases import migrated
from tests.support.postgres import private_postgres
from tests.support.servers import GUNICORN, Server, free_port, running

KILLS = int(os.environ.get("KILLS", "10"))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"durable_{request.param}")
    return url


@pytest.fixture
def durable_sqlite(tmp_path: Path) -> str:
    return migrated(f"sqlite:///{tmp_path}/orders.db")


@pytest.fixture
def durable_postgresql() -> Iterator[str]:
    with private_postgres(durable=True) as url:
        yield migrated(url)


def wait_for_traffic(traffic: Traffic) -> None:
    """Wait until some more orders and actions have been acknowledged, so that others are in progress."""
    target = len(traffic.record.documents) + random.randint(20, 120)
    deadline = time.monotonic() + 10
    while len(traffic.record.documents) < target and time.monotonic() < deadline:
        time.sleep(0.005)


def kill(server: Server) -> None:
    """Send SIGKILL to the master and all its workers only."""
    master = server.process.pid
    os.kill(master, signal.SIGSTOP)  # otherwise it would start new ones
    workers = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    for pid in [*map(int, workers), master]:
        os.kill(pid, signal.SIGKILL)
    server.process.wait()
    for worker in workers:  # the metrics that the master would have removed
        for file in glob(f"/dev/shm/order-service-metrics-*/*_{worker}.db"):
            shutil.rmtree(Path(file).parent, ignore_errors=True)


def test_acknowledged_changes_survive_the_kill_of_all_servers(url: str) -> None:
    port = free_port()
    with ExitStack() as servers:
        server = servers.enter_context(running(*GUNICORN, port=port, PORT=str(port), DATABASE_URL=url, **SETTINGS))
        traffic = servers.enter_context(Traffic(port))

        for _ in range(KILLS):
            wait_for_traffic(traffic)
            kill(server)
            server = servers.enter_context(running(*GUNICORN, port=port, PORT=str(port), DATABASE_URL=url, **SETTINGS))

        traffic.stop()
        assert_each_order_once(traffic, port)
    assert_tables_valid(url)


def test_acknowledged_changes_survive_crashes_of_the_database(durable_postgresql: str) -> None:
    url, port = durable_postgresql, free_port()
    with running(*GUNICORN, port=port, PORT=str(port), DATABASE_URL=url, **SETTINGS), Traffic(port) as traffic:
        for _ in range(KILLS):
            wait_for_traffic(traffic)
            crash(url)

        traffic.stop()
        assert_each_order_once(traffic, port)
    assert_tables_valid(url)


def crash(url: str) -> None:
    """Send SIGKILL to a server process of PostgreSQL, which then ends all others and recovers from its log."""
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'order-service' ORDER BY random() LIMIT 1"
        victim = connection.execute(query).fetchone()
    if victim is not None:
        os.kill(victim[0], signal.SIGKILL)
    while True:
        try:
            psycopg.connect(url.replace("+psycopg", "")).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.05)
