"""The service explains itself: `/openapi.json`, `/docs`, and a page for every problem type."""

from importlib.resources import files

from flask import Response, render_template, send_from_directory

from app.errors import NotFound, problem_types
from app.http.arguments import JSON
from app.http.blueprint import PUBLIC, Blueprint, Content
from app.http.openapi import api_description

HTML = "text/html"
ASSETS = str(files("flask_swagger_ui") / "dist")  # the wheel carries Swagger UI: no CDN
OWN_ASSETS = str(files("app") / "static")
PAGE = {"type": "string"}

blueprint = Blueprint("documentation", __name__, description="What the service says of itself.")


@blueprint.operation("GET", "/", scope=PUBLIC, responses={302: None}, response_headers=("Location",))
def redirect_to_docs() -> Response:
    """Lead to the pages of the API"""
    return Response(status=302, headers={"Location": "/docs"})


@blueprint.operation(
    "GET",
    "/openapi.json",
    scope=PUBLIC,
    responses={200: Content((JSON,), {"type": "object"})},
)
def read_api_description() -> Response:
    """This description"""
    return Response(api_description(), mimetype=JSON)


@blueprint.operation("GET", "/docs", scope=PUBLIC, responses={200: Content((HTML,), PAGE)})
def read_docs() -> Response:
    """The description as pages to read and try"""
    return Response(render_template("docs.html"), mimetype=HTML)


@blueprint.operation(
    "GET",
    "/docs/<path:name>",
    scope=PUBLIC,
    responses={200: Content(("*/*",), PAGE)},
    problems=(NotFound,),
    response_headers=("ETag",),
)
def read_docs_asset(name: str) -> Response:
    """Scripts and styles of the pages"""
    return send_from_directory(OWN_ASSETS if name == "start.js" else ASSETS, name)


@blueprint.operation("GET", "/problems", scope=PUBLIC, responses={200: Content((HTML,), PAGE)})
def list_problem_types() -> Response:
    """All problem types"""
    return Response(render_template("problems.html", problems=sorted(problem_types(), key=_order)), mimetype=HTML)


@blueprint.operation(
    "GET",
    "/problems/<slug>",
    scope=PUBLIC,
    responses={200: Content((HTML,), PAGE)},
    problems=(NotFound,),
)
def read_problem_type(slug: str) -> Response:
    """What a problem type means, and what to do"""
    for problem in problem_types():
        if problem.slug == slug:
            return Response(render_template("problems.html", problems=[problem]), mimetype=HTML)
    raise NotFound("There is no problem type of this name.")


def _order(problem: type) -> tuple[int, str]:
    return problem.status, problem.slug  # type: ignore[attr-defined]
