"""gunicorn's settings, each with its reason.

The master process imports neither the application nor the database driver: gevent must replace the blocking parts of
the standard library in a worker before they are used. For the same reason the service's settings are read by running
app/config.py, not by importing it from the package.
"""

import gc
import json
import logging
import os
import resource
import runpy
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from contextlib import closing, suppress
from types import TracebackType
from typing import Any
from urllib.parse import unquote

from gunicorn import glogging
from gunicorn.errors import HaltServer

from shared_files import METRICS_BYTES, RATE_LIMITS_BYTES, release_metrics, reserve, shared_directory

_config = runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "app", "config.py"))
try:
    _settings = _config["load_config"]()
except _config["StartupError"] as error:
    sys.exit(f"order service: {error}")


def _default_workers() -> int:
    """One worker a core. On SQLite at most two, since a call blocks its worker and the file takes one writer at a time:
    a second worker reads while the first waits for the disk (up to twice the throughput at 16 connections), a third
    only queues."""
    cores: int = _config["available_cores"]()
    return min(cores, 2) if _settings["DATABASE_URL"].startswith("sqlite") else cores


# A TCP address, or a Unix socket for nginx. Everybody who can enter the socket's directory can send requests.
_host = f"[{_settings['HOST']}]" if ":" in _settings["HOST"] else _settings["HOST"]
bind = _settings["BIND"] or f"{_host}:{_settings['PORT']}"

# Greenlets: a worker serves a thousand clients, and a slow statement delays only its own request. Threads cost 168 µs a
# request for switching, and with SQLite eight of them starve each other (p99 of 1 s instead of 0.2 to 0.5 s).
worker_class = "gunicorn_worker.HttptoolsWorker"
workers = _settings["WEB_CONCURRENCY"] or _default_workers()
# A worker's connections: event streams, and 1,000 others. Further connections wait in the backlog.
worker_connections = 1000 + _settings["EVENT_STREAMS"]

# The kernel queues bursts of connections instead of refusing them. It reduces the number to net.core.somaxconn.
backlog = 2048
# Longer than nginx keeps idle connections (5 s): the client closes first, so no request meets a closed connection.
keepalive = 75

# Seconds. A worker whose event loop has not run for this long is stuck, and is replaced. A request may take longer.
timeout = 30
# Seconds. On TERM and HUP a worker finishes its requests, which the database's limits bound to about 10 s, and waits
# until nginx has closed its idle connections, which takes 5 s.
graceful_timeout = 30

# The size of nginx's buffers, so that the service accepts what nginx accepts. A whole head may have 64 KiB; that limit
# and the time limits are in gunicorn_worker.py.
limit_request_line = 8190
limit_request_field_size = 8190
limit_request_fields = 100

# X-Forwarded-Proto is trusted only from a proxy on this machine. Unix sockets are always trusted.
forwarded_allow_ips = "127.0.0.1,::1"

# Each worker loads the application itself: gevent patches first, and a reload loads new code.
preload_app = False
# gunicorn's second control interface is not needed.
control_socket_disable = True
# The heartbeat changes a file every second, which can block as long as a busy disk does. Memory does not.
_memory_directory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
worker_tmp_dir = _memory_directory

