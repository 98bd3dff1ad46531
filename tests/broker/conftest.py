"""Real brokers, each with one of the databases."""

from collections.abc import Iterator

import pytest

from tests.broker.brokers import BROKERS, Broker

DATABASES = {"amqp": "postgresql_url", "redis": "sqlite_url"}


# With two test processes (make broker-test), each has one of the brokers.
@pytest.fixture(scope="session", params=[pytest.param(kind, marks=pytest.mark.xdist_group(kind)) for kind in BROKERS])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    with BROKERS[request.param]() as server:
        yield Broker(request.param, server)


@pytest.fixture(scope="session")
def database_url(request: pytest.FixtureRequest, broker: Broker) -> str:
    url: str = request.getfixturevalue(DATABASES[broker.kind])
    return url
