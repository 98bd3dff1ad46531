"""Flask without what this service has no use for: asked for at every request, it takes a fifth of Flask's time."""

from collections.abc import Callable
from typing import Any, cast

import structlog
from flask import Flask, Request, Response, request
from flask.sessions import NullSession, SessionInterface
from werkzeug.exceptions import NotFound
from werkzeug.routing import BaseConverter, MapAdapter, Rule

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
