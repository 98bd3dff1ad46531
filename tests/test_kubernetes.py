"""The manifests of deploy/kubernetes, as kubectl renders them: valid, and consistent with the service."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from flask import Flask

from app.config import ROOT, SETTINGS
from tests.support.marks import on_sqlite

Manifest = dict[str, Any]

DIRECTORY = ROOT / "deploy" / "kubernetes"


def rendered(directory: Path) -> list[Manifest]:
    """What `kubectl apply -k` would send to a cluster."""
    kubectl = Path(sys.executable).parent / "kubectl"
    return list(yaml.safe_load_all(subprocess.check_output([kubectl, "kustomize", directory])))


VERSIONS = ["1.30", kubernetes_validate.latest_version()]
KUSTOMIZATION: Manifest = yaml.safe_load((DIRECTORY / "kustomization.yaml").read_text())
MANIFESTS = rendered(DIRECTORY)
WORKLOADS = [manifest for manifest in MANIFESTS if manifest["kind"] in ("Deployment", "Job")]
CUSTOM = {"ServiceMonitor"}  # a resource of the Prometheus operator
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SECRETS = {"DATABASE_URL", "SECRET_KEY"}  # in the Secret


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def pod(workload: Manifest) -> Manifest:
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def container(workload: Manifest) -> Manifest:
    [only] = pod(workload)["containers"]
    return only


def workload(component: str) -> Manifest:
    [found] = [one for one in WORKLOADS if container(one)["name"] == component]
    return found


def probes(workload: Manifest) -> dict[str, Manifest]:
    return {name: value for name, value in container(workload).items() if name.endswith("Probe")}


def image_setting(name: str) -> str:
    found = re.search(rf"^ENV .*?\b{name}=(\S+)", DOCKERFILE, re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", [one for one in MANIFESTS if one["kind"] not in CUSTOM], ids=name_of)
def test_a_manifest_is_valid_by_the_schema_of_kubernetes(manifest: Manifest, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_kustomization_has_every_file() -> None:
    files = {file.name for file in DIRECTORY.glob("*.yaml")} - {"kustomization.yaml"}

    assert files == set(KUSTOMIZATION["resources"])
    assert len({name_of(manifest) for manifest in MANIFESTS}) == len(MANIFESTS)


def test_the_manifests_have_all_resources_of_a_production_service() -> None:
    assert {name_of(manifest) for manifest in MANIFESTS if manifest["kind"] != "ConfigMap"} == {
        "Namespace/order-service",
        "Deployment/order-service",
        "Deployment/order-service-worker",
        "Job/order-service-migrate",
        "Service/order-service",
        "Service/order-service-worker",
        "Ingress/order-service",
        "HorizontalPodAutoscaler/order-service",
        "PodDisruptionBudget/order-service",
        "PodDisruptionBudget/order-service-worker",
        "NetworkPolicy/order-service",
        "ServiceMonitor/order-service",
    }
    assert {one["metadata"].get("namespace") for one in MANIFESTS if one["kind"] != "Namespace"} == {"order-service"}


def test_the_overlay_of_the_page_sets_image_settings_and_host(tmp_path: Path) -> None:
    [overlay] = re.findall(r"```yaml\n(.*?)```", (DIRECTORY / "README.md").read_text(), re.DOTALL)
    (tmp_path / "kustomization.yaml").write_text(overlay)
    (tmp_path / "order-service").symlink_to(ROOT)

    manifests = rendered(tmp_path)

    workloads = [one for one in manifests if one["kind"] in ("Deployment", "Job")]
    [ingress] = [one for one in manifests if one["kind"] == "Ingress"]
    assert {container(one)["image"] for one in workloads} == {"registry.example.com/order-service:1"}
    assert ingress["spec"]["rules"][0]["host"] == "orders.shop.example"
    assert config_map(manifests)["data"] == config_map(MANIFESTS)["data"] | {
        "JWT_JWKS_URL": "https://id.example.com/jwks.json",
        "JWT_ISSUER": "https://id.example.com",
        "JWT_AUDIENCE": "orders",
    }


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_a_container_has_no_rights_and_a_read_only_root(workload: Manifest) -> None:
    security, only = pod(workload)["securityContext"], container(workload)

    assert security["runAsNonRoot"] and security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert re.search(rf"^USER {security['runAsUser']}$", DOCKERFILE, re.MULTILINE)
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(workload)["automountServiceAccountToken"] is False
    assert only["resources"]["requests"].keys() == {"cpu", "memory"} and "memory" in only["resources"]["limits"]
    mounts = {mount["name"]: mount["mountPath"] for mount in only["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod(workload)["volumes"]}
    assert "/tmp" in mounts.values()  # noqa: S108


@pytest.mark.parametrize("component", ["web", "worker", "migrate"])
def test_a_container_runs_what_compose_runs(component: str) -> None:
    arguments = container(workload(component))["args"]

    [of_image] = re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)
    assert arguments == COMPOSE["services"][component].get("command", json.loads(of_image))
    [image] = KUSTOMIZATION["images"]
    assert container(workload(component))["image"] == f"{image['name']}:{image['newTag']}"


def config_map(manifests: list[Manifest]) -> Manifest:
    [found] = [one for one in manifests if one["kind"] == "ConfigMap"]
    return found


def settings() -> Iterator[tuple[str, str]]:
    """The settings of all containers, and their values."""
    yield from config_map(MANIFESTS)["data"].items()
    for one in WORKLOADS:
        for variable in container(one).get("env", ()):
            yield variable["name"], variable["value"]


def test_each_setting_exists_and_has_a_valid_value() -> None:
    generated = config_map(MANIFESTS)["metadata"]["name"]  # with a hash of its settings: a change starts new pods
    for name, value in settings():
        SETTINGS[name].parse(value)
    for one in WORKLOADS:
        sources = container(one)["envFrom"]
        assert sources == [{"configMapRef": {"name": generated}}, {"secretRef": {"name": "order-service"}}]
    assert SETTINGS.keys() >= SECRETS


def test_ports_are_those_that_the_service_listens_on() -> None:
    [web], [worker] = container(workload("web"))["ports"], container(workload("worker"))["ports"]

    assert (web["name"], str(web["containerPort"])) == ("http", image_setting("PORT"))
    assert (worker["name"], str(worker["containerPort"])) == ("metrics", dict(settings())["WORKER_METRICS_PORT"])
    assert image_setting("HOST") == "0.0.0.0"  # noqa: S104


def test_selectors_and_ports_find_the_pods() -> None:
    pods = {name_of(one): one["spec"]["template"]["metadata"]["labels"] for one in WORKLOADS}
    services = [one for one in MANIFESTS if one["kind"] == "Service"]
    for manifest in [*services, *(one for one in MANIFESTS if one["kind"] in ("Deployment", "PodDisruptionBudget"))]:
        selector = manifest["spec"]["selector"]
        labels = selector.get("matchLabels", selector)
        found = [one for one in WORKLOADS if labels.items() <= pods[name_of(one)].items()]
        assert [name_of(one) for one in found] == [f"Deployment/{manifest['metadata']['name']}"]
        for port in manifest["spec"].get("ports", ()):
            assert port["targetPort"] == container(found[0])["ports"][0]["name"]
    scaled = next(one for one in MANIFESTS if one["kind"] == "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert f"{scaled['kind']}/{scaled['name']}" in pods
    monitor = next(one for one in MANIFESTS if one["kind"] == "ServiceMonitor")["spec"]
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} == {
        port["name"] for service in services for port in service["spec"]["ports"]
    }


@on_sqlite
def test_probes_request_the_probe_routes(app: Flask) -> None:
    rules = {rule.rule for rule in app.url_map.iter_rules()}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes(workload("web")).items()}

    assert set(paths.values()) <= rules
    assert paths == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    assert all(probe["tcpSocket"] == {"port": "metrics"} for probe in probes(workload("worker")).values())
    assert not probes(workload("migrate"))


@on_sqlite
def test_the_ingress_leads_to_every_route_but_probes_and_metrics(app: Flask) -> None:
    [ingress] = [one for one in MANIFESTS if one["kind"] == "Ingress"]
    [rule] = ingress["spec"]["rules"]
    rules = {rule.rule for rule in app.url_map.iter_rules()}

    assert {path["path"] for path in rule["http"]["paths"]} == {
        "/" + rule.split("/")[1] for rule in rules - {"/healthz", "/readyz", "/metrics"}
    }
