"""gunicorn's settings, each with its reason."""

import os
import signal

bind = f"{os.environ.get('HOST') or '127.0.0.1'}:{os.environ.get('PORT') or '8000'}"
worker_class = "gevent"
workers = int(os.environ.get("WEB_CONCURRENCY") or 1)
control_socket_disable = True


def post_worker_init(worker: object) -> None:
    """Ctrl-C reaches every process of the terminal; the master alone tells its workers to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
