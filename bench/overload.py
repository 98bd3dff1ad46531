"""Creates at ten times the capacity of the service: `python -m bench.overload`. It needs the package `nginx-light`.

PostgreSQL, two workers and nginx with `deploy/nginx.conf` run on this machine, as does the load. First 64 clients
create orders as fast as they are answered: that is the capacity. Then ten times as many requests a second are due,
whatever the responses. A request that finds no idle connection waits for one; its latency counts from the time at which
it was due. Meanwhile a probe is sent ten times a second, on a connection of its own. As root, the load has a higher
priority than the service, as if it came from another machine.
"""

import argparse
import os
import select
import socket
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from statistics import quantiles

from bench.load import cpu_seconds
from tests.nginx.conftest import nginx_without_service
from tests.support.databases import migrated
from tests.support.postgres import private_postgres
from tests.support.postgres import processes as database_processes
from tests.support.servers import GUNICORN, running

CLIENTS = 64  # of clients that measure the capacity
FACTOR = 10  # times the capacity
PROBE_INTERVAL = 0.1  # seconds
DRAIN = 15.0  # seconds to wait for responses at the end
BODY = b'{"customer_id":"c-1","currency":"EUR","items":[{"item_id":"sku-1","quantity":2,"unit_price":1250}]}'
HEAD = b"POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
CREATE = HEAD % len(BODY) + BODY
PROBE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass
class Result:
    """Latencies in seconds by status: from when a request was due, and from when it was sent."""

    seconds: float
    from_due: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    from_sending: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    unanswered: int = 0

    def rate(self, status: int) -> float:
        """Responses with the status per second."""
        return len(self.from_due[status]) / self.seconds


class Client:
    """A connection with one request at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._due = self._sent = 0.0

    def send(self, request: bytes, due: float) -> None:
        """Send a request that was due at this time, as time.perf_counter()."""
        self._due, self._sent = due, time.perf_counter()
        self.socket.send(request)

    def receive(self, result: Result) -> bool:
        """Receive available data. Returns whether it completes the response, which is then recorded."""
        self._received += self.socket.recv(65_536)
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]
        if not length or len(body) < int(length):
            assert self._received, "The server has closed a connection."
            return False
        now, status = time.perf_counter(), int(head[9:12])
        result.from_due[status].append(now - self._due)
        result.from_sending[status].append(now - self._sent)
        self._received = b""
        return True


class Load:
    """Creates on a number of connections, and periodic probes."""

    def __init__(self, port: int, connections: int, seconds: float) -> None:
        self.result, self._seconds = Result(seconds), seconds
        self._prober = Client(port)
        self._idle = deque(Client(port) for _ in range(connections))
        self._poll = select.epoll()
        self._busy: dict[int, Client] = {}
        for client in (self._prober, *self._idle):
            self._poll.register(client.socket, select.EPOLLIN)

    def run(self, rate: float) -> Result:
        """Send requests at the rate, or as fast as responses arrive if it is 0."""
        started, due, next_probe = time.perf_counter(), 0, 0.0
        while (elapsed := time.perf_counter() - started) < self._seconds:
            while self._idle and (not rate or due < elapsed * rate):
                self._send(self._idle.popleft(), CREATE, started + (due / rate if rate else elapsed))
                due += 1
            if elapsed >= next_probe and self._prober.socket.fileno() not in self._busy:
                self._send(self._prober, PROBE, started + elapsed)
                next_probe = elapsed + PROBE_INTERVAL
            self._receive()
        sent = due
        due = int(self._seconds * rate) if rate else sent
        while self._busy and time.perf_counter() < started + self._seconds + DRAIN:
            self._receive()
        self.result.unanswered = due - sent + len(self._busy)
        return self.result

    def _send(self, client: Client, request: bytes, due: float) -> None:
        self._busy[client.socket.fileno()] = client
        client.send(request, due)

    def _receive(self) -> None:
        for descriptor, _ in self._poll.poll(0.001):
            client = self._busy[descriptor]
            if client.receive(self.result):
                del self._busy[descriptor]
                if client is not self._prober:
                    self._idle.append(client)


def percentile(values: Sequence[float], share: int) -> str:
    """A percentile in milliseconds."""
    return f"{quantiles(values, n=100)[share - 1] * 1000:,.0f}" if len(values) > 1 else "–"


def measure(port: int, processes: dict[str, int], options: argparse.Namespace) -> dict[str, str]:
    """Measure the capacity, then the overload. Returns the results, with the CPU cores that each process used."""
    capacity = Load(port, CLIENTS, options.seconds / 2).run(0).rate(201)
    time.sleep(1)  # for requests that are still in progress
    before, own = {name: cpu_seconds(pid) for name, pid in processes.items()}, time.process_time()
    result = Load(port, options.connections, options.seconds).run(FACTOR * capacity)
    cores = {"load": (time.process_time() - own) / options.seconds} | {
        name: (cpu_seconds(pid) - before[name]) / options.seconds for name, pid in processes.items()
    }
    assert result.from_due.keys() <= {200, 201, 503}, result.from_due.keys()
    created, refused, probes = (result.from_due[status] for status in (201, 503, 200))
    return {
        "capacity/s": f"{capacity:,.0f}",
        "due/s": f"{FACTOR * capacity:,.0f}",
        "201/s": f"{result.rate(201):,.0f}",
        "503/s": f"{result.rate(503):,.0f}",
        "unanswered": f"{result.unanswered:,}",
        "p50 of 201, ms": percentile(created, 50),
        "p99 of 201, ms": percentile(created, 99),
        "p99 from sending, ms": percentile(result.from_sending[201], 99),
        "p99 of 503, ms": percentile(refused, 99),
        "p99 of probes, ms": percentile(probes, 99),
        "cores: " + ", ".join(cores): ", ".join(f"{used:.2f}" for used in cores.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--connections", type=int, default=700)
    parser.add_argument("--workers", default="2")
    options = parser.parse_args()
    with ExitStack() as stack:
        url = migrated(stack.enter_context(private_postgres(durable=True)))
        nginx = stack.enter_context(nginx_without_service())
        settings = {"BIND": f"unix:{nginx.process.args[4]}/gunicorn.sock", "DATABASE_URL": url, "LOG_LEVEL": "warning"}
        web = stack.enter_context(running(*GUNICORN, port=nginx.port, WEB_CONCURRENCY=options.workers, **settings))
        database = database_processes(url)[0]
        processes = {
            "nginx": nginx.process.pid,
            "workers": web.process.pid,
            "PostgreSQL": database,
        }
        with suppress(PermissionError):  # otherwise requests would wait for the load generator
            os.setpriority(os.PRIO_PROCESS, 0, -10)
        for run in range(options.runs):
            figures = measure(nginx.port, processes, options)
            if not run:
                print("| load average | " + " | ".join(figures) + " |\n" + "|---" * (len(figures) + 1) + "|")
            print(f"| {os.getloadavg()[0]:.1f} | " + " | ".join(figures.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
