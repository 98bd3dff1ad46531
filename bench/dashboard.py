"""Draw the panels of deploy/grafana/dashboard.json from a run: `python -m bench.dashboard`.

It needs the system package `prometheus`. Web server, worker and PostgreSQL run for three minutes under a light load,
with two webhooks of which one fails for half a minute. Then a web worker is killed, and `flask worker`, which is
started again twenty seconds later. Prometheus reads both processes every second. The picture is
docs/images/dashboard.svg; its rates are over 15 seconds, those of the dashboard over 5 minutes.
"""

import json
import os
import random
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlencode
from xml.sax.saxutils import escape

from tests.support.databases import migrated
from tests.support.postgres import private_postgres
from tests.support.receivers import Received, receiver
from tests.support.servers import GUNICORN, ROOT, Server, free_port, running, running_worker, send_request, wait_until

SECONDS, FAILING, KILLED, AWAY = 180, (60, 90), 120, 20
CLIENTS, PAUSE = 4, 0.02  # seconds between two requests of a client
WINDOW = "15s"
COLUMNS, WIDTH, HEIGHT, GAP = 3, 400, 200, 16  # pixels
PLOT = (48, 36, 390, 150)  # left, top, right, bottom of the curves in a panel
COLOURS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#64748b")
SERIES_MAX = 5  # of a panel: the largest
UNITS = {"s": " s", "reqps": "/s", "short": ""}
INTERRUPTION = 3  # seconds without a value


@dataclass(frozen=True)
class Series:
    """A curve: its name, and its values with their times in seconds."""

    name: str
    points: list[tuple[float, float]]

    @property
    def highest(self) -> float:
        return max(value for _, value in self.points)

    def stretches(self) -> Iterator[list[tuple[float, float]]]:
        """Yield the uninterrupted parts of a curve."""
        start = 0
        for end in range(1, len(self.points) + 1):
            if end == len(self.points) or self.points[end][0] - self.points[end - 1][0] > INTERRUPTION:
                yield self.points[start:end]
                start = end


def main() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())
    with ExitStack() as stack:
        url = migrated(stack.enter_context(private_postgres()))
        settings = {"DATABASE_URL": url, "AUTH": "off", "WEBHOOKS_ALLOW_PRIVATE": "1", "SECRET_KEY": "0" * 32}
        web = stack.enter_context(running(*GUNICORN, port=free_port(), **settings))
        worker_port = free_port()
        started = time.time()
        prometheus = stack.enter_context(running_prometheus(web.port, worker_port))

        def answer(_request: Received) -> int:
            return 500 if FAILING[0] < time.time() - started < FAILING[1] else 204

        for endpoint in (stack.enter_context(receiver()), stack.enter_context(receiver(answer))):
            assert web.request("POST", "/webhooks", {"url": endpoint.url}).status == 201
        stack.enter_context(load(web))
        settings["WORKER_METRICS_PORT"] = str(worker_port)
        with running_worker(**settings) as worker:
            time.sleep(started + KILLED - time.time())
            os.kill(web.children()[0], signal.SIGKILL)
            worker.process.send_signal(signal.SIGKILL)
            worker.process.wait()
        time.sleep(AWAY)
        with running_worker(**settings):
            time.sleep(max(started + SECONDS - time.time(), 0))
            panels = {
                panel["title"]: (panel["fieldConfig"]["defaults"]["unit"], list(curves(prometheus, panel, started)))
                for panel in dashboard["panels"]
            }
    (ROOT / "docs" / "images" / "dashboard.svg").write_text(picture(panels))


