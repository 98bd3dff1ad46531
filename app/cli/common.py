"""Shared by the commands: durations, progress, errors in one line, and child processes that use all cores."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import chain, count, islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

import click
from flask import Flask, current_app

from app.config import StartupError, available_cores, parse_age
from app.db import engine
from app.db.engine import DATABASE_ERRORS, UNUSABLE_FILE, is_file_unusable
from app.db.migrations import require_migrated
from app.models.order_id import EPOCH
from app.services.event_feed import read_ends
from app.telemetry import configure_logging

PROGRESS_INTERVAL = 30.0  # seconds
_ORDERS_PER_PROCESS = 10_000  # with fewer, starting another process takes longer than it saves
_SETTINGS = ("DATABASE_URL", "DATABASE_POOL_SIZE", "DATABASE_POOLER", "LOG_LEVEL", "LOG_FORMAT")

Task = TypeVar("Task")
Result = TypeVar("Result")


class Age(click.ParamType[timedelta]):
    """A parameter in days, hours or minutes: 30d, 12h, 45m."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """The duration. Fails with a usage error."""
        try:
            return parse_age(str(value))
        except ValueError as error:
            self.fail(f"{value!r} is not {error}.", param, ctx)


class Since(click.ParamType[datetime]):
    """A parameter that is a time, 2026-11-28T02:00:00Z, or becomes one: 30d is the time 30 days ago."""

    name = "since"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The aware time, not before 1970. Fails with a usage error."""
        text, now = str(value), datetime.now(UTC)
        try:
            moment = max(datetime.fromisoformat(text) if "T" in text else now - parse_age(text), EPOCH)
        except (ValueError, TypeError):  # TypeError: the offset from UTC is missing
            expected = "a duration from 1m to 36500d, or a time with its offset from UTC: 2026-11-28T02:00:00Z"
            self.fail(f"{value!r} is not {expected}.", param, ctx)
        if moment > now:
            self.fail(f"{value!r} is in the future.", param, ctx)
        return moment


class ProgressBar(Protocol):
    """The used members of click's progress bar, whose class is private."""

    pos: int  # steps so far

    def update(self, n_steps: int) -> None:
        """Move the bar forward."""


class ProgressLines:
    """Progress where there is no terminal: a line on standard error every PROGRESS_INTERVAL seconds."""

    def __init__(self, label: str, *, length: int | None) -> None:
        self.pos = 0
        self._label, self._length = label, length
        self._started = self._reported = time.monotonic()

    def update(self, n_steps: int) -> None:
        """Count the steps, and write a line if it is time for one."""
        self.pos += n_steps
        now = time.monotonic()
        if now - self._reported >= PROGRESS_INTERVAL:
            self._reported = now
            click.echo(f"{self._label}: {self._state(now - self._started)}", err=True)

    def _state(self, seconds: float) -> str:
        if not self._length or not self.pos:
            return f"{self.pos:,}"
        remaining = timedelta(seconds=round(seconds * max(self._length - self.pos, 0) / self.pos))
        return f"{self.pos / self._length:.0%}, about {remaining} left"


@contextmanager
def progress_bar(label: str, *, length: int | None) -> Iterator[ProgressBar]:
    """A progress bar on standard error with the time left, or ProgressLines where that is no terminal.

    `length` is None if it is not known.
    """
    if not sys.stderr.isatty():
        yield ProgressLines(label, length=length)
        return
    unknown = length is None
    steps = count() if unknown else None
    with click.progressbar(steps, length=length, label=label, show_pos=unknown, file=sys.stderr) as bar:
        yield bar


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Report an error of the database, of a file or of an argument's encoding in one line, with exit status 1."""
    try:
        yield
    except StartupError as error:
        raise click.ClickException(str(error)) from None
    except DATABASE_ERRORS as error:
        raise database_failure(error) from None
    except UnicodeEncodeError:
        raise click.ClickException("An argument is not in UTF-8.") from None
    except OSError as error:
        # Python would try to write the rest again when it ends, and report that too.
        with suppress(OSError, ValueError), open(os.devnull, "w") as devnull:
            os.dup2(devnull.fileno(), sys.stdout.fileno())
        raise click.ClickException(f"File error: {_first_line(error)}") from None


