"""The effect of an attack on other clients: the latency of /healthz, and the memory of the worker."""

import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.support.concurrency import repeatedly, run_concurrently
from tests.support.servers import Server, send_request

PAUSE = 0.02  # seconds between two probes


@dataclass
class Target:
    """A gunicorn with one worker, and the port that its clients use."""

    service: Server

    @property
    def port(self) -> int:
        return self.service.port

    @property
    def worker(self) -> int:
        """The process id of the worker."""
        [worker] = self.service.children()
        return worker

    def peak_memory(self) -> int:
        """The largest resident set that the worker had since `reset_peak`, in MiB."""
        status = Path(f"/proc/{self.worker}/status").read_text()
        [peak] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
        return int(peak) // 1024

    def reset_peak(self) -> None:
        Path(f"/proc/{self.worker}/clear_refs").write_text("5")


@dataclass
class Probe:
    """Requests /healthz repeatedly, each time on a new connection, until the block ends."""

    target: Target
    waits: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._worker = self.target.worker
        self.target.reset_peak()
        self._memory = self.target.peak_memory()
        self._probing = repeatedly(self._send_probe, pause=PAUSE)
        self._probing.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._probing.__exit__(*exception)

    def _send_probe(self) -> None:
        begin = time.monotonic()
        try:
            status = send_request(self.target.port, "GET", "/healthz").status
        except OSError as error:
            self.failures.append(type(error).__name__)
        else:
            self.failures += [str(status)] if status != 200 else []
        self.waits.append(time.monotonic() - begin)

    @property
    def wait(self) -> float:
        """The 99th percentile of the waits, in seconds.

        Of fewer than a hundred waits it is the median: their 99th percentile is a single hiccup of the machine.
        """
        if len(self.waits) < 100:
            return statistics.median(self.waits)
        return statistics.quantiles(self.waits, n=100, method="inclusive")[98]

    def report(self) -> str:
        """Return the measurements in one line, after checking what must hold for every attack."""
        growth = self.target.peak_memory() - self._memory
        assert self.failures == []
        assert self.target.worker == self._worker, "the worker was replaced"
        return f"{self.wait * 1000:.0f} ms of wait in {len(self.waits)} probes, memory +{growth} MiB"

    @property
    def growth(self) -> int:
        """By how much the worker's largest resident set grew, in MiB."""
        return self.target.peak_memory() - self._memory


def together(count: int, attack: Callable[[], object]) -> None:
    """Run the attack several times concurrently; connections that the server closes are part of it."""

    def run(_: int) -> None:
        with suppress(OSError):
            attack()

    run_concurrently(count, run)
