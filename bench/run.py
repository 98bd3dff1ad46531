"""`make bench`: compares the service with its peers, in rotated slots; a slot is one measurement.

`python -m bench.run --help` lists the options.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from bench import report
from bench.conformance import find_differences
from bench.load import KNOWN_IDS, Slot, TooFewOrders, TooShort, run_slot, wait_until_idle
from bench.machine import describe_machine
from bench.pgbench import PGBENCH, Pgbench
from bench.servers import (
    CONTESTANTS,
    WORKS,
    Contestant,
    Server,
    Testbed,
    analyze,
    checkout,
    running_testbed,
    with_orders,
)
from tests.support.servers import ROOT

REPEATS = 5  # of a disturbed slot; then the least disturbed one is kept, and the report counts it


class Target(Protocol):
    """What can be measured."""

    contestant: Contestant

    def slot(self, work: str, *, connections: int, seconds: float) -> Slot: ...


class HTTPTarget:
    """A contestant that is measured over HTTP, and the orders that the requests are for."""

    def __init__(self, testbed: Testbed, server: Server) -> None:
        self.contestant = server.contestant
        self._testbed, self._server = testbed, server
        self._known: list[str] = []
        self._pending = 500

    def slot(self, work: str, *, connections: int, seconds: float) -> Slot:
        """Send requests for some seconds."""
        while True:
            ids = self._ids(work, connections=connections, seconds=seconds)
            wait_until_idle(self._testbed)
            try:
                slot = run_slot(self._testbed, self._server, work, connections=connections, seconds=seconds, ids=ids)
            except TooFewOrders:
                self._pending = max(2 * self._pending, int(1.5 * len(ids)))
                continue
            except TooShort:
                seconds *= 2
                continue
            if work == "confirm":
                self._pending = max(self._pending, int(1.5 * slot.rate * seconds) + connections)
            return slot

    def _ids(self, work: str, *, connections: int, seconds: float) -> list[str]:
        if work == "get":
            if len(self._known) < KNOWN_IDS:
                self._known = self._server.ids(KNOWN_IDS)
            return self._known
        if work != "confirm":
            return []
        wait_until_idle(self._testbed)  # requests of the previous slot may still be confirming orders
        while len(ids := self._server.ids(self._pending, "status = 'pending'", "id DESC")) < self._pending:
            self.slot("post", connections=connections, seconds=seconds)
        return ids


def measure(options: argparse.Namespace, contestants: Sequence[Contestant]) -> bool:
    """Start, check, warm up and measure all; write the report after each round. False if one did not conform."""
    with running_testbed([one for one in contestants if one is not PGBENCH]) as testbed:
        targets, conform = _conforming(testbed)
        if PGBENCH in contestants:
            targets.append(Pgbench(testbed))
        works = [(work, connections) for work in options.work for connections in options.connections]
        for target in targets:
            _warm_up(target, options)
        analyze(testbed)
        result: dict[str, Any] = {
            "machine": describe_machine(testbed.postgres),
            "growth": options.growth,
            "seconds": options.seconds,
            "contestants": {target.contestant.name: target.contestant.title for target in targets},
            "slots": [],
        }
        for number in range(options.rounds):
            result["slots"] += _round(targets, works, number, options)
            _write(result, options)
    return conform


def _warm_up(target: Target, options: argparse.Namespace) -> None:
    print(f"warming up {target.contestant.name}", file=sys.stderr)
    for work in options.work:
        if work in target.contestant.works:
            target.slot(work, connections=16, seconds=min(options.seconds, 2))


def _conforming(testbed: Testbed) -> tuple[list[Target], bool]:
    targets: list[Target] = []
    for server in testbed.servers.values():
        found = find_differences(server)
        for difference in found:
            print(f"{server.contestant.name} does not conform: {difference}", file=sys.stderr)
        if not found:
            targets.append(HTTPTarget(testbed, server))
    return targets, len(targets) == len(testbed.servers)


def _round(
    targets: Sequence[Target], works: Sequence[tuple[str, int]], number: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One slot for each contestant, work and number of connections; the contestants of one work follow each other."""
    slots = []
    for step, (work, connections) in enumerate(works):
        first = (number + step) % len(targets)  # no contestant is always first, or always after the same one
        for target in (*targets[first:], *targets[:first]):
            if work in target.contestant.works:
                name = target.contestant.name
                print(f"round {number + 1}: {work}, {connections} connections, {name}", file=sys.stderr)
                slot = _quiet_slot(target, work, connections, options)
                where = {"round": number, "contestant": name, "work": work, "connections": connections}
                slots.append(where | asdict(slot))
    return slots


def _quiet_slot(target: Target, work: str, connections: int, options: argparse.Namespace) -> Slot:
    slots: list[Slot] = []
    while len(slots) < REPEATS:
        slots.append(target.slot(work, connections=connections, seconds=options.seconds))
        if slots[-1].foreign <= options.foreign:
            return slots[-1]
        print(f"  other processes used {slots[-1].foreign:.0%} of the machine", file=sys.stderr)
    return min(slots, key=lambda slot: slot.foreign)


def _write(result: dict[str, Any], options: argparse.Namespace) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    name = "growth" if options.growth else "comparison"
    (options.output / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    report.write(result, options.output, name)


def _names(known: Sequence[str]) -> Any:
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = set(chosen) - set(known)
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}; there are {', '.join(known)}")
        return [name for name in known if name in chosen]

    return parse


def _options() -> argparse.Namespace:
    names = [one.name for one in (*CONTESTANTS, PGBENCH)]
    parser = argparse.ArgumentParser(prog="bench.run", description="Compare the service with its peers.")
    parser.add_argument("--rounds", type=int, default=10, help="rotated rounds (10)")
    parser.add_argument("--seconds", type=int, default=4, help="seconds per slot (4)")
    parser.add_argument("--only", type=_names(names), default=names, help="contestants, separated by commas")
    parser.add_argument("--work", type=_names(WORKS), default=list(WORKS), help=", ".join(WORKS))
    parser.add_argument("--connections", type=lambda text: [int(n) for n in text.split(",")], default=[1, 16, 64])
    parser.add_argument(
        "--foreign", type=float, default=0.05, help="share of the machine that other processes may use (0.05)"
    )
    parser.add_argument("--before", type=Path, help="another checkout of the service, to compare with")
    parser.add_argument("--growth", action="store_true", help="measure the service alone, at several sizes")
    parser.add_argument("--sizes", type=lambda text: [int(n) for n in text.split(",")], default=[10_000, 1_000_000])
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results")
    options = parser.parse_args()
    if options.growth:
        options.work = [work for work in options.work if work in with_orders(0).works]
    return options


def main() -> int:
    """Return 0 if all contestants conform, and every response was 2xx."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # runs the exit handlers, which stop all processes
    if options.growth:
        contestants: Sequence[Contestant] = [with_orders(size) for size in options.sizes]
    else:
        contestants = [one for one in (*CONTESTANTS, PGBENCH) if one.name in options.only]
        contestants += [checkout(options.before)] if options.before else []
    return 0 if measure(options, contestants) else 1


if __name__ == "__main__":
    sys.exit(main())
