"""One slot: requests of one workload to one contestant for some seconds, and the CPU time that they take."""

import json
import os
import secrets
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.servers import Server, Testbed
from tests.support.servers import ROOT

_TICK = os.sysconf("SC_CLK_TCK")
KNOWN_IDS = 5_000  # orders that `get` chooses from
IDLE_INTERVAL, IDLE_TIMEOUT = 0.2, 10.0  # seconds between two checks, and until the wait ends


class TooFewOrders(Exception):
    """There were too few pending orders to confirm."""


class TooShort(Exception):
    """No response arrived within the slot."""


class Failed(Exception):
    """A response was not 2xx."""


@dataclass(frozen=True)
class Slot:
    """The results of a slot: requests per second, latencies in ms, CPU time in µs per request.

    `foreign` is the share of the machine that other processes used.
    """

    rate: float
    p50: float
    p99: float
    server_cpu: float
    database_cpu: float
    foreign: float


@dataclass(frozen=True)
class CPU:
    """Clock time, and CPU time of the machine, of all processes of the benchmark, of one server and of the database.

    In seconds.
    """

    clock: float
    machine: float
    ours: float
    server: float
    database: float

    @classmethod
    def read(cls, testbed: Testbed, server_pid: int | None) -> "CPU":
        processes = _processes()
        database = _tree(testbed.postgres_pid, processes)
        ours = database + _tree(os.getpid(), processes)
        return cls(time.monotonic(), _busy(), ours, _tree(server_pid, processes) if server_pid else 0, database)

    def slot(self, after: "CPU", *, requests: int, seconds: float, p50: float, p99: float) -> Slot:
        """Return the results of a slot that began at this reading and ended at the other."""
        capacity = (after.clock - self.clock) * (os.cpu_count() or 1)  # includes the start and end of wrk
        foreign = (after.machine - self.machine - (after.ours - self.ours)) / capacity
        return Slot(
            rate=requests / seconds,
            p50=p50,
            p99=p99,
            server_cpu=(after.server - self.server) / requests * 1e6,
            database_cpu=(after.database - self.database) / requests * 1e6,
            foreign=max(foreign, 0.0),
        )


def run_slot(
    testbed: Testbed, server: Server, work: str, *, connections: int, seconds: float, ids: Sequence[str]
) -> Slot:
    """Send requests for some seconds. Raises Failed for any response that is not 2xx, TooFewOrders and TooShort."""
    before = CPU.read(testbed, server.pid)
    result = _wrk(testbed, server, work, connections=connections, seconds=seconds, ids=ids)
    after = CPU.read(testbed, server.pid)
    return before.slot(
        after,
        requests=result["requests"],
        seconds=result["microseconds"] / 1e6,
        p50=result["p50"] / 1000,
        p99=result["p99"] / 1000,
    )


def wait_until_idle(testbed: Testbed) -> None:
    """Wait until the requests that were aborted at the end of the previous slot have been processed."""
    deadline = time.monotonic() + IDLE_TIMEOUT
    before = CPU.read(testbed, None)
    while time.monotonic() < deadline:
        time.sleep(IDLE_INTERVAL)
        after = CPU.read(testbed, None)
        if after.ours - before.ours < IDLE_INTERVAL / 5:
            return
        before = after


def _wrk(
    testbed: Testbed, server: Server, work: str, *, connections: int, seconds: float, ids: Sequence[str]
) -> dict[str, int]:
    file = testbed.directory / "ids"
    file.write_text("\n".join(ids) + "\n")
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{max(round(seconds), 1)}s"]
    command += ["--timeout", "120s", "--script", str(ROOT / "bench" / "load.lua"), f"http://127.0.0.1:{server.port}"]
    command += ["--", work, secrets.token_hex(6), str(file)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, int] = json.loads(output.splitlines()[-1])
    if result["exhausted"]:
        raise TooFewOrders
    if not result["requests"]:
        raise TooShort
    if result["refused"] or result["lost"]:
        raise Failed(f"{server.contestant.name}, {work}, {connections} connections: {result}")
    return result


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its descendants, in seconds."""
    return _tree(pid, _processes())


def _processes() -> dict[int, tuple[int, float]]:
    """Return each process's parent, and its CPU time with that of its exited children, in seconds."""
    found = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[int(directory.name)] = int(fields[1]), sum(map(int, fields[11:15])) / _TICK
    return found


def _tree(root: int, processes: dict[int, tuple[int, float]]) -> float:
    """Return the CPU time of a process and its descendants, in seconds."""
    below: dict[int, list[int]] = {}
    for pid, (parent, _) in processes.items():
        below.setdefault(parent, []).append(pid)
    seconds, waiting = 0.0, [root]
    while waiting:
        pid = waiting.pop()
        seconds += processes[pid][1] if pid in processes else 0
        waiting += below.get(pid, [])
    return seconds


def _busy() -> float:
    """Return the time that the machine's cores were not idle, in seconds, including time stolen by a hypervisor."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = Path("/proc/stat").read_text().split()[1:9]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / _TICK
