"""Clients that are generated from the description compile, and work with the running service."""

import json
import shutil
from pathlib import Path

import pytest

from tests.api.conftest import HERE, Tool
from tests.support.servers import Server

COMPILER = ["--strict", "--noEmit", "--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler"]
LIBRARIES = ["--lib", "es2022,dom,dom.iterable", "--types", "node"]


@pytest.fixture
def base_url(service: Server) -> str:
    return f"http://127.0.0.1:{service.port}"


def use(run: Tool, directory: Path, name: str, base_url: str) -> str:
    """Compile a TypeScript program strictly, with the client that it uses, and execute it."""
    shutil.copy(HERE / "use" / f"{name}.ts", directory / f"use_{name}.ts")
    run("tsc", *COMPILER, *LIBRARIES, f"use_{name}.ts")
    run("esbuild", f"use_{name}.ts", "--bundle", "--platform=node", "--format=esm", f"--outfile=use_{name}.js")
    return run("node", f"use_{name}.js", BASE_URL=base_url)


def test_a_client_of_hey_api_works(run: Tool, directory: Path, base_url: str) -> None:
    run("openapi-ts", "--input", "openapi.json", "--output", "hey-api", "--client", "@hey-api/client-fetch")

    assert use(run, directory, "hey_api", base_url) == "used\n"


def test_a_client_of_orval_works(run: Tool, directory: Path, base_url: str) -> None:
    output = {"target": "./orval.ts", "client": "fetch", "mode": "single", "baseUrl": base_url}
    configuration = {"orders": {"input": {"target": "./openapi.json"}, "output": output}}
    (directory / "orval.config.cjs").write_text(f"module.exports = {json.dumps(configuration)}")
    run("orval", "--config", "orval.config.cjs")

    assert use(run, directory, "orval", base_url) == "used\n"


def test_a_client_of_openapi_python_client_works(run: Tool, directory: Path, base_url: str) -> None:
    package = ["--output-path", "order_service_client", "--meta", "none"]
    run("openapi-python-client", "generate", "--path", "openapi.json", *package)

    program = str(HERE / "use" / "python_client.py")
    assert run("python", program, BASE_URL=base_url, PYTHONPATH=str(directory)) == "used\n"
