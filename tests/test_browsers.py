"""Response headers for browsers: CORS and security headers."""

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.config import StartupError, load_config
from tests.support.credentials import app_with_auth, bearer, token
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL

pytestmark = on_sqlite

SHOP = "https://shop.example"
FOREIGN = [
    "https://evil.example", "http://shop.example", "https://shop.example:8443", "https://shop.example.evil.example",
    "https://evilshop.example", "https://shop.example:80", "https://shop.example/", "null", "*", "", f"{SHOP}, {SHOP}",
]  # fmt: skip
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,idempotency-key"}


@pytest.fixture
def web(app: Flask, database_url: str) -> Iterator[FlaskClient]:
    with app_with_auth(database_url, CORS_ORIGINS=f"{SHOP}, http://127.0.0.1:3000") as secure_app:
        yield secure_app.test_client()


def cors(response: Any) -> dict[str, str]:
    prefix = "Access-Control-"
    return {name.removeprefix(prefix): value for name, value in response.headers if name.startswith(prefix)}


def words(text: str) -> set[str]:
    return {word.strip().lower() for word in text.split(",")}


@pytest.mark.parametrize("origin", [SHOP, "http://127.0.0.1:3000"])
@pytest.mark.parametrize(
    "path", ["/orders", "/orders/batch", "/orders/x/holds/review", "/customers/c/personal-data", "/x"]
)
def test_a_preflight_of_an_allowed_origin_succeeds_and_can_be_cached(web: FlaskClient, origin: str, path: str) -> None:
    response = web.options(path, headers={"Origin": origin} | PREFLIGHT)

    headers = cors(response)
    assert (response.status_code, response.data) == (204, b"")
    assert headers["Allow-Origin"] == origin
    assert {"get", "head", "post", "put", "patch", "delete"} == words(headers["Allow-Methods"])
    assert {"authorization", "content-type", "idempotency-key", "if-match", "if-none-match"} <= words(
        headers["Allow-Headers"]
    )
    assert int(headers["Max-Age"]) >= 600
    assert "origin" in words(response.headers["Vary"])
    assert "Allow-Credentials" not in headers


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("method", ["OPTIONS", "GET", "POST"])
def test_another_origin_gets_no_cors_headers(web: FlaskClient, origin: str, method: str) -> None:
    response = web.open("/orders", method=method, headers={"Origin": origin} | PREFLIGHT | bearer(token()))

    assert cors(response) == {}
    assert "origin" in words(response.headers["Vary"])  # a cache must not return the shop's response


SPELLINGS = {
    "https://Shop.Example": "https://shop.example",
    "HTTPS://shop.example": "https://shop.example",
    "https://a.example:443": "https://a.example",
    "http://a.example:80": "http://a.example",
    "http://a.example:443": "http://a.example:443",
    "https://A.example:08443": "https://a.example:8443",
    "http://[0:0::1]:3000": "http://[::1]:3000",
    "https://xn--bcher-kva.example": "https://xn--bcher-kva.example",
}


@pytest.mark.parametrize(("configured", "sent"), SPELLINGS.items(), ids=SPELLINGS)
def test_an_origin_matches_in_every_notation(app: Flask, database_url: str, configured: str, sent: str) -> None:
    with app_with_auth(database_url, CORS_ORIGINS=configured) as secure_app:
        client = secure_app.test_client()
        headers = [cors(client.get("/orders", headers={"Origin": origin})) for origin in (sent, configured)]

    assert [one["Allow-Origin"] for one in headers] == [sent, configured]


def test_headers_of_tracing_and_those_configured_are_allowed(app: Flask, database_url: str) -> None:
    with app_with_auth(database_url, CORS_ORIGINS=SHOP, CORS_HEADERS="X-Tenant, x-device") as secure_app:
        response = secure_app.test_client().options("/orders", headers={"Origin": SHOP} | PREFLIGHT)

    allowed = words(cors(response)["Allow-Headers"])
    assert {"traceparent", "tracestate", "baggage", "sentry-trace", "authorization", "x-tenant", "x-device"} <= allowed


@pytest.mark.parametrize("names", ["*", "X Tenant", "X-Tenant\r\nX: 1", "X-Tenant: 1", "é"])
def test_an_invalid_header_name_stops_the_start(database_url: str, names: str) -> None:
    with pytest.raises(StartupError, match="CORS_HEADERS"):
        load_config({"CORS_HEADERS": names})


