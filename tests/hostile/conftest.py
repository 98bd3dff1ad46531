"""The real gunicorn with one worker, which all clients share, directly and behind the real nginx."""

from collections.abc import Iterator

import pytest

from tests.hostile.probe import Target
from tests.nginx.conftest import nginx_without_service
from tests.support.databases import migrated
from tests.support.servers import GUNICORN, free_port, running

SETTINGS = {"WEB_CONCURRENCY": "1", "LOG_LEVEL": "warning"}


@pytest.fixture(scope="module", params=["bare", "behind nginx"])
def target(request: pytest.FixtureRequest, postgresql_url: str) -> Iterator[Target]:
    settings = SETTINGS | {"DATABASE_URL": migrated(postgresql_url)}
    if request.param == "bare":
        port = free_port()
        with running(*GUNICORN, port=port, PORT=str(port), **settings) as service:
            yield Target(service)
    else:
        with nginx_without_service() as nginx:
            socket = f"unix:{nginx.process.args[4]}/gunicorn.sock"
            with running(*GUNICORN, port=nginx.port, BIND=socket, **settings) as service:
                yield Target(service)
