"""Endpoints about the service itself: probes and metrics, for load balancers and monitoring; pages and files.

The pages in this order: `/openapi.json`, `/docs`, guides, a page for every problem type, and the console. The console
for support staff uses the public API. Its files are built from `console/` and are part of the repository, so that the
service needs no Node.js.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from inspect import cleandoc
from mimetypes import guess_type
from pathlib import Path
from typing import Any

import mistune
import orjson
from flask import Response, render_template
from prometheus_client import CONTENT_TYPE_LATEST

from app.config import ROOT
from app.db.migrations import SchemaMismatch, database_state, require_compatible
from app.errors import NotFound, ServiceError, ServiceUnavailable, problem_types
from app.http.application import PUBLIC, Blueprint, Content
from app.http.openapi import (
    INTRODUCTION,
    api_description,
    collection,
    described_operations,
    problem_example,
    problem_request,
)
from app.http.requests import JSON, public_path
from app.http.responses import compress, page_response
from app.telemetry import render_metrics

_NO_STORE = {"Cache-Control": "no-store"}
_STATUS = {"type": "object", "properties": {"status": {"type": "string"}}}

health_blueprint = Blueprint("health", __name__, description="Probes and metrics for load balancers and monitoring.")


@health_blueprint.operation("GET", "/healthz", scope=PUBLIC, responses={200: Content((JSON,), _STATUS)})
def read_health() -> Response:
    """Liveness probe: responds without using the database.

    A process that does not respond should be restarted.
    """
    return Response('{"status":"ok"}', headers=_NO_STORE, mimetype=JSON)


@health_blueprint.operation(
    "GET",
    "/readyz",
    scope=PUBLIC,
    responses={200: Content((JSON,), _STATUS)},
    problems=(ServiceUnavailable,),
)
def read_readiness() -> Response:
    """Readiness probe: checks that the database answers, has the right schema and accepts writes.

    A process that is not ready should receive no requests. The detail of the problem says why.
    """
    state = database_state()
    try:
        require_compatible(state)
    except SchemaMismatch as error:
        raise ServiceUnavailable(str(error)) from None
    if state.read_only:
        raise ServiceUnavailable("Only a read-only database is reachable.")
    return Response('{"status":"ready"}', headers=_NO_STORE, mimetype=JSON)


@health_blueprint.operation(
    "GET",
    "/metrics",
    scope=PUBLIC,
    responses={200: Content(("text/plain",), {"type": "string"})},
)
def read_metrics() -> Response:
    """Read the Prometheus metrics of all workers on this machine.

    They are in the text format of Prometheus. Allow only your monitoring to read them.
    """
    return compress(Response(render_metrics(), headers=_NO_STORE, content_type=CONTENT_TYPE_LATEST))


docs_blueprint = Blueprint(
    "documentation", __name__, description="The API description, guides, and the pages of the problem types."
)

_HTML = "text/html"
_TEXT, _OBJECT = {"type": "string"}, {"type": "object"}

# The package flask_swagger_ui contains Swagger UI, so no CDN is used.
_ASSET_FOLDERS = (Path(str(files("flask_swagger_ui") / "dist")), ROOT / "app" / "static")
_ASSETS = {path.name: path for folder in _ASSET_FOLDERS for path in folder.iterdir() if path.is_file()}
GUIDES = {path.stem: path for path in sorted((ROOT / "docs").glob("*.md"))}


def _page(media_type: str, schema: Mapping[str, Any] = _TEXT) -> dict[str, Any]:
    """Return the declaration of a public page or file that has an entity tag."""
    return {
        "scope": PUBLIC,
        "responses": {200: Content((media_type,), schema), 304: None},
        "request_headers": ("If-None-Match",),
        "response_headers": ("ETag",),
    }


@docs_blueprint.operation("GET", "/", scope=PUBLIC, responses={302: None}, response_headers=("Location",))
def redirect_to_docs() -> Response:
    """Redirect to the documentation.

    A browser that opens the address of the service is sent to `/docs`.
    """
    return Response(status=302, headers={"Location": public_path("/docs")})


@docs_blueprint.operation("GET", "/openapi.json", **_page(JSON, _OBJECT))
def read_api_description() -> Response:
    """Read this API description.

    It is OpenAPI 3.1 as JSON, for tools that generate clients, collections and tests.
    """
    return page_response(api_description(), JSON)


@docs_blueprint.operation("GET", "/docs", **_page(_HTML))
def read_docs() -> Response:
    """Read the API description in Swagger UI.

    Each operation can be tried there.
    """
    return page_response(render_template("docs.html").encode(), _HTML)


@docs_blueprint.operation("GET", "/docs/guides", **_page(_HTML))
def list_guides() -> Response:
    """List the guides.

    A guide explains one topic, with examples in curl, JavaScript and Python.
    """
    return page_response(render_template("guides.html", guides=map(_read_guide, GUIDES)).encode(), _HTML)


@docs_blueprint.operation("GET", "/docs/guides/<guide>", problems=(NotFound,), **_page(_HTML))
def read_guide_page(guide: str) -> Response:
    """Read a guide.

    Its examples can be copied and run as they are.
    """
    if guide not in GUIDES:
        raise NotFound("No guide has this name. /docs/guides lists all of them.")
    return page_response(render_template("guide.html", guide=_read_guide(guide)).encode(), _HTML)


@dataclass(frozen=True, slots=True)
class _Guide:
    """A page of `docs/`: its title, its first sentence, and all of it as HTML."""

    name: str
    title: str
    summary: str
    html: str


def _read_guide(name: str) -> _Guide:
    """Return a guide, rendered on first use. Raises KeyError for an unknown name."""
    return _render_guide(name, public_path(""))


@cache
def _render_guide(name: str, url_prefix: str) -> _Guide:
    text = GUIDES[name].read_text(encoding="utf-8")
    title, _, content = text.removeprefix("# ").partition("\n")
    summary = " ".join(content.strip().partition("\n\n")[0].split())
    html = mistune.create_markdown(renderer=_GuideRenderer(url_prefix), plugins=["table"])(text)
    return _Guide(name, title, re.split(r"(?<=[.:]) ", summary)[0].rstrip(":"), str(html))


class _GuideRenderer(mistune.HTMLRenderer):
    """Gives headings an id, makes code scrollable by keyboard, and points links between the pages to their HTML."""

    def __init__(self, url_prefix: str) -> None:
        super().__init__(escape=True)
        self.url_prefix = url_prefix

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        anchor = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
        return f'<h{level} id="{anchor}">{text}</h{level}>\n'

    def block_code(self, code: str, info: str | None = None) -> str:
        return super().block_code(code, info).replace("<pre>", '<pre tabindex="0">', 1)

    def link(self, text: str, url: str, title: str | None = None) -> str:
        name, _, fragment = url.partition("#")
        if name.removesuffix(".md") in GUIDES:
            url = f"/docs/guides/{name.removesuffix('.md')}" + (f"#{fragment}" if fragment else "")
        if url.startswith("/"):
            url = self.url_prefix + url
        return super().link(text, url, title)


@docs_blueprint.operation("GET", "/docs/collection.json", **_page(JSON, _OBJECT))
def read_collection() -> Response:
    """Read a collection of all requests, for Postman, Bruno, Insomnia and newman.

    Set its variables `baseUrl` and, if the service requires credentials, `token`.
    """
    return page_response(collection(), JSON)


@docs_blueprint.operation("GET", "/llms.txt", **_page("text/plain"))
def read_llms_text() -> Response:
    """Read an overview of the documentation for language models.

    It is in the format of llmstxt.org.
    """
    return page_response(_llms_text().encode(), "text/plain")


def _llms_text() -> str:
    """Return the overview in the format of llmstxt.org."""
    guides = [_read_guide(name) for name in GUIDES]
    return "\n".join(
        [
            "# Order Service",
            "",
            *(f"> {line}" for line in INTRODUCTION.partition("\n\n")[0].splitlines()),
            "",
            "## Documentation",
            "",
            f"- [API description]({public_path('/openapi.json')}): OpenAPI 3.1, with recorded examples",
            f"- [Collection]({public_path('/docs/collection.json')}): the requests for Postman, Bruno and newman",
            f"- [Problem types]({public_path('/problems')}): what each error means, and what to do",
            "",
            "## Guides",
            "",
            *(f"- [{guide.title}]({public_path(f'/docs/guides/{guide.name}')}): {guide.summary}" for guide in guides),
            "",
            "## Operations",
            "",
            *(f"- `{method} {path}`: {summary}" for method, path, summary in described_operations()),
            "",
        ]
    )


@docs_blueprint.operation("GET", "/docs/<path:name>", problems=(NotFound,), **_page("*/*"))
def read_docs_asset(name: str) -> Response:
    """Read a script, style sheet or image of the documentation.

    Its pages load nothing from other servers.
    """
    if name not in _ASSETS:
        raise NotFound("The documentation has no file with this name.")
    return page_response(_read_asset(name), guess_type(name)[0] or "application/octet-stream")


@cache
def _read_asset(name: str) -> bytes:
    return _ASSETS[name].read_bytes()


@docs_blueprint.operation("GET", "/problems", **_page(_HTML))
def list_problem_types() -> Response:
    """List all problem types.

    The page says what each of them means and what to do.
    """
    problems = sorted(problem_types(), key=lambda problem: (problem.status, problem.slug))
    return page_response(render_template("problems.html", problems=problems).encode(), _HTML)


@docs_blueprint.operation("GET", "/problems/<slug>", problems=(NotFound,), **_page(_HTML))
def read_problem_type(slug: str) -> Response:
    """Read what a problem type means and what to do.

    The `type` of every problem document is the address of such a page.
    """
    for problem in problem_types():
        if problem.slug == slug:
            return page_response(_problem_page(problem), _HTML)
    raise NotFound("No problem type has this name. /problems lists all of them.")


def _problem_page(problem: type[ServiceError]) -> bytes:
    cause, _, solution = cleandoc(problem.__doc__ or "").partition("\n\n")
    return render_template(
        "problem.html",
        problem=problem,
        cause=cause,
        solution=solution,
        request_text=problem_request(problem.slug),
        response_text=orjson.dumps(problem_example(problem.slug), option=orjson.OPT_INDENT_2).decode(),
    ).encode()


console_blueprint = Blueprint("console", __name__, description="The console for support staff.")

_CONSOLE_FOLDER = ROOT / "app" / "static" / "console"
_CONSOLE_ENTRY = "src/main.tsx"
_CONSOLE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_CACHE_FOREVER = "public, max-age=31536000, immutable"  # a file's name contains a hash of its content


@console_blueprint.operation("GET", "/console", **_page(_HTML))
def read_console() -> Response:
    """Read the console for support staff.

    The page uses the public API, with an API key that its user pastes.
    """
    response = page_response(render_template("console.html", **_console_entry()).encode(), _HTML)
    response.headers["Content-Security-Policy"] = _CONSOLE_POLICY
    return response


@cache
def _console_entry() -> dict[str, str]:
    """Return the names of the script, the style sheet and the font that the page loads."""
    entry = orjson.loads((_CONSOLE_FOLDER / "manifest.json").read_bytes())[_CONSOLE_ENTRY]
    font = next(name for name in entry["assets"] if name.endswith(".woff2"))
    return {"script": entry["file"], "style": entry["css"][0], "font": font}


@console_blueprint.operation("GET", "/console/<path:name>", problems=(NotFound,), **_page("*/*"))
def read_console_file(name: str) -> Response:
    """Read a script, style sheet or font of the console.

    Its name contains a hash of its content, so that caches can keep it.
    """
    content = _console_files().get(name)
    if content is None:
        raise NotFound("The console has no file with this name.")
    return page_response(content, guess_type(name)[0] or "application/octet-stream", cache_control=_CACHE_FOREVER)


@cache
def _console_files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in _CONSOLE_FOLDER.iterdir() if path.name != "manifest.json"}
