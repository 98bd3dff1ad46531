"""The locked requirements: every package with its version, its hashes, and the packages that require it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.config import ROOT

SERVICE = ROOT / "requirements.txt"
BROKER = ROOT / "requirements-broker.txt"  # an extra of the service
TRACING = ROOT / "requirements-tracing.txt"  # another one
RUN_TIME = (SERVICE, BROKER, TRACING)
# The format of `uv pip compile`: the requirement, its hashes, and after "# via" the packages that require it.
_ENTRY = re.compile(r"^(\S.*?) \\\n((?:    --hash=\S+(?: \\)?\n)+)((?:    #.*\n)+)", re.MULTILINE)


@dataclass(frozen=True)
class Package:
    """A locked package. `required_by` has names of packages, and of files such as requirements.in."""

    name: str
    version: str
    hashes: tuple[str, ...]  # algorithm:digest
    required_by: tuple[str, ...]
    is_installable: bool  # on this system and Python


def locked_packages(*files: Path) -> dict[str, Package]:
    """The packages of the files by name; the first file that locks a package wins."""
    packages: dict[str, Package] = {}
    for file in files:
        for package in _packages(file.read_text()):
            packages.setdefault(package.name, package)
    return packages


def _packages(text: str) -> Iterator[Package]:
    for line, hashes, via in _ENTRY.findall(text):
        requirement = Requirement(line)
        [pin] = requirement.specifier
        yield Package(
            name=canonicalize_name(requirement.name),
            version=pin.version,
            hashes=tuple(re.findall(r"--hash=(\S+)", hashes)),
            required_by=tuple(re.findall(r"^    # (?:via |  )(?:-[rc] )?(\S+)$", via, re.MULTILINE)),
            is_installable=requirement.marker is None or requirement.marker.evaluate(),
        )
