"""The service with a prefix: every link has it, whether or not the proxy removes it from the path."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app import create_app
from app.config import StartupError, load_config
from app.db.engine import db
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL, slug

pytestmark = on_sqlite

PREFIX = "/shop/api"
REMOVED = {"X-Forwarded-Prefix": PREFIX}
PROBES = ("/healthz", "/readyz", "/metrics")


@pytest.fixture
def client(app: Flask, database_url: str) -> Iterator[FlaskClient]:
    prefixed = create_app({"DATABASE_URL": database_url, "AUTH": "off", "TESTING": True, "URL_PREFIX": f"{PREFIX}/"})
    yield prefixed.test_client()
    with prefixed.app_context():
        db.engine.dispose()


@pytest.fixture(params=["kept", "removed", "removed by two proxies"])
def send(request: pytest.FixtureRequest, client: FlaskClient) -> Callable[..., TestResponse]:
    """Sends a request to a public path, through a proxy that keeps the prefix or removes it."""

    def send(method: str, path: str, **options: Any) -> TestResponse:
        assert path.startswith(f"{PREFIX}/")
        if request.param == "kept":
            return client.open(path, method=method, buffered=True, **options)
        forwarded = REMOVED if request.param == "removed" else {"X-Forwarded-Prefix": f"/other, {PREFIX}/"}
        return client.open(path.removeprefix(PREFIX), method=method, buffered=True, headers=forwarded, **options)

    return send


def test_every_link_carries_the_prefix(send: Callable[..., TestResponse]) -> None:
    created = [send("POST", f"{PREFIX}/orders", json=MINIMAL) for _ in range(2)][-1]
    read = send("GET", created.headers["Location"])
    page = send("GET", f"{PREFIX}/orders?limit=1")
    [next_path] = re.findall("<(.*)>", page.headers["Link"])
    missing = send("GET", f"{PREFIX}/orders/x")
    batch = send("POST", f"{PREFIX}/orders/batch", json={"orders": [{}]})
    root = send("GET", f"{PREFIX}/")

    assert read.json == created.json
    assert send("GET", next_path).json["orders"][0]["id"] != page.json["orders"][0]["id"]
    assert missing.json["instance"] == f"{PREFIX}/orders/x"
    assert (root.status_code, root.headers["Location"]) == (302, f"{PREFIX}/docs")
    for type_ in (missing.json["type"], batch.json["results"][0]["problem"]["type"]):
        assert send("GET", type_).status_code == 200


def test_the_pages_load_their_files_below_the_prefix(send: Callable[..., TestResponse]) -> None:
    for page in (f"{PREFIX}/docs", f"{PREFIX}/problems", f"{PREFIX}/problems/not-found"):
        addresses = re.findall(r'(?:src|href)="([^"]*)"', send("GET", page).text)
        assert addresses
        assert {send("GET", address).status_code for address in addresses} == {200}
    assert 'url: "openapi.json"' in send("GET", f"{PREFIX}/docs/start.js").text  # relative to the page


def test_the_guides_and_the_collection_name_the_prefix_of_their_application(
    send: Callable[..., TestResponse], app: Flask
) -> None:
    """The process caches its pages for each prefix."""
    for path in ("/docs/guides/webhooks", "/docs/collection.json"):
        without = app.test_client().get(path).text
        assert PREFIX in send("GET", PREFIX + path).text
        assert PREFIX not in without


def test_the_description_names_the_prefix_as_server(send: Callable[..., TestResponse]) -> None:
    description = send("GET", f"{PREFIX}/openapi.json").json

    assert [server["url"] for server in description["servers"]] == [PREFIX]
    types = set(re.findall(r'"type": "(/[^"]*)"', json.dumps(description)))
    assert types and all(type_.startswith(f"{PREFIX}/problems/") for type_ in types - {"/problems/order-not-found"})


OUTSIDE = [
    "/orders", "/", "/docs", "/problems/not-found", "/shop", "/shop/apiorders", "/shop/api2/orders", "/SHOP/API/orders",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_outside_the_prefix_is_404(client: FlaskClient, path: str) -> None:
    assert slug(client.get(path))[0] == 404


@pytest.mark.parametrize("path", [f"{PREFIX}{PREFIX}/orders", f"{PREFIX}//orders", f"{PREFIX}{PREFIX}/metrics"])
@pytest.mark.parametrize("headers", [{}, REMOVED], ids=["kept", "removed"])
def test_the_prefix_is_removed_only_once(client: FlaskClient, path: str, headers: dict[str, str]) -> None:
    if headers:
        path = path.removeprefix(PREFIX)  # /shop/api/metrics, as a proxy leaves it of /shop/api/shop/api/metrics

    response = client.get("/", headers=headers, environ_overrides={"PATH_INFO": path})

    assert response.status_code == 404


@pytest.mark.parametrize("path", PROBES)
def test_probes_are_answered_without_the_prefix_too(client: FlaskClient, path: str) -> None:
    assert client.get(path).status_code == client.get(PREFIX + path).status_code == 200


def test_the_prefix_alone_is_the_root_path(client: FlaskClient) -> None:
    assert client.get(PREFIX).headers["Location"] == f"{PREFIX}/docs"


def test_without_the_setting_no_header_adds_a_prefix(app: Flask) -> None:
    response = app.test_client().post("/orders", json=MINIMAL, headers=REMOVED)

    assert response.headers["Location"] == f"/orders/{response.json['id']}"


@pytest.mark.parametrize("prefix", ["shop", "/shop//api", "/../x", "/a/.", "/a b", "/a?b", "/%2F", "http://a/b", "/ü"])
def test_an_invalid_prefix_stops_the_start(database_url: str, prefix: str) -> None:
    with pytest.raises(StartupError, match="URL_PREFIX"):
        load_config({"URL_PREFIX": prefix})


def test_a_script_name_in_the_environment_stops_the_start(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPT_NAME", "/shop")

    with pytest.raises(StartupError, match="Set URL_PREFIX instead"):
        load_config()
