"""Shared files in memory: their space is reserved, so that no full file system kills a worker."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared_files import METRICS_BYTES, RATE_LIMITS_BYTES
from tests.support.credentials import AUDIENCE, ISSUER, SIGNING_KEY, bearer, public_pem, token
from tests.support.databases import migrated
from tests.support.servers import GUNICORN, ROOT, TIMEOUT, Server, environment, free_port, running, wait_until

ORDER = {"customer_id": "c-1", "items": [{"item_id": "sku-1", "quantity": 2}]}
NAMESPACE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]


def can_mount() -> bool:
    mount = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    return subprocess.run(mount, capture_output=True).returncode == 0


def with_memory_of(size: int) -> tuple[str, ...]:
    """gunicorn with a /dev/shm of this size or, if nothing can be mounted, with this limit for all files."""
    if can_mount():
        script = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$0" "$@"'
        return (*NAMESPACE, "bash", "-c", script, sys.executable, *GUNICORN)
    return ("bash", "-c", f'ulimit -f {min(size, 900_000) // 1024}; exec "$0" "$@"', sys.executable, *GUNICORN)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return migrated(f"sqlite:///{tmp_path_factory.mktemp('shared')}/orders.db")


@contextmanager
def serving(database: str, *command: str) -> Iterator[Server]:
    """Two workers that count the requests of customers."""
    port = free_port()
    settings = {
        "AUTH": "required", "JWT_PUBLIC_KEY": public_pem(SIGNING_KEY), "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE,
        "RATE_LIMIT_CUSTOMERS": "100000", "WEB_CONCURRENCY": "2", "DATABASE_URL": database, "PORT": str(port),
    }  # fmt: skip
    with running(*command, port=port, **settings) as server:
        yield server


def statuses(server: Server) -> set[int]:
    """The statuses of requests of many customers, routes and outcomes, which write new pages of every file."""
    found = set()
    for i in range(60):
        own = bearer(token(customer=f"c-{i}"))
        found |= {server.request("POST", "/orders", ORDER | {"customer_id": f"c-{i}"}, own).status}
        found |= {server.request(method, "/orders/x", {}, own).status for method in ("GET", "PATCH", "PUT")}
        found |= {server.request("POST", f"/orders/x/{action}", {}, own).status for action in ("confirm", "cancel")}
    return found


def assert_alive(server: Server) -> None:
    output = server.output()
    assert len(re.findall("Booting worker", output)) == 2, output
    assert "SIGBUS" not in output


EXPECTED = {201, 400, 403, 404, 405}


def test_too_little_shared_memory_is_reported_at_the_start(database: str) -> None:
    with serving(database, *with_memory_of(256 * 1024)) as server:
        answered = statuses(server)
        metrics = server.request("GET", "/metrics").status

        assert (answered, metrics) == (EXPECTED, 200)
        assert_alive(server)
        assert "metrics and rate limits" in server.output()


def test_memory_that_fills_up_later_kills_no_worker(database: str) -> None:
    with serving(database, *with_memory_of(RATE_LIMITS_BYTES + 5 * METRICS_BYTES)) as server:
        shm = Path(f"/proc/{server.process.pid}/root/dev/shm")
        if can_mount():
            fill(shm / "filler")
        answered = statuses(server)
        metrics = server.request("GET", "/metrics").status

        assert (answered, metrics) == (EXPECTED, 200)
        assert_alive(server)


def fill(path: Path) -> None:
    """Use all free space."""
    with open(path, "wb", buffering=0) as file:
        for size in (65536, 4096):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def test_a_worker_that_finds_no_space_serves_without_sharing_its_metrics(database: str) -> None:
    with serving(database, *with_memory_of(RATE_LIMITS_BYTES + 5 * METRICS_BYTES)) as server:
        shm = Path(f"/proc/{server.process.pid}/root/dev/shm")
        if can_mount():
            fill(shm / "filler")
        first = set(server.children())
        server.process.send_signal(signal.SIGHUP)  # the new workers start while the old ones still have their space
        while first & set(server.children()):
            assert server.process.poll() is None
            time.sleep(0.05)
        answered = statuses(server)

        assert answered == EXPECTED
        assert "SIGBUS" not in server.output()
        assert "metrics not shared" in server.output() or "each worker counts alone" in server.output()


WORST_SERIES = """
import os
from shared_files import reserve_metrics
assert reserve_metrics()
from app import telemetry
for i in range(400):
    route = f"/orders/<order_id>/fulfillments/<number>/events/and-more-of-it-{i:03}"
    telemetry.duration_series("OPTIONS", route, 503).observe(1)
