"""Processes die at any moment, and nothing that was acknowledged is lost or made twice.

`make faults` kills each of them ten times; KILLS=3 is the short form.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from glob import glob
from pathlib import Path

import orjson
import psycopg
import pytest

from tests.faults.traffic import Traffic
from tests.postgres import private_postgres
from tests.servers import GUNICORN, ROOT, Server, ask, environment, free_port, running

KILLS = int(os.environ.get("KILLS", "10"))
FLASK = (sys.executable, "-m", "flask", "--app", "wsgi")
SETTINGS = {"LOG_LEVEL": "error", "WEB_CONCURRENCY": "2"}


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


def migrated(url: str) -> str:
    flask(url, "db", "upgrade").check_returncode()
    return url


def flask(url: str, *command: str) -> subprocess.CompletedProcess[str]:
    settings = environment(DATABASE_URL=url, **SETTINGS)
    return subprocess.run([*FLASK, *command], cwd=ROOT, env=settings, capture_output=True, text=True)


def wait_for_a_moment(traffic: Traffic) -> None:
    """Until some more orders and actions have been acknowledged; nobody knows what is under way then."""
    target = len(traffic.record.documents) + random.randint(20, 120)
    deadline = time.monotonic() + 10
    while len(traffic.record.documents) < target and time.monotonic() < deadline:
        time.sleep(0.005)


def kill(server: Server) -> None:
    """SIGKILL to the master and all its workers, and to nothing else."""
    master = server.process.pid
    os.kill(master, signal.SIGSTOP)  # it must not start new ones meanwhile
    workers = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    for pid in [*map(int, workers), master]:
        os.kill(pid, signal.SIGKILL)
    server.process.wait()
    for worker in workers:  # the metrics that the master would have removed
        for file in glob(f"/dev/shm/order-service-metrics-*/*_{worker}.db"):
            shutil.rmtree(Path(file).parent, ignore_errors=True)


def test_what_was_acknowledged_survives_the_death_of_all_servers(url: str) -> None:
    port = free_port()
    with ExitStack() as servers:
        server = servers.enter_context(running(*GUNICORN, port=port, PORT=str(port), DATABASE_URL=url, **SETTINGS))
        traffic = servers.enter_context(Traffic(port))

        for _ in range(KILLS):
            wait_for_a_moment(traffic)
            kill(server)
            server = servers.enter_context(running(*GUNICORN, port=port, PORT=str(port), DATABASE_URL=url, **SETTINGS))

        traffic.stop()
        all_is_there_once(traffic, port)
    all_is_whole(url)


def test_what_was_acknowledged_survives_crashes_of_the_database(durable_postgresql: str) -> None:
    url, port = durable_postgresql, free_port()
    with running(*GUNICORN, port=port, PORT=str(port), DATABASE_URL=url, **SETTINGS), Traffic(port) as traffic:
        for _ in range(KILLS):
            wait_for_a_moment(traffic)
            crash(url)

        traffic.stop()
        all_is_there_once(traffic, port)
    all_is_whole(url)


def crash(url: str) -> None:
    """SIGKILL to a process that serves the service: PostgreSQL ends all others and recovers from its log."""
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


def all_is_there_once(traffic: Traffic, port: int) -> None:
    record = traffic.record
    stream = ask(port, "GET", "/orders/export").body
    orders = {order["id"]: order for order in map(orjson.loads, stream.splitlines())}
    promised = Counter(order_id for order_id, _ in record.documents)
    print(f"{len(orders)} orders, {record.action_keys} actions, {record.resent} requests sent again", file=sys.stderr)

    assert record.surprises == []
    assert orders.keys() == promised.keys() and len(orders) == record.creation_keys
    assert {order_id: order["version"] for order_id, order in orders.items()} == promised
    assert sum(order["version"] - 1 for order in orders.values()) == record.action_keys
    assert len(orders[traffic.hot["id"]]["fulfillments"]) == orders[traffic.hot["id"]]["version"] - 2
    for (order_id, version), document in record.documents.items():
        answer = ask(port, "GET", f"/orders/{order_id}?version={version}")
        assert (answer.status, answer.body) == (200, document)


def all_is_whole(url: str) -> None:
    verified = flask(url, "verify")
    assert (verified.returncode, verified.stderr) == (0, ""), verified.stdout
