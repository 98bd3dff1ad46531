"""The commands of docs/operations.md, and how to run them without an installed machine."""

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping

from tests.support.servers import ROOT, environment

PAGE = (ROOT / "docs" / "operations.md").read_text()
FLASK = f"{sys.executable} -m flask --app wsgi"
_STAND_INS = {"sqlite3": "tests.support.sqlite_shell", "curl": "tests.support.curl"}


def section(heading: str) -> str:
    """The text below a heading, up to the next one."""
    [text] = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return str(text)


def blocks(heading: str) -> list[str]:
    """The commands below a heading, each block as a script."""
    return re.findall(r"^```sh\n(.*?)^```", section(heading), re.DOTALL | re.MULTILINE)


def inline_commands(program: str) -> list[str]:
    """The commands in sentences and tables that begin with the program."""
    return re.findall(rf"`({re.escape(program)}(?: [^`]*)?)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))


def rows(heading: str) -> list[list[str]]:
    """The cells of a table, without its head."""
    lines = [line for line in section(heading).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def run(commands: str, replaced: Mapping[str, str], **settings: str) -> str:
    """The output of commands in a shell in the project's directory, with some texts of the page replaced."""
    texts = {"order-service ": f"{FLASK} ", ".venv/bin/flask": FLASK}
    texts |= {
        f"{name} ": f"{sys.executable} -m {module} " for name, module in _STAND_INS.items() if not shutil.which(name)
    }
    for text, replacement in (texts | dict(replaced)).items():
        commands = commands.replace(text, replacement)
    environ = environment(**{"LOG_LEVEL": "error"} | settings)
    done = subprocess.run(["sh", "-ec", commands], cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout
