"""The systemd units and the command that deploy/ installs."""

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
