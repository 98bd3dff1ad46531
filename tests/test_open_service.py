"""Without authentication, the service accepts local requests only; with it, it needs a way to authenticate."""

import http.client
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from app.config import StartupError, load_config
from app.db.engine import db
from app.http.auth import check_before_serving
from tests.support.commands import run_python
from tests.support.credentials import api_key, bearer
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL, slug
from tests.support.servers import GUNICORN, SERVERS, free_port, running

pytestmark = on_sqlite


def test_on_another_address_than_loopback_it_does_not_start(app: Flask, database_url: str) -> None:
    ended = run_python(*GUNICORN, WEB_CONCURRENCY="1", AUTH="off", HOST="0.0.0.0", DATABASE_URL=database_url)

    assert ended.returncode != 0
    assert ended.stderr.count("AUTH is off and HOST is '0.0.0.0'") == 1
    assert "AUTH_ALLOW_OPEN=1" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.0.0.2", "::1", "0:0::1"])
def test_every_loopback_address_is_recognized(database_url: str, host: str) -> None:
    assert load_config({"AUTH": "off", "HOST": host, "AUTH_ALLOW_OPEN": "0"})["AUTH"] == "off"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "orders.example", "127.0.0.1.example"])
def test_no_other_address_is_taken_for_loopback(database_url: str, host: str) -> None:
    with pytest.raises(StartupError, match="AUTH is off"):
        load_config({"AUTH": "off", "HOST": host, "AUTH_ALLOW_OPEN": "0"})

    assert load_config({"AUTH": "off", "HOST": host, "AUTH_ALLOW_OPEN": "1"})["AUTH"] == "off"
    assert load_config({"AUTH": "required", "HOST": host})["AUTH"] == "required"


def test_without_any_api_key_the_start_explains_how_to_create_one(app: Flask, database_url: str) -> None:
    api_key(app, "orders:read", expires_in=timedelta(seconds=-1))  # an expired key does not count

    ended = run_python(*SERVERS["flask"], AUTH="required", DATABASE_URL=database_url)

    assert ended.returncode != 0
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("order service: ")]
    assert "flask api-keys create --name shop --scope orders:write" in line and "Traceback" not in ended.stderr


def test_the_command_in_that_message_creates_a_valid_key(app: Flask, database_url: str) -> None:
    secure_app = create_app({"DATABASE_URL": database_url, "AUTH": "required", "TESTING": True})
    with secure_app.app_context(), pytest.raises(StartupError) as refused:
        check_before_serving(secure_app)
    [command] = re.findall("flask (api-keys create[^`]*)", str(refused.value))

    created = secure_app.test_cli_runner().invoke(args=command.split())
    with secure_app.app_context():
        check_before_serving(secure_app)
    key, client = bearer(created.stdout.splitlines()[-1]), secure_app.test_client()
    statuses = [client.post("/orders", json=MINIMAL, headers=headers).status_code for headers in (key, {})]
    with secure_app.app_context():
        db.engine.dispose()

    assert statuses == [201, 401]


def test_bound_to_another_address_by_a_gunicorn_option_the_service_rejects_and_logs_remote_clients(
    app: Flask, database_url: str
) -> None:
    """gunicorn reads -b after the settings are checked. 127.0.0.2 stands for another machine."""
    port = free_port()
    settings = {"WEB_CONCURRENCY": "1", "DATABASE_URL": database_url}
    with running(*GUNICORN, "-b", f"0.0.0.0:{port}", port=port, **settings) as server:
        own = server.request("GET", "/orders").status
        with closing(http.client.HTTPConnection("127.0.0.2", port, source_address=("127.0.0.2", 0))) as stranger:
            stranger.request("GET", "/orders", headers={"Host": "localhost", "X-Forwarded-For": "127.0.0.1"})
            refused = stranger.getresponse().status
        lines = server.log_lines(awaited='"denied"')

    assert (own, refused) == (200, 403)
    [warning] = [line for line in lines if line["event"] == "authentication is off"]
    assert (warning["level"], warning["open_to"]) == ("warning", "this machine only")
    [denied] = [line for line in lines if line["event"] == "denied"]
    assert "own machine only" in denied["reason"]


