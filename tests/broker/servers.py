"""RabbitMQ and Redis on free ports of loopback, with their data in a temporary directory."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.servers import free_port, wait_until

START_SECONDS = 180  # on a very busy machine; RabbitMQ takes 4 s of an idle one
UNTIL_PARENT_ENDS = ("setpriv", "--pdeathsig", "KILL")
RABBITMQ = "/usr/lib/rabbitmq/bin/rabbitmq-server"  # the one in PATH requires the user rabbitmq


class BrokerServer:
    """A server that can be killed and restarted with its stored data."""

    def __init__(self, command: list[str], *, port: int, directory: Path, **environment: str) -> None:
        self.port = port
        self._command, self._directory = command, directory
        self._environment = {"PATH": f"/usr/sbin:{os.defpath}", "HOME": str(directory), "LC_ALL": "C"} | environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        with (self._directory / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [*UNTIL_PARENT_ENDS, *self._command],
                cwd=self._directory,
                env=self._environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
                **unprivileged(),
            )
        wait_until(self._is_listening, seconds=START_SECONDS)

    def kill(self) -> None:
        """End all processes of the server at once, as a power failure does."""
        assert self._process
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _is_listening(self) -> bool:
        assert self._process
        assert self._process.poll() is None, (self._directory / "output").read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False


def unprivileged() -> dict[str, Any]:
    """The user of the servers, where the tests run as root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


@contextmanager
def rabbitmq() -> Iterator[BrokerServer]:
    """A running RabbitMQ, and the port mapper that Erlang needs."""
    mapper_port, port = free_port(), free_port()
    epmd = subprocess.Popen(
        [*UNTIL_PARENT_ENDS, "epmd", "-address", "127.0.0.1", "-port", str(mapper_port)], **unprivileged()
    )
    try:
        with _directory() as directory:
            server = BrokerServer(
                [RABBITMQ],
                port=port,
                directory=directory,
                ERL_EPMD_PORT=str(mapper_port),
                RABBITMQ_NODENAME="test@localhost",
                RABBITMQ_NODE_IP_ADDRESS="127.0.0.1",
                RABBITMQ_NODE_PORT=str(port),
                RABBITMQ_DIST_PORT=str(free_port()),
                RABBITMQ_MNESIA_BASE=str(directory / "data"),
                RABBITMQ_LOG_BASE=str(directory / "log"),
                RABBITMQ_LOGS="-",
                RABBITMQ_ENABLED_PLUGINS_FILE=str(directory / "plugins"),
            )
            yield from _running(server)
    finally:
        epmd.kill()
        epmd.wait()


@contextmanager
def redis() -> Iterator[BrokerServer]:
    """A running Redis that answers after it has written to its file."""
    port = free_port()
    with _directory() as directory:
        command = f"redis-server --port {port} --bind 127.0.0.1 --appendonly yes --appendfsync always"
        yield from _running(BrokerServer(command.split(), port=port, directory=directory))


@contextmanager
def _directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="broker-"))
    user = unprivileged()
    if user:
        os.chown(directory, user["user"], user["group"])
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _running(server: BrokerServer) -> Iterator[BrokerServer]:
    try:
        server.start()
        yield server
    finally:
        server.kill()
