"""The console's page and files: what is served, how it is cached, and under which policy."""

import gzip
import re

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from app.config import ROOT
from tests.support.marks import on_sqlite

BUILT = ROOT / "app" / "static" / "console"
FILES = sorted(path.name for path in BUILT.iterdir() if path.name not in ("manifest.json", "licenses.txt"))
LIMIT = 150 * 1000  # bytes of everything that the browser loads, compressed

pytestmark = on_sqlite


def test_the_page_loads_only_files_that_are_served(client: FlaskClient) -> None:
    page = client.get("/console")

    addresses = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert page.status_code == 200 and page.mimetype == "text/html"
    assert {address.rpartition(".")[2] for address in addresses} == {"css", "js", "woff2"}
    for address in addresses:
        assert client.get(address, buffered=True).status_code == 200, address


def test_the_page_allows_no_inline_script_or_style_and_no_other_origin(client: FlaskClient) -> None:
    page = client.get("/console")

    policies = page.headers.getlist("Content-Security-Policy")
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0] and "frame-ancestors 'none'" in policies[0]
    assert not re.search("unsafe|https?:|data:", policies[0])
    assert not re.search(r"<style| style=|<script[^>]*>[^<]", page.text)
    assert page.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_cached_for_good_because_its_name_has_a_hash_of_its_content(client: FlaskClient, name: str) -> None:
    response = client.get(f"/console/{name}", buffered=True)

    assert re.fullmatch(r"[\w-]+-[\w-]{8}\.(js|css|woff2|svg)", name)
    assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"


def test_the_page_itself_is_validated_before_each_use(client: FlaskClient) -> None:
    page = client.get("/console")

    assert page.headers["Cache-Control"] == "no-cache"
    assert client.get("/console", headers={"If-None-Match": page.headers["ETag"]}).status_code == 304


@pytest.mark.parametrize("name", ["manifest.json", "none.js", "../../config.py", "%2e%2e/start.js", ""])
def test_nothing_else_is_served(client: FlaskClient, name: str) -> None:
    response = client.get(f"/console/{name}")

    assert response.status_code == 404 and response.mimetype == "application/problem+json"


def test_everything_the_browser_loads_has_less_than_150_kb(client: FlaskClient) -> None:
    size = len(gzip.compress(client.get("/console").data))
    for name in FILES:
        response = client.get(f"/console/{name}", headers={"Accept-Encoding": "gzip"}, buffered=True)
        size += len(response.data)

    assert size < LIMIT


def test_the_licenses_of_what_the_console_contains_are_served(client: FlaskClient) -> None:
    licenses = client.get("/console/licenses.txt", buffered=True)

    assert licenses.mimetype == "text/plain"
    assert "SIL OPEN FONT LICENSE" in licenses.text and "Permission is hereby granted" in licenses.text


def test_the_console_needs_no_credentials_and_its_data_does(secure_app: Flask) -> None:
    client = secure_app.test_client()

    assert client.get("/console").status_code == 200
    assert client.get("/orders").status_code == 401


def test_the_console_can_be_switched_off(database_url: str) -> None:
    app = create_app({"DATABASE_URL": database_url, "AUTH": "off", "CONSOLE": "off"})

    assert app.test_client().get("/console").status_code == 404
    assert not any(rule.rule.startswith("/console") for rule in app.url_map.iter_rules())
    assert "/console" not in app.test_client().get("/docs").text
