"""Batches of concurrent calls: they share executions, and every caller gets its own result."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.db.batching import BatchAbandoned, Batcher
from tests.support.servers import ROOT, TIMEOUT, wait_until


class Killed(BaseException):
    """Like GreenletExit, with which a server kills a greenlet."""


def doubled(items: Sequence[int]) -> list[int]:
    time.sleep(0.002)
    return [2 * item for item in items]


def concurrently(count: int, call: Callable[[int], object]) -> list[object]:
    """The results of `count` concurrent calls; what a call raises is its result."""

    def outcome(item: int) -> object:
        try:
            return call(item)
        except BaseException as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(outcome, range(count)))


def test_a_single_caller_is_not_delayed() -> None:
    calls: list[Sequence[int]] = []
    batcher = Batcher[int, int](lambda items: calls.append(items) or doubled(items), max_batch=10)

    assert batcher.submit(21) == 42
    assert calls == [[21]]


class Callers:
    """Counts the callers that have begun to submit an item."""

    def __init__(self) -> None:
        self.begun: list[int] = []

    def submit_to(self, batcher: Batcher[int, int]) -> Callable[[int], int]:
        def submit(item: int) -> int:
            self.begun.append(item)
            return batcher.submit(item)

        return submit

    def wait_for(self, count: int) -> None:
        """Wait until so many have begun, and give the last ones time to join a batch."""
        wait_until(lambda: len(self.begun) >= count)
        time.sleep(0.05)


def test_concurrent_callers_share_executions_and_get_their_own_results() -> None:
    sizes, callers = list[int](), Callers()

    def execute(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        callers.wait_for(200)  # those that are not in the first batch join the second one
        return doubled(items)

    results = concurrently(200, callers.submit_to(Batcher[int, int](execute, max_batch=1000)))

    assert results == [2 * item for item in range(200)]
    assert len(sizes) < 100


def test_no_batch_exceeds_its_maximum() -> None:
    sizes, callers = list[int](), Callers()

    def execute(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        callers.wait_for(50)
        return doubled(items)

    submit = callers.submit_to(Batcher[int, int](execute, max_batch=3))

    assert concurrently(50, submit) == [2 * item for item in range(50)]
    assert max(sizes) == 3


def test_an_error_is_raised_for_the_callers_of_its_batch_only() -> None:
    def execute(items: Sequence[int]) -> list[int]:
        time.sleep(0.001)
        if 13 in items:
            raise ValueError("poison")
        return list(items)

    batcher = Batcher[int, int](execute, max_batch=1)

    results = concurrently(30, batcher.submit)

    assert [item for item, result in enumerate(results) if isinstance(result, ValueError)] == [13]
    assert batcher.submit(1) == 1


def test_too_few_results_are_an_error() -> None:
    batcher = Batcher[int, int](lambda items: [], max_batch=10)

    with pytest.raises(RuntimeError, match="0 results for 1 items"):
        batcher.submit(1)


def test_the_other_callers_of_a_killed_leader_get_their_results() -> None:
    executions, callers = list[Sequence[int]](), Callers()

    def execute(items: Sequence[int]) -> list[int]:
        executions.append(items)
        if len(executions) == 1:
            callers.wait_for(20)  # they join the next batch
        elif len(executions) == 2:
            raise Killed
        return doubled(items)

    batcher = Batcher[int, int](execute, max_batch=1000)

    results = concurrently(20, callers.submit_to(batcher))

    assert [type(result) for result in results].count(Killed) == 1
    assert all(result == 2 * item for item, result in enumerate(results) if not isinstance(result, Killed))
    assert batcher.submit(5) == 10


def test_the_other_callers_of_a_killed_leader_get_an_error_if_a_batch_must_not_be_repeated() -> None:
    executed, callers = list[int](), Callers()

    def execute(items: Sequence[int]) -> list[int]:
        executed.extend(items)
        callers.wait_for(20)  # they join the next batch
        if 0 in items:
            raise Killed
        return doubled(items)

    batcher = Batcher[int, int](execute, max_batch=1000, repeatable=False)

    results = concurrently(20, callers.submit_to(batcher))

    assert sorted(executed) == list(range(20))
    for item, result in enumerate(results):
        assert result == 2 * item or isinstance(result, Killed | BatchAbandoned)
    assert [type(result) for result in results].count(Killed) == 1


def test_a_stuck_batch_does_not_block_later_ones() -> None:
    begun, release = threading.Event(), threading.Event()

    def execute(items: Sequence[int]) -> list[int]:
        if 0 in items:
            begun.set()
            release.wait(TIMEOUT)
        return doubled(items)

    batcher = Batcher[int, int](execute, max_batch=1)
    stuck = threading.Thread(target=batcher.submit, args=(0,))
    stuck.start()
    assert begun.wait(TIMEOUT)

    try:
        assert concurrently(10, lambda item: batcher.submit(item + 1)) == [2 * (item + 1) for item in range(10)]
        assert stuck.is_alive()
    finally:
        release.set()
        stuck.join()
    assert batcher.submit(3) == 6


# One process for both: gevent replaces blocking calls for the whole process.
UNDER_GEVENT = """
from gevent import monkey; monkey.patch_all()
import gevent, json, random, socket
from app.db import batching
from app.db.batching import Batcher