@contextmanager
def running_prometheus(web: int, worker: int) -> Iterator[int]:
    """Run Prometheus with the two targets until the block ends. Yields its port."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        config = (ROOT / "deploy/prometheus/prometheus.yml").read_text()
        for shipped, ours in {"15s": "1s", "[rules.yml]": "[]", ":80": f":{web}", ":9464": f":{worker}"}.items():
            config = config.replace(shipped, ours)
        file = Path(directory) / "prometheus.yml"
        file.write_text(config)
        options = [f"--config.file={file}", f"--storage.tsdb.path={directory}/data", "--log.level=error"]
        process = subprocess.Popen(["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"])
        try:
            wait_until(lambda: process.poll() is not None or is_ready(port))
            yield port
        finally:
            process.terminate()
            process.wait()


def is_ready(port: int) -> bool:
    try:
        return send_request(port, "GET", "/-/ready").status == 200
    except OSError:
        return False


@contextmanager
def load(server: Server) -> Iterator[None]:
    """Create, change, read, list and search orders until the block ends."""
    stopping = Event()
    threads = [Thread(target=use, args=(server, stopping, random.Random(seed))) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def use(server: Server, stopping: Event, rng: random.Random) -> None:
    order = {
        "customer_id": "c-1",
        "items": [{"item_id": "sku-1", "quantity": 2, "unit_price": 1250}],
        "currency": "EUR",
    }
    while not stopping.wait(PAUSE):
        with suppress(ConnectionError):  # of the killed web worker
            created = server.request("POST", "/orders", order | {"customer_id": f"c-{rng.randrange(100)}"})
            path = created.headers["Location"]
            server.request("POST", f"{path}/confirm")
            if rng.random() < 0.1:
                server.request("POST", f"{path}/confirm", headers={"If-Match": '"1"'})  # 412: the order has changed
            if rng.random() < 0.02:
                server.request("BREW", path)  # 501: the method is unknown
            for other in (path, "/orders?limit=20", "/orders/search?q=sku-1"):
                server.request("GET", other)


def curves(prometheus: int, panel: dict[str, Any], started: float) -> Iterator[Series]:
    """Return the series of a panel since the start."""
    for target in panel["targets"]:
        query = re.sub(r"\[\d+m\]", f"[{WINDOW}]", target["expr"])
        span = {"query": query, "start": started, "end": time.time(), "step": 1}
        answer = send_request(prometheus, "GET", f"/api/v1/query_range?{urlencode(span)}").json
        assert answer["status"] == "success", answer
        for found in answer["data"]["result"]:
            labels = found["metric"]
            name = re.sub(r"\{\{(\w+)\}\}", lambda label: labels.get(label[1], ""), target["legendFormat"])
            points = [(at - started, float(value)) for at, value in found["values"] if value != "NaN"]
            if points:
                yield Series(name.strip(), points)


def picture(panels: dict[str, tuple[str, list[Series]]]) -> str:
    """Return all panels as SVG."""
    rows = -(-len(panels) // COLUMNS)
    width, height = COLUMNS * (WIDTH + GAP) + GAP, rows * (HEIGHT + GAP) + GAP
    parts = [
        f'<g transform="translate({GAP + i % COLUMNS * (WIDTH + GAP)},{GAP + i // COLUMNS * (HEIGHT + GAP)})">'
        + "".join(drawn(title, *content))
        + "</g>"
        for i, (title, content) in enumerate(panels.items())
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
    return (
        f'{head} font-size="11">\n<title>The dashboard during a run of three minutes</title>\n'
        '<rect width="100%" height="100%" fill="#f1f5f9"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def drawn(title: str, unit: str, series: list[Series]) -> Iterator[str]:
    """Return the SVG elements of one panel."""
    left, top, right, bottom = PLOT
    shown = sorted(series, key=lambda each: -each.highest)[:SERIES_MAX]
    highest = max((each.highest for each in shown), default=0) or 1
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" rx="4" fill="white" stroke="#cbd5e1"/>'
    yield f'<text x="12" y="22" font-size="13" font-weight="bold">{escape(title)}</text>'
    for share in (0, 0.5, 1):
        y = bottom - share * (bottom - top)
        yield f'<path d="M{left} {y}H{right}" stroke="#e2e8f0"/>'
        value = share * highest
        label = (f"{value:,.0f}" if value >= 100 else f"{value:.2g}") + UNITS[unit]
        yield f'<text x="{left - 6}" y="{y + 4}" text-anchor="end" fill="#64748b">{label}</text>'
    for each, colour in zip(shown, COLOURS):
        for stretch in each.stretches():
            places = " ".join(
                f"{left + at / SECONDS * (right - left):.1f},{bottom - value / highest * (bottom - top):.1f}"
                for at, value in stretch
            )
            yield f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    for number, (each, colour) in enumerate(zip(shown, COLOURS)):
        x, y = 12 + number % 2 * 200, bottom + 18 + number // 2 * 14
        yield f'<rect x="{x}" y="{y - 8}" width="8" height="8" fill="{colour}"/>'
        yield f'<text x="{x + 13}" y="{y}" fill="#334155">{escape(each.name)}</text>'


if __name__ == "__main__":
    main()
