"""Runs the web server and the worker together, as `make run` does.

A worker that dies is started again. When the web server ends, so does the worker. SIGINT, SIGTERM and SIGHUP stop both.
In production a process manager does this, and starts `gunicorn` and `flask worker` itself.
"""

import ctypes
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

WEB = (sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app")
WORKER = (sys.executable, "-m", "flask", "--app", "wsgi", "worker")

_POLL = 0.1  # seconds
_RESTART_AFTER = 1.0  # seconds
_STOP_SECONDS = 40.0  # before a process is killed; longer than gunicorn's graceful_timeout
_PR_SET_PDEATHSIG = 1  # prctl(2)


class Probe:
    """One request for /healthz that waits for its response.

    gunicorn listens before its workers can answer, and later they answer all requests that have come meanwhile: with
    another one each second, a slow start would end with as many lines in the log.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self._connection: socket.socket | None = None

    def is_answered(self) -> bool:
        """Send the request, unless it is sent, and return whether the web server has answered; without waiting."""
        try:
            if self._connection is None:
                self._connection = socket.create_connection(self.address, timeout=1)
                self._connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            if not select.select([self._connection], [], [], 0)[0]:
                return False
            answered = bool(self._connection.recv(1))  # nothing, if the connection was closed
        except OSError:
            answered = False
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        return answered


class Supervisor:
    """The two processes."""

    def __init__(self, address: tuple[str, int] | None) -> None:
        self._probe = Probe(address) if address else None  # until its address is announced
        self._stopping = False
        self._web = _start(WEB)
        self._worker = _start(WORKER)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop)

    def run(self) -> int:
        """Wait until the web server has ended and the worker, too. Returns the exit status of the web server."""
        while self._web.poll() is None:
            if self._worker.poll() is not None and not self._stopping:
                print(f"The worker ended with status {self._worker.returncode}.", file=sys.stderr)
                time.sleep(_RESTART_AFTER)
                if not self._stopping:
                    self._worker = _start(WORKER)
            self._announce()
            time.sleep(_POLL)
        self._worker.terminate()
        _wait(self._worker)
        return self._web.returncode if self._web.returncode >= 0 else 128 - self._web.returncode

    def _announce(self) -> None:
        """Print the address once the web server answers there."""
        if self._probe is None or not self._probe.is_answered():
            return
        host, port = self._probe.address
        prefix = os.environ.get("URL_PREFIX", "").rstrip("/")
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}{prefix}"
        print(f"Serving on {url}. The documentation is at {url}/docs", flush=True)
        self._probe = None

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self._stopping = True
        forwarded = signal.SIGTERM if number == signal.SIGHUP else number  # gunicorn reloads on SIGHUP
        for process in (self._web, self._worker):
            process.send_signal(forwarded)


def _read_address() -> tuple[str, int] | None:
    """The address of HOST and PORT, or None if they are not set; gunicorn reports what is invalid."""
    host, port = os.environ.get("HOST"), os.environ.get("PORT", "")
    return (host, int(port)) if host and port.isdecimal() and not os.environ.get("BIND") else None


def _obstacle(address: tuple[str, int]) -> str | None:
    """Why nothing can listen there, in one line. gunicorn would try for five seconds, and log each attempt."""
    host, port = address
    try:
        socket.create_server(address, family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"Port {port} on {host} is in use. Choose another one, for example: PORT={port + 1} make run"
        reason = str(error.strerror or error).partition(" (")[0]  # without the address
    except OverflowError:
        reason = "Ports end at 65535"
    except TypeError:
        reason = "Not a name"
    else:
        return None
    return f"HOST is {host} and PORT is {port}: {reason}. Set HOST to an address of this machine, or another PORT."


def _start(command: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own: Ctrl-C reaches this process only, which stops the others in order."""
    return subprocess.Popen(command, process_group=0, preexec_fn=_end_with_parent)


def _end_with_parent() -> None:
    """Have the kernel stop the process if this one is killed (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    served = _read_address()
    if served and (obstacle := _obstacle(served)):
        sys.exit(obstacle)
    sys.exit(Supervisor(served).run())
