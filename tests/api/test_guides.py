"""The examples of the guides in curl, JavaScript and Python print what the guide says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.conftest import TOOLS
from tests.support.servers import ROOT, TIMEOUT, Server

GUIDES = ("errors", "idempotency", "money", "paging", "testing")
COMMANDS = {"sh": ["bash"], "js": [str(TOOLS / "node")], "python": [sys.executable]}
SUFFIXES = {"sh": "sh", "js": "mjs", "python": "py"}


def block_in(guide: str, language: str) -> str:
    text = (ROOT / "docs" / f"{guide}.md").read_text()
    [block] = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return str(block)


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("language", COMMANDS)
def test_an_example_prints_what_its_guide_says(guide: str, language: str, service: Server, tmp_path: Path) -> None:
    assert shutil.which("curl"), "curl is not installed: apt-get install curl"
    program = tmp_path / f"example.{SUFFIXES[language]}"
    program.write_text(block_in(guide, language).replace("127.0.0.1:8000", f"127.0.0.1:{service.port}"))

    command = [*COMMANDS[language], str(program)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, cwd=tmp_path)

    assert (ended.stdout, ended.stderr) == (block_in(guide, "text"), "")
