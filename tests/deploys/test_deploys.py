"""Deploys under load behind the real nginx, with PostgreSQL: no request fails, and no webhook delivery is lost.

`make deploys` does 30 reloads, 30 binary upgrades, 10 rolling restarts and a migration, with at least 25,000 requests
each, in ten minutes. RELOADS, UPGRADES, ROLLS and REQUESTS are the numbers.
"""

import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import create_engine, func, select

from app.models import EVENTS
from tests.deploys.load import Load
from tests.nginx.conftest import nginx_without_service
from tests.support.databases import flask, migrated
from tests.support.postgres import private_postgres
from tests.support.receivers import Receiver, receiver
from tests.support.servers import GUNICORN, ROOT, Server, running, running_worker, wait_until

RELOADS = int(os.environ.get("RELOADS", "30"))
UPGRADES = int(os.environ.get("UPGRADES", "30"))
ROLLS = int(os.environ.get("ROLLS", "10"))
REQUESTS = int(os.environ.get("REQUESTS", "25000"))  # of each test, at least
LONGEST_RUN = 1800  # seconds
SOCKETS = ("gunicorn.sock", "second.sock")
MIGRATIONS = {
    "column": 'op.add_column("orders", sa.Column("gift_wrap", sa.Boolean))',
    "index": 'create_index_concurrently("ix_orders_gift_wrap", "orders", ["gift_wrap"])',
}
MIGRATION = """
import sqlalchemy as sa
from alembic import op
from app.db.migrations import create_index_concurrently

revision = {revision!r}
down_revision = {before!r}

def upgrade():
    {operation}
"""


@dataclass
class Deployment:
    """nginx with one or two upstreams, a worker, and an endpoint for webhooks."""

    nginx: Server
    url: str
    directory: Path  # of the sockets
    stack: ExitStack
    receiver: Receiver
    servers: dict[str, Server] = field(default_factory=dict)
    worker: Server | None = None

    def start_server(self, name: str = "gunicorn.sock") -> Server:
        command = (*GUNICORN, "--pid", f"{self.directory}/{name}.pid")
        settings = {"BIND": f"unix:{self.directory}/{name}", "DATABASE_URL": self.url, "WEB_CONCURRENCY": "2"}
        started = running(*command, port=self.nginx.port, LOG_LEVEL="warning", WEBHOOKS_ALLOW_PRIVATE="1", **settings)
        self.servers[name] = self.stack.enter_context(started)
        wait_until(lambda: answers(self.directory / name))
        return self.servers[name]

    def restart_worker(self) -> None:
        """Start another worker, and stop the previous one."""
        before = self.worker
        self.worker = self.stack.enter_context(running_worker(DATABASE_URL=self.url, WEBHOOKS_ALLOW_PRIVATE="1"))
        if before is not None:
            stop(before)


def stop(server: Server) -> None:
    server.process.terminate()
    assert server.process.wait(60) == 0


def answers(path: Path) -> bool:
    """Whether a server answers on the Unix socket."""
    with suppress(OSError), closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.connect(str(path))
        connection.sendall(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
        return connection.recv(100).startswith(b"HTTP/1.1 200")
    return False


@contextmanager
def deployment(*sockets: str) -> Iterator[Deployment]:
    with ExitStack() as stack:
        url = migrated(stack.enter_context(private_postgres()))
        nginx = stack.enter_context(nginx_without_service(sockets=sockets))
        directory = Path(str(nginx.process.args[4]))
        deployed = Deployment(nginx, url, directory, stack, stack.enter_context(receiver()))
        for name in sockets:
            deployed.start_server(name)
        webhook = {"url": deployed.receiver.url, "events": ["order.created"]}
        assert nginx.request("POST", "/webhooks", webhook).status == 201
        deployed.restart_worker()
        yield deployed


def assert_no_loss(deployed: Deployment, deploy: Callable[[], None], *, times: int) -> None:
    """Deploy repeatedly under load, with a restart of the worker each time, and check all requests and deliveries."""
    with Load(deployed.nginx.port) as load:
        for _ in range(times):
            deploy()
            deployed.restart_worker()
        wait_until(lambda: load.count >= REQUESTS, seconds=LONGEST_RUN)
    engine = create_engine(deployed.url)
    deployed.stack.callback(engine.dispose)
    with engine.connect() as connection:
        stored = connection.scalar(select(func.count()).select_from(EVENTS)) or 0
    print(f"{times} deploys, {load.count} requests, failed: {dict(load.failures)}", file=sys.stderr)
    wait_until(lambda: len(set(deployed.receiver.event_ids)) >= stored, seconds=LONGEST_RUN)
    delivered = deployed.receiver.event_ids
    print(f"{stored} events, {len(delivered) - len(set(delivered))} delivered again", file=sys.stderr)

    assert load.failures == {}
    assert stored == len(load.created)
    assert set(delivered) == {f"{order_id}:1" for order_id in load.created}


def reload(server: Server) -> None:
    """Send HUP, and wait until the previous workers have ended."""
    before = set(server.children())
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: not before & set(server.children()))


def test_a_reload_loses_nothing() -> None:
    with deployment("gunicorn.sock") as deployed:
        assert_no_loss(deployed, lambda: reload(deployed.servers["gunicorn.sock"]), times=RELOADS)


def test_a_binary_upgrade_loses_nothing() -> None:
    with deployment("gunicorn.sock") as deployed:
        file = deployed.directory / "gunicorn.sock.pid"

        def upgrade() -> None:
            old, upgraded = pid_in(file), file.with_suffix(".pid.2")
            os.kill(old, signal.SIGUSR2)
            wait_until(lambda: len(children(pid_in(upgraded))) == 2)
            new = pid_in(upgraded)
            os.kill(old, signal.SIGTERM)
            wait_until(lambda: has_ended(old, deployed) and pid_in(file) == new)

        try:
            assert_no_loss(deployed, upgrade, times=UPGRADES)
        finally:
            last = pid_in(file)
            os.kill(last, signal.SIGTERM)
            wait_until(lambda: has_ended(last, deployed))


def pid_in(file: Path) -> int:
    """The process id in a file, or 0 while gunicorn writes or renames it."""
    with suppress(FileNotFoundError, ValueError):
        return int(file.read_text())
    return 0


def children(pid: int) -> list[str]:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return []


def has_ended(pid: int, deployed: Deployment) -> bool:
    deployed.servers["gunicorn.sock"].process.poll()  # the first master is a child of this process
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_a_rolling_restart_of_two_upstreams_loses_nothing() -> None:
    with deployment(*SOCKETS) as deployed:

        def restart_all() -> None:
            for name in SOCKETS:
                stop(deployed.servers[name])
                deployed.start_server(name)

        assert_no_loss(deployed, restart_all, times=ROLLS)


def test_a_migration_loses_nothing(tmp_path: Path) -> None:
    migrations, before = tmp_path / "migrations", "20261127"
    shutil.copytree(ROOT / "migrations", migrations)
    for revision, operation in MIGRATIONS.items():
        migration = MIGRATION.format(revision=revision, before=before, operation=operation)
        (migrations / "versions" / f"{revision}.py").write_text(migration)
        before = revision
    with deployment("gunicorn.sock") as deployed:

        def migrate_and_reload() -> None:
            flask(deployed.url, "db", "upgrade", "--directory", str(migrations))
            reload(deployed.servers["gunicorn.sock"])

        assert_no_loss(deployed, migrate_and_reload, times=1)
        assert before in flask(deployed.url, "db", "current", "--directory", str(migrations))
