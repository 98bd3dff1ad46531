"""PostgreSQL behind its own PgBouncer."""

from collections.abc import Iterator

import pytest
from sqlalchemy import make_url

from tests.pgbouncer.pooler import pooled_postgres


@pytest.fixture(scope="session")
def urls() -> Iterator[tuple[str, str]]:
    """The server through PgBouncer, and the server itself."""
    with pooled_postgres() as urls:
        yield urls


@pytest.fixture(scope="session")
def pooled_url(urls: tuple[str, str]) -> str:
    return urls[0]


@pytest.fixture(scope="session")
def server_url(urls: tuple[str, str]) -> str:
    """As psycopg takes it."""
    return make_url(urls[1]).set(drivername="postgresql").render_as_string(hide_password=False)
