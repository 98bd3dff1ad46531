"""The alerts and the dashboard in deploy/ use the metrics that web server and worker have."""

import json
import math
import re
from datetime import UTC, datetime

import pytest
import yaml
from flask import Flask

from app import telemetry
from app.cli.worker import FeedCollector
from app.config import ROOT
from app.services.webhook_queue import Attempt
from app.telemetry import observe_delivery, observe_task, render_metrics
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL
from tests.support.tables import delete_all_rows

RULES = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
EXPRESSIONS = [rule["expr"] for rule in RULES] + [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]
]
# Of the query language, and metrics of Prometheus and its node exporter.
WORDS = {"sum", "max", "by", "rate", "increase", "sum_over_time", "bool", "deriv", "histogram_quantile", "absent"}
WORDS |= {"up", "node_systemd_service_restart_total"}


def metrics_of(expression: str) -> set[str]:
    """The names of metrics: identifiers outside of braces, quotes, ranges and lists of labels."""
    bare = re.sub(r"\{[^}]*\}|\"[^\"]*\"|\[[^\]]*\]|by \([^)]*\)", " ", expression)
    return set(re.findall(r"[a-z_:][a-z0-9_:]*", bare)) - WORDS


@pytest.fixture(scope="module")
def exported(app: Flask) -> set[str]:
    """The names of all metrics, of the web server and of the worker, after each has something to report."""
    delete_all_rows(app)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(telemetry, "_SAMPLE_INTERVAL", -math.inf)  # each request takes a sample
        monkeypatch.setitem(app.config, "BROKER_URL", "amqp://127.0.0.1//")
        app.test_client().post("/orders", json=MINIMAL)
        telemetry.REJECTED.labels(501).inc()
        observe_task("sequencing", 0.1, True)
        observe_delivery(Attempt(datetime.now(UTC), 12, status=200))
        feed = {family.name for family in FeedCollector(app).collect()}
        return set(re.findall(r"^([a-z_]+)", render_metrics().decode(), re.MULTILINE)) | feed


@on_sqlite
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_each_metric_of_an_expression_exists(exported: set[str], expression: str) -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}

    assert metrics_of(expression) - exported - recorded == set()


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_only_counters_have_a_rate(expression: str) -> None:
    """A gauge that falls, such as a sum over processes of which one ends, would count as one that began at 0 again."""
    names = re.findall(r"\b(?:rate|increase)\((\w+)", expression)

    assert all(name.endswith(("_total", "_count", "_bucket")) for name in names)


def test_each_alert_says_what_to_do_and_is_tested() -> None:
    tests = yaml.safe_load((ROOT / "deploy/prometheus/rules_test.yml").read_text())["tests"]
    raised = {case["alertname"] for test in tests for case in test.get("alert_rule_test", ()) if "exp_alerts" in case}

    for rule in RULES:
        if "alert" in rule:
            assert rule["annotations"]["action"] and rule["labels"]["severity"] in ("page", "ticket")
            assert rule["alert"] in raised


def test_prometheus_reads_the_ports_of_an_installed_machine() -> None:
    jobs = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}

    assert targets == {
        "order-service": [f"127.0.0.1:{port_in('deploy/nginx.conf', 'listen ')}"],
        "order-service-worker": [f"127.0.0.1:{port_in('deploy/install.sh', 'WORKER_METRICS_PORT=')}"],
        "machine": [f"127.0.0.1:{port_in('deploy/prometheus/exporter.default', '127.0.0.1:')}"],
    }


def port_in(file: str, before: str) -> str:
    found = re.search(rf"{re.escape(before)}(\d+)", (ROOT / file).read_text())
    assert found
    return found[1]


def test_the_picture_shows_the_panels_of_the_dashboard() -> None:
    """`python -m bench.dashboard` draws it."""
    picture = (ROOT / "docs/images/dashboard.svg").read_text()

    assert re.findall(r'font-weight="bold">(.*?)<', picture) == [panel["title"] for panel in DASHBOARD["panels"]]
