"""Authorization: every route of the URL map with every kind of credentials."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app import create_app
from app.config import StartupError
from app.http import auth
from app.models.principal import CUSTOMER_SCOPES, SCOPES
from tests.support.credentials import api_key, bearer, token
from tests.support.description import api_description
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL, slug

ABSENT = "0199c7a4-0000-7000-8000-000000000000"
LINES = {"items": [{"line": 1, "quantity": 1}]}
CUSTOMER = "orders:read orders:write privacy:export privacy:erase"  # all scopes that a customer can have


@dataclass(frozen=True)
class Route:
    """The scope of a route (None: public), and a request that succeeds after the actions of `after` on the order."""

    scope: str | None
    body: Any = None
    success: int = 200
    after: tuple[tuple[str, Any], ...] = ()


PRICED = MINIMAL | {"currency": "EUR", "items": [{"item_id": "sku-1", "quantity": 2, "unit_price": 1}]}
CONFIRMED = (("confirm", None),)
SENT = (*CONFIRMED, ("fulfillments", LINES))
EXPECTED = (*SENT, ("returns", LINES | {"status": "expected"}))
CANCELLED = (("cancel", {"reason": "customer"}),)

ROUTES = {
    ("POST", "/orders"): Route("orders:write", MINIMAL, 201),
    ("GET", "/orders"): Route("orders:read"),
    ("GET", "/orders/by-ref/<characters:external_ref>"): Route("orders:read", success=404),
    ("GET", "/orders/export"): Route("orders:read"),
    ("GET", "/orders/search"): Route("orders:read"),
    ("POST", "/orders/batch"): Route("orders:write", {"orders": [MINIMAL]}),
    ("GET", "/orders/<order_id>"): Route("orders:read"),
    ("PATCH", "/orders/<order_id>"): Route("orders:write", {"note": "n"}),
    ("GET", "/orders/<order_id>/history"): Route("orders:read"),
    ("GET", "/orders/<order_id>/events"): Route("orders:read"),
    ("GET", "/events"): Route("events:read"),
    ("POST", "/orders/actions"): Route("orders:write", {"actions": [{"order_id": ABSENT, "action": "confirm"}]}),
    ("POST", "/orders/<order_id>/cancel"): Route("orders:write", {"reason": "customer"}),
    ("POST", "/orders/<order_id>/confirm"): Route("orders:manage"),
    ("POST", "/orders/<order_id>/complete"): Route("orders:manage", after=CONFIRMED),
    ("PUT", "/orders/<order_id>/holds/<handle>"): Route("orders:manage", {"kind": "other"}),
    ("DELETE", "/orders/<order_id>/holds/<handle>"): Route("orders:manage"),
    ("POST", "/orders/<order_id>/fulfillments"): Route("orders:manage", LINES, 201, after=CONFIRMED),
    ("PATCH", "/orders/<order_id>/fulfillments/<int:number>"): Route("orders:manage", {"tracking": None}, after=SENT),
    ("POST", "/orders/<order_id>/fulfillments/<int:number>/events"): Route(
        "orders:manage", {"type": "delivered"}, 201, after=SENT
    ),
    ("POST", "/orders/<order_id>/payments"): Route(
        "payments:write", {"type": "capture", "amount": 1, "reference": "r"}, 201
    ),
    ("POST", "/orders/<order_id>/reopen"): Route("orders:manage", {"reason": "r"}, after=CANCELLED),
    ("POST", "/orders/<order_id>/returns/<int:number>/receive"): Route("orders:manage", after=EXPECTED),
    ("POST", "/orders/<order_id>/returns/<int:number>/reject"): Route("orders:manage", after=EXPECTED),
    ("POST", "/orders/<order_id>/returns"): Route("orders:manage", LINES, 201, after=SENT),
    ("GET", "/customers/<characters:customer_id>/personal-data"): Route("privacy:export"),
    ("DELETE", "/customers/<characters:customer_id>/personal-data"): Route("privacy:erase"),
    ("GET", "/erasures/<erasure_id>"): Route("privacy:erase", success=404),
    ("POST", "/webhooks"): Route("webhooks:manage", {"url": "https://93.184.215.14/"}, 201),
    ("GET", "/webhooks"): Route("webhooks:manage"),
    ("GET", "/webhooks/<webhook_id>"): Route("webhooks:manage", success=404),
    ("PATCH", "/webhooks/<webhook_id>"): Route("webhooks:manage", {}, 404),
    ("DELETE", "/webhooks/<webhook_id>"): Route("webhooks:manage", success=404),
    ("POST", "/webhooks/<webhook_id>/rotate-secret"): Route("webhooks:manage", success=404),
    ("POST", "/webhooks/<webhook_id>/test"): Route("webhooks:manage", success=404),
    ("GET", "/webhooks/<webhook_id>/deliveries"): Route("webhooks:manage", success=404),
    ("POST", "/webhooks/<webhook_id>/replay"): Route("webhooks:manage", {"event_id": f"{ABSENT}:1"}, 404),
    ("GET", "/"): Route(None, success=302),
    ("GET", "/healthz"): Route(None),
    ("GET", "/readyz"): Route(None),
    ("GET", "/metrics"): Route(None),
    ("GET", "/openapi.json"): Route(None),
    ("GET", "/console"): Route(None),
    ("GET", "/console/<path:name>"): Route(None, success=404),
    ("GET", "/docs"): Route(None),
    ("GET", "/docs/<path:name>"): Route(None),
    ("GET", "/docs/collection.json"): Route(None),
    ("GET", "/docs/guides"): Route(None),
    ("GET", "/docs/guides/<guide>"): Route(None),
    ("GET", "/llms.txt"): Route(None),
    ("GET", "/problems"): Route(None),
    ("GET", "/problems/<slug>"): Route(None),
}
CLOSED = {key: route for key, route in ROUTES.items() if route.scope is not None}
OF_AN_ORDER = {key: route for key, route in CLOSED.items() if "<order_id>" in key[1]}
OF_A_CUSTOMER = {key: route for key, route in OF_AN_ORDER.items() if route.scope in CUSTOMER.split()}
OF_PERSONAL_DATA = {key: route for key, route in CLOSED.items() if route.scope and route.scope.startswith("privacy:")}

# Refusals that do not use the database are tested with one of them only.


def each(routes: dict[tuple[str, str], Route]) -> Any:
    """One test a route; a route that answers GET answers HEAD too."""
    heads = {("HEAD", path): route for (method, path), route in routes.items() if method == "GET"}
    cases = [(method, path, route) for (method, path), route in (routes | heads).items()]
    ids = [f"{method} {path}" for method, path, _ in cases]
    return pytest.mark.parametrize(("method", "path", "route"), cases, ids=ids)


def send(client: FlaskClient, method: str, path: str, body: Any, credential: str | None, **ids: str) -> TestResponse:
    names = {
        "order_id": ABSENT,
        "erasure_id": ABSENT,
        "webhook_id": ABSENT,
        "customer_id": "c-0",
        "external_ref": "r-0",
        "name": "start.js",
        "slug": "not-found",
        "guide": "idempotency",
        "handle": "review",
        "number": "1",
    }
    path = plain(path).format(**(names | ids))
    kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
    sent: dict[str, Any] = {} if body is None else {"json": body, "content_type": kind}
    return client.open(path, method=method, headers=bearer(credential) if credential else {}, buffered=True, **sent)


@pytest.fixture(autouse=True)
def ending_streams(secure_app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Event streams end after the existing events, as when the server stops."""
    monkeypatch.setattr(secure_app.extensions["event_streams"].watcher, "is_stopping", lambda: True)


