"""The service's gunicorn worker without an arbiter."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from gunicorn.config import Config
from gunicorn.glogging import Logger

from gunicorn_worker import HttptoolsWorker

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@contextmanager
def worker_of(application: Application, *, timeout: float = 10, **settings: Any) -> Iterator[HttptoolsWorker]:
    """A worker that serves the application on the given connections. All its time limits are `timeout` seconds."""
    configuration = Config()
    for name, value in settings.items():
        configuration.set(name, value)
    worker = HttptoolsWorker(1, 1, [], None, 30, configuration, Logger(configuration))
    worker.head_timeout = worker.body_timeout = worker.send_timeout = timeout
    worker.wsgi = application
    with closing(worker.tmp):
        yield worker