telemetry.LOST_LINES.inc()
for operation in ("create", "change"):
    telemetry.GROUP_COMMIT_ITEMS.labels(operation).inc()
    for power in range(8):
        telemetry.GROUP_COMMITS.labels(operation, 1 << power).inc()
for file in sorted(os.listdir(os.environ["PROMETHEUS_MULTIPROC_DIR"])):
    print(file.partition("_")[0], os.stat(os.environ["PROMETHEUS_MULTIPROC_DIR"] + "/" + file).st_size)
"""


def test_the_space_that_is_reserved_is_enough_for_every_series(tmp_path: Path) -> None:
    env = environment(PROMETHEUS_MULTIPROC_DIR=str(tmp_path))

    done = subprocess.run([sys.executable, "-c", WORST_SERIES], cwd=ROOT, env=env, capture_output=True, text=True)

    assert done.stdout.split() == ["counter", "16384", "gauge", "16384", "histogram", "1048576"], done.stderr
    assert sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir()) >= METRICS_BYTES


def metrics_of(worker: int) -> str:
    """The file that the worker counts its requests in, once it has loaded the application."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        maps = Path(f"/proc/{worker}/maps").read_text()
        if found := re.search(r"(/\S+)/rate-limits", maps):
            return f"{found[1]}/histogram_{worker}.db"
        time.sleep(0.05)
    raise AssertionError(maps)


def test_the_unused_share_of_a_dead_worker_is_returned(database: str) -> None:
    with serving(database, *GUNICORN) as server:
        first = server.children()
        path = metrics_of(first[0])
        before = Path(path).stat().st_size
        server.request("GET", "/healthz")
        subprocess.run(["kill", "-TERM", str(first[0])], check=True)
        while first[0] in server.children():
            assert server.process.poll() is None
            time.sleep(0.05)
        while len(server.children()) < 2:
            assert server.process.poll() is None
            time.sleep(0.05)
        metrics = server.request("GET", "/metrics").body.decode()

        assert before == 1024 * 1024
        assert Path(path).stat().st_size < 64 * 1024
        assert "http_request_duration_seconds_count" in metrics


def counter(server: Server, name: str) -> float:
    """The value of a metric without labels."""
    found = re.search(rf"^{name} (\S+)$", server.request("GET", "/metrics").body.decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_a_killed_worker_is_restarted_and_its_counts_are_kept(database: str) -> None:
    with serving(database, *GUNICORN) as server:
        wait_until(lambda: counter(server, "web_worker_starts_total") == 2)
        seconds = counter(server, "worker_cpu_seconds_total")

        os.kill(server.children()[0], signal.SIGKILL)

        wait_until(lambda: counter(server, "web_worker_starts_total") == 3)
        assert counter(server, "worker_cpu_seconds_total") >= seconds > 0


def test_the_files_of_a_killed_server_are_removed_and_no_others(database: str) -> None:
    with serving(database, *GUNICORN) as alive:
        kept = Path(metrics_of(alive.children()[0])).parent
        with serving(database, *GUNICORN) as killed:
            workers = killed.children()
            left = Path(metrics_of(workers[0])).parent
            for pid in (killed.process.pid, *workers):
                os.kill(pid, signal.SIGKILL)
            killed.process.wait(TIMEOUT)
        with serving(database, *GUNICORN) as third:
            new = Path(metrics_of(third.children()[0])).parent

            assert not left.exists()
            assert kept.exists() and new.exists()
            assert alive.request("GET", "/metrics").status == 200
    assert not kept.exists() and not new.exists()


def test_a_fifo_in_place_of_a_lock_does_not_block_the_start(tmp_path: Path) -> None:
    (tmp_path / "order-service-other").mkdir()
    os.mkfifo(tmp_path / "order-service-other" / "lock")
    script = f"import shared_files; print(shared_files.shared_directory({str(tmp_path)!r}, size=1))"

    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)

    assert done.stdout.startswith(str(tmp_path)), done.stderr
