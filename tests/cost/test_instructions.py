"""Instructions of requests, and of the worker, as multiples of a bare Flask view's: independent of time."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cost.counted_requests import COUNTED
from tests.support.postgres import private_postgres
from tests.support.servers import ROOT

# The current figures; a change beyond the tolerance must be intended, and is recorded here.
FIGURES = {"serve": 0.39, "create": 3.03, "read": 1.76, "read_with_key": 1.91, "list": 2.29, "confirm": 3.83}
TOLERANCE = 0.05


@pytest.fixture(scope="module")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, float]]:
    """Instructions of one request of each kind."""
    assert shutil.which("valgrind"), "valgrind is not installed: apt-get install valgrind"
    directory = tmp_path_factory.mktemp("callgrind")
    counted = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={directory}/dump"]
    with private_postgres() as url:
        # The same hashes, and so the same collisions, in each run.
        environment = os.environ | {"DATABASE_URL": url, "PYTHONHASHSEED": "0"}
        for command in (["flask", "--app", "wsgi", "db", "upgrade"], ["tests.cost.counted_requests"]):
            tool = counted if command[0].startswith("tests") else []
            ended = subprocess.run(
                [*tool, sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True
            )
            assert ended.returncode == 0, ended.stderr
    yield dict(dumped(path) for path in directory.iterdir() if "Trigger: dump" in path.read_text())


def dumped(path: Path) -> tuple[str, float]:
    text = path.read_text()
    kind, total = re.search(r"Trigger: dump (\w+)", text), re.search(r"^totals: (\d+)", text, re.MULTILINE)
    assert kind and total
    return kind[1], int(total[1]) / COUNTED


@pytest.mark.parametrize("kind", FIGURES)
def test_a_request_takes_no_more_instructions_than_recorded(instructions: dict[str, float], kind: str) -> None:
    multiple = instructions[kind] / instructions["bare"]

    print(f"{kind}: {instructions[kind]:,.0f} instructions, {multiple:.2f} times a bare Flask view's")
    low, high = FIGURES[kind] * (1 - TOLERANCE), FIGURES[kind] * (1 + TOLERANCE)
    assert low <= multiple <= high, f"{kind} takes {multiple:.2f}, not {FIGURES[kind]}: if that is meant, write it here"
