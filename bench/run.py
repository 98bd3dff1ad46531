"""`make bench`: the service against its peers, in rotated slots. `python -m bench.run --help` names the options."""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from bench import report
from bench.conformance import faults
from bench.floor import FLOOR, Floor
from bench.load import KNOWN_IDS, Exhausted, Slot, TooShort, run_slot, settle
from bench.machine import describe_machine
from bench.servers import CONTESTANTS, WORKS, Contestant, Room, Server, analyze, checkout, grown, machine_room
from tests.support.servers import ROOT

REPEATS = 5  # of a slot with foreign load, before the quietest is kept and counted in the report as disturbed


class Target(Protocol):
    """What can be measured."""

    contestant: Contestant

    def slot(self, work: str, *, connections: int, seconds: float) -> Slot: ...


class HTTPTarget:
    """A contestant asked over HTTP, with the orders that it is asked for."""

    def __init__(self, room: Room, server: Server) -> None:
        self.contestant = server.contestant
        self._room, self._server = room, server
        self._known: list[str] = []
        self._pending = 500

    def slot(self, work: str, *, connections: int, seconds: float) -> Slot:
        """Ask for some seconds."""
        while True:
            ids = self._ids(work, connections=connections, seconds=seconds)
            settle(self._room)
            try:
                slot = run_slot(self._room, self._server, work, connections=connections, seconds=seconds, ids=ids)
            except Exhausted:
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
        settle(self._room)  # what the slot before left behind is still being confirmed
        while len(ids := self._server.ids(self._pending, "status = 'pending'", "id DESC")) < self._pending:
            self.slot("post", connections=connections, seconds=seconds)
        return ids


def measure(options: argparse.Namespace, contestants: Sequence[Contestant]) -> bool:
    """Start, check, warm and measure all; write the report after each round. False if one did not conform."""
    with machine_room([one for one in contestants if one is not FLOOR]) as room:
        targets, conform = _conforming(room)
        if FLOOR in contestants:
            targets.append(Floor(room))
        works = [(work, connections) for work in options.work for connections in options.connections]
        for target in targets:
            _warm_up(target, options)
        analyze(room)
        result: dict[str, Any] = {
            "machine": describe_machine(room.postgres),
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


def _conforming(room: Room) -> tuple[list[Target], bool]:
    targets: list[Target] = []
    for server in room.servers.values():
        found = faults(server)
        for fault in found:
            print(f"{server.contestant.name} does not conform: {fault}", file=sys.stderr)
        if not found:
            targets.append(HTTPTarget(room, server))
    return targets, len(targets) == len(room.servers)


def _round(
    targets: Sequence[Target], works: Sequence[tuple[str, int]], number: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One slot for each contestant, work and number of connections; the contestants of one work follow each other."""
    slots = []
    for step, (work, connections) in enumerate(works):
        first = (number + step) % len(targets)  # nobody is always the first, nor always after the same one
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
        print(f"  others used {slots[-1].foreign:.0%} of the machine", file=sys.stderr)
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
    everybody = [one.name for one in (*CONTESTANTS, FLOOR)]
    parser = argparse.ArgumentParser(prog="bench.run", description="Measure the service against its peers.")
    parser.add_argument("--rounds", type=int, default=10, help="rotated rounds (10)")
    parser.add_argument("--seconds", type=int, default=4, help="seconds a slot (4)")
    parser.add_argument("--only", type=_names(everybody), default=everybody, help="contestants, with commas between")
    parser.add_argument("--work", type=_names(WORKS), default=list(WORKS), help=", ".join(WORKS))
    parser.add_argument("--connections", type=lambda text: [int(n) for n in text.split(",")], default=[1, 16, 64])
    parser.add_argument("--foreign", type=float, default=0.05, help="share of the machine others may use (0.05)")
    parser.add_argument("--before", type=Path, help="another checkout of the service, to be measured too")
    parser.add_argument("--growth", action="store_true", help="measure the service alone, at several sizes")
    parser.add_argument("--sizes", type=lambda text: [int(n) for n in text.split(",")], default=[10_000, 1_000_000])
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results")
    options = parser.parse_args()
    if options.growth:
        options.work = [work for work in options.work if work in grown(0).works]
    return options


def main() -> int:
    """0 if all contestants conform and every request was answered with 2xx."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # stops what was started too
    if options.growth:
        contestants: Sequence[Contestant] = [grown(size) for size in options.sizes]
    else:
        contestants = [one for one in (*CONTESTANTS, FLOOR) if one.name in options.only]
        contestants += [checkout(options.before)] if options.before else []
    return 0 if measure(options, contestants) else 1


if __name__ == "__main__":
    sys.exit(main())
