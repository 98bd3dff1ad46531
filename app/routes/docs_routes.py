"""The service explains itself: `/openapi.json`, `/docs`, and a page for every problem type."""

from functools import lru_cache
from importlib.resources import files
from mimetypes import guess_type
from pathlib import Path
from typing import Any

from flask import Response, render_template

from app.errors import NotFound, ServiceError, problem_types
from app.http.application import public_path
from app.http.blueprint import PUBLIC, Blueprint, Content
from app.http.openapi import api_description
from app.http.request_input import JSON
from app.http.responses import page_response

HTML = "text/html"
FOLDERS = (files("flask_swagger_ui") / "dist", files("app") / "static")  # the wheel carries Swagger UI: no CDN
ASSETS = {path.name: path for folder in FOLDERS for path in Path(str(folder)).iterdir() if path.is_file()}
PAGE = {"type": "string"}
CONDITIONAL: dict[str, Any] = {"request_headers": ("If-None-Match",), "response_headers": ("ETag",)}

blueprint = Blueprint("documentation", __name__, description="The API description and the pages of the problem types.")


@blueprint.operation("GET", "/", scope=PUBLIC, responses={302: None}, response_headers=("Location",))
def redirect_to_docs() -> Response:
    """Redirect to the documentation.

    A browser that opens the address of the service gets to `/docs`.
    """
    return Response(status=302, headers={"Location": public_path("/docs")})


@blueprint.operation(
    "GET",
    "/openapi.json",
    scope=PUBLIC,
    responses={200: Content((JSON,), {"type": "object"}), 304: None},
    **CONDITIONAL,
)
def read_api_description() -> Response:
    """Read this API description.

    It is OpenAPI 3.1 as JSON, for tools that generate clients, collections and tests.
    """
    return page_response(api_description(), JSON)


@blueprint.operation("GET", "/docs", scope=PUBLIC, responses={200: Content((HTML,), PAGE), 304: None}, **CONDITIONAL)
def read_docs() -> Response:
    """Read the API description in Swagger UI.

    Each operation can be tried there.
    """
    return page_response(render_template("docs.html").encode(), HTML)


@blueprint.operation(
    "GET",
    "/docs/<path:name>",
    scope=PUBLIC,
    responses={200: Content(("*/*",), PAGE), 304: None},
    problems=(NotFound,),
    **CONDITIONAL,
)
def read_docs_asset(name: str) -> Response:
    """Read a script, style sheet or image of Swagger UI.

    The page loads nothing from other servers.
    """
    if name not in ASSETS:
        raise NotFound("The documentation has no file with this name.")
    return page_response(_asset(name), guess_type(name)[0] or "application/octet-stream")


@blueprint.operation(
    "GET",
    "/problems",
    scope=PUBLIC,
    responses={200: Content((HTML,), PAGE), 304: None},
    **CONDITIONAL,
)
def list_problem_types() -> Response:
    """List all problem types.

    A page for people, with what each of them means and what to do.
    """
    return page_response(_problem_page(*sorted(problem_types(), key=_order)), HTML)


@blueprint.operation(
    "GET",
    "/problems/<slug>",
    scope=PUBLIC,
    responses={200: Content((HTML,), PAGE), 304: None},
    problems=(NotFound,),
    **CONDITIONAL,
)
def read_problem_type(slug: str) -> Response:
    """Read what a problem type means and what to do.

    The `type` of every problem document is the address of such a page.
    """
    for problem in problem_types():
        if problem.slug == slug:
            return page_response(_problem_page(problem), HTML)
    raise NotFound("No problem type has this name. /problems lists all of them.")


@lru_cache(maxsize=None)  # as many as there are files
def _asset(name: str) -> bytes:
    return ASSETS[name].read_bytes()


def _problem_page(*problems: type[ServiceError]) -> bytes:
    return render_template("problems.html", problems=problems).encode()


def _order(problem: type[ServiceError]) -> tuple[int, str]:
    return problem.status, problem.slug