REMOTE_CLIENTS: dict[str, dict[str, Any]] = {
    "another address": {"environ_base": {"REMOTE_ADDR": "192.0.2.7"}},
    "another address, IPv6": {"environ_base": {"REMOTE_ADDR": "2001:db8::7"}},
    "through a proxy here": {"headers": {"X-Forwarded-For": "192.0.2.7"}},
    "through two proxies": {"headers": {"X-Forwarded-For": "192.0.2.7, 127.0.0.1"}},
    "through a socket file": {"environ_base": {"REMOTE_ADDR": ""}, "headers": {"X-Forwarded-For": "192.0.2.7"}},
    "no address": {"headers": {"X-Forwarded-For": "unknown"}},
    "a name that was made to lead here": {"headers": {"Host": "evil.example:8000"}},
    "a name that looks local": {"headers": {"Host": "127.0.0.1.evil.example"}},
    "a local name with more": {"headers": {"Host": "localhost:8000@evil.example"}},
    "a name below localhost": {"headers": {"Host": "evil.localhost.example"}},
    "two dots": {"headers": {"Host": "localhost.."}},
    "an IPv6 address of another machine": {"headers": {"Host": "[2001:db8::1]"}},
    "no port": {"headers": {"Host": "localhost:x"}},
    "half an IPv6 address": {"headers": {"Host": "[::1"}},
    "a page of another site": {"headers": {"Origin": "https://evil.example"}},
    "a page of a site that looks local": {"headers": {"Origin": "http://localhost:8000@evil.example"}},
    "a page in a sandbox": {"headers": {"Origin": "null"}},
}
LOCAL_CLIENTS: dict[str, dict[str, Any]] = {
    "here": {},
    "by number": {"headers": {"Host": "127.0.0.1:8000"}},
    "IPv6": {"environ_base": {"REMOTE_ADDR": "::1"}, "headers": {"Host": "[::1]:8000"}},
    "IPv4 as IPv6": {"environ_base": {"REMOTE_ADDR": "::ffff:127.0.0.1"}, "headers": {"Host": "[::ffff:127.0.0.1]"}},
    "upper case": {"headers": {"Host": "LOCALHOST"}},
    "upper case, with a port": {"headers": {"Host": "LocalHost:8000"}},
    "absolute name": {"headers": {"Host": "localhost."}},
    "absolute name, with a port": {"headers": {"Host": "localhost.:8000"}},
    "an empty port": {"headers": {"Host": "localhost:"}},
    "IPv6 in full": {"headers": {"Host": "[0:0:0:0:0:0:0:1]:8000"}},
    "another loopback address": {"headers": {"Host": "127.0.0.53"}},
    "a page from here": {"headers": {"Origin": "http://localhost:3000"}},
    "a page from here, by number": {"headers": {"Origin": "http://127.0.0.1:8000"}},
    "through a proxy, from here": {"headers": {"X-Forwarded-For": "127.0.0.1"}},
    "through a socket file, from here": {"environ_base": {"REMOTE_ADDR": ""}, "headers": {"X-Forwarded-For": "::1"}},
}


@pytest.mark.parametrize("request_", REMOTE_CLIENTS.values(), ids=REMOTE_CLIENTS)
def test_a_remote_client_is_rejected(client: FlaskClient, request_: dict[str, Any]) -> None:
    assert slug(client.get("/orders", **request_)) == (403, "forbidden")
    assert client.get("/healthz", **request_).status_code == 200


@pytest.mark.parametrize("request_", LOCAL_CLIENTS.values(), ids=LOCAL_CLIENTS)
def test_a_local_client_has_all_scopes(client: FlaskClient, request_: dict[str, Any]) -> None:
    assert client.get("/orders", **request_).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_a_page_of_another_site_cannot_change_an_order(client: FlaskClient, origin: str) -> None:
    path = client.post("/orders", json=MINIMAL).headers["Location"]

    refused = client.post(f"{path}/confirm", headers={"Origin": origin})  # a form sends it without a preflight request

    assert slug(refused) == (403, "forbidden")
    assert "CORS_ORIGINS" in refused.json["detail"]
    assert client.get(path).json["version"] == 1


def test_a_page_of_a_site_in_cors_origins_is_accepted(app: Flask, database_url: str) -> None:
    origins = {"CORS_ORIGINS": "https://shop.example"}
    with closing_app({"DATABASE_URL": database_url, "AUTH": "off", "TESTING": True} | origins) as shop:
        statuses = [
            shop.test_client().get("/orders", headers={"Origin": f"https://{host}"}).status_code
            for host in ("shop.example", "SHOP.example:443", "other.example")
        ]

    assert statuses == [200, 200, 403]


@contextmanager
def closing_app(settings: dict[str, Any]) -> Iterator[Flask]:
    app = create_app(settings)
    yield app
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def open_client(app: Flask, database_url: str) -> Iterator[FlaskClient]:
    settings = {"DATABASE_URL": database_url, "AUTH": "off", "AUTH_ALLOW_OPEN": "1", "TESTING": True}
    with closing_app(settings) as open_app:
        yield open_app.test_client()


@pytest.mark.parametrize("request_", REMOTE_CLIENTS.values(), ids=REMOTE_CLIENTS)
def test_with_auth_allow_open_every_client_has_all_scopes(open_client: FlaskClient, request_: dict[str, Any]) -> None:
    assert open_client.get("/orders", **request_).status_code == 200
