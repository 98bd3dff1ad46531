"""gunicorn's settings, each with its reason.

The master never imports the application: gevent has to replace the blocking parts of the standard library in a worker
before the database driver and the first lock see them.
"""

import gc
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import time
import traceback
from typing import Any

from gunicorn import glogging

from shared_files import METRICS_BYTES, RATE_LIMITS_BYTES, release_metrics, reserve, shared_directory


def _whole_number(name: str, default: int, low: int, high: int) -> int:
    text = os.environ.get(name) or str(default)
    if text.isascii() and text.isdigit() and low <= int(text) <= high:
        return int(text)
    # app.config would say the same, but gunicorn needs the number first.
    sys.exit(f"order service: {name} is {text!r}; it must be a whole number from {low} to {high}.")


def _listen() -> str:
    if socket := os.environ.get("BIND"):
        return socket
    host = os.environ.get("HOST") or "127.0.0.1"
    return f"{f'[{host}]' if ':' in host else host}:{_whole_number('PORT', 8000, 1, 65535)}"


def _default_workers() -> int:
    """One a core. SQLite's calls block their worker, and its file takes one writer at a time: a second worker reads
    while the first waits for the disk (up to twice the throughput at 16 connections), a third only queues."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if os.environ.get("DATABASE_URL", "").startswith("postgres") else min(cores, 2)


# An address, or a socket file for nginx. Whoever may enter the socket's directory may talk to the service.
bind = _listen()

# A worker waits for a thousand clients and the database at once, and a slow statement delays nobody. Threads cost
# 168 µs a request in hand-offs, and with SQLite eight of them starve each other (p99 1 s, not 0.2 to 0.5 s).
worker_class = "gunicorn_worker.Worker"
workers = _whole_number("WEB_CONCURRENCY", 0, 0, 512) or _default_workers()
worker_connections = 1000  # a worker; beyond it connections wait in the backlog

# A whole burst waits in the kernel instead of being refused; it cuts the number down to net.core.somaxconn.
backlog = 2048
# Longer than nginx keeps its idle connections (5 s): the side that sends requests closes, so none meets a closed door.
keepalive = 75

# A worker that did not run its event loop for this long is stuck (a request may take longer) and is replaced.
timeout = 30
# On TERM and HUP a worker finishes its requests, which the database's limits end within about 10 s, and stays until
# nginx has closed its idle connections, which takes 5 s.
graceful_timeout = 30

# As large as nginx's buffers, so that what passes there passes here; a whole head has 64 KiB (gunicorn_worker.py, where
# the time limits are, too).
limit_request_line = 8190
limit_request_field_size = 8190
limit_request_fields = 100

# X-Forwarded-Proto counts only from a proxy on this machine; a socket file is always trusted.
forwarded_allow_ips = "127.0.0.1,::1"

# Each worker loads the application itself: gevent comes first, and a reload brings the new code.
preload_app = False
# A second way to command the service, which nobody asked for.
control_socket_disable = True
# The heartbeat is a file that is touched every second, which can block for as long as a busy disk does.
_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
worker_tmp_dir = _memory

# One for all workers, and kept over a reload, so that a person has one hash in the logs.
os.environ["SECRET_KEY"] = os.environ.get("SECRET_KEY") or secrets.token_hex(32)

# The application logs each request, with its id; a second line would only cost time.
accesslog = None
loglevel = os.environ.get("LOG_LEVEL") or "info"


class _Formatter(logging.Formatter):
    """Lines for people. What an exception says may quote a request: once there can be one, only its type is told."""

    serving = False

    def formatException(self, ei: Any) -> str:
        """The traceback, in a worker without the exception's message."""
        if not _Formatter.serving:
            return super().formatException(ei)
        return "".join(traceback.format_tb(ei[2])) + ei[0].__qualname__


class _JSONFormatter(_Formatter):
    """The form of the application's own lines."""

    converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "timestamp": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03}Z",
            "pid": record.process,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _drop_personal_data(record: logging.LogRecord) -> bool:
    """Take out of a line of gunicorn's what a client has sent, and its address."""
    for beginning in ("Invalid request from", "Error handling request"):
        if str(record.msg).startswith(beginning):
            record.msg, record.args = beginning.removesuffix(" from"), ()
    if isinstance(record.args, tuple):
        record.args = tuple(type(arg).__name__ if isinstance(arg, BaseException) else arg for arg in record.args)
    return True


class _Logger(glogging.Logger):
    # Not `logconfig_dict`: gunicorn takes that as an access log, and prepares each request's line for it.
    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.addFilter(_drop_personal_data)
            if os.environ.get("LOG_FORMAT") != "console":
                handler.setFormatter(_JSONFormatter())
            else:
                handler.setFormatter(_Formatter(self.error_fmt, self.datefmt))


logger_class = _Logger


def when_ready(server: Any) -> None:
    """Give the workers a directory for what they count together, now that it is certain that there will be workers.

    A new one: numbers of an earlier run would be counted again. In memory where there is room for twice the workers, as
    many as there are during a reload, since every request writes to these files.
    """
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    os.environ.pop("RATE_LIMIT_FILE", None)
    size = RATE_LIMITS_BYTES + 2 * server.cfg.workers * METRICS_BYTES
    directory = shared_directory(_memory, None, size=size)
    if directory is None:
        server.log.warning("No directory has %d bytes for metrics and rate limits: each worker counts alone.", size)
        return
    if _memory and not directory.startswith(_memory):
        server.log.warning("%s has no %d bytes for metrics and rate limits: they are in %s.", _memory, size, directory)
    reserve(f"{directory}/rate-limits", RATE_LIMITS_BYTES)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    os.environ["RATE_LIMIT_FILE"] = f"{directory}/rate-limits"


def post_worker_init(worker: Any) -> None:
    """Prepare a worker that has loaded the application."""
    # Ctrl-C reaches every process of the terminal; the master alone tells its workers to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _Formatter.serving = True
    for handler in worker.log.error_log.handlers:
        if type(handler) is logging.StreamHandler:  # not its subclasses, which write to files
            handler.setStream(sys.stderr)  # what the application made of it, which counts lost lines
    # What is loaded stays for good and need not be searched for garbage again, nor the rest after every third request,
    # which is how often 700 new objects come together. A request leaves next to no cycles.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def child_exit(server: Any, worker: Any) -> None:
    """Forget what a worker that is gone was using; what it had counted stays counted.

    prometheus_client's mark_process_dead, without importing it: its locks would be made here, before gevent's.
    """
    if directory := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        release_metrics(directory, worker.pid)


def on_exit(server: Any) -> None:
    if directory := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        shutil.rmtree(directory, ignore_errors=True)
