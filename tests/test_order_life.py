"""docs/order-life.md: each command prints what the page shows, on a real server, and a dry run predicts each step."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from app.config import ROOT
from tests.support.databases import gunicorn, migrated, new_database
from tests.support.servers import Server

PAGE = (ROOT / "docs" / "order-life.md").read_text()
BLOCK = re.compile(r"```sh\n(?P<command>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)
BLOCKS = [(block["command"], block["output"] or "") for block in BLOCK.finditer(PAGE)]
CHANGE = re.compile(r"^(curl .*?)(\$[UO][\w/]*)( .*\| show)$", re.DOTALL | re.MULTILINE)
END = "\N{INFORMATION SEPARATOR TWO}"
EVENTS = re.compile(r"^\d+ (order\.\w+):", re.MULTILINE)


class Step(NamedTuple):
    """A block of the page, its output, and its output as a dry run, if it is a change."""

    command: str
    output: str
    preview: str


@pytest.fixture
def path(database_url: str, tmp_path: Path) -> str:
    """The PATH of the commands: with curl if the machine has it, and on SQLite with its replacement."""
    stand_in = tmp_path / "curl"
    stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/tests/support/curl.py" "$@"\n')
    stand_in.chmod(0o755)
    first = [str(tmp_path)] if database_url.startswith("sqlite") or not shutil.which("curl") else []
    return os.pathsep.join([*first, str(Path(sys.executable).parent), os.environ["PATH"]])


@pytest.fixture(scope="module")
def server(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if database_url.startswith("sqlite"):
        url = f"sqlite:///{tmp_path_factory.mktemp('life')}/orders.db"
    else:
        url = new_database(database_url, "life")
    with gunicorn(migrated(url), AUTH="off") as server:
        yield server


def run(script: str, path: str) -> str:
    """The output of the script."""
    environment = {"PATH": path, "LANG": "C.UTF-8"}
    finished = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout


def run_blocks(server: Server, path: str) -> list[Step]:
    """Run all blocks in one shell, each change as a dry run first."""
    script = "set -e\n"
    for command, _ in BLOCKS:
        preview = CHANGE.sub(r"\1\2?dry_run=true\3", command) if "dry_run" not in command else ""
        script += "".join(f"{part}\nprintf '{END}'\n" for part in (preview if preview != command else "", command))
    script = script.replace("http://127.0.0.1:8000", f"http://127.0.0.1:{server.port}")
    outputs = run(script, path).split(END)
    return [Step(command, outputs[2 * i + 1], outputs[2 * i]) for i, (command, _) in enumerate(BLOCKS)]


def test_each_command_prints_what_the_page_says_and_is_previewed(server: Server, path: str) -> None:
    steps = run_blocks(server, path)

    assert [(step.command, step.output) for step in steps] == BLOCKS
    previewed = [step for step in steps if step.preview]
    assert [step.preview for step in previewed] == [step.output for step in previewed]
    assert len(previewed) > len(EVENTS.findall(PAGE))


def test_the_first_steps_of_the_readme_lead_to_the_statuses_in_their_comments(server: Server, path: str) -> None:
    section = (ROOT / "README.md").read_text().partition("### Lifecycle")[2]
    [(variables, commands)] = re.findall(r"```sh\n(O=\S+ J=.*?)\n(.*?)```", section, re.DOTALL)
    steps = [line.partition(" #") for line in commands.splitlines()]
    order = server.request("POST", "/orders", {"customer_id": "c-123", "items": [{"item_id": "sku-1", "quantity": 2}]})

    script = re.sub(r"O=\S+", f"O=http://127.0.0.1:{server.port}/orders/{order.json['id']}", variables)
    outputs = run("\n".join([script, *(f"{command}\nprintf '{END}'" for command, _, _ in steps)]), path).split(END)

    for (_, _, statuses), output in zip(steps, outputs, strict=False):
        document = json.loads(output)
        reached = [document["status"], document["fulfillment_status"], document["return_status"]]
        expected = [word for word in statuses.strip().split(", ") if not word.startswith("if ")]
        assert expected == [status for status in reached if status not in ("unfulfilled", "none")]


def test_the_history_of_the_page_has_the_events_that_its_first_sentence_promises() -> None:
    assert set(EVENTS.findall(PAGE)) == {
        "order.created", "order.payment_recorded", "order.held", "order.released", "order.partially_cancelled",
        "order.confirmed", "order.fulfilled", "order.fulfillment_updated", "order.return_expected",
        "order.return_received",
    }  # fmt: skip
