"""Logs and metrics that cannot be written: all responses are correct, and lost lines are counted."""

import json
import re
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.commands import FLASK, run_python
from tests.support.databases import migrated
from tests.support.servers import GUNICORN, ROOT, SERVERS, TIMEOUT, Server, environment, free_port, running

ORDER = {"customer_id": "c-1", "items": [{"item_id": "sku-1", "quantity": 2}]}
BROKEN = {"a full disk": "2>/dev/full", "a pipe without a reader": "2> >(exit 0)", "closed": "2>&-"}


def redirected(redirection: str, *command: str) -> tuple[str, ...]:
    return ("bash", "-c", f'exec "$0" "$@" {redirection}', sys.executable, *command)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with orders and an API key."""
    url = migrated(f"sqlite:///{tmp_path_factory.mktemp('lost')}/orders.db")
    for words in (["seed", "--orders", "3"], ["api-keys", "create", "--name", "shop", "--scope", "orders:read"]):
        run_python(*FLASK, *words, DATABASE_URL=url)
    return url


def statuses(server: Server) -> list[int]:
    """Of requests that succeed, that fail and that change something."""
    keyed = {"Idempotency-Key": secrets.token_hex(8)}
    created = server.request("POST", "/orders", ORDER, keyed)
    replayed = server.request("POST", "/orders", ORDER, keyed)
    assert replayed.body == created.body
    path = created.headers["Location"]
    responses = [created, replayed, server.request("GET", path), server.request("POST", f"{path}/confirm")]
    responses += [
        server.request("POST", "/orders", {}),
        server.request("GET", "/nowhere"),
        server.request("PUT", "/orders", {}),
    ]
    responses += [
        server.request("GET", "/healthz"),
        server.request("GET", "/readyz"),
        server.request("GET", "/metrics"),
    ]
    return [response.status for response in responses]


RIGHT = [201, 201, 200, 200, 400, 404, 405, 200, 200, 200]


def metric(server: Server, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", server.request("GET", "/metrics").body.decode(), re.MULTILINE)
    assert found, name
    return float(found[1])


@pytest.mark.parametrize(
    ("name", "broken"),
    [*(("gunicorn", broken) for broken in BROKEN), ("flask", "a full disk"), ("uvicorn", "a full disk")],
)
def test_a_log_that_cannot_be_written_fails_no_request(database: str, name: str, broken: str) -> None:
    port = free_port()
    command = redirected(BROKEN[broken], *SERVERS[name])
    with running(*command, port=port, PORT=str(port), DATABASE_URL=database, WEB_CONCURRENCY="2") as server:
        answered = statuses(server)
        lost = metric(server, "log_lines_lost_total")
        stopped = server.stop()

    assert answered == RIGHT
    assert lost >= len(RIGHT)
    assert stopped == 0


def test_after_a_full_disk_the_log_continues_with_whole_lines(database: str, tmp_path: Path) -> None:
    """A limit of the file size simulates the full disk: it accepts a part of a line, and then nothing."""
    port, log = free_port(), tmp_path / "log"
    log.write_bytes(b"x" * 1_000_000 + b"\n")
    command = ("bash", "-c", f'ulimit -f 977; exec "$0" "$@" 2>>{log}', sys.executable, *GUNICORN)
    with running(*command, port=port, PORT=str(port), DATABASE_URL=database, WEB_CONCURRENCY="1") as server:
        answered = statuses(server)
        log.write_bytes(b"")
        server.request("GET", "/orders")

    lines = [json.loads(line) for line in log.read_text().splitlines() if line]
    assert answered == RIGHT
    assert "/orders" in [line.get("route") for line in lines]


COMMANDS = {
    "api-keys create": (("--name", "shop-2", "--scope", "orders:read"), 0, r"osk_\S+\n"),
    "api-keys list": ((), 0, r"(.*shop.*\n)+"),
    "orders export": ((), 0, r"({.*}\n)+"),
    "verify": ((), 0, r".*\n"),
    "db upgrade": ((), 0, ""),
    "api-keys revoke": (("nothing",), 1, ""),
}


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_succeeds_without_a_writable_standard_error(database: str, words: str) -> None:
    more, status, stdout = COMMANDS[words]
    command = redirected("2>/dev/full", "-m", "flask", "--app", "wsgi", *words.split(), *more)

    done = subprocess.run(
        command, cwd=ROOT, env=environment(DATABASE_URL=database), stdout=subprocess.PIPE, text=True, timeout=TIMEOUT
    )

    assert done.returncode == status
    assert re.fullmatch(stdout, done.stdout)


def test_a_failing_start_exits_without_a_writable_standard_error(tmp_path: Path) -> None:
    command = redirected("2>/dev/full", *GUNICORN)
    env = environment(DATABASE_URL=f"sqlite:///{tmp_path}/empty.db", PORT=str(free_port()), WEB_CONCURRENCY="1")

    ended = subprocess.run(command, cwd=ROOT, env=env, timeout=TIMEOUT)

    assert ended.returncode == 3


@pytest.mark.parametrize("directory", ["/proc/nothing", "/dev/null", "/dev/full/metrics"])
def test_an_unusable_metrics_directory_fails_no_request(database: str, directory: str) -> None:
    port = free_port()
    settings = {"DATABASE_URL": database, "PROMETHEUS_MULTIPROC_DIR": directory}
    with running(*SERVERS["flask"], port=port, **settings) as server:
        answered = statuses(server)
        output = server.output()
    with running(*GUNICORN, port=port, PORT=str(port), WEB_CONCURRENCY="2", **settings) as server:
        answered += statuses(server)

    assert answered == RIGHT + RIGHT
    assert "metrics not shared" in output and "Traceback" not in output


def mapped_directory(worker: int) -> Path:
    """Where the worker keeps its metrics."""
    [path] = set(re.findall(r"/\S+/histogram_\d+\.db", Path(f"/proc/{worker}/maps").read_text()))
    return Path(path).parent


def test_a_removed_metrics_directory_fails_no_request(database: str) -> None:
    port = free_port()
    with running(*GUNICORN, port=port, PORT=str(port), DATABASE_URL=database, WEB_CONCURRENCY="1") as server:
        [worker] = server.children()
        shutil.rmtree(mapped_directory(worker))
        answered = statuses(server)
        counted = metric(server, r'http_request_duration_seconds_count\{method="POST",route="/orders",status="201"\}')
        subprocess.run(["kill", "-TERM", str(worker)], check=True)
        while server.children() in ([], [worker]):
            assert server.process.poll() is None
            time.sleep(0.05)
        after = statuses(server)
        output = server.output()

    assert answered == after == RIGHT
    assert counted == 2
    assert "Traceback" not in output
