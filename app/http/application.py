"""Flask without what this service has no use for: asked for at every request, it takes a fifth of Flask's time."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import structlog
from flask import Flask, Request, Response, request
from flask.sessions import NullSession, SessionInterface
from werkzeug.exceptions import NotFound
from werkzeug.routing import BaseConverter, MapAdapter, Rule

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

OUTSIDE_PREFIX = "order_service.outside_prefix"  # in the environment of a request that is not for this service
ACCEPT_PATCH = "application/merge-patch+json, application/json"  # bodies of a PATCH (RFC 5789 §2.2)

log = structlog.get_logger()


class OrderRequest(Request):
    """A request to a service in which no blueprint has hooks or error handlers of its own; a test holds that."""

    blueprints: list[str] = []  # a property, which Flask reads three times a request


class NoSessions(SessionInterface):
    """There are no cookies, so one empty session serves everybody."""

    _NONE = NullSession()

    def open_session(self, app: Flask, request: Request) -> NullSession:
        """Nothing to open."""
        return self._NONE


class AnyCharacters(BaseConverter):
    """A variable of the path in which any character may stand, `/` too, at its ends and doubled as well.

    A server gives the application the decoded path (PEP 3333), in which `%2F` is a `/`. Werkzeug's own `path` converter
    takes none at the beginning.
    """

    part_isolating = False
    regex = r"[\s\S]+?"
    weight = 200  # as Werkzeug's `path`: tried last


class OrderId(BaseConverter):
    """The segment of a path that is an order's id: any but the names of fixed paths below /orders.

    Werkzeug prefers a fixed path only for the methods that it knows: PATCH /orders/batch would change an order "batch".
    A segment that is no UUID is still taken, since `order-not-found` is the answer to a wrong id.
    """

    part_isolating = True
    regex = r"(?!(?:batch|export)\Z)[^/]+"


class OrderRule(Rule):
    """A rule in which the variable `order_id` is an `OrderId`, without a word in the route."""

    def get_converter(self, variable_name: str, converter_name: str, args: Any, kwargs: Any) -> BaseConverter:
        """The converter of a variable."""
        if variable_name == "order_id":
            return OrderId(self.map)
        return super().get_converter(variable_name, converter_name, args, kwargs)


class OrderService(Flask):
    """Flask, for views that are all synchronous and are found by their path alone."""

    request_class = OrderRequest
    session_interface = NoSessions()
    url_rule_class = OrderRule

    def make_default_options_response(self) -> Response:
        """204 with the methods of the resource, and with what may be patched into it (RFC 5789 §3.1)."""
        methods = super().make_default_options_response().allow
        headers = {"Allow": ", ".join(sorted(methods))}
        if "PATCH" in methods:
            headers["Accept-Patch"] = ACCEPT_PATCH
        return Response(status=204, headers=headers)

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """The view as it is. Flask asks at every step whether it is async."""
        return func

    def log_exception(self, exc_info: Any) -> None:
        """Log an error that no handler knows, with the form of all others: Flask's own line tells the path, in which
        there may be a person's name."""
        log.error("request failed", exc_info=exc_info)

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Finds the route of a request. There is one host and nothing to redirect to: no need to look at the host.

        Raises NotFound for a path that begins with two slashes: Werkzeug would strip them, and //metrics would reach
        what a proxy's rule for /metrics protects. The same for a path outside the service's prefix.
        """
        if request is None:
            return None
        path: str = request.environ["PATH_INFO"]
        if path.startswith("//"):
            request.path = path.encode("latin-1").decode(errors="replace")  # as sent, for the problem's instance
            raise NotFound()
        if OUTSIDE_PREFIX in request.environ:
            raise NotFound()
        return MapAdapter(self.url_map, "", request.root_path, "", request.scheme, request.path, request.method)


def current_request() -> Request:
    """The request itself: each look through Flask's proxy for it would cost a microsecond."""
    return cast(Request, request._get_current_object())  # type: ignore[attr-defined]


def public_path(path: str) -> str:
    """A path of the service as clients know it: with the prefix that it is served under."""
    return current_request().root_path + path


# Also without the prefix, for whoever asks the service itself: the load balancer and the monitoring.
_WITHOUT_PREFIX = ("/healthz", "/readyz", "/metrics")


def serve_under_prefix(app: Flask) -> None:
    """Serve the application under its URL_PREFIX, if it has one."""
    if prefix := app.config["URL_PREFIX"]:
        app.wsgi_app = URLPrefix(app.wsgi_app, prefix)  # type: ignore[method-assign]


class URLPrefix:
    """Moves the prefix from PATH_INFO to SCRIPT_NAME (PEP 3333), to which every link of the service is relative.

    A path must begin with the prefix, unless the proxy says that it has removed it: `X-Forwarded-Prefix` names it. It
    is never guessed, or /shop/api/shop/api/metrics would lead past a proxy's rule for /shop/api/metrics.
    """

    def __init__(self, application: "WSGIApplication", prefix: str) -> None:
        self._application = application
        self._prefix = prefix

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Call the application with the environment of a path below the prefix."""
        path: str = environ.get("PATH_INFO", "")
        environ["SCRIPT_NAME"] = self._prefix
        removed = environ.get("HTTP_X_FORWARDED_PREFIX", "").rpartition(",")[2].strip().rstrip("/")
        if removed != self._prefix and path not in _WITHOUT_PREFIX:
            below = path.removeprefix(self._prefix)
            if below == path or below[:1] not in ("", "/"):
                environ[OUTSIDE_PREFIX] = True
            else:
                environ["PATH_INFO"] = below
        return self._application(environ, start_response)


Item = TypeVar("Item")

# Seconds. With 0 only those run that are ready already: the loop does not look for new events until a thousand of them
# have run, and eight clients that send batches held everybody else up for seconds.
_PAUSE = 1e-6
_LONGEST_STRETCH = 0.002  # seconds


def let_others_run() -> None:
    """Let the worker's other requests run, also those that are just arriving."""
    time.sleep(_PAUSE)


def in_stretches(items: Iterable[Item]) -> Iterator[Item]:
    """The items; the worker's other requests run whenever working on them has taken 2 ms."""
    pause = 0.0
    for item in items:
        if time.monotonic() >= pause:
            let_others_run()
            pause = time.monotonic() + _LONGEST_STRETCH
        yield item