sleep = monkey.get_original("time", "sleep")

def shared():
    sizes = []
    def execute(items):
        sizes.append(len(items))
        gevent.sleep(random.random() / 100)
        return [2 * item for item in items]

    batcher = Batcher(execute, max_batch=40)
    greenlets = [gevent.spawn(batcher.submit, item) for item in range(500)]
    gevent.sleep(0.005)
    for victim in greenlets[::50]:  # leaders and others
        victim.kill()
    gevent.joinall(greenlets, timeout=60)
    survivors = [greenlet.value for i, greenlet in enumerate(greenlets) if i % 50]
    return survivors, len(sizes), batcher.submit(7)

def blocking():
    sizes = []
    def execute(items):
        sizes.append(len(items))
        sleep(0.001)  # blocks the process, as SQLite does
        return items

    batcher = Batcher(execute, max_batch=40)
    greenlets = [gevent.spawn(batcher.submit, item) for item in range(120)]
    gevent.joinall(greenlets, timeout=60)
    return [greenlet.value for greenlet in greenlets], len(sizes)

def arriving():
    sizes, pairs = [], [socket.socketpair() for _ in range(30)]
    waiting = [connection for connection, _ in pairs]
    def execute(items):
        sizes.append(len(items))
        return items
    def receive(connection):
        waiting.remove(connection)
        length = ord(connection.recv(1))
        for _ in range(length):  # others run between the steps of a request
            gevent.sleep(0)
        return batcher.submit(length)

    batcher = Batcher(execute, max_batch=40)
    greenlets = [gevent.spawn(receive, connection) for connection, _ in pairs]
    while waiting:  # for the beginning of their requests
        gevent.sleep(0)
    for length, (_, client) in enumerate(pairs):
        client.send(bytes([length]))
    gevent.joinall(greenlets, timeout=60)
    return sizes

def overloaded():
    def work():
        while True:
            gevent.sleep(0)

    busy = gevent.spawn(work)  # the event loop is never idle
    result = Batcher(lambda items: items, max_batch=40).submit(7)
    busy.kill()
    return result

results = {"shared": shared(), "overloaded": overloaded()}
batching._JOIN_TIMEOUT = 60  # seconds: on a busy machine, a few milliseconds end before the others can run
results |= {"blocking": blocking(), "arriving": arriving()}
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def under_gevent() -> dict[str, Any]:
    """The results of greenlets, and the number of executions that they shared."""
    command = [sys.executable, "-c", UNDER_GEVENT]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_greenlets_share_executions_and_survive_the_killing_of_others(under_gevent: dict[str, Any]) -> None:
    survivors, executions, later = under_gevent["shared"]

    assert survivors == [2 * i for i in range(500) if i % 50]
    assert executions < 60
    assert later == 14


def test_greenlets_that_are_ready_share_an_execution_that_blocks_the_process(under_gevent: dict[str, Any]) -> None:
    results, executions = under_gevent["blocking"]

    assert results == list(range(120))
    assert executions <= 6


def test_requests_that_have_arrived_share_an_execution(under_gevent: dict[str, Any]) -> None:
    assert under_gevent["arriving"] == [30]


def test_a_busy_worker_executes_batches_too(under_gevent: dict[str, Any]) -> None:
    assert under_gevent["overloaded"] == 7
