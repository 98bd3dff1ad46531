"""Licences of the service's packages, as they declare them and as docs/licenses.md lists them."""

import re
from importlib.metadata import PackageNotFoundError, metadata

from license_expression import get_spdx_licensing

from app.config import ROOT

PAGE = ROOT / "docs" / "licenses.md"
ROW = re.compile(r"^\| (\S+) \| (.+?) \| (.+?) \|$", re.MULTILINE)
SPDX = get_spdx_licensing()
# SPDX names of licences that packages declare under other names.
_DECLARED = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
}
# The licence files of these packages contain more than they declare.
_IN_THE_FILE = {
    "amqp": "BSD-3-Clause",
    "flask-sqlalchemy": "BSD-3-Clause",
    "itsdangerous": "BSD-3-Clause",
    "jinja2": "BSD-3-Clause",
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "vine": "BSD-3-Clause",
}


def documented_licenses() -> dict[str, str]:
    """The licence of each package in the page, as an SPDX expression."""
    rows = ROW.findall(PAGE.read_text())
    return {name: license_ for name, license_, _ in rows if name != "package"}


def declared_license(name: str) -> str | None:
    """The licence that an installed package declares, as an SPDX expression. None if it is not installed."""
    try:
        package = metadata(name)
    except PackageNotFoundError:
        return None
    classifiers = [
        text.rpartition(" :: ")[2] for text in package.get_all("Classifier", []) if text.startswith("License")
    ]
    declared = package.get("License-Expression") or _IN_THE_FILE.get(name) or package.get("License") or classifiers[0]
    return _DECLARED.get(declared, declared)


def is_spdx(expression: str) -> bool:
    return not SPDX.validate(expression).errors
