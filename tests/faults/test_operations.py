"""docs/operations.md: its backups are made under traffic and restored by its commands, on a real server.

Parts that need a dedicated machine are replaced: `systemctl` by starting and stopping the same processes, the user
postgres by the user of the server, and paths by temporary ones.
"""

import grp
import json
import os
import pwd
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from app.services.credentials import key_id
from tests.support.concurrency import repeatedly
from tests.support.credentials import bearer
from tests.support.databases import ORDER, migrated
from tests.support.postgres import SETTINGS, private_postgres, processes, socket_directory
from tests.support.receivers import receiver
from tests.support.runbook import blocks, inline_commands, run
from tests.support.servers import GUNICORN, ROOT, Response, Server, free_port, running, running_worker, wait_until

MOMENT = "2026-11-28T09:30:00.123456+00"  # of the page
DATE, DAMAGED = "2026-11-28", "damaged-20261128-100000"  # in the page's names of backups, and of a replaced directory
FAILING_ARCHIVE = """
runuser -u postgres -- psql -qc "ALTER SYSTEM SET archive_command = 'false'" -c 'SELECT pg_reload_conf()'
runuser -u postgres -- psql -qc 'SELECT pg_switch_wal()'
"""


class Machine:
    """A machine with PostgreSQL and the service, which runs the commands of the page."""

    def __init__(self, postgresql: str) -> None:
        self.directory = socket_directory(postgresql)
        self.url = f"postgresql://order-service@/orders?host={self.directory}&port=5432"
        self._programs = Path(f"/proc/{processes(postgresql)[0]}/exe").resolve().parent
        owner = self.directory.stat()
        user, group = pwd.getpwuid(owner.st_uid).pw_name, grp.getgrgid(owner.st_gid).gr_name
        self._replaced = {
            "-o postgres -g postgres": f"-o {user} -g {group}",
            "/var/backups/orders": f"{self.directory}/backups",
            "/var/lib/postgresql/15/": f"{self.directory}/",
            f"{self.directory}/main": f"{self.directory}/data",
        }
        self._write_stand_ins(f"setpriv --reuid={user} --regid={group} --clear-groups" if os.geteuid() == 0 else "")
        self._services = ExitStack()
        self.run(
            "runuser -u postgres -- createuser order-service\n"
            "runuser -u postgres -- createdb --owner=order-service --encoding=UTF8 --template=template0 orders"
        )
        migrated(self.url)

    def _write_stand_ins(self, as_owner: str) -> None:
        """Replacements for programs that need a dedicated machine, in a directory of the PATH."""
        self._path = self.directory / "bin"
        self._path.mkdir()
        postgres = f"PATH={self._programs}:$PATH PGHOST={self.directory} PGPORT=5432 PGUSER=postgres"
        for name, script in {
            "runuser": f'shift 3; cd {self.directory}; {postgres} exec {as_owner} "$@"',
            "order-service": f'cd {ROOT}; exec {sys.executable} -m flask --app wsgi "$@"',
        }.items():
            (self._path / name).write_text(f"#!/bin/sh\n{script}\n")
            (self._path / name).chmod(0o755)

    def run(self, commands: str) -> str:
        """The output of commands of the page, which restore the backup that exists."""
        for text, replacement in (self._replaced | self._names()).items():
            commands = commands.replace(text, replacement)
        output = ""
        for part in re.split(r"^(systemctl .*)$", commands, flags=re.MULTILINE):
            if part.startswith("systemctl"):
                _, verb, *units = part.split()
                self._control(verb, units)
            else:
                output += self._shell(part)
        return output

    def _names(self) -> dict[str, str]:
        """The page's names of backups and of a replaced directory, with the names of those that exist."""
        backups = [path.name for path in (self.directory / "backups").glob("*-*")]
        damaged = [path.name for path in self.directory.glob("damaged-*")]
        return {re.sub(r"\d{4}-\d\d-\d\d", DATE, name): name for name in backups} | {DAMAGED: name for name in damaged}

    def _shell(self, script: str) -> str:
        environ = {"PATH": f"{self._path}:{os.environ['PATH']}", "DATABASE_URL": self.url, "LOG_LEVEL": "error"}
        done = subprocess.run(
            ["sh", "-ec", script], env=environ, cwd=self.directory, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{done.stderr}\n{(self.directory / 'log').read_text()[-2000:]}"
        return done.stdout

    def _control(self, verb: str, units: list[str]) -> None:
        """Do what systemctl does with the units of the page."""
        if units == ["postgresql"] and verb == "stop" and not (self.directory / "data" / "postmaster.pid").exists():
            pass  # it is stopped already
        elif units == ["postgresql"]:
            options = f'--options="-k {self.directory} {SETTINGS}"' if verb == "start" else "--mode=fast"
            log = f"{self.directory}/log"
            self._shell(
                f"runuser -u postgres -- pg_ctl {verb} -w -s -D {self.directory}/data {options} -l {log} >{log}2"
            )
        elif verb == "start":
            self.start()
        else:
            assert verb == "stop" and "order-service.socket" in units
            self._services.close()

    def start(self) -> None:
        """Start the web server and the worker."""
        settings = {"DATABASE_URL": self.url, "WEBHOOKS_ALLOW_PRIVATE": "1"}
        self.server: Server = self._services.enter_context(
            running(*GUNICORN, port=free_port(), WEB_CONCURRENCY="1", **settings)
        )
        self._services.enter_context(running_worker(**settings))

    def stop(self) -> None:
        """Stop both."""
        self._services.close()

    def create(self, key: str) -> Response:
        """Create an order with an idempotency key."""
        response = self.server.request("POST", "/orders", ORDER, {"Idempotency-Key": key})
        assert response.status == 201, response.body
        return response

    def feed(self, query: str) -> Any:
        """A page of the feed."""
        return self.server.request("GET", f"/events?{query}").json

    def number_of(self, order: Response, *, after: int = 0) -> int:
        """The number in the feed of the order's creation, once the worker has assigned it."""
        query = f"order_id={order.json['id']}&after={after}"
        wait_until(lambda: self.feed(query)["events"])
        number: int = self.feed(query)["events"][0]["seq"]
        return number


@pytest.fixture
def machine() -> Iterator[Machine]:
    with private_postgres() as postgresql:
        machine = Machine(postgresql)
        try:
            yield machine
        finally:
            machine.stop()


def is_restored_between(machine: Machine, kept: Response, lost: Response, *, after: int, output: str) -> None:
    """Assert the state after a restore to a moment between two orders with the keys `kept` and `lost`."""
    assert "was added to each number of the feed." in output and ", 0 differences." in output
    again, anew = machine.create("kept"), machine.create("lost")
    assert again.body == kept.body
    assert again.headers["Idempotent-Replayed"] == "true" and anew.headers["Idempotent-Replayed"] is None
    assert machine.server.request("GET", f"/orders/{lost.json['id']}").status == 404
    assert anew.json["id"] != lost.json["id"]
    expired = machine.feed(f"after={after}")
    assert expired["status"] == 410
    machine.number_of(anew, after=expired["oldest_after"])
    wait_until(lambda: machine.server.request("GET", "/orders/search").json["behind"] == 0)


def test_a_dump_made_under_traffic_is_restored(machine: Machine) -> None:
    dump, restore = blocks("Dumps")
    machine.start()
    kept = machine.create("kept")
    with repeatedly(lambda: machine.server.request("POST", "/orders", ORDER)) as created:
        wait_until(lambda: len(created) > 10)
        machine.run(dump)
    earlier = [response.json["id"] for response in created[:10]]
    lost = machine.create("lost")
    after = machine.number_of(lost)

    output = machine.run(restore)

    assert {machine.server.request("GET", f"/orders/{order_id}").status for order_id in earlier} == {200}
    is_restored_between(machine, kept, lost, after=after, output=output)


def test_point_in_time_recovery_stops_between_two_orders_and_can_be_repeated(machine: Machine) -> None:
    archive, base_backup, restore, put_back = blocks("Point-in-time recovery")
    machine.start()
    machine.run(archive)
    with receiver() as received:
        webhook = {"url": f"http://127.0.0.1:{received.port}/hook"}
        assert machine.server.request("POST", "/webhooks", webhook).status == 201
        with repeatedly(lambda: machine.create("traffic")):
            machine.run(base_backup)
        for i in range(5):
            machine.create(f"after-the-backup-{i}")
        kept = machine.create("kept")
        lost = machine.create("lost")
        after = machine.number_of(lost)
        assert MOMENT in restore
        restore = restore.replace(MOMENT, lost.json["created_at"].replace("Z", "+00"))

        output = machine.run(restore)

        replayed = [machine.create(f"after-the-backup-{i}").headers["Idempotent-Replayed"] for i in range(5)]
        assert replayed == ["true"] * 5
        is_restored_between(machine, kept, lost, after=after, output=output)
        anew = machine.create("anew")
        wait_until(lambda: f"{anew.json['id']}:1" in [request.event_id for request in received.requests])

        machine.run(put_back)
        output = machine.run(restore)

        assert machine.server.request("GET", f"/orders/{anew.json['id']}").status == 404
        is_restored_between(machine, kept, lost, after=after, output=output)


def test_old_backups_are_removed_and_a_failing_archive_is_reported(machine: Machine) -> None:
    archive, base_backup, *_ = blocks("Point-in-time recovery")
    machine.run(archive)
    backups = machine.directory / "backups"
    for old, days in ((backups / "base-2026-01-01", 10), (backups / "wal" / "old", 11), (backups / "wal" / "new", 8)):
        old.mkdir() if old.parent == backups else old.touch()
        os.utime(old, times=(time.time() - days * 86_400,) * 2)

    machine.run(base_backup)

    assert len([path for path in backups.glob("base-*") if path.name != "base-2026-01-01"]) == 1
    assert not (backups / "base-2026-01-01").exists()
    assert [(backups / "wal" / name).exists() for name in ("old", "new")] == [False, True]
    machine.start()
    machine.create("not-archived")
    machine.run(FAILING_ARCHIVE)
    wait_until(
        lambda: "error    durability   archive_command fails for " in machine.run("order-service doctor || true")
    )


def test_the_commands_in_sentences_are_valid(machine: Machine) -> None:
    outputs = {command: machine.run(command) for command in inline_commands("runuser")}

    queries = [command for command in outputs if " psql " in command]
    assert queries and all(" rows)" in outputs[command] for command in queries)


def test_keys_are_rotated_without_a_refused_request(tmp_path: Path) -> None:
    url = migrated(f"sqlite:///{tmp_path}/orders.db")
    settings = {"DATABASE_URL": url, "AUTH": "required", "SECRET_KEY": "k" * 32, "WEBHOOKS_ALLOW_PRIVATE": "1"}
    [rotate_key], [rotate_secret] = blocks("API keys"), blocks("Secrets of webhooks")
    create = next(line for line in rotate_key.splitlines() if " create " in line)
    old = run(f"{create} --scope webhooks:manage", {}, **settings).strip()
    create, show, revoke = rotate_key.splitlines()
    with running(*GUNICORN, port=free_port(), WEB_CONCURRENCY="1", **settings) as server:
        key = {"Idempotency-Key": "order-1"}
        order = server.request("POST", "/orders", ORDER, bearer(old) | key)
        webhook = server.request("POST", "/webhooks", {"url": "http://127.0.0.1:9/hook"}, bearer(old)).json
        addresses = {"http://127.0.0.1/": f"http://127.0.0.1:{server.port}/", "WEBHOOK_ID": webhook["id"]}
        rotated = json.loads(run(rotate_secret, addresses, API_KEY=old))
        new = run(create, {}, **settings).strip()
        again = server.request("POST", "/orders", ORDER, bearer(new) | key)
        listed = run(show, {}, **settings)
        run(revoke, {"KEY_ID": key_id(old)}, **settings)
        wait_until(lambda: server.request("GET", "/orders", None, bearer(old)).status == 401)

        assert server.request("GET", "/orders", None, bearer(new)).status == 200
    assert again.body == order.body
    assert len(re.findall(r"  shop  .*  valid  last used ", listed)) == 2
    assert rotated["secret"] not in (None, webhook["secret"]) and rotated["previous_secret_until"]
