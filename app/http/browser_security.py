"""What browsers need to be told: which origins may call (CORS), and what the answers must not be used for."""

from flask import Flask, Response, current_app, request

from app.config import normalize_origin
from app.http.responses import FOR_ALL, FOR_DATA, DocumentResponse

# What a frontend may read of an answer, besides the few headers any script may.
_EXPOSED = (
    "Complete-Until, ETag, Idempotent-Replayed, Link, Location, RateLimit, RateLimit-Policy, Retry-After, X-Request-Id"
)
_ALLOWED = (
    *("Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "X-Request-Id"),
    *("traceparent", "tracestate", "baggage", "sentry-trace"),  # W3C Trace Context, Baggage; Sentry's older name
)
_METHODS = "DELETE, GET, HEAD, PATCH, POST, PUT"
_PREFLIGHT_SECONDS = "7200"  # the longest that the large browsers keep one

# Swagger UI styles its elements in place and draws its icons from data: URLs; scripts come from files only.
_PAGES = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FOR_PAGES = FOR_ALL | {"Content-Security-Policy": _PAGES}


def init_app(app: Flask) -> None:
    """Answer preflight requests, and add the headers to every answer."""
    if app.config["CORS_ORIGINS"]:
        app.before_request(_answer_preflight)
        app.after_request(_allow_origin)
    app.after_request(_restrict)


def _origin_allowed() -> bool:
    """Whether the request's origin is one of the frontends'; browsers send it normalised, other clients may not."""
    origin, allowed = request.headers.get("Origin", ""), current_app.config["CORS_ORIGINS"]
    if origin in allowed:
        return True
    try:
        return normalize_origin(origin) in allowed
    except ValueError:
        return False


def _answer_preflight() -> Response | None:
    if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers or not _origin_allowed():
        return None
    return Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": ", ".join((*_ALLOWED, *current_app.config["CORS_HEADERS"])),
            "Access-Control-Max-Age": _PREFLIGHT_SECONDS,
        },
    )


def _allow_origin(response: Response) -> Response:
    """The origin itself and never *, and no credentials: tokens are sent by the script, cookies do not exist."""
    response.vary.add("Origin")
    if _origin_allowed():
        response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED
    return response


def _restrict(response: Response) -> Response:
    if not isinstance(response, DocumentResponse):  # those bring them along
        if response.status_code == 204:
            response.headers.remove("Content-Type")  # the library's, of nothing; a 304 keeps it until it is sent
        is_page = response.headers.get("Content-Type", "").startswith("text/html")
        response.headers.extend(_FOR_PAGES if is_page else FOR_DATA)
    return response
