"""ARCHITECTURE.md describes the code, and no module is a fragment of another one."""

import ast
import re
from pathlib import Path

import pytest

from app.config import ROOT

ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
PACKAGES = sorted(path.relative_to(ROOT) for path in (ROOT / "app").rglob("__init__.py"))
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "app").rglob("*.py") if path.name != "__init__.py")
ROW = re.compile(r"^\| (`.*?) \| .+ \|$", re.MULTILINE)
FRAGMENT_MAX = 60  # lines
FILES_MAX = 70  # of the application, those of packages included: a reader sees the whole list before a line of code
IN_THE_MAP = [name for names in ROW.findall(ARCHITECTURE) for name in names.split(", ")]


def _imports(path: Path) -> set[str]:
    """The modules that a file imports, and, since `from` also imports modules, the members."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


IMPORTS = {path: _imports(path) for path in [*MODULES, *PACKAGES]}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w./]+(?:\.py|\.conf|/))`", ARCHITECTURE))))
def test_each_file_that_is_named_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", [str(path) for path in MODULES])
def test_each_module_of_the_application_is_in_the_map_once(name: str) -> None:
    assert IN_THE_MAP.count(f"`{name}`") == 1


@pytest.mark.parametrize("name", [f"{path.parent}/" for path in PACKAGES])
def test_each_package_of_the_application_has_a_table(name: str) -> None:
    assert f"\n| `{name}` | " in ARCHITECTURE


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([a-z]\w+)`", ARCHITECTURE))))
def test_each_function_and_package_that_is_named_exists(name: str) -> None:
    sources = [path.read_text() for path in (ROOT / "app").rglob("*.py")]

    assert any(re.search(rf"\b{name}\b", source) for source in sources)


def test_the_architecture_fits_on_a_page() -> None:
    assert len(ARCHITECTURE.splitlines()) <= 200


def test_the_application_has_few_files() -> None:
    assert len(MODULES) + len(PACKAGES) <= FILES_MAX


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_short_module_is_imported_by_more_than_one_other(path: Path) -> None:
    lines = len((ROOT / path).read_text().splitlines())
    name = ".".join(path.with_suffix("").parts)

    assert lines >= FRAGMENT_MAX or sum(name in imports for imports in IMPORTS.values()) != 1
