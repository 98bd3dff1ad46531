"""`flask verify` uses several processes: they share the orders, and they end with the command."""

import json
import os
import re
from collections.abc import Callable

import click
import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import update

from app.cli.common import run_in_processes
from app.db.engine import db
from app.models import Order
from app.services import verification
from tests.support.child_work import end_with, log_a_line, process_id, read_a_missing_table
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL


def test_processes_share_the_orders(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "RANGE_SIZE", 2)
    ids = [client.post("/orders", json=MINIMAL).json["id"] for _ in range(7)]
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(update(Order).where(Order.id.in_(ids[::3])).values(note="x"))

    result = runner.invoke(args=["verify", "--jobs", "2"])

    *lines, last = result.stdout.splitlines()
    assert sorted(lines) == [f'order {order_id}: note is "x" in the tables, null in the log' for order_id in ids[::3]]
    assert (result.exit_code, last) == (1, "7 orders verified, 3 differences.")


@on_sqlite
@pytest.mark.parametrize(
    ("work", "message"),
    [
        (end_with, "A child process ended with exit status 3 before its work was done"),
        (read_a_missing_table, "Database error. Run the same command again to continue. (sqlite3.OperationalError) no"),
    ],
)
def test_work_that_fails_is_an_error(app: Flask, work: Callable[[int], None], message: str) -> None:
    with app.app_context(), pytest.raises(click.ClickException, match=re.escape(message)):
        list(run_in_processes(work, [3, 3, 3], processes=2))


@on_sqlite
def test_child_processes_log_to_standard_error(app: Flask, capfd: pytest.CaptureFixture[str]) -> None:
    with app.app_context():
        list(run_in_processes(log_a_line, [1, 2], processes=2))

    captured = capfd.readouterr()
    events = [json.loads(line)["event"] for line in captured.err.splitlines()]
    assert (captured.out, events) == ("", ["a line of the log"] * 2)


@on_sqlite
@pytest.mark.parametrize(("tasks", "children"), [(0, 0), (1, 0), (2, 2)])
def test_there_are_no_more_processes_than_tasks(app: Flask, tasks: int, children: int) -> None:
    with app.app_context():
        ids = set(run_in_processes(process_id, range(tasks), processes=3))
        alone = set(run_in_processes(process_id, range(tasks), processes=1))

    assert len(ids - {os.getpid()}) <= children and (os.getpid() in ids) == (tasks == 1)
    assert alone == ({os.getpid()} if tasks else set())