@pytest.fixture
def master(secure_app: Flask) -> str:
    """A key with all scopes."""
    return api_key(secure_app, *SCOPES)


@pytest.fixture
def order_id(secure_client: FlaskClient, master: str) -> str:
    """An order of the customer c-1, made by a service."""
    response = secure_client.post("/orders", json=PRICED, headers=bearer(master))
    order_id: str = response.json["id"]
    return order_id


def test_the_matrix_lists_every_route_and_method(app: Flask) -> None:
    routes = {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD"} - ({"OPTIONS"} if rule.provide_automatic_options else set())
    }

    assert routes == ROUTES.keys()


@on_sqlite
@each({key: route for key, route in ROUTES.items() if route.scope is None})
@pytest.mark.parametrize("credential", [None, "garbage"])
def test_a_public_route_needs_no_credentials(
    secure_client: FlaskClient, method: str, path: str, route: Route, credential: str | None
) -> None:
    assert send(secure_client, method, path, None, credential).status_code == route.success


@on_sqlite
@each(CLOSED)
def test_a_request_without_credentials_is_401(
    secure_client: FlaskClient, order_id: str, method: str, path: str, route: Route
) -> None:
    response = send(secure_client, method, path, route.body, None, order_id=order_id)

    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="orders"'
    assert method == "HEAD" or slug(response) == (401, "unauthenticated")


@on_sqlite
@each(CLOSED)
@pytest.mark.parametrize("credential", ["garbage", "a.b.c", f"osk_{'a' * 16}.{'b' * 43}"])
def test_a_request_with_invalid_credentials_is_401(
    secure_client: FlaskClient, order_id: str, method: str, path: str, route: Route, credential: str
) -> None:
    response = send(secure_client, method, path, route.body, credential, order_id=order_id)

    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="orders", error="invalid_token"'


