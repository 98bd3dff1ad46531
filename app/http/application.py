"""The Flask application class: routing by path, URL prefix, and pauses for other requests of the worker."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import structlog
from flask import Flask, Request, Response, g, request
from flask.sessions import NullSession, SessionInterface
from werkzeug.exceptions import NotFound
from werkzeug.routing import BaseConverter, MapAdapter, Rule

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

OUTSIDE_PREFIX = "order_service.outside_prefix"  # WSGI environment key: the path is not below URL_PREFIX
ACCEPT_PATCH = "application/merge-patch+json, application/json"  # media types of a PATCH (RFC 5789 §2.2)

WITHOUT_PREFIX = ("/healthz", "/readyz", "/metrics")  # load balancers and monitoring call the service directly
# Seconds. sleep(0) runs only the greenlets that are ready: the event loop polls sockets once in a thousand such
# switches, and with eight clients sending batches, other requests waited for seconds.
_PAUSE = 1e-6
_MAX_RUN = 0.002  # seconds of work between two pauses

Item = TypeVar("Item")

log = structlog.get_logger()


class NoSessions(SessionInterface):
    """Session interface of a service without cookies: every request has the same empty session."""

    _SESSION = NullSession()

    def open_session(self, app: Flask, request: Request) -> NullSession:
        """Return the empty session."""
        return self._SESSION


class AnyCharacters(BaseConverter):
    """Path variable that may contain any character, including leading, trailing and repeated slashes.

    WSGI servers decode the path (PEP 3333), so `%2F` arrives as `/`. Werkzeug's `path` converter allows no leading
    slash.
    """

    part_isolating = False
    regex = r"[\s\S]+?"
    weight = 200  # as Werkzeug's `path` converter: matched last


class OrderId(BaseConverter):
    """Path segment with an order id: any text except the names of the fixed paths below /orders.

    Werkzeug prefers a fixed path only for the methods it is registered for: without the exclusion, PATCH /orders/batch
    would update an order "batch". Text that is not a UUID matches too, because the response to it is `order-not-found`.
    """

    part_isolating = True
    regex = r"(?!(?:actions|batch|by-ref|export|search)\Z)[^/]+"


class OrderRule(Rule):
    """URL rule that converts every variable named `order_id` with `OrderId`."""

    def get_converter(self, variable_name: str, converter_name: str, args: Any, kwargs: Any) -> BaseConverter:
        """Return the converter of a path variable."""
        if variable_name == "order_id":
            return OrderId(self.map)
        return super().get_converter(variable_name, converter_name, args, kwargs)


class OrderService(Flask):
    """Flask application with synchronous views only, routed by path alone.

    The gains of the overridden hooks are instructions of a create/read (`make cost-test`).
    """

    url_rule_class = OrderRule
    session_interface = NoSessions()  # saves 15/22 %: Flask would set up the signing of a cookie with SECRET_KEY

    def make_default_options_response(self) -> Response:
        """Answer OPTIONS with 204, `Allow`, and `Accept-Patch` where PATCH is allowed (RFC 5789 §3.1)."""
        methods = super().make_default_options_response().allow
        headers = {"Allow": ", ".join(sorted(methods))}
        if "PATCH" in methods:
            headers["Accept-Patch"] = ACCEPT_PATCH
        return Response(status=204, headers=headers)

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function unchanged. Flask's check for coroutines, six times a request, costs 1.9/3.3 %."""
        return func

    def log_exception(self, exc_info: Any) -> None:
        """Log an unhandled exception without the request path, which may contain personal data."""
        log.error("request failed", exc_info=exc_info)

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Bind the URL map to the request's path, without host matching: saves 4.7/8.1 %.

        Raises NotFound for a path that begins with two slashes, because Werkzeug strips them and //metrics would bypass
        a proxy's rule for /metrics; and for a path outside the URL prefix.
        """
        if request is None:
            return None
        path: str = request.environ["PATH_INFO"]
        if path.startswith("//"):
            request.path = path.encode("latin-1").decode(errors="replace")  # unstripped, for the problem's `instance`
            raise NotFound()
        if OUTSIDE_PREFIX in request.environ:
            raise NotFound()
        return MapAdapter(self.url_map, "", request.root_path, "", request.scheme, request.path, request.method)


def serve_under_prefix(app: Flask) -> None:
    """Serve the application below the setting URL_PREFIX, if there is one."""
    if prefix := app.config["URL_PREFIX"]:
        app.wsgi_app = URLPrefix(app.wsgi_app, prefix)  # type: ignore[method-assign]


class URLPrefix:
    """WSGI middleware that moves the prefix from PATH_INFO to SCRIPT_NAME (PEP 3333), from which Flask builds links.

    A path must begin with the prefix unless the proxy states in `X-Forwarded-Prefix` that it has removed it. The
    middleware never guesses: otherwise /shop/api/shop/api/metrics would bypass a proxy's rule for /shop/api/metrics.
    """

    def __init__(self, application: "WSGIApplication", prefix: str) -> None:
        self._application = application
        self._prefix = prefix

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Call the application with the path below the prefix, or mark the request as OUTSIDE_PREFIX."""
        path: str = environ.get("PATH_INFO", "")
        environ["SCRIPT_NAME"] = self._prefix
        removed = environ.get("HTTP_X_FORWARDED_PREFIX", "").rpartition(",")[2].strip().rstrip("/")
        if removed != self._prefix and path not in WITHOUT_PREFIX:
            below = path.removeprefix(self._prefix)
            if below == path or below[:1] not in ("", "/"):
                environ[OUTSIDE_PREFIX] = True
            else:
                environ["PATH_INFO"] = below
        return self._application(environ, start_response)


def current_request() -> Request:
    """Return the request object itself. Access through Flask's proxy throughout would cost 12/14 %."""
    current: Request = request._get_current_object()  # type: ignore[attr-defined]  # documented by Flask
    return current


def current_globals() -> Any:
    """Return the object behind `g`, for the same reason."""
    return g._get_current_object()  # documented by Flask


def current_request_id() -> str:
    """Return the id of the request, as in the logs and in X-Request-Id."""
    request_id: str = current_globals().request_id
    return request_id


def public_path(path: str) -> str:
    """Return a path of the service with the URL prefix, as clients see it."""
    return current_request().root_path + path


def requested_path() -> str:
    """Return the path of the request as clients see it, percent-encoded (RFC 3986)."""
    return quote(public_path(current_request().path), safe="/:@!$&'()*+,;=")


def let_others_run() -> None:
    """Yield to the worker's other requests, including those that are just arriving."""
    time.sleep(_PAUSE)


def in_stretches(items: Iterable[Item]) -> Iterator[Item]:
    """Iterate over the items, and yield to the worker's other requests after every 2 ms of work."""
    pause_at = 0.0
    for item in items:
        if time.monotonic() >= pause_at:
            let_others_run()
            pause_at = time.monotonic() + _MAX_RUN
        yield item
