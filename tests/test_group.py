"""Group commit: whoever asks at the same moment is served by one call, and nobody is forgotten."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.db.group_commit import GroupCommit


class Killed(BaseException):
    """What a server kills a worker's greenlet or thread with."""


def doubled(items: Sequence[int]) -> list[int]:
    time.sleep(0.002)
    return [2 * item for item in items]


def together(count: int, call: Callable[[int], object]) -> list[object]:
    """The results of so many callers that call at once; what a caller raised stands for its result."""

    def outcome(item: int) -> object:
        try:
            return call(item)
        except BaseException as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(outcome, range(count)))


def test_a_caller_alone_is_served_at_once() -> None:
    calls: list[Sequence[int]] = []
    group = GroupCommit[int, int](lambda items: calls.append(items) or doubled(items), most=10)

    assert group.call(21) == 42
    assert calls == [[21]]


def test_callers_of_one_moment_share_calls_and_get_their_own_results() -> None:
    sizes: list[int] = []
    group = GroupCommit[int, int](lambda items: sizes.append(len(items)) or doubled(items), most=1000)

    results = together(200, group.call)

    assert results == [2 * item for item in range(200)]
    assert len(sizes) < 100


def test_no_call_gets_more_than_the_most() -> None:
    sizes: list[int] = []
    group = GroupCommit[int, int](lambda items: sizes.append(len(items)) or doubled(items), most=3)

    assert together(50, group.call) == [2 * item for item in range(50)]
    assert max(sizes) <= 3


def test_what_the_work_raises_is_raised_for_all_of_its_callers_and_for_no_others() -> None:
    def work(items: Sequence[int]) -> list[int]:
        time.sleep(0.001)
        if 13 in items:
            raise ValueError("poison")
        return list(items)

    group = GroupCommit[int, int](work, most=1)

    results = together(30, group.call)

    assert [item for item, result in enumerate(results) if isinstance(result, ValueError)] == [13]
    assert group.call(1) == 1


def test_too_few_results_are_an_error_and_not_somebody_elses_result() -> None:
    group = GroupCommit[int, int](lambda items: [], most=10)

    with pytest.raises(RuntimeError, match="0 results for 1 items"):
        group.call(1)


def test_a_killed_leader_leaves_nobody_without_an_answer() -> None:
    killed = threading.Event()
    started = threading.Event()
    seen: list[int] = []

    def work(items: Sequence[int]) -> list[int]:
        seen.extend(items)
        if not killed.is_set():
            started.set()
            time.sleep(0.05)  # the others arrive, some of them in the next group
            killed.set()
            raise Killed
        return doubled(items)

    group = GroupCommit[int, int](work, most=1000)

    results = together(20, group.call)

    assert [type(result) for result in results].count(Killed) == 1
    assert all(result == 2 * item for item, result in enumerate(results) if not isinstance(result, Killed))
    assert group.call(5) == 10


def test_work_that_is_stuck_does_not_stop_those_who_come_later() -> None:
    release = threading.Event()

    def work(items: Sequence[int]) -> list[int]:
        if 0 in items:
            release.wait(10)
        return doubled(items)

    group = GroupCommit[int, int](work, most=1)
    stuck = threading.Thread(target=group.call, args=(0,))
    stuck.start()
    time.sleep(0.15)  # beyond the patience

    try:
        assert together(10, lambda item: group.call(item + 1)) == [2 * (item + 1) for item in range(10)]
        assert stuck.is_alive()
    finally:
        release.set()
        stuck.join()
    assert group.call(3) == 6


UNDER_GEVENT = """
from gevent import monkey; monkey.patch_all()
import gevent, random, time
from app.db.group_commit import GroupCommit

sizes = []
def work(items):
    sizes.append(len(items))
    gevent.sleep(random.random() / 100)
    return [2 * item for item in items]

group = GroupCommit(work, most=40)
greenlets = [gevent.spawn(group.call, item) for item in range(500)]
gevent.sleep(0.005)
for victim in greenlets[::50]:  # leaders and waiters alike
    victim.kill()
gevent.joinall(greenlets, timeout=20)
answers = [greenlet.value for i, greenlet in enumerate(greenlets) if i % 50]
assert answers == [2 * i for i in range(500) if i % 50], answers
assert len(sizes) < 60, sizes
assert group.call(7) == 14
"""


def test_greenlets_share_calls_and_survive_the_killing_of_others() -> None:
    answer = subprocess.run([sys.executable, "-c", UNDER_GEVENT], capture_output=True, text=True, timeout=60)

    assert answer.returncode == 0, answer.stderr


BLOCKING = """
from gevent import monkey; monkey.patch_all()
import gevent
from app.db.group_commit import GroupCommit

sleep = monkey.get_original("time", "sleep")
sizes = []
def work(items):
    sizes.append(len(items))
    sleep(0.001)  # as SQLite: nothing else of the process runs
    return items

group = GroupCommit(work, most=40)
greenlets = [gevent.spawn(group.call, item) for item in range(120)]
gevent.joinall(greenlets, timeout=20)
assert [greenlet.value for greenlet in greenlets] == list(range(120))
assert len(sizes) <= 6, sizes
"""


def test_those_who_are_ready_share_a_call_even_where_it_lets_nobody_else_run() -> None:
    answer = subprocess.run([sys.executable, "-c", BLOCKING], capture_output=True, text=True, timeout=60)

    assert answer.returncode == 0, answer.stderr