@on_sqlite
@each(CLOSED)
@pytest.mark.parametrize("kind", ["key", "token"])
def test_a_request_without_the_scope_is_403_and_names_the_scope(
    secure_app: Flask, secure_client: FlaskClient, order_id: str, method: str, path: str, route: Route, kind: str
) -> None:
    others = [scope for scope in SCOPES if scope != route.scope]
    credential = api_key(secure_app, *others) if kind == "key" else token(scope=" ".join(others))

    response = send(secure_client, method, path, route.body, credential, order_id=order_id)

    assert response.status_code == 403
    challenge = f'Bearer realm="orders", error="insufficient_scope", scope="{route.scope}"'
    assert response.headers["WWW-Authenticate"] == challenge
    assert method == "HEAD" or response.json["detail"] == f"The scope {route.scope} is missing."


@each(CLOSED)
@pytest.mark.parametrize("kind", ["key", "token"])
def test_the_scope_of_the_route_suffices(
    secure_app: Flask,
    secure_client: FlaskClient,
    master: str,
    order_id: str,
    method: str,
    path: str,
    route: Route,
    kind: str,
) -> None:
    assert route.scope
    for action, body in route.after:
        done = send(secure_client, "POST", f"/orders/<order_id>/{action}", body, master, order_id=order_id)
        assert done.status_code < 300
    # A token without orders:manage is a customer's, and gets no other scope than customers may have.
    scope = route.scope if route.scope in CUSTOMER_SCOPES else f"{route.scope} orders:manage"
    credential = api_key(secure_app, route.scope) if kind == "key" else token(scope=scope)

    response = send(secure_client, method, path, route.body, credential, order_id=order_id, customer_id="c-1")

    if method == "DELETE" and path.endswith("personal-data"):
        assert response.status_code == 409  # open orders: the request was authorized
    else:
        assert response.status_code == route.success


@each(OF_A_CUSTOMER)
def test_an_order_of_another_customer_is_404(
    secure_client: FlaskClient, order_id: str, method: str, path: str, route: Route
) -> None:
    stranger = token(customer="c-2", scope=CUSTOMER)

    hidden = send(secure_client, method, path, route.body, stranger, order_id=order_id)
    absent = send(secure_client, method, path, route.body, stranger, order_id=ABSENT)

    assert hidden.status_code == absent.status_code == 404
    assert without_request(hidden, order_id) == without_request(absent, ABSENT)


@each(OF_AN_ORDER)
@pytest.mark.parametrize("channel", [None, "app"], ids=["of no channel", "of another channel"])
def test_an_order_of_another_channel_is_404(
    secure_app: Flask,
    secure_client: FlaskClient,
    master: str,
    method: str,
    path: str,
    route: Route,
    channel: str | None,
) -> None:
    created = secure_client.post("/orders", json=PRICED | {"channel": channel}, headers=bearer(master))
    bound = api_key(secure_app, *SCOPES, channels=["web", "phone"])  # the same principal as the creator

    hidden = send(secure_client, method, path, route.body, bound, order_id=created.json["id"])
    absent = send(secure_client, method, path, route.body, bound, order_id=ABSENT)

    assert hidden.status_code == absent.status_code == 404
    assert without_request(hidden, created.json["id"]) == without_request(absent, ABSENT)


@each(OF_AN_ORDER)
def test_an_order_of_a_channel_of_the_key_is_read_and_changed_as_by_any_key(
    secure_app: Flask, secure_client: FlaskClient, master: str, method: str, path: str, route: Route
) -> None:
    created = secure_client.post("/orders", json=PRICED | {"channel": "web"}, headers=bearer(master)).json["id"]
    for action, body in route.after:
        send(secure_client, "POST", f"/orders/<order_id>/{action}", body, master, order_id=created)
    bound = api_key(secure_app, *SCOPES, channels=["web", "phone"])

    assert send(secure_client, method, path, route.body, bound, order_id=created).status_code == route.success


@each({key: route for key, route in CLOSED.items() if key not in OF_AN_ORDER})
def test_no_other_route_reveals_an_order_of_another_channel(
    secure_app: Flask, secure_client: FlaskClient, master: str, method: str, path: str, route: Route
) -> None:
    body = MINIMAL | {"note": "canary"}
    for number, channel in enumerate(["app", None]):
        more = {"channel": channel, "external_ref": f"r-{number}"}
        hidden = secure_client.post("/orders", json=body | more, headers=bearer(master)).json
        bound = api_key(secure_app, *SCOPES, channels=["web"])  # the same principal as the creator

        response = send(secure_client, method, path, route.body, bound, customer_id="c-1", external_ref=f"r-{number}")

        seen = {name: value for name, value in hidden.items() if name in ("id", "number", "note")}
        assert not [name for name, value in seen.items() if value in response.text], response.text


