"""Every error is a problem document (RFC 9457), wherever it is raised."""

import ast
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from app.db.engine import db
from app.db.migrations import DatabaseState
from app.errors import ServiceError, problem_types
from app.http.application import OrderId
from app.services import order_service
from tests.support.samples import MINIMAL, slug

ABSENT = "0199c7a4-0000-7000-8000-000000000000"

PATHS = [
    "/nothing", "/orders/", "/orders//", "/Orders", "/orders/a/b", "/healthz/", "/docs/", "/docs/x.js",
    "/docs/../config.py", "/docs/%2e%2e/config.py", "/docs/..%2f..%2fconfig.py", "/docs/%00", "/docs/" + "a" * 5000,
    "/problems/nothing", "/problems/%00", "/%00", "/%ff", "/%ed%a0%80", "/é", "/..", "/.env", "/a" * 2000,
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_an_unknown_path_is_404(client: FlaskClient, path: str) -> None:
    assert slug(client.get(path)) == (404, "not-found")


def test_the_root_redirects_to_the_documentation(client: FlaskClient) -> None:
    response = client.get("/")

    assert (response.status_code, response.headers["Location"]) == (302, "/docs")
    assert client.get(response.headers["Location"]).mimetype == "text/html"


@pytest.mark.parametrize("path", ["//", "//healthz", "///healthz", "//orders", "//metrics", "//docs/start.js"])
def test_a_path_with_two_leading_slashes_is_404(client: FlaskClient, path: str) -> None:
    """The test client would take the part after the slashes for a host, so the path is set in the environ."""
    response = client.get("/", environ_overrides={"PATH_INFO": path})

    assert slug(response) == (404, "not-found")
    assert response.json["instance"] == path


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND", "X" * 300])
@pytest.mark.parametrize("path", ["/orders", "/healthz", "/openapi.json", "/docs", "/problems"])
def test_an_unsupported_method_is_405_with_allow(client: FlaskClient, path: str, method: str) -> None:
    response = client.open(path, method=method)

    assert slug(response) == (405, "method-not-allowed")
    allowed = {name.strip() for name in response.headers["Allow"].split(",")}
    assert allowed == {"GET", "HEAD", "OPTIONS"} | ({"POST"} if path == "/orders" else set())


def some_problems(client: FlaskClient) -> Iterator[Any]:
    key = {"Idempotency-Key": "k-1"}
    client.post("/orders", json=MINIMAL | {"external_ref": "r-1"}, headers=key)
    yield client.post("/orders", data=b"{", content_type="application/json")
    yield client.post("/orders", json={})
    yield client.get("/orders?customer_id=%ff")
    yield client.get("/orders?cursor=x")
    yield client.post("/orders", json=MINIMAL, headers={"Idempotency-Key": ""})
    yield client.get("/nothing")
    yield client.get(f"/orders/{ABSENT}")
    yield client.put("/orders")
    yield client.post("/orders", json=MINIMAL | {"external_ref": "r-1"})
    yield client.post("/orders", data=b" " * 100_000, content_type="application/json")
    yield client.post("/orders", data=b"{}", content_type="text/plain")
    yield client.post("/orders", json=MINIMAL, headers=key)


def test_a_problem_has_a_type_a_detail_an_instance_and_a_request_id(client: FlaskClient) -> None:
    for response in some_problems(client):
        problem = response.json

        assert (response.status_code, response.mimetype) == (problem["status"], "application/problem+json")
        assert {"type", "title", "status", "detail", "instance", "request_id"} <= problem.keys()
        assert problem["instance"] == response.request.path
        assert problem["request_id"] == response.headers["X-Request-Id"]
        assert response.headers["Cache-Control"] == "no-store"
        assert problem["detail"].endswith(".")


@pytest.mark.parametrize("path", ["/orders/%C3%A9%20%25%3F", "/orders/a%0Ab", "/nothing;a=b/@:~"])
def test_the_instance_of_a_problem_is_a_uri(client: FlaskClient, path: str) -> None:
    assert client.get(path).json["instance"] == path


def test_the_type_of_a_problem_is_the_address_of_a_page_that_explains_it(client: FlaskClient) -> None:
    for response in some_problems(client):
        page = client.get(response.json["type"])

        assert (page.status_code, page.mimetype) == (200, "text/html")
        assert response.json["title"] in page.text


@pytest.mark.parametrize("path", ["/docs", "/docs/start.js", "/docs/guides", "/openapi.json", "/problems", "/console"])
def test_a_page_with_another_entity_tag_is_a_documented_problem(client: FlaskClient, path: str) -> None:
    current = client.get(path).headers["ETag"]

    assert slug(client.get(path, headers={"If-Match": '"x"'})) == (412, "precondition-failed")
    assert client.get(path, headers={"If-Match": current}).status_code == 200


def test_every_problem_type_is_documented_on_a_page(client: FlaskClient) -> None:
    index = client.get("/problems").text

    for kind in problem_types():
        page = client.get(f"/problems/{kind.slug}")
        assert page.status_code == 200
        assert f"/problems/{kind.slug}" in index
        assert f"<h1>{kind.title}</h1>" in page.text
        assert "`" not in page.text.partition("<h2>Example</h2>")[0]
        assert kind.__doc__ and len(kind.__doc__.split()) >= 10, f"{kind.__name__} needs a docstring: it is its page"


def every_error(kind: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    for below in kind.__subclasses__():
        yield below
        yield from every_error(below)


def test_the_list_of_problem_types_is_complete_and_each_has_its_own_slug() -> None:
    kinds = list(problem_types())

    assert set(kinds) == {kind for kind in every_error() if hasattr(kind, "slug")}
    assert len({kind.slug for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.slug)
        assert 400 <= kind.status < 600


def test_an_unexpected_error_is_a_500_without_details(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setitem(app.config, "PROPAGATE_EXCEPTIONS", False)
    monkeypatch.setattr(order_service, "insert_orders", fail)

    response = client.post("/orders", json=MINIMAL)

    assert slug(response) == (500, "internal-error")
    assert "secret" not in response.text
    assert response.json["request_id"] == response.headers["X-Request-Id"]


@pytest.fixture(params=["postgresql", "sqlite"])
def app_without_database(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Flask]:
    """An application with an unavailable database: nothing listens on the port, or the directory does not exist."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    urls = {
        "postgresql": f"postgresql://user:secret@127.0.0.1:{port}/orders",
        "sqlite": f"sqlite:///{tmp_path}/missing/x.db",
    }
    app = create_app({"DATABASE_URL": urls[request.param], "TESTING": True})
    yield app
    with app.app_context():
        db.engine.dispose()


def test_without_its_database_the_service_is_503_with_retry_after(app_without_database: Flask) -> None:
    client = app_without_database.test_client()

    for response in (
        client.post("/orders", json=MINIMAL),
        client.post("/orders", json=MINIMAL, headers={"Idempotency-Key": "k-1"}),
        client.get(f"/orders/{ABSENT}"),
        client.get("/orders"),
        client.get("/readyz"),
    ):
        assert slug(response) == (503, "service-unavailable")
        assert response.headers["Retry-After"] == "1"
        assert "secret" not in response.text
    assert client.get("/healthz").json == {"status": "ok"}
    assert slug(client.post("/orders", json={})) == (400, "invalid-request")


def test_a_ready_service_is_200(client: FlaskClient) -> None:
    assert client.get("/readyz").json == {"status": "ready"}


def test_a_database_at_another_migration_is_not_ready(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.routes.service_routes.database_state", lambda: DatabaseState("0000", read_only=False))

    response = client.get("/readyz")

    assert slug(response) == (503, "service-unavailable")
    assert "0000" in response.json["detail"]


@pytest.mark.parametrize("path", ["/orders/actions", "/orders/batch"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PATCH", "PUT", "DELETE"])
def test_a_fixed_path_is_not_taken_for_an_order_id(client: FlaskClient, method: str, path: str) -> None:
    response = client.open(path, method=method)

    assert (response.status_code, response.headers["Allow"]) == (405, "OPTIONS, POST")


def test_no_fixed_path_below_orders_is_an_order_id(app: Flask) -> None:
    fixed = {rule.rule.split("/")[2] for rule in app.url_map.iter_rules() if re.match("/orders/[^<]", rule.rule)}

    names = {name for name in fixed if re.fullmatch(OrderId.regex, name)}
    assert not names, f"add {names} to the regex of OrderId in app/http/application.py"


def test_options_lists_exactly_the_methods_of_the_path(app: Flask, client: FlaskClient) -> None:
    methods: dict[str, set[str]] = {}
    for rule in app.url_map.iter_rules():
        methods.setdefault(rule.rule, set()).update(rule.methods or ())

    for path, known in methods.items():
        response = client.options(re.sub(r"<[^>]*>", "x", path.replace("<int:number>", "1")))
        assert response.status_code == 204, path
        assert response.headers["Allow"] == ", ".join(sorted(known)), path
        assert ("Accept-Patch" in response.headers) == ("PATCH" in known), path


def test_an_id_that_is_not_a_uuid_is_an_unknown_order(client: FlaskClient) -> None:
    missing = [
        client.get("/orders/x"),
        client.get("/orders/batches"),
        client.get("/orders/x/history"),
        client.patch("/orders/x", json={}),
        client.post("/orders/x/confirm"),
    ]

    assert [slug(response) for response in missing] == [(404, "order-not-found")] * 5
    assert slug(client.post("/orders/batch/confirm")) == (404, "not-found")
    assert slug(client.patch("/orders/actions", json={})) == (405, "method-not-allowed")


def test_a_415_lists_the_supported_media_types(client: FlaskClient) -> None:
    patched = client.patch(f"/orders/{ABSENT}", data=b"x", content_type="text/plain")
    posted = client.post("/orders", data=b"x", content_type="text/plain")
    coded = client.post("/orders", data=b"x", content_type="application/json", headers={"Content-Encoding": "gzip"})

    assert {response.status_code for response in (patched, posted, coded)} == {415}
    assert patched.headers["Accept-Patch"] == "application/merge-patch+json, application/json"
    assert posted.headers["Accept"] == "application/json"
    assert coded.headers["Accept-Encoding"] == "identity"


def details() -> Iterator[tuple[str, str]]:
    """Every literal detail of a problem in the code, with its location; f-strings without their values."""
    names = {kind.__name__ for kind in problem_types()}
    for path in sorted(Path(create_app.__code__.co_filename).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and ast.unparse(node.func).rpartition(".")[2] in names:
                parts = node.args[0].values if isinstance(node.args[0], ast.JoinedStr) else [node.args[0]]
                texts = [part.value if isinstance(part, ast.Constant) else "…" for part in parts]
                if texts != ["…"]:
                    yield f"{path.name}:{node.lineno}", "".join(texts)


def test_every_detail_consists_of_sentences() -> None:
    assert len(list(details())) > 40
    for place, detail in details():
        assert re.fullmatch(r"[A-Z…`i].*\.", detail), f"{place}: {detail}"
