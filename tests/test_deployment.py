"""The systemd units and the command that deploy/ installs, and the script that installs them."""

import re
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.support.servers import ROOT

UNITS = ROOT / "deploy" / "systemd"
MIGRATION = "order-service-migrate.service"
AS_USER = "setpriv --reuid=order-service --regid=order-service --init-groups "


def unit(name: str) -> ConfigParser:
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # names of settings have capital letters
    parser.read(UNITS / name)
    return parser


@pytest.mark.parametrize("name", ["order-service.service", "order-service-worker.service"])
def test_the_migration_runs_first_and_its_failure_stops_no_service(name: str) -> None:
    """systemd.unit(5): a unit is stopped or restarted with each one that it requires."""
    section = unit(name)["Unit"]

    assert MIGRATION in section["Wants"].split() and MIGRATION in section["After"].split()
    assert MIGRATION not in section.get("Requires", "").split()


def test_a_command_has_the_settings_as_systemd_reads_them(tmp_path: Path) -> None:
    url = "postgresql://orders:p$1x@host/orders?sslmode=require&connect_timeout=5"
    (tmp_path / "environment").write_text(f'# Settings.\n\nDATABASE_URL={url}\nJWT_ISSUER="the issuer"\nHOST=\n')
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$DATABASE_URL" "$JWT_ISSUER" "[$HOST]" "$*"\n')
    python.chmod(0o755)
    script = (UNITS / "order-service.sh").read_text()
    for path, replacement in (("/opt/order-service", tmp_path), ("/etc/order-service", tmp_path), (AS_USER, "")):
        assert path in script
        script = script.replace(path, str(replacement))

    done = subprocess.run(
        ["sh", "-c", script, "order-service", "doctor"], text=True, stdout=subprocess.PIPE, check=True
    )

    assert done.stdout.splitlines() == [url, "the issuer", "[]", "-m flask --app wsgi doctor"]


def test_the_installation_finds_its_programs_with_the_path_of_cron(tmp_path: Path) -> None:
    """crontab(5): PATH is /usr/bin:/bin. useradd and nginx are in /usr/sbin, order-service is in /usr/local/bin."""
    script = tmp_path / "deploy" / "install.sh"
    script.parent.mkdir()
    script.write_text((ROOT / "deploy" / "install.sh").read_text().replace("/opt/order-service", str(tmp_path)))
    programs = tmp_path / "bin"
    programs.mkdir()
    # The first program that would change the machine ends the script.
    for name, commands in {"id": "echo 0", "apt-get": 'echo "$PATH"; exit 1'}.items():
        (programs / name).write_text(f"#!/bin/sh\n{commands}\n")
        (programs / name).chmod(0o755)

    ended = subprocess.run(
        ["bash", str(script)], env={"PATH": f"{programs}:/usr/bin:/bin"}, text=True, stdout=subprocess.PIPE, check=False
    )

    assert {"/usr/local/bin", "/usr/sbin", "/sbin"} <= set(ended.stdout.strip().split(":"))


@pytest.mark.parametrize("further", ["", "requirements-broker.txt", "requirements-broker.txt requirements-tracing.txt"])
def test_an_image_with_further_packages_has_those_of_the_service(tmp_path: Path, further: str) -> None:
    [install] = re.findall(
        r"^RUN (python3 -m venv .*?[^\\])\n", (ROOT / "Dockerfile").read_text(), re.DOTALL | re.MULTILINE
    )
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    install = install.replace("python3 -m venv .venv", "true")

    done = subprocess.run(
        ["sh", "-c", install],
        cwd=tmp_path,
        env={"REQUIREMENTS": further},
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )

    assert re.findall(r"-r (\S+)", done.stdout) == ["requirements.txt", *further.split()]
