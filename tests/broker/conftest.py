"""Real brokers, and a database for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker.brokers import BROKERS, Broker
from tests.support.databases import migrated, new_database


@pytest.fixture(scope="session", params=list(BROKERS))
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """Each broker in turn."""
    with BROKERS[request.param]() as server:
        yield Broker(request.param, server)


@pytest.fixture
def url(request: pytest.FixtureRequest, broker: Broker, tmp_path: Path) -> str:
    """A new database: each broker is tested with one of the two."""
    if broker.kind == "redis":
        return migrated(f"sqlite:///{tmp_path}/orders.db")
    return migrated(new_database(request.getfixturevalue("postgresql_url"), "broker"))