# Each connection is an open file, and many systems allow 1,024 unless a process asks for more. Where they allow too
# few, the worker's own files come first: many clients must not keep it from connecting to the database.
_soft_limit, _hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
_reserved_files = 3 * _settings["DATABASE_POOL_SIZE"] + 100  # SQLite opens three files a connection
_needed_files = worker_connections + _reserved_files
if _soft_limit != resource.RLIM_INFINITY and _soft_limit < _needed_files:
    _soft_limit = _needed_files if _hard_limit == resource.RLIM_INFINITY else min(_needed_files, _hard_limit)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_soft_limit, _hard_limit))
    worker_connections = max(_soft_limit - _reserved_files, _soft_limit // 2)
    # Event streams last: with all connections, they would keep all other clients waiting.
    _event_streams = min(_settings["EVENT_STREAMS"], max(worker_connections - 1000, worker_connections // 2))
    os.environ["EVENT_STREAMS"] = str(_event_streams)

# One key for all workers, which survives a reload, so that a person always has the same hash in the logs.
os.environ["SECRET_KEY"] = _settings["SECRET_KEY"]

# The application logs each request with its id; gunicorn's access log would be a second line.
accesslog = None
loglevel = _settings["LOG_LEVEL"]


class _Formatter(logging.Formatter):
    """Lines for a terminal. After the start, exceptions are logged without their messages, which may quote requests."""

    serving = False

    def formatException(self, ei: Any) -> str:
        """The traceback; while serving without the exception's message."""
        if not _Formatter.serving:
            return super().formatException(ei)
        return "".join(traceback.format_tb(ei[2])) + ei[0].__qualname__


class _JSONFormatter(_Formatter):
    """One JSON object a line, with the members of the application's log lines."""

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


class _Logger(glogging.Logger):
    # Not `logconfig_dict`: gunicorn then prepares an access log line for each request.
    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        console = _settings["LOG_FORMAT"] == "console"
        for handler in self.error_log.handlers:
            handler.setFormatter(_Formatter(self.error_fmt, self.datefmt) if console else _JSONFormatter())


logger_class = _Logger


def on_starting(server: Any) -> None:
    """Refuse TLS: gunicorn would log an https address, where the worker would answer plain HTTP."""
    if server.cfg.certfile or server.cfg.keyfile:
        sys.exit("order service: certfile or keyfile is set. Remove it: TLS ends at the proxy.")


def when_ready(server: Any) -> None:
    """Create the directory of the files that the workers share, once it is certain that the server starts.

    A new directory, since the counts of an earlier run would be added to. In memory if there is room for twice the
    workers, which is their number during a reload: every request writes to these files.
    """
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    os.environ.pop("RATE_LIMIT_FILE", None)
    size = RATE_LIMITS_BYTES + 2 * server.cfg.workers * METRICS_BYTES
    directory = shared_directory(_memory_directory, None, size=size)
    if directory is None:
        server.log.warning(
            "No directory has %d bytes free for metrics and rate limits: each worker counts alone.", size
        )
        return
    if _memory_directory and not directory.startswith(_memory_directory):
        message = "%s has less than %d bytes free: metrics and rate limits are in %s."
        server.log.warning(message, _memory_directory, size, directory)
    reserve(f"{directory}/rate-limits", RATE_LIMITS_BYTES)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    os.environ["RATE_LIMIT_FILE"] = f"{directory}/rate-limits"


def pre_exec(server: Any) -> None:
    """Make a binary upgrade (USR2) start the new master with the command of the old one.

    gunicorn repeats the command as `python …/gunicorn/__main__.py`. The directory of a script comes first in sys.path,
    so gunicorn.http would shadow the standard library's http.
    """
    program, script, *arguments = server.START_CTX["args"]
    if os.path.basename(script) == "__main__.py":
        server.START_CTX["args"] = [program, "-m", "gunicorn", *arguments]


def post_fork(server: Any, worker: Any) -> None:
    """Make it possible to stop a worker that is starting. Until it installs its own handlers it has the master's, which
    put the signal in a queue that only the master reads: stopping the server would wait for the graceful timeout."""
    for stop in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(stop, signal.SIG_DFL)


def on_reload(server: Any) -> None:
    """Let the old workers accept connections until a new one does."""
    # After an upgrade, the master still has the worker class of the older release.
    if handover := getattr(server.worker_class, "handover", None):
        handover.begin(server.worker_age)


def post_worker_init(worker: Any) -> None:
    """Prepare a worker that has loaded the application."""
    if handover := getattr(worker, "handover", None):
        handover.complete(worker.age)
    # Ctrl-C reaches every process of the terminal, but only the master stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker.max_requests_in_progress = _settings["MAX_REQUESTS_IN_PROGRESS"]
    worker.cors_origins = _settings["CORS_ORIGINS"]
    worker.refusals = worker.wsgi.extensions.get("refused_requests")
    worker.rejections = worker.wsgi.extensions.get("rejected_requests")
    worker.sample_process = worker.wsgi.extensions.get("sample_process")
    # Event streams would last until they are killed.
    if streams := worker.wsgi.extensions.get("event_streams"):  # not in the benchmark's applications
        streams.watcher.is_stopping = lambda: not worker.alive
    _Formatter.serving = True
    for handler in worker.log.error_log.handlers:
        if type(handler) is logging.StreamHandler:  # not its subclasses, which write to files
            handler.setStream(sys.stderr)  # the application's stream, which counts lost lines
    # Garbage collection is expensive and finds little: a request creates next to no cycles. Loaded modules are excluded
    # for good, and a collection starts after 50,000 new objects instead of 700, which is every third request.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def child_exit(server: Any, worker: Any) -> None:
    """Release the shared files of a worker that has exited. Its counts are kept.

    This replaces mark_process_dead of prometheus_client, whose import would create locks before gevent patches.
    """
    if directory := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        release_metrics(directory, worker.pid)


def _close_sqlite() -> None:
    """Open and close the database once more: the last connection to close removes SQLite's write-ahead log, but where
    two workers close theirs at the same moment, neither is the last."""
    path = unquote(_settings["DATABASE_URL"].removeprefix("sqlite:///").removeprefix("file:").partition("?")[0])
    if _settings["DATABASE_URL"].startswith("sqlite") and os.path.exists(path + "-wal"):
        with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=1)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _end_quietly(error_class: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Like on_exit, where gunicorn does not call it: it finds that a worker has failed to start while it already stops,
    because of a signal or of another worker. The worker has printed the reason."""
    if issubclass(error_class, HaltServer):
        on_exit(None)
    else:
        sys.__excepthook__(error_class, error, trace)


sys.excepthook = _end_quietly


def on_exit(server: Any) -> None:
    """Remove the shared files, and leave a SQLite database in one file."""
    _close_sqlite()
    if directory := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        shutil.rmtree(directory, ignore_errors=True)
