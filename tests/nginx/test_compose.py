"""The services of compose.yaml with code of this repository, started as processes: migrate, web, worker and nginx.

They have the commands and settings of the file, except those for networks and volumes of containers.
"""

import re
import subprocess
import sys
from typing import Any

import yaml

from tests.nginx.conftest import nginx_without_service
from tests.support.compose import SERVICES, TEXT
from tests.support.credentials import bearer
from tests.support.databases import new_database
from tests.support.samples import MINIMAL
from tests.support.servers import ROOT, WORKER, environment, free_port, running, running_worker


def command(name: str) -> tuple[str, ...]:
    """The command of a service, or else of the image, behind the image's entry point: `python -m`."""
    [default] = re.findall(r"^CMD (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return ("-m", *SERVICES[name].get("command", yaml.safe_load(default)))


def run_command(words: list[str], **settings: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, *words]
    return subprocess.run(program, cwd=ROOT, env=environment(**settings), capture_output=True, text=True)


def test_the_services_of_the_file_work_together(postgresql_url: str) -> None:
    own = {"DATABASE_URL": new_database(postgresql_url, "compose"), "SECRET_KEY": "k" * 64, "WEB_CONCURRENCY": "1"}
    [create_key] = re.findall(r"docker compose run --rm web (.*)", TEXT)
    with nginx_without_service() as nginx:
        here: Any = nginx.process.args

        def settings(name: str) -> dict[str, str]:
            given = {key: str(value or "") for key, value in SERVICES[name]["environment"].items()} | own
            return {key: value.replace("/run/order-service", here[4]) for key, value in given.items()}

        check = [word.replace("/run/order-service", here[4]) for word in SERVICES["web"]["healthcheck"]["test"][2:]]
        migration = run_command([*command("migrate")], **settings("migrate"))
        key = run_command(["-m", *create_key.split(), "--scope", "events:read"], **settings("web")).stdout.strip()
        unhealthy = run_command(check)
        of_worker = settings("worker") | {"WORKER_METRICS_PORT": str(free_port())}
        with running(*command("web"), port=nginx.port, **settings("web")), running_worker(**of_worker):
            healthy = run_command(check)
            order = nginx.request("POST", "/orders", MINIMAL, bearer(key))
            feed = nginx.request("GET", "/events?after=0&wait=20", headers=bearer(key))
            docs = nginx.request("GET", "/docs")

    assert command("worker") == WORKER
    assert (migration.returncode, unhealthy.returncode, healthy.returncode) == (0, 1, 0)
    assert (order.status, docs.status) == (201, 200)
    assert [event["data"] for event in feed.json["events"]] == [order.json]
