"""Databases of tests that kill their writers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.databases import migrated
from tests.support.postgres import private_postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A durable database of the newest revision."""
    if request.param == "sqlite":
        yield migrated(f"sqlite:///{tmp_path}/orders.db")
    else:
        with private_postgres(durable=True) as url:
            yield migrated(url)
