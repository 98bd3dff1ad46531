"""The real gunicorn with one worker, so that everybody shares it, bare and behind the real nginx."""

from collections.abc import Iterator

import pytest
from flask import Flask

from tests.hostile.probe import Target
from tests.nginx.conftest import nginx_without_service
from tests.support.servers import GUNICORN, free_port, running

SETTINGS = {"WEB_CONCURRENCY": "1", "LOG_LEVEL": "warning"}


@pytest.fixture(scope="session")
def database_url(postgresql_url: str) -> str:
    return postgresql_url


@pytest.fixture(scope="module", params=["bare", "behind nginx"])
def target(request: pytest.FixtureRequest, app: Flask, database_url: str) -> Iterator[Target]:
    settings = SETTINGS | {"DATABASE_URL": database_url}
    if request.param == "bare":
        port = free_port()
        with running(*GUNICORN, port=port, PORT=str(port), **settings) as service:
            yield Target(service)
    else:
        with nginx_without_service() as nginx:
            socket = f"unix:{nginx.process.args[4]}/gunicorn.sock"
            with running(*GUNICORN, port=nginx.port, BIND=socket, **settings) as service:
                yield Target(service)