def outside_feed() -> click.ClickException:
    """The report of an --after that the feed does not reach."""
    ends = read_ends()
    return click.ClickException(f"--after must be from {ends.pruned_seq} to {ends.seq}: the feed has no other events.")


def database_failure(error: BaseException) -> click.ClickException:
    """The report of a database error, in one line."""
    if is_file_unusable(error):
        return click.ClickException(UNUSABLE_FILE)
    reason = _first_line(error)
    return click.ClickException(f"Database error. Run the same command again to continue. {reason}")


@contextmanager
def migrated_database() -> Iterator[None]:
    """Require a database with the newest schema, and report errors as `errors_in_one_line` does."""
    with errors_in_one_line():
        require_migrated()
        yield


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def process_count(orders: int) -> int:
    """The number of processes to read this many orders with: one per core, but only one for few orders."""
    return max(1, min(available_cores(), orders // _ORDERS_PER_PROCESS))


def run_in_processes(work: Callable[[Task], Result], tasks: Iterable[Task], *, processes: int) -> Iterator[Result]:
    """Yield `work(task)` for each task, in the order in which they finish.

    `work`, tasks and results must be picklable. There are no more processes than tasks, and a single one is this
    process. Otherwise each has an application context with the database of the current application. When the iterator
    is closed, or an exception such as Ctrl-C ends it, the processes are stopped at once.

    Raises ClickException if the database fails, or if a process ends before its task does.
    """
    remaining = iter(tasks)
    first = list(islice(remaining, processes))
    remaining = chain(first, remaining)
    if len(first) <= 1:
        yield from map(work, remaining)
        return
    with _started(work, len(first)) as children:
        idle, busy = list(children), set[Connection]()
        while True:
            for connection, task in zip(idle, remaining):
                with suppress(ConnectionError):  # _receive reports a process that has ended
                    connection.send(task)
                busy.add(connection)
            if not busy:
                return
            idle = [connection for connection in wait(busy) if isinstance(connection, Connection)]
            busy.difference_update(idle)
            for connection in idle:
                yield _receive(connection, children[connection])


@contextmanager
def _started(work: Callable[[Any], Any], count: int) -> Iterator[dict[Connection, BaseProcess]]:
    context = multiprocessing.get_context("spawn")  # a fork would share the database connections of this process
    settings = {name: current_app.config[name] for name in _SETTINGS}
    children: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(count):
            connection, remote = context.Pipe()
            process: BaseProcess = context.Process(target=_serve, args=(remote, work, settings), daemon=True)
            with _without_interrupts():
                process.start()
            remote.close()  # so that the end of the process closes the pipe
            children[connection] = process
        yield children
    finally:
        for child in children.values():
            child.terminate()
        for connection, child in children.items():
            child.join()
            connection.close()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block SIGINT, for processes that are started meanwhile too: on Ctrl-C, this process stops them.

    A signal that arrives during the block is delivered after it.
    """
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


def _receive(connection: Connection, process: BaseProcess) -> Any:
    try:
        result = connection.recv()
    except (EOFError, ConnectionError):
        process.join()
        raise click.ClickException(
            f"A child process ended with exit status {process.exitcode} before its work was done. Run the same "
            "command again."
        ) from None
    if isinstance(result, click.ClickException):
        raise result
    return result


def _serve(connection: Connection, work: Callable[[Any], Any], settings: Mapping[str, Any]) -> None:
    """The child process: run the tasks that it receives until the command ends."""
    app = Flask(__name__)
    app.config.update(settings)
    configure_logging(settings["LOG_LEVEL"], settings["LOG_FORMAT"])  # standard output is for results
    engine.init_app(app)
    with app.app_context(), suppress(EOFError, ConnectionError):
        while True:
            connection.send(_result(work, connection.recv()))


def _result(work: Callable[[Any], Any], task: Any) -> Any:
    try:
        return work(task)
    except DATABASE_ERRORS as error:
        return database_failure(error)
