"""CORS (WHATWG Fetch §3.3): which browser frontends may call the service, by the setting CORS_ORIGINS."""

from flask import Flask, Response, current_app, request

from app.config import normalize_origin

# The response headers that a frontend may read, and the request headers and methods that it may send.
_EXPOSED_HEADERS = (
    "Complete-Until, Dry-Run, ETag, Idempotent-Replayed, Link, Location, RateLimit, RateLimit-Policy, Retry-After, "
    "X-Request-Id"
)
_ALLOWED_HEADERS = (
    *("Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-ID", "X-Request-Id"),
    *("traceparent", "tracestate", "baggage", "sentry-trace"),  # W3C Trace Context, Baggage; Sentry's older name
)
_ALLOWED_METHODS = "DELETE, GET, HEAD, PATCH, POST, PUT"
_PREFLIGHT_SECONDS = "7200"  # the longest that Chromium caches a preflight response


def init_app(app: Flask) -> None:
    """Answer preflight requests, and allow the origins of CORS_ORIGINS, if there are any."""
    if app.config["CORS_ORIGINS"]:
        app.before_request(_answer_preflight)
        app.after_request(_allow_origin)


def _answer_preflight() -> Response | None:
    if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers or not _origin_allowed():
        return None
    return Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": _ALLOWED_METHODS,
            "Access-Control-Allow-Headers": ", ".join((*_ALLOWED_HEADERS, *current_app.config["CORS_HEADERS"])),
            "Access-Control-Max-Age": _PREFLIGHT_SECONDS,
        },
    )


def _allow_origin(response: Response) -> Response:
    """Allow the origin itself, never *, and no credentials: scripts send tokens, and there are no cookies."""
    response.vary.add("Origin")
    if _origin_allowed():
        response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
    return response


def _origin_allowed() -> bool:
    """Return whether the request's origin is in CORS_ORIGINS. Browsers send it normalized, other clients may not."""
    origin, allowed = request.headers.get("Origin", ""), current_app.config["CORS_ORIGINS"]
    if origin in allowed:
        return True
    try:
        return normalize_origin(origin) in allowed
    except ValueError:
        return False