def test_the_headers_a_frontend_needs_are_exposed(web: FlaskClient) -> None:
    headers = {"Origin": SHOP, "Idempotency-Key": "k-1"} | bearer(token())
    web.post("/orders", json=MINIMAL, headers=headers)

    response = web.post("/orders", json=MINIMAL, headers=headers)

    headers = cors(response)
    assert response.status_code == 201 and headers["Allow-Origin"] == SHOP
    needed = {"ETag", "Location", "Idempotent-Replayed", "X-Request-Id"}
    assert needed <= set(response.headers.keys())
    others = {"dry-run", "link", "retry-after", "ratelimit", "ratelimit-policy"}
    assert words(", ".join(needed)) | others <= words(headers["Expose-Headers"])


def errors(client: FlaskClient, origin: dict[str, str]) -> Iterator[Any]:
    """An error of every kind."""
    own = origin | bearer(token())
    yield client.get("/orders", headers=origin)
    yield client.get("/orders", headers=origin | bearer("garbage"))
    yield client.get("/orders", headers=origin | bearer(token(scope="")))
    yield client.get("/orders/x", headers=own)
    yield client.get("/nothing", headers=own)
    yield client.put("/orders", headers=own)
    yield client.post("/orders", data=b"{", content_type="application/json", headers=own)
    yield client.post("/orders", data=b" " * 70_000, content_type="application/json", headers=own)
    yield client.post("/orders", data=b"x", headers=own)
    yield client.post("/orders", json={}, headers=own)


# For browsers and caches, or readable without being exposed (WHATWG Fetch §2.2.2).
NOT_EXPOSED = {
    "cache-control", "content-length", "content-security-policy", "content-type", "referrer-policy", "vary",
    "x-content-type-options",
}  # fmt: skip


def test_a_frontend_can_also_read_errors(web: FlaskClient) -> None:
    statuses = []
    for response in errors(web, {"Origin": SHOP}):
        statuses.append(response.status_code)
        assert cors(response)["Allow-Origin"] == SHOP
        names = {name.lower() for name in response.headers.keys() if not name.startswith("Access-Control-")}
        assert names - NOT_EXPOSED <= words(cors(response)["Expose-Headers"])

    assert statuses == [401, 401, 403, 404, 404, 405, 400, 413, 415, 400]


def test_a_frontend_can_read_the_error_of_an_overloaded_service(
    web: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(web.application.config, "PROPAGATE_EXCEPTIONS", False)
    monkeypatch.setattr("app.services.order_queries.list_orders", lambda *_, **__: 1 / 0)

    response = web.get("/orders", headers={"Origin": SHOP} | bearer(token()))

    assert (response.status_code, cors(response)["Allow-Origin"]) == (500, SHOP)


def test_without_allowed_origins_no_response_has_cors_headers(secure_client: FlaskClient) -> None:
    responses = [
        secure_client.options("/orders", headers={"Origin": SHOP} | PREFLIGHT),
        secure_client.get("/orders", headers={"Origin": SHOP} | bearer(token())),
    ]

    assert [cors(response) for response in responses] == [{}, {}]


@pytest.mark.parametrize(
    "origins",
    ["*", "https://*", "https://*.a", "shop.example", f"{SHOP}/", f"{SHOP}/a", "null", "https://bücher.example",
     "https://ada@shop.example", f"{SHOP}:99999", "https://[::g]", f"{SHOP}?a", f"{SHOP}:"],
)  # fmt: skip
def test_an_invalid_or_wildcard_origin_stops_the_start(database_url: str, origins: str) -> None:
    with pytest.raises(StartupError, match="CORS_ORIGINS"):
        load_config({"CORS_ORIGINS": origins})


def test_every_response_has_security_headers(web: FlaskClient) -> None:
    paths = ("/healthz", "/orders", "/metrics", "/openapi.json", "/docs", "/docs/start.js", "/problems")
    responses = [web.get(path, headers=bearer(token()), buffered=True) for path in paths]
    responses += [web.options("/orders", headers={"Origin": SHOP} | PREFLIGHT), *errors(web, {})]

    for response in responses:
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "script-src 'self'" in policy or response.mimetype != "text/html"
        assert "unsafe-inline" not in policy.partition("style-src")[0]
        assert "Server" not in response.headers and "Set-Cookie" not in response.headers
