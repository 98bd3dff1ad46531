"""The service as it runs in production: web server and worker, with authentication, on each database."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from app.models.principal import SCOPES
from tests.support.applications import Applications
from tests.support.credentials import (
    AUDIENCE,
    ISSUER,
    SECRET_KEY,
    SIGNING_KEY,
    api_key,
    public_pem,
    token,
)
from tests.support.servers import Server, running_supervisor

CUTS = int(os.environ.get("CUTS", "2000"))  # connections severed by a test


@dataclass(frozen=True)
class Service:
    """A running service, an API key with all scopes, and a token of the customer `c-1`."""

    server: Server
    key: str
    customer_token: str

    @property
    def url(self) -> str:
        return url_of(self.server.port)


def url_of(port: int) -> str:
    return f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def service(applications: Applications, database_url: str) -> Iterator[Service]:
    applications.migrated(database_url)
    key = api_key(applications.secure(database_url), *SCOPES, name="clients")
    settings = {
        "DATABASE_URL": database_url,
        "AUTH": "required",
        "SECRET_KEY": SECRET_KEY,
        "JWT_PUBLIC_KEY": public_pem(SIGNING_KEY),
        "JWT_ISSUER": ISSUER,
        "JWT_AUDIENCE": AUDIENCE,
        "RATE_LIMIT_CUSTOMERS": "0",
        "WEBHOOKS_ALLOW_PRIVATE": "1",
        "LOG_LEVEL": "error",
    }
    with running_supervisor(**settings) as server:
        yield Service(server, key, token())
