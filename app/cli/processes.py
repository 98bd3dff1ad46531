"""Child processes of a command, so that it uses all cores."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import click
from flask import Flask, current_app

from app.cli.common import database_failure
from app.db import engine
from app.db.errors import DATABASE_ERRORS
from app.telemetry import configure_logging

Task = TypeVar("Task")
Result = TypeVar("Result")

_ORDERS_PER_PROCESS = 10_000  # with fewer, starting another process takes longer than it saves
_SETTINGS = ("DATABASE_URL", "DATABASE_POOL_SIZE", "DATABASE_POOLER", "LOG_LEVEL", "LOG_FORMAT")


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_count(orders: int) -> int:
    """The number of processes that read so many orders: one per core, but one if the orders are few."""
    return max(1, min(available_cores(), orders // _ORDERS_PER_PROCESS))


def run_in_processes(work: Callable[[Task], Result], tasks: Iterable[Task], *, processes: int) -> Iterator[Result]:
    """Yield `work(task)` for each task, in the order in which they finish.

    `work`, tasks and results must be picklable. A single process is this one. Otherwise each has an application context
    with the database of the current application. When the iterator is closed, or an exception such as Ctrl-C ends it,
    the processes are stopped at once.

    Raises ClickException if the database fails, or if a process ends before its task does.
    """
    if processes == 1:
        yield from map(work, tasks)
        return
    with _started(work, processes) as children:
        remaining = iter(tasks)
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

    A signal that arrives meanwhile is delivered afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
    """The child process: do what it is sent until the command ends."""
    app = Flask(__name__)
    app.config.update(settings)
    configure_logging(settings["LOG_LEVEL"], settings["LOG_FORMAT"])  # standard output is for the command's results
    engine.init_app(app)
    with app.app_context(), suppress(EOFError, ConnectionError):
        while True:
            connection.send(_result(work, connection.recv()))


def _result(work: Callable[[Any], Any], task: Any) -> Any:
    try:
        return work(task)
    except DATABASE_ERRORS as error:
        return database_failure(error)
