"""The TypeScript client: its types are those of the API description, and its own tests pass against the service."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.clients.conftest import CUTS, Service, url_of
from tests.support.marks import on_sqlite
from tests.support.servers import ROOT
from tests.support.severing_proxy import severing_proxy

PACKAGE = ROOT / "clients" / "typescript"


def run(*command: str, **environment: str) -> str:
    """Run a command in the package; its output is shown if it fails."""
    program = shutil.which(command[0])
    assert program, f"{command[0]} is not installed: apt-get install nodejs npm"
    done = subprocess.run(
        [program, *command[1:]], cwd=PACKAGE, env=os.environ | environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_tests(*names: str, service: Service, **environment: str) -> None:
    files = [f"test/{name}.test.ts" for name in names]
    environment |= {"SERVICE_URL": service.url, "API_KEY": service.key, "CUSTOMER_TOKEN": service.customer_token}
    run("npm", "test", "--", *files, **environment)


@on_sqlite
def test_the_committed_types_are_those_of_the_api_description(service: Service, tmp_path: Path) -> None:
    description, generated = tmp_path / "openapi.json", tmp_path / "schema.ts"
    description.write_bytes(service.server.request("GET", "/openapi.json").body)

    run("npm", "run", "types", "--", str(description), "--output", str(generated))

    assert generated.read_text() == (PACKAGE / "src" / "schema.ts").read_text(), "Run make client-types."


def test_the_client_works_with_the_service(service: Service) -> None:
    names = [path.name.removesuffix(".test.ts") for path in sorted((PACKAGE / "test").glob("*.test.ts"))]

    run_tests(*(name for name in names if name != "severed"), service=service)


@on_sqlite
def test_the_first_program_of_the_readme_has_correct_types_and_works(service: Service) -> None:
    program = re.findall(r"```ts\n(.*?)```", (PACKAGE / "README.md").read_text(), re.DOTALL)[0]
    options = f'baseUrl: "{service.url}", token: "{service.key}"'
    (PACKAGE / "build").mkdir(exist_ok=True)
    (PACKAGE / "build" / "readme.ts").write_text(program.replace('baseUrl: "http://127.0.0.1:8000"', options))

    run("npm", "exec", "--", "tsc", "--strict", "--module", "nodenext", "--skipLibCheck", "build/readme.ts")
    output = run("node", "build/readme.js")

    assert re.search(r"^\d{6}-\w{8} pending 2500$\n^confirmed \[", output, re.MULTILINE), output


def test_severed_connections_neither_duplicate_nor_lose_anything(service: Service) -> None:
    with severing_proxy(service.server.port, cuts=CUTS) as proxy:
        run_tests("severed", service=service, PROXY_URL=url_of(proxy.port), INTENTS=str(CUTS // 2))

        assert proxy.severed >= CUTS
