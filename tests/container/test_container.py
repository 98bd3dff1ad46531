"""The image of the Dockerfile, built by buildah and run by runc: as its user, without capabilities, root read-only."""

import http.client
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.samples import MINIMAL
from tests.support.servers import ROOT, TIMEOUT, free_port, send_request, wait_until

BASE = "python:3.13-slim"  # the tag of the base image: Debian with its Python, since there is no registry here
PACKAGES = "python3,python3-venv,ca-certificates"
BUILDAH = {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}
# How this machine reaches the index of packages.
PIP_FILES = ("/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")

Image = dict[str, Any]


@dataclass(frozen=True)
class Container:
    """A running container, and the file of its output."""

    process: subprocess.Popen[bytes]
    file: Path

    def output(self) -> str:
        return self.file.read_text()


def buildah(*command: str) -> str:
    done = subprocess.run(["buildah", *command], cwd=ROOT, env=os.environ | BUILDAH, text=True, stdout=subprocess.PIPE)
    assert done.returncode == 0
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image's configuration, and `root`, the directory of its files."""
    debian = tmp_path_factory.mktemp("debian")
    targets = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    mirror = subprocess.run(targets, check=True, text=True, stdout=subprocess.PIPE).stdout.split()[0]
    release = subprocess.run(
        ["sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME"], text=True, stdout=subprocess.PIPE
    )
    bootstrap = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", release.stdout.strip(), debian, mirror]
    subprocess.run(bootstrap, check=True, stdout=subprocess.DEVNULL)
    for file in filter(os.path.exists, PIP_FILES):
        shutil.copy(file, f"{debian}{file}")
    base = buildah("from", "scratch")
    buildah("add", "--quiet", base, str(debian), "/")
    buildah("commit", "--quiet", "--rm", base, BASE)
    buildah(
        "build",
        "--quiet",
        "--pull-never",
        "--format",
        "docker",
        "--build-arg",
        f"BASE={BASE}",
        "--tag",
        "order-service",
        ".",
    )
    container = buildah("from", "order-service")
    described = json.loads(buildah("inspect", "--type", "image", "order-service"))["Docker"]["config"]
    yield described | {"root": buildah("mount", container)}
    buildah("rm", container)


@contextmanager
def running_container(image: Image, directory: Path, *command: str, **settings: str) -> Iterator[Container]:
    """Run a command in a container, or the image's own; `directory` is its volume for the database."""
    name = f"order-service-{free_port()}"
    bundle = directory / name
    bundle.mkdir()
    subprocess.run(["runc", "spec"], cwd=bundle, check=True)
    file = bundle / "config.json"
    spec = json.loads(file.read_text())
    environment = [*image["Env"], *(f"{key}={value}" for key, value in settings.items())]
    user = int(image["User"])
    spec["root"] = {"path": image["root"], "readonly": True}
    spec["process"] |= {
        "terminal": False,
        "user": {"uid": user, "gid": user},
        "cwd": image["WorkingDir"],
        "args": [*image["Entrypoint"], *(command or image["Cmd"])],
        "env": environment,
        "capabilities": {kind: [] for kind in spec["process"]["capabilities"]},
    }
    data = directory / "data"
    data.mkdir(exist_ok=True)
    os.chown(data, user, user)
    spec["mounts"] += [
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]},
        {"destination": "/var/lib/order-service", "type": "bind", "source": str(data), "options": ["rbind", "rw"]},
    ]
    spec["linux"]["namespaces"] = [kind for kind in spec["linux"]["namespaces"] if kind["type"] != "network"]
    file.write_text(json.dumps(spec))
    with (bundle / "output").open("wb") as output:
        process = subprocess.Popen(["runc", "run", name], cwd=bundle, stdout=output, stderr=output)
    try:
        yield Container(process, Path(output.name))
    finally:
        subprocess.run(["runc", "kill", name, "TERM"], stderr=subprocess.DEVNULL)
        process.wait(TIMEOUT)


def run_to_end(image: Image, directory: Path, *command: str) -> str:
    with running_container(image, directory, *command) as container:
        container.process.wait(TIMEOUT)
    assert container.process.returncode == 0, container.output()
    return container.output()


def answers(port: int) -> bool:
    try:
        return send_request(port, "GET", "/readyz").status == 200
    except (OSError, http.client.HTTPException):
        return False


def test_web_and_worker_run_from_the_image(image: Image, tmp_path: Path) -> None:
    port = free_port()
    run_to_end(image, tmp_path, "flask", "--app", "wsgi", "db", "upgrade")
    created = run_to_end(
        image, tmp_path, "flask", "--app", "wsgi", "api-keys", "create", "--name", "shop", "--scope", "orders:write",
        "--scope", "events:read",
    )  # fmt: skip
    headers = {"Authorization": f"Bearer {created.split()[-1]}"}

    worker = ("flask", "--app", "wsgi", "worker")
    with running_container(image, tmp_path, PORT=str(port)) as web, running_container(image, tmp_path, *worker):
        wait_until(lambda: answers(port) or web.process.poll() is not None)
        order = send_request(port, "POST", "/orders", MINIMAL, headers)
        feed = send_request(port, "GET", "/events?after=0&wait=20", headers=headers)

    assert order.status == 201
    assert [event["data"] for event in feed.json["events"]] == [order.json]
    assert web.process.returncode == 0


def test_the_root_is_read_only_and_the_user_has_no_rights(image: Image, tmp_path: Path) -> None:
    probe = "import os; print(os.getuid(), os.access('/opt', os.W_OK)); print(open('/proc/self/status').read())"

    output = run_to_end(image | {"Entrypoint": [".venv/bin/python", "-c"]}, tmp_path, probe)

    assert output.startswith("10001 False\n")
    assert "CapEff:\t0000000000000000" in output


def test_the_health_check_distinguishes_a_responsive_service_from_an_unresponsive_one(
    image: Image, tmp_path: Path
) -> None:
    run_to_end(image, tmp_path, "flask", "--app", "wsgi", "db", "upgrade")
    _, *check = image["Healthcheck"]["Test"]
    check = image | {"Entrypoint": check[:1]}, tmp_path, *check[1:]

    with running_container(*check) as silent:
        silent.process.wait(TIMEOUT)
    with running_container(image, tmp_path, AUTH="off", HOST="127.0.0.1"):
        wait_until(lambda: answers(8000))
        healthy = run_to_end(*check)

    assert silent.process.returncode == 1
    assert healthy == ""


def test_the_image_contains_only_the_service(image: Image) -> None:
    files = set(os.listdir(f"{image['root']}/opt/order-service"))

    assert {"app", "migrations", "gunicorn.conf.py", "wsgi.py", ".venv"} <= files
    assert not files & {"tests", ".git", "instance", "bench", "Makefile"}


def test_compose_starts_commands_of_the_image(image: Image) -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]

    own = {name: service for name, service in services.items() if service["image"] == "order-service"}
    assert set(own) == {"migrate", "web", "worker"}
    assert all(service["read_only"] and service["cap_drop"] == ["ALL"] for service in own.values())
    assert (own["migrate"]["command"], own["worker"]["command"]) == (
        ["flask", "--app", "wsgi", "db", "upgrade"], ["flask", "--app", "wsgi", "worker"]
    )  # fmt: skip
