"""docs/operations.md: its tables are complete, its figures are the benchmark's, and its commands exist.

tests/faults/test_operations.py and tests/faults/test_backup.py run its blocks of commands.
"""

import json
import re
from statistics import median

import pytest
import yaml
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner

from app.config import ROOT
from app.services.credentials import create_api_key, key_id
from tests.support.marks import on_sqlite
from tests.support.runbook import PAGE, inline_commands, rows, section
from tests.support.samples import MINIMAL

RUN = {
    "Dumps",
    "Point-in-time recovery",
    "SQLite",
    "API keys",
    "Secrets of webhooks",
}  # the sections whose blocks tests run
# Programs that need a dedicated machine, or a registry.
WHOLE_MACHINE = {"systemctl", "systemd-analyze", "journalctl", "timedatectl", "apt-get", "promtool"}
WHOLE_MACHINE |= {"cp", "sleep", "df", "git", "make", "npm", "curl"}
UNTIL_STOPPED = {"order-service orders tail --after SEQ"}  # tests/test_order_lookup_commands.py
WORKS = {
    "post-keyed": "create with a key",
    "get": "read",
    "list": "list of 20",
    "batch": "batch of 100",
    "confirm": "confirm",
}


def test_every_block_of_commands_is_run_by_a_test_or_needs_a_dedicated_machine() -> None:
    for heading in re.findall(r"^##+ (.*)$", PAGE, re.MULTILINE):
        text = section(heading)
        assert ("```sh" in text) == (heading in RUN), heading
        for block in re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            assert {line.split()[1] for line in re.findall(r"^[#$] .*$", block, re.MULTILINE)} <= WHOLE_MACHINE | {
                "cd",
                "/opt/order-service/deploy/install.sh",
            }, heading


@on_sqlite
@pytest.mark.parametrize("command", sorted(set(inline_commands("order-service")) - UNTIL_STOPPED - {"order-service"}))
def test_each_command_in_the_text_works(app: Flask, client: FlaskClient, runner: FlaskCliRunner, command: str) -> None:
    order = client.post("/orders", json=MINIMAL).json
    with app.app_context():
        key = create_api_key("shop", scopes=["orders:read"], expires_in=None, channels=set())
    values = {"ORDER": order["number"], "CUSTOMER": "c-without-orders", "KEY_ID": key_id(key), "SEQ": "0", "FILE": "-"}

    result = runner.invoke(args=[values.get(word, word) for word in command.split()[1:]])

    finds_errors = command == "order-service doctor"  # no worker is running
    assert result.exit_code in ((0, 1) if finds_errors else (0,)), result.output


def test_each_alert_has_a_row() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"][0]["rules"]

    assert [row[0].strip("`") for row in rows("Alerts")] == [rule["alert"] for rule in rules if "alert" in rule]


def test_each_topic_of_the_doctor_has_a_row() -> None:
    topics = re.findall(r'Level\.\w+,\s+"(\w+)"', (ROOT / "app/services/diagnosis.py").read_text())

    assert {row[0].strip("`") for row in rows("What `order-service doctor` reports")} == set(topics)


def test_the_figures_for_scaling_are_those_of_the_benchmark() -> None:
    """After another run of the benchmark, the expected rows are in the message."""
    slots = json.loads((ROOT / "bench/results/comparison.json").read_text())["slots"]

    def figure(work: str, connections: int, name: str) -> float:
        cell = "order-service", work, connections
        return median(slot[name] for slot in slots if (slot["contestant"], slot["work"], slot["connections"]) == cell)

    expected = [
        [
            title,
            *map(
                two_digits,
                (
                    figure(work, 16, "rate"),
                    figure(work, 64, "rate"),
                    figure(work, 64, "p99"),
                    1e6 / figure(work, 64, "server_cpu"),
                    1e6 / figure(work, 64, "database_cpu"),
                ),
            ),
        ]
        for work, title in WORKS.items()
    ]
    assert rows("Scaling") == expected


def two_digits(number: float) -> str:
    return f"{float(f'{number:.2g}'):,.0f}"
