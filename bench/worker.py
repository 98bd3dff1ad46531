"""Throughput of the worker on PostgreSQL: events and deliveries per second, and how a running worker slows creates.

`python -m bench.worker feed` and `python -m bench.worker creates`; `--help` lists the options.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import Connection, TextClause, create_engine, text

from app import create_app
from app.db.engine import db
from app.services.event_feed import read_ends, sequence_events
from bench.load import CPU, run_slot, wait_until_idle
from bench.servers import OURS, Server, Testbed, running_testbed
from tests.support.servers import ROOT, WORKER, environment, free_port, running, send_request

ROUNDS = 5
_RECEIVER = """
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000;
    server {{ listen 127.0.0.1:{port}; location / {{ return 204; }} }}
}}
"""
_NUMBERED = text("SELECT NOT EXISTS (SELECT FROM outbox)")
_SEARCHABLE = text("SELECT search_head.seq = feed_head.seq FROM search_head, feed_head")
_NEVER_LATE = text("UPDATE orders SET due_at = NULL")  # the worker would change the sample orders
_SUCCEEDED = text("SELECT count(*) FROM webhook_deliveries WHERE status = 'succeeded'")


@contextmanager
def receiver() -> Iterator[tuple[int, int]]:
    """Run an nginx that responds with 204; yield its port and its process."""
    with TemporaryDirectory(prefix="receiver-", ignore_cleanup_errors=True) as directory:
        os.chmod(directory, 0o755)
        port, file = free_port(), Path(directory) / "nginx.conf"
        file.write_text(_RECEIVER.format(directory=directory, port=port))
        with subprocess.Popen(["nginx", "-e", "stderr", "-p", directory, "-c", str(file)]) as process:
            try:
                yield port, process.pid
            finally:
                process.terminate()


@contextmanager
def worker(url: str) -> Iterator[int]:
    """Run `flask worker`; yield its process."""
    settings = environment(DATABASE_URL=url, LOG_LEVEL="error", WEBHOOKS_ALLOW_PRIVATE="1")
    with subprocess.Popen([sys.executable, *WORKER], cwd=ROOT, env=settings) as process:
        try:
            yield process.pid
        finally:
            process.terminate()


def measure_feed(orders: int) -> None:
    """Number the events of new orders, bring the search up to date, then deliver them all to one fast endpoint."""
    with running_testbed((OURS,)) as testbed, receiver() as (port, receiver_pid):
        server = testbed.servers[OURS.name]
        settings = {"DATABASE_URL": server.url, "AUTH": "off", "LOG_LEVEL": "error", "WEBHOOKS_ALLOW_PRIVATE": "1"}
        seed = [sys.executable, "-m", "flask", "--app", "wsgi", "seed", "--new", "--orders", str(orders)]
        subprocess.run(seed, cwd=ROOT, env=environment(**settings), check=True, stdout=subprocess.DEVNULL)
        with create_app(settings).app_context():
            with db.engine.begin() as connection:
                connection.execute(_NEVER_LATE)
            started = time.perf_counter()
            while sequence_events():
                pass
            seconds = time.perf_counter() - started
            numbered = read_ends().seq
            db.engine.dispose()
        assert numbered == orders, f"{numbered} of {orders} events have been numbered"
        print(f"{orders} events numbered: {orders / seconds:,.0f}/s")
        with worker(server.url) as pid:
            wait_for(server, _SEARCHABLE)
            register(port, settings)
            measure_deliveries(testbed, server, orders, worker_pid=pid, receiver_pid=receiver_pid)


def register(port: int, settings: dict[str, str]) -> None:
    """Create an endpoint for all events, with a separate server that allows loopback addresses."""
    web, body = free_port(), {"url": f"http://127.0.0.1:{port}/"}
    with running("-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app", port=web, **settings):
        endpoint = send_request(web, "POST", "/webhooks", body).json
    with create_app(settings).app_context():
        with db.engine.begin() as connection:
            connection.execute(text("UPDATE webhook_endpoints SET last_seq = 0"))
        db.engine.dispose()
    assert endpoint["status"] == "enabled"


def measure_deliveries(testbed: Testbed, server: Server, orders: int, *, worker_pid: int, receiver_pid: int) -> None:
    with connected(server) as connection:
        while (begun := connection.scalar(_SUCCEEDED)) < orders / 10:
            time.sleep(0.1)
        before, receiving = CPU.read(testbed, worker_pid), CPU.read(testbed, receiver_pid)
        while (count := connection.scalar(_SUCCEEDED)) < orders * 0.95:
            time.sleep(0.5)
        after, received = CPU.read(testbed, worker_pid), CPU.read(testbed, receiver_pid)
    delivered = count - begun
    costs = (
        ("worker", after.server - before.server),
        ("database", after.database - before.database),
        ("receiver", received.server - receiving.server),
    )
    print(f"{delivered} deliveries: {delivered / (after.clock - before.clock):,.0f}/s; CPU time of one: ", end="")
    print(", ".join(f"{name} {seconds / delivered * 1e6:.0f} µs" for name, seconds in costs))


def measure_creates(rounds: int, seconds: float, connections: int) -> None:
    """Create orders without and with a worker that numbers their events, in turn."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    with running_testbed((OURS,)) as testbed:
        server = testbed.servers[OURS.name]

        def measure() -> float:
            return run_slot(testbed, server, "post-keyed", connections=connections, seconds=seconds, ids=[]).rate

        measure()
        for number in range(rounds):
            for with_worker in (False, True) if number % 2 else (True, False):
                with worker(server.url) as pid:  # first number the events of the previous slot
                    wait_for(server, _NUMBERED)
                    if with_worker:
                        rates[True].append(measure())
                        continue
                wait_until_idle(testbed)
                rates[False].append(measure())
                assert pid
    ratios = [there / alone for there, alone in zip(rates[True], rates[False], strict=True)]
    for with_worker, label in ((False, "without"), (True, "with")):
        print(f"creates {label} a worker: {statistics.median(rates[with_worker]):,.0f}/s")
    print(f"ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


@contextmanager
def connected(server: Server) -> Iterator[Connection]:
    """Yield a connection; with READ COMMITTED, the default, each query sees what is committed."""
    engine = create_engine(server.url.replace("postgresql:", "postgresql+psycopg:", 1))
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def wait_for(server: Server, query: TextClause) -> None:
    """Wait until the query is true."""
    with connected(server) as connection:
        while not connection.scalar(query):
            time.sleep(0.1)


def main() -> None:
    """Parse the options and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figure", choices=["feed", "creates"])
    parser.add_argument("--orders", type=int, default=20_000, help="events of `feed`")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of `creates`")
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement of `creates`")
    parser.add_argument("--connections", type=int, default=16, help="clients of `creates`")
    options = parser.parse_args()
    if options.figure == "feed":
        measure_feed(options.orders)
    else:
        measure_creates(options.rounds, options.seconds, options.connections)


if __name__ == "__main__":
    main()
