"""A gunicorn worker of ours without the rest of gunicorn."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from gunicorn.config import Config
from gunicorn.glogging import Logger

from gunicorn_worker import Worker

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@contextmanager
def worker_of(application: Application, **settings: Any) -> Iterator[Worker]:
    """A worker that would serve the application, were it given connections."""
    configuration = Config()
    for name, value in settings.items():
        configuration.set(name, value)
    worker = Worker(1, 1, [], None, 30, configuration, Logger(configuration))
    worker.wsgi = application
    with closing(worker.tmp):
        yield worker
