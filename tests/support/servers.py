"""Real servers on loopback: started from the command line, used over HTTP, and stopped by process id."""

import fcntl
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# A job in the background of a shell ignores Ctrl-C, and the servers that it starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent.parent
TIMEOUT = 60  # seconds to start, stop or respond; long, because the machine may be busy

GUNICORN = ("-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app")
SERVERS = {
    "flask": ("-m", "flask", "--app", "wsgi", "run", "--port", "{port}"),
    "gunicorn": GUNICORN,
    "uvicorn": ("-m", "uvicorn", "--interface", "wsgi", "--port", "{port}", "wsgi:app"),
}
WORKER = ("-m", "flask", "--app", "wsgi", "worker")
SUPERVISOR = ("-m", "supervisor")  # of the web server and the worker
_OWN_SETTINGS = {"BIND", "HOST", "LOG_LEVEL", "WEB_CONCURRENCY"}  # tests choose them


@dataclass(frozen=True)
class Response:
    """The response of a server."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def send_request(
    port: int, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Send one request on a new connection; a body that is not bytes or an iterable of them is sent as JSON."""
    sent = dict(headers or {})
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    if body is not None:
        sent.setdefault("Content-Type", "application/json")
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)) as connection:
        connection.request(method, path, body, {"Connection": "close", **sent})
        response = connection.getresponse()
        return Response(response.status, response.headers, response.read())


def exchange(port: int, sent: bytes, *, address: str = "127.0.0.1") -> bytes:
    """Send bytes from an address, and return everything received until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT, source_address=(address, 0)) as connection:
        connection.sendall(sent)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


@dataclass(frozen=True)
class Server:
    """A running server and its output."""

    process: subprocess.Popen[bytes]
    port: int
    log: IO[bytes]

    def request(self, *args: Any, **kwargs: Any) -> Response:
        return send_request(self.port, *args, **kwargs)

    def output(self) -> str:
        return Path(self.log.name).read_text()

    def log_lines(self, *, awaited: str) -> list[dict[str, Any]]:
        """The lines of its JSON log, once `awaited` is among them: a line may be written after its response."""
        wait_until(lambda: awaited in self.output())
        return [json.loads(line) for line in self.output().splitlines()]

    def children(self) -> list[int]:
        """The process ids of gunicorn's workers."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def stop(self) -> int:
        """Send SIGINT, as Ctrl-C does, wait for the process to exit and return its status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


# One byte for each port, locked by the test process that uses the port until that process ends.
_PORT_LOCKS = os.open(Path(tempfile.gettempdir()) / f"test-ports-{os.getuid()}", os.O_RDWR | os.O_CREAT, 0o600)
_own_ports: set[int] = set()


def free_port() -> int:
    """A free port that neither this process nor concurrent tests have used.

    It is outside the ephemeral range, so that no outgoing connection takes it before the server does.
    """
    while True:
        port = 11_000 + secrets.randbelow(20_000)  # browsers refuse 10080
        with suppress(OSError):
            fcntl.lockf(_PORT_LOCKS, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            with socket.create_server(("127.0.0.1", port)):
                if port not in _own_ports:
                    _own_ports.add(port)
                    return port


def on_port(command: Sequence[str], port: int) -> list[str]:
    """The command with the port in place of `{port}`."""
    return [word.replace("{port}", str(port)) for word in command]


def environment(**settings: str) -> dict[str, str]:
    """The environment of this process with the given settings in place of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in _OWN_SETTINGS}
    return kept | {"AUTH": "off", "LOG_FORMAT": "json"} | settings


@contextmanager
def running(*command: str, port: int, status: int = 200, directory: Path = ROOT, **settings: str) -> Iterator[Server]:
    """Run a server until the block ends; the block begins when /healthz answers with the status.

    A command that begins with an option is run by Python; `{port}` in it is the port, and PORT is set to it. The code
    is that of `directory`. If the block fails, the server's output is printed.
    """
    words = on_port([sys.executable, *command] if command[0].startswith("-") else command, port)
    env = environment(**{"PORT": str(port)} | settings)
    with tempfile.NamedTemporaryFile(prefix="server-") as log:
        process = subprocess.Popen(words, cwd=directory, env=env, stdout=log, stderr=log)
        server = Server(process, port, log)
        try:
            _wait_until_healthz_is(status, server)
            yield server
        except BaseException:
            print(f"--- {' '.join(command)} printed:\n{server.output()}", file=sys.stderr)
            raise
        finally:
            server.stop()


@contextmanager
def running_worker(*, awaited: str = "worker started", directory: Path = ROOT, **settings: str) -> Iterator[Server]:
    """Run `flask worker` until the block ends; the block begins when it has logged `awaited`. It serves metrics."""
    port = int(settings.setdefault("WORKER_METRICS_PORT", str(free_port())))
    with tempfile.NamedTemporaryFile(prefix="worker-") as log:
        environ = environment(**settings)
        process = subprocess.Popen([sys.executable, *WORKER], cwd=directory, env=environ, stdout=log, stderr=log)
        worker = Server(process, port, log)
        try:
            wait_until(lambda: awaited in worker.output() or process.poll() is not None)
            yield worker
        except BaseException:
            print(f"--- the worker printed:\n{worker.output()}", file=sys.stderr)
            raise
        finally:
            worker.stop()


def running_supervisor(**settings: str) -> AbstractContextManager[Server]:
    """Run the web server and the worker, as `make run` does."""
    return running(*SUPERVISOR, port=free_port(), HOST="127.0.0.1", WEB_CONCURRENCY="1", **settings)


def wait_until(condition: Callable[[], object], *, seconds: float = TIMEOUT) -> None:
    """Wait until the condition holds. Fails after the time limit."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} seconds"
        time.sleep(0.01)


def _wait_until_healthz_is(status: int, server: Server) -> None:
    deadline = time.monotonic() + TIMEOUT
    while server.process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):
            if server.request("GET", "/healthz").status == status:
                return
        time.sleep(0.02)
    raise RuntimeError(f"the server does not answer; its exit status is {server.process.poll()}")
