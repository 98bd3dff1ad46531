"""compose.yaml is valid by the Compose specification, and the files and settings that it names exist."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from compose_spec import PyCompose
from sqlalchemy import make_url

from app.config import SETTINGS
from tests.support.compose import COMPOSE, SERVICES
from tests.support.databases import migrated
from tests.support.postgres import libpq_url, postgres_installation, private_postgres, socket_directory
from tests.support.servers import ROOT


def mounts() -> list[tuple[str, str]]:
    return [(name, mount.split(":")[0]) for name, one in SERVICES.items() for mount in one.get("volumes", ())]


def test_the_file_is_valid() -> None:
    compose = PyCompose.from_json(json.dumps(COMPOSE))

    compose.validate()
    assert set(compose.service_names()) == set(SERVICES)


@pytest.mark.parametrize("member", [{"imagee": "x"}, {"ports": ["x:y"]}, {"networks": ["nowhere"]}])
def test_a_file_with_an_error_is_invalid(member: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        PyCompose.from_json(json.dumps({"services": {"web": {"image": "order-service", **member}}})).validate()


def test_the_profiles_are_the_broker_and_monitoring() -> None:
    profiles = {name: one["profiles"] for name, one in SERVICES.items() if "profiles" in one}

    assert profiles == {"broker": ["broker"], "prometheus": ["monitoring"], "grafana": ["monitoring"]}


def test_no_log_of_a_container_grows_without_a_limit() -> None:
    """Docker's driver json-file keeps everything. nginx writes to a file of its own unless that is a link."""
    nginx = (ROOT / "deploy" / "nginx.conf").read_text()
    [log] = set(re.findall(r"^ +access_log +(/\S+)", nginx, re.MULTILINE))

    assert {one["logging"]["driver"] for one in SERVICES.values()} == {"local"}
    assert f"ln -sf /dev/stdout {log} " in SERVICES["nginx"]["command"][-1]


def test_mounted_files_exist() -> None:
    sources = [source for _, source in mounts()]

    assert all(
        (ROOT / source).exists() if source.startswith("./") else source in COMPOSE["volumes"] for source in sources
    )


def test_each_setting_of_the_service_exists() -> None:
    own = [one for one in SERVICES.values() if one["image"] == "order-service"]

    assert all(set(one["environment"]) <= set(SETTINGS) for one in own)


def test_prometheus_reads_the_ports_of_the_services() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/compose.yml").read_text())
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    port = SERVICES["worker"]["environment"]["WORKER_METRICS_PORT"]

    assert targets == {"order-service": ["127.0.0.1:80"], "order-service-worker": [f"worker:{port}"]}
    assert SERVICES["prometheus"]["network_mode"] == "service:nginx"


def test_grafana_finds_the_dashboard_and_prometheus() -> None:
    provisioning = ROOT / "deploy/grafana/provisioning"
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((provisioning / "dashboards/order-service.yml").read_text())["providers"]
    inside = {mount.split(":")[0]: Path(mount.split(":")[1]) for mount in SERVICES["grafana"]["volumes"]}

    assert source["url"] == "http://nginx:9090"
    assert inside["./deploy/grafana/dashboard.json"].parent == Path(provider["options"]["path"])


def test_the_service_has_its_own_role_that_may_migrate() -> None:
    postgres = SERVICES["postgres"]
    [script] = [source for name, source in mounts() if name == "postgres" and source.endswith(".sh")]
    role = make_url(SERVICES["web"]["environment"]["DATABASE_URL"])
    with private_postgres() as url:
        environment = {
            "PATH": f"{postgres_installation() / 'bin'}:{os.defpath}",
            "PGHOST": str(socket_directory(url)),
            "POSTGRES_USER": postgres["environment"]["POSTGRES_USER"],
            "POSTGRES_PASSWORD": "p'w",
        }
        subprocess.run([str(ROOT / script)], env=environment, check=True, capture_output=True)
        migrated(make_url(url).set(username=role.username, database=role.database).render_as_string())
        with psycopg.connect(libpq_url(url)) as connection:
            roles = connection.execute("SELECT rolname, rolsuper, rolpassword IS NULL FROM pg_authid WHERE rolcanlogin")
            found = sorted(roles.fetchall())

    assert found == [(role.username, False, False), ("postgres", True, True)]


@pytest.mark.parametrize(("password", "status"), [("", 1), ("secret", 0)])
def test_grafana_does_not_start_with_its_default_password(password: str, status: int) -> None:
    [shell, option, command] = SERVICES["grafana"]["entrypoint"]
    command = command.replace("$$", "$").replace("exec /run.sh", "true")

    ended = subprocess.run([shell, option, command], env={"GF_SECURITY_ADMIN_PASSWORD": password}, check=False)

    assert ended.returncode == status
