"""`python -m tests.support.audit [ADVISORIES]` checks the locked packages for known vulnerabilities.

It runs pip-audit, which asks pypi.org. A machine that does not reach it needs ADVISORIES, a copy of OSV's advisories:
the file PyPI/all.zip of https://google.github.io/osv.dev/data/.

Exits with 0 if no vulnerability is known, with 1 if one is, and with 2 if that is not known.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.locks import RUN_TIME, locked_packages

PIP_AUDIT = ("uvx", "pip-audit==2.10.1", "--disable-pip", "--require-hashes", "--progress-spinner=off", "--format=json")
_ADVICE = "fetch PyPI/all.zip (https://google.github.io/osv.dev/data/), and run make audit ADVISORIES=all.zip."


class Unavailable(Exception):
    """No advisories are available."""


def main(*arguments: str) -> int:
    versions = {package.name: package.version for package in locked_packages(*RUN_TIME).values()}
    try:
        found = set(_read_copy(Path(arguments[0]), versions) if arguments else _run_pip_audit())
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(sorted(found)) or f"No vulnerability of {len(versions)} packages is known.")
    return 1 if found else 0


def _run_pip_audit() -> Iterator[str]:
    files = [word for file in RUN_TIME for word in ("--requirement", str(file))]
    try:
        audit = subprocess.run([*PIP_AUDIT, *files], capture_output=True, text=True)
        packages = json.loads(audit.stdout)["dependencies"]
    except FileNotFoundError:
        raise Unavailable("make audit needs uv (https://docs.astral.sh/uv/).") from None
    except ValueError:  # it did not print a report
        packages = []
    # pip-audit does not report a package that the index does not know.
    if not packages or any("skip_reason" in package for package in packages):
        raise Unavailable(f"Nothing was audited, because the advisories of pypi.org are out of reach: {_ADVICE}")
    for package in packages:
        for found in package["vulns"]:
            yield _line(package["name"], package["version"], found["id"], found["fix_versions"])


def _read_copy(file: Path, versions: Mapping[str, str]) -> Iterator[str]:
    try:
        with ZipFile(file) as archive:
            advisories = [json.loads(archive.read(name)) for name in archive.namelist() if name.endswith(".json")]
    except (OSError, BadZipFile, ValueError) as error:
        raise Unavailable(f"Nothing was audited, because {file} cannot be read ({error}): {_ADVICE}") from None
    if not advisories:
        raise Unavailable(f"Nothing was audited, because {file} has no advisories: {_ADVICE}")
    for advisory in advisories:
        for affected in advisory.get("affected", ()) if "withdrawn" not in advisory else ():
            package = affected.get("package", {})
            name = canonicalize_name(package.get("name", ""))
            if package.get("ecosystem") == "PyPI" and name in versions and is_affected(versions[name], affected):
                fixes = [event["fixed"] for events in _ranges(affected) for event in events if "fixed" in event]
                yield _line(name, versions[name], advisory["id"], fixes)


def is_affected(version: str, affected: Mapping[str, Any]) -> bool:
    """Whether a version is affected, by the rules of https://ossf.github.io/osv-schema/#evaluation."""
    if version in affected.get("versions", ()):
        return True
    return any(_is_in_range(Version(version), events) for events in _ranges(affected))


def _is_in_range(version: Version, events: list[dict[str, str]]) -> bool:
    inside = False
    for event in sorted(events, key=lambda event: Version(next(iter(event.values())))):
        [(kind, limit)] = event.items()
        if kind == "last_affected":
            inside = inside and version <= Version(limit)
        elif version >= Version(limit):
            inside = kind == "introduced"
    return inside


def _ranges(affected: Mapping[str, Any]) -> Iterator[list[dict[str, str]]]:
    """The events of each range of versions, without limits, since PyPI's versions have no branches."""
    for versions in affected.get("ranges", ()):
        if versions["type"] == "ECOSYSTEM":
            yield [event for event in versions["events"] if "limit" not in event]


def _line(name: str, version: str, advisory: str, fixes: list[str]) -> str:
    return f"{name} {version}: {advisory}, fixed in {', '.join(fixes) or 'no version'} (https://osv.dev/{advisory})"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
