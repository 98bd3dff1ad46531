"""The worker: the background tasks of the service, in a process beside the web server.

Each task runs in a thread of its own, so that a slow one delays no other. Any number of workers may run: by locks of
the database, every task processes what no other process is processing. No leader is elected: when a worker is killed,
the others continue with their next calls.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import structlog

from app.db.engine import DATABASE_ERRORS, is_unavailable, loggable_message
from app.services.event_feed import sequence_events
from app.services.order_actions import apply_due_changes, expire_orders
from app.services.personal_data import continue_erasures
from app.services.search_projection import project_events

log = structlog.get_logger()

SEQUENCING = "sequencing"  # name of a task
STOP_SECONDS = 25.0  # for tasks to finish; process managers kill after 30 s
_RETRY_AFTER = 1.0  # seconds after an error
# Calls that find nothing to do take at most a tenth of the time, unless they are so slow that events would be late.
_PAUSES_PER_CALL = 9
_SLOW_PAUSE = 0.5  # seconds
_ERASURE_SECONDS = 2.0  # in which one erasure is continued


@dataclass(frozen=True, slots=True)
class Task:
    """Work that is repeated.

    `run` does a limited part of it, which takes seconds at most, and returns whether there was any. If so, it is called
    again after `busy_pause` seconds, otherwise after `idle_pause` seconds, or as soon as the task is woken: when the
    task `woken_by` has done something. It may raise. `finish` is called after the last `run`, to end what `run` has
    started in the background.
    """

    name: str
    run: Callable[[], bool]
    idle_pause: float
    busy_pause: float = 0.0
    woken_by: str | None = None
    finish: Callable[[], None] | None = None


def order_tasks(config: Mapping[str, Any], *, notified: bool) -> tuple[Task, ...]:
    """The tasks of a worker that concern orders and their events.

    `notified` states that SEQUENCING is woken when there are events, so that it need not poll often.
    """
    tasks = (
        # A call that finds no events is one short query. After a call that finds some, a pause lets more arrive, to be
        # numbered together.
        Task(SEQUENCING, sequence_events, idle_pause=1 if notified else 0.1, busy_pause=0.02),
        Task("search", project_events, idle_pause=1, woken_by=SEQUENCING),
        # `any` ends a call after the first page of orders that were changed.
        Task("due changes", lambda: any(apply_due_changes()), idle_pause=2),
        # `any` ends a call after the first erasure that got on, so that a call is short.
        Task("erasures", lambda: any(continue_erasures(seconds=_ERASURE_SECONDS)), idle_pause=10),
    )
    age = config["EXPIRE_PENDING_AFTER"]
    if age is None:
        return tasks
    return *tasks, Task("expiry", lambda: any(expire_orders(older_than=age)), idle_pause=60)


class Worker:
    """Runs tasks until it is stopped.

    `context` makes the database available to a thread. `observe` is called after each call of a task with its name, the
    seconds that it took and whether it failed.
    """

    def __init__(
        self,
        tasks: tuple[Task, ...],
        *,
        context: Callable[[], AbstractContextManager[object]],
        observe: Callable[[str, float, bool], None],
    ) -> None:
        self._tasks = tasks
        self._context = context
        self._observe = observe
        # A signal handler must not set an event: the main thread, which it interrupts, may hold the event's lock.
        self._is_stopping = False
        self._stop_requests: SimpleQueue[None] = SimpleQueue()
        self._stopping = threading.Event()
        self._due = {task.name: threading.Event() for task in tasks}
        self._database_lock = threading.Lock()
        self._without_database: set[str] = set()  # tasks whose last call failed because the database was unavailable

    def run(self) -> bool:
        """Run the tasks until `stop` is called. Returns whether they all finished within STOP_SECONDS after that."""
        threads = [
            threading.Thread(target=self._repeat, args=[task], name=task.name, daemon=True) for task in self._tasks
        ]
        for thread in threads:
            thread.start()
        log.info("worker started", tasks=[task.name for task in self._tasks])
        self._stop_requests.get()
        self._stopping.set()
        for due in self._due.values():
            due.set()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        unfinished = [thread.name for thread in threads if thread.is_alive()]
        if unfinished:
            log.error("worker stopped", unfinished=unfinished)
        else:
            log.info("worker stopped")
        return not unfinished

    def stop(self) -> None:
        """Make `run` return when each task has finished its call. May be called by a signal handler."""
        self._is_stopping = True
        self._stop_requests.put(None)

    def wake(self, name: str) -> None:
        """Call the task of this name again without a pause. May be called by any thread."""
        self._due[name].set()

    def _repeat(self, task: Task) -> None:
        with self._context():
            due = self._due[task.name]
            while True:
                due.clear()
                if self._is_stopping:  # then `run` sets `due`
                    break
                pause_end, seconds = self._call(task, due)
                pause_end.wait(seconds)
            if task.finish is not None:
                self._attempt(task, task.finish)

    def _call(self, task: Task, due: threading.Event) -> tuple[threading.Event, float]:
        """Call the task once, and return the pause before the next call: the event that ends it, and its maximum in
        seconds. Being woken ends neither the pause after an error nor the one between two calls with work."""
        started = time.monotonic()
        active = self._attempt(task, task.run)
        failed = active is None
        seconds = time.monotonic() - started
        self._observe(task.name, seconds, failed)
        if failed:
            return self._stopping, _RETRY_AFTER
        if active:
            self._wake_others(task)
            return self._stopping, task.busy_pause
        return due, max(task.idle_pause, min(_PAUSES_PER_CALL * seconds, _SLOW_PAUSE))

    def _attempt(self, task: Task, function: Callable[[], bool | None]) -> bool | None:
        """Call a function of the task, and log an error. Returns its result; None after an error."""
        try:
            result = function()
        except DATABASE_ERRORS as error:
            if is_unavailable(error):
                self._report_database(task, available=False, reason=loggable_message(error))
            else:
                log.error("task failed", task=task.name, exc_info=error)
        except Exception as error:
            log.error("task failed", task=task.name, exc_info=error)
        else:
            self._report_database(task, available=True)
            return result
        return None

    def _wake_others(self, task: Task) -> None:
        for other in self._tasks:
            if other.woken_by == task.name:
                self.wake(other.name)

    def _report_database(self, task: Task, *, available: bool, reason: str = "") -> None:
        """Log once for all tasks that the database is unavailable, and once that it is available to all of them
        again."""
        if available == (task.name not in self._without_database):
            return
        with self._database_lock:
            before = bool(self._without_database)
            if available:
                self._without_database.discard(task.name)
            else:
                self._without_database.add(task.name)
            if before and not self._without_database:
                log.info("database available again")
            elif self._without_database and not before:
                log.warning("database unavailable", task=task.name, reason=reason)
