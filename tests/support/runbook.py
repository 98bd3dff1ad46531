"""The commands of docs/operations.md."""

import re

from tests.support.servers import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text()


def blocks(heading: str) -> list[str]:
    """The commands below a heading, each block as a script."""
    [section] = re.findall(rf"^#+ {heading}\n(.*?)(?=^#+ |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
