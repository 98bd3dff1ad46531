"""One slot: some seconds of one kind of request to one contestant, and what they cost."""

import json
import os
import secrets
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.servers import Room, Server
from tests.support.servers import ROOT

_TICK = os.sysconf("SC_CLK_TCK")
KNOWN_IDS = 5_000  # orders that `get` draws from
REST, LONGEST_REST = 0.2, 10.0  # seconds between two looks whether all is quiet, and until nobody waits any longer


class Exhausted(Exception):
    """There were too few pending orders to confirm."""


class TooShort(Exception):
    """Not one request was answered before the slot was over."""


class Failed(Exception):
    """A request was not answered with 2xx."""


@dataclass(frozen=True)
class Slot:
    """A slot's figures: requests a second, latencies in ms, CPU in µs a request, and others' share of the machine."""

    rate: float
    p50: float
    p99: float
    server_cpu: float
    database_cpu: float
    foreign: float


@dataclass(frozen=True)
class CPU:
    """Seconds so far: on the clock, and of CPU, of the machine, of all that is ours, of one server, of the database."""

    clock: float
    machine: float
    ours: float
    server: float
    database: float

    @classmethod
    def read(cls, room: Room, server_pid: int | None) -> "CPU":
        processes = _processes()
        database = _tree(room.postgres_pid, processes)
        ours = database + _tree(os.getpid(), processes)
        return cls(time.monotonic(), _busy(), ours, _tree(server_pid, processes) if server_pid else 0, database)

    def slot(self, after: "CPU", *, requests: int, seconds: float, p50: float, p99: float) -> Slot:
        """The figures of a slot that began here and ended there."""
        capacity = (after.clock - self.clock) * (os.cpu_count() or 1)  # the tool starts and ends, too
        foreign = (after.machine - self.machine - (after.ours - self.ours)) / capacity
        return Slot(
            rate=requests / seconds,
            p50=p50,
            p99=p99,
            server_cpu=(after.server - self.server) / requests * 1e6,
            database_cpu=(after.database - self.database) / requests * 1e6,
            foreign=max(foreign, 0.0),
        )


def run_slot(room: Room, server: Server, work: str, *, connections: int, seconds: float, ids: Sequence[str]) -> Slot:
    """Send requests for some seconds. Raises Failed for any answer that is not 2xx, Exhausted, and TooShort."""
    before = CPU.read(room, server.pid)
    result = _wrk(room, server, work, connections=connections, seconds=seconds, ids=ids)
    after = CPU.read(room, server.pid)
    return before.slot(
        after,
        requests=result["requests"],
        seconds=result["microseconds"] / 1e6,
        p50=result["p50"] / 1000,
        p99=result["p99"] / 1000,
    )


def settle(room: Room) -> None:
    """Wait until what the slot before left behind is done: requests cut off at its end are carried out all the same."""
    deadline = time.monotonic() + LONGEST_REST
    before = CPU.read(room, None)
    while time.monotonic() < deadline:
        time.sleep(REST)
        after = CPU.read(room, None)
        if after.ours - before.ours < REST / 5:
            return
        before = after


def _wrk(
    room: Room, server: Server, work: str, *, connections: int, seconds: float, ids: Sequence[str]
) -> dict[str, int]:
    file = room.directory / "ids"
    file.write_text("\n".join(ids) + "\n")
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{max(round(seconds), 1)}s"]
    command += ["--timeout", "120s", "--script", str(ROOT / "bench" / "load.lua"), f"http://127.0.0.1:{server.port}"]
    command += ["--", work, secrets.token_hex(6), str(file)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, int] = json.loads(output.splitlines()[-1])
    if result["exhausted"]:
        raise Exhausted
    if not result["requests"]:
        raise TooShort
    if result["refused"] or result["lost"]:
        raise Failed(f"{server.contestant.name}, {work}, {connections} connections: {result}")
    return result


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU that a process and all below it have used."""
    return _tree(pid, _processes())


def _processes() -> dict[int, tuple[int, float]]:
    """Each process's parent, and the seconds of CPU that it and the children it has seen end have used."""
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
    """The seconds of a process and all below it."""
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
    """Seconds that the machine's cores were not idle; what a hypervisor took away counts too."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = Path("/proc/stat").read_text().split()[1:9]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / _TICK