@each(OF_PERSONAL_DATA)
def test_a_key_that_is_bound_to_channels_has_no_access_to_personal_data_of_all_channels(
    secure_app: Flask, secure_client: FlaskClient, order_id: str, method: str, path: str, route: Route
) -> None:
    bound = api_key(secure_app, *SCOPES, channels=["web"])

    responses = [send(secure_client, method, path, None, bound, customer_id=customer) for customer in ("c-1", "c-0")]

    assert [response.status_code for response in responses] == [403, 403]
    assert without_request(responses[0], "c-1") == without_request(responses[1], "c-0")


def without_request(response: TestResponse, order_id: str) -> tuple[Any, ...]:
    """A response without the values of this request: its id, and the requested order id."""
    headers = sorted((name, value) for name, value in response.headers if name != "X-Request-Id")
    text = response.text.replace(order_id, "…").replace(response.headers["X-Request-Id"], "…")
    return response.status_code, headers, text


@on_sqlite
@each({key: route for key, route in OF_AN_ORDER.items() if key not in OF_A_CUSTOMER})
def test_a_customer_cannot_perform_the_actions_of_the_shop(
    secure_client: FlaskClient, order_id: str, method: str, path: str, route: Route
) -> None:
    owner = token(scope=CUSTOMER)

    assert send(secure_client, method, path, route.body, owner, order_id=order_id).status_code == 403


def test_a_customer_cannot_create_orders_of_another_customer(secure_client: FlaskClient, order_id: str) -> None:
    stranger = bearer(token(customer="c-2", scope=CUSTOMER))

    created = secure_client.post("/orders", json=MINIMAL, headers=stranger)
    batch = secure_client.post("/orders/batch", json={"orders": [MINIMAL]}, headers=stranger)
    erased = secure_client.delete("/customers/c-1/personal-data", headers=stranger)
    nobody = secure_client.delete("/customers/c-0/personal-data", headers=stranger)

    assert slug(created) == slug(erased) == slug(nobody) == (403, "forbidden")
    assert [result["status"] for result in batch.json["results"]] == [403]
    assert erased.json["detail"] == nobody.json["detail"]


@pytest.mark.parametrize("scope", ["events:read", "webhooks:manage"])
def test_a_customers_token_has_no_scope_that_sees_beyond_one_customer(secure_app: Flask, scope: str) -> None:
    with secure_app.test_request_context(headers=bearer(token(scope=scope))):
        principal = secure_app.extensions["authorization"].authenticator.authenticate()

    assert (principal.customer_id, principal.scopes) == ("c-1", frozenset())


@pytest.mark.parametrize("scope", [None, "orders:wirte", "public "])
def test_a_route_that_declares_no_scope_stops_the_start(
    database_url: str, monkeypatch: pytest.MonkeyPatch, scope: str | None
) -> None:
    def undeclared() -> str:
        return "secret"

    def init_app(app: Flask) -> None:
        if scope is not None:
            undeclared.required_scope = scope  # type: ignore[attr-defined]
        app.add_url_rule("/undeclared", view_func=undeclared)
        original(app)

    original = auth.init_app
    monkeypatch.setattr(auth, "init_app", init_app)

    with pytest.raises(StartupError, match="The route undeclared has no scope"):
        create_app({"DATABASE_URL": database_url, "AUTH": "off"})


def test_a_route_that_is_added_after_the_start_rejects_every_request(database_url: str) -> None:
    app = create_app({"DATABASE_URL": database_url, "AUTH": "off"})
    app.add_url_rule("/late", view_func=lambda: "secret")

    assert app.test_client().get("/late").status_code == 403


def test_the_description_documents_the_scope_and_the_401_and_403_of_every_operation(secure_client: FlaskClient) -> None:
    description = api_description(secure_client)

    for (method, path), route in ROUTES.items():
        operation = description["paths"][plain(path)][method.lower()]
        answers = operation["responses"]
        assert operation["security"] == ([{"bearer": [route.scope]}] if route.scope else [])
        assert ({"401", "403", "429"} <= answers.keys()) == (route.scope is not None)
        for status, headers in refusals(route):
            assert headers <= answers[status]["headers"].keys(), (method, path, status)
    assert description["components"]["securitySchemes"].keys() == {"bearer"}


def test_without_authentication_the_description_requires_no_credentials(client: FlaskClient) -> None:
    description = api_description(client)

    for (method, path), route in ROUTES.items():
        security = description["paths"][plain(path)][method.lower()]["security"]
        assert security == ([{}, {"bearer": [route.scope]}] if route.scope else [])


def plain(path: str) -> str:
    """The path as the description has it: its variables in braces, without their converters."""
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", path)


def refusals(route: Route) -> Iterator[tuple[str, set[str]]]:
    if route.scope is not None:
        yield "401", {"WWW-Authenticate"}
        yield "403", {"WWW-Authenticate"}
        yield "429", {"Retry-After", "RateLimit", "RateLimit-Policy"}
