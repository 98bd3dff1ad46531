"""`flask worker`: the process beside the web server."""

import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from types import FrameType

import click
import structlog
from flask import Flask
from flask.cli import ScriptInfo, pass_script_info, with_appcontext
from prometheus_client import REGISTRY, Metric, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.cli.common import errors_in_one_line
from app.config import StartupError
from app.db.engine import DATABASE_ERRORS, is_file_unusable, is_unavailable, loggable_message
from app.db.migrations import require_revision
from app.db.statements import can_listen, listening
from app.services.broker import broker_tasks, read_lag
from app.services.diagnosis import WORKER_NAME
from app.services.event_feed import oldest_pending, read_ends
from app.services.search_projection import read_search_seq
from app.services.webhook_delivery import CONCURRENCY, webhook_tasks
from app.services.webhook_queue import oldest_due
from app.services.webhook_service import ENDPOINTS_MAX, count_endpoints
from app.services.worker import SEQUENCING, Worker, order_tasks
from app.telemetry import observe_delivery, observe_task

log = structlog.get_logger()

_RETRY_AFTER = 1.0  # seconds between two attempts to reach the database at the start
# An open and an idle connection for each request to an endpoint, and the worker's own files.
_FILES_MAX = 2 * ENDPOINTS_MAX * CONCURRENCY + 200


@click.command("worker", short_help="Run the background tasks of the service until stopped.")
@with_appcontext
@pass_script_info
def worker(info: ScriptInfo) -> None:
    """Run the background tasks: move events to the feed, keep the search up to date, deliver webhooks, publish to
    the broker, end holds, mark late orders, continue erasures.

    Any number of workers may run. On TERM or Ctrl-C, the worker finishes its current work and exits with status 0.
    """
    app = info.load_app()
    os.environ.setdefault("PGAPPNAME", WORKER_NAME)  # of its connections, which `flask doctor` looks for
    with errors_in_one_line():
        is_notified = can_listen(app.config)
        tasks = (
            *order_tasks(app.config, notified=is_notified),
            *webhook_tasks(app.config, observe_delivery),
            *broker_tasks(app.config),
        )
    loop = Worker(tasks, context=app.app_context, observe=observe_task)

    def stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        loop.stop()

    _allow_files()
    with errors_in_one_line():
        _wait_for_database()
        _serve_metrics(app)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
    gc.collect()
    gc.freeze()  # loaded modules are not searched for garbage again
    wake = partial(loop.wake, SEQUENCING)
    with listening(wake, context=app.app_context) if is_notified else nullcontext():
        finished = loop.run()
    sys.exit(0 if finished else 1)


def _allow_files() -> None:
    """Raise the limit of open files as far as allowed. Many systems allow 1,024 unless a process asks for more. Without
    a file for a connection, deliveries would fail, and their endpoints would be paused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FILES_MAX:
        files = _FILES_MAX if hard == resource.RLIM_INFINITY else min(_FILES_MAX, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


def _wait_for_database() -> None:
    """Wait until the database answers. Raises StartupError if this code does not work with its schema."""
    reported = False
    while True:
        try:
            require_revision()
            return
        except StartupError:
            raise
        except DATABASE_ERRORS as error:
            if not is_unavailable(error) or is_file_unusable(error):
                raise
            if not reported:
                log.warning("waiting for the database", reason=loggable_message(error))
                reported = True
        time.sleep(_RETRY_AFTER)


class FeedCollector(Collector):
    """Metrics of the feed, read from the database at each scrape, and omitted while it does not respond."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: the registry calls this without a database."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Yield the last numbers of feed and search, the age of the oldest event that has none, the number of webhooks
        and their lag, and the broker's lag."""
        broker = None
        try:
            with self._app.app_context():
                seq, pending_since, search_seq = read_ends().seq, oldest_pending(), read_search_seq()
                webhooks, due_since = count_endpoints(), oldest_due(datetime.now(UTC))
                if self._app.config["BROKER_URL"]:
                    broker = read_lag()
        except DATABASE_ERRORS:
            return
        yield GaugeMetricFamily("event_feed_seq", "The last number in the feed.", seq)
        yield GaugeMetricFamily("search_as_of_seq", "The last number in the feed that the search reflects.", search_seq)
        yield GaugeMetricFamily(
            "outbox_oldest_event_seconds", "Age of the oldest event without a number.", _age(pending_since)
        )
        by_health = GaugeMetricFamily(
            "webhooks", "Enabled webhooks, and those disabled by failures.", labels=["health"]
        )
        for health, count in webhooks.items():
            by_health.add_metric([health], count)
        yield by_health
        yield GaugeMetricFamily(
            "webhook_lag_seconds", "How long the oldest delivery that could be sent has been due.", _age(due_since)
        )
        if broker is not None:
            yield GaugeMetricFamily("broker_lag_events", "Events that are not published to the broker.", broker.events)
            yield GaugeMetricFamily("broker_lag_seconds", "Age of the oldest of them in the feed.", broker.seconds)


def _age(since: datetime | None) -> float:
    """The seconds since this time; 0 for None."""
    return (datetime.now(UTC) - since).total_seconds() if since else 0.0


def _serve_metrics(app: Flask) -> None:
    host, port = app.config["HOST"], app.config["WORKER_METRICS_PORT"]
    if not port:
        return
    REGISTRY.register(FeedCollector(app))
    try:
        start_http_server(port, addr=host)
    except OSError as error:
        raise StartupError(f"WORKER_METRICS_PORT {port} on {host} cannot be used: {error.strerror}.") from None
