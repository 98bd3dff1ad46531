"""`/console`: the page and the files of the console for support staff, which uses the public API.

The files are built from `console/` and are part of the repository, so that the service needs no Node.js.
"""

from functools import cache
from mimetypes import guess_type

import orjson
from flask import Response, render_template

from app.config import ROOT
from app.errors import NotFound
from app.http.application import Blueprint
from app.http.responses import page_response
from app.routes.docs_routes import HTML, page

FOLDER = ROOT / "app" / "static" / "console"
ENTRY = "src/main.tsx"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_CACHE_FOREVER = "public, max-age=31536000, immutable"  # a file's name contains a hash of its content

blueprint = Blueprint("console", __name__, description="The console for support staff.")


@blueprint.operation("GET", "/console", **page(HTML))
def read_console() -> Response:
    """Read the console for support staff.

    The page uses the public API, with an API key that its user pastes.
    """
    response = page_response(render_template("console.html", **_entry()).encode(), HTML)
    response.headers["Content-Security-Policy"] = POLICY
    return response


@blueprint.operation("GET", "/console/<path:name>", problems=(NotFound,), **page("*/*"))
def read_console_file(name: str) -> Response:
    """Read a script, style sheet or font of the console.

    Its name contains a hash of its content, so that caches can keep it.
    """
    content = _files().get(name)
    if content is None:
        raise NotFound("The console has no file with this name.")
    return page_response(content, guess_type(name)[0] or "application/octet-stream", cache_control=_CACHE_FOREVER)


@cache
def _files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.name != "manifest.json"}


@cache
def _entry() -> dict[str, str]:
    """Return the names of the script, the style sheet and the font that the page loads."""
    entry = orjson.loads((FOLDER / "manifest.json").read_bytes())[ENTRY]
    font = next(name for name in entry["assets"] if name.endswith(".woff2"))
    return {"script": entry["file"], "style": entry["css"][0], "font": font}
