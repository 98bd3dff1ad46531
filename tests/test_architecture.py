"""ARCHITECTURE.md describes the code as it is."""

import re

import pytest

from app.config import ROOT

ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
PACKAGES = sorted(path.relative_to(ROOT) for path in (ROOT / "app").rglob("__init__.py"))
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "app").rglob("*.py") if path.name != "__init__.py")
ROW = re.compile(r"^\| (`.*?) \| .+ \|$", re.MULTILINE)
IN_THE_MAP = [name for names in ROW.findall(ARCHITECTURE) for name in names.split(", ")]


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
