"""Conventions of the code that no linter checks."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from app.config import ROOT

TESTS = sorted((ROOT / "tests").rglob("*.py"))
BENCHMARKS = sorted((ROOT / "bench").rglob("*.py"))
SOURCES = [*sorted((ROOT / "app").rglob("*.py")), *sorted(ROOT.glob("*.py"))]
ROUTES = sorted((ROOT / "app" / "routes").glob("*_routes.py"))
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
# Documented methods of named tuples and of Werkzeug's proxies; the underscore keeps other names free.
DOCUMENTED = {"_asdict", "_fields", "_get_current_object", "_mapping", "_replace"}
OWN = {"self", "cls"}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported_modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def is_own(node: ast.expr) -> bool:
    """Whether the expression is self, cls or super()."""
    name = node.func if isinstance(node, ast.Call) else node
    return isinstance(name, ast.Name) and name.id in OWN | {"super"}


def private_attributes(tree: ast.AST) -> Iterator[str]:
    """Private attributes that are not read from self, cls or super() and that the module does not define."""
    defined = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_own(node.value)}
    defined |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    defined |= {node.name for node in ast.walk(tree) if isinstance(node, FUNCTION)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not is_own(node.value):
            if node.attr not in defined:
                yield f"line {node.lineno}: {ast.unparse(node)}"


def test_a_view_has_at_most_five_statements() -> None:
    functions = [
        node for path in ROUTES for node in tree_of(path).body if isinstance(node, FUNCTION) and node.decorator_list
    ]
    views = {node.name: node.body[1:] for node in functions if "operation(" in ast.unparse(node.decorator_list[0])}

    assert len(views) > 50
    assert [name for name, body in views.items() if len(body) > 5] == []


def test_no_two_classes_have_the_same_name() -> None:
    names = Counter(node.name for path in SOURCES for node in tree_of(path).body if isinstance(node, ast.ClassDef))

    assert [name for name, number in names.items() if number > 1] == []


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_imports_another_test(path: Path) -> None:
    assert not [module for module in imported_modules(tree_of(path)) if ".test_" in module]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_imports(path: Path) -> None:
    functions = [node for node in ast.walk(tree_of(path)) if isinstance(node, FUNCTION)]

    assert not [module for function in functions for module in imported_modules(function)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_attribute_of_a_library_is_used(path: Path) -> None:
    tree = tree_of(path)

    assert list(private_attributes(tree)) == []
    typing_stubs = {"_typeshed"}  # imported by type checkers only
    modules = [part for module in imported_modules(tree) for part in module.split(".")]
    assert not [name for name in modules if is_private(name) and name not in typing_stubs]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_use_public_names_of_the_application(path: Path) -> None:
    tree = tree_of(path)
    modules = {name for name in imported_modules(tree) if name.startswith("app.")}

    assert not [name for name in modules if is_private(name.rpartition(".")[2])]
    own = {name.rpartition(".")[2] for name in modules}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_private(node.attr)]
    assert not [ast.unparse(node) for node in attributes if ast.unparse(node.value) in own]


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_benchmarks_set_constants_that_the_application_has(path: Path) -> None:
    tree = tree_of(path)
    modules = {name.rpartition(".")[2]: name for name in imported_modules(tree) if name.startswith("app.")}
    attributes = [
        node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    ]
    constants = [(modules[name], node.attr) for node in attributes if (name := ast.unparse(node.value)) in modules]

    assert [f"{name}.{attr}" for name, attr in constants if not hasattr(import_module(name), attr)] == []


def test_the_console_has_words_for_every_principal_of_the_service() -> None:
    ids = {name for path in SOURCES for name in re.findall(r'\bPrincipal\("([^"]+)"', path.read_text())}
    words = (ROOT / "console" / "src" / "words.ts").read_text()

    assert {"anonymous", "system:schedule"} <= ids
    assert [name for name in sorted(ids) if not re.search(rf'^  "?{name}"?: "', words, re.MULTILINE)] == []
