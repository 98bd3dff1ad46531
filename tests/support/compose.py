"""compose.yaml as Compose reads it."""

import re
from typing import Any

import yaml

from tests.support.servers import ROOT

TEXT = (ROOT / "compose.yaml").read_text()


def interpolated(text: str) -> str:
    """The file with its variables replaced: `${NAME:-default}` is the default, `${NAME:?message}` some value."""
    return re.sub(r"\$\{\w+:([-?])([^}]*)\}", lambda match: match[2] if match[1] == "-" else "secret", text)


COMPOSE: dict[str, Any] = yaml.safe_load(interpolated(TEXT))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
