"""The Flask classes: the application, and the blueprint whose decorator declares a route.

A declaration states a route's scope, input, responses and problems. `app.http.auth` enforces the scope,
`app.http.openapi` describes the operation, and the view receives validated input.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from inspect import cleandoc
from typing import TYPE_CHECKING, Any, TypeVar

import flask
import structlog
from flask import Flask, Request, Response
from flask.sessions import NullSession, SessionInterface
from marshmallow import Schema
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import BaseConverter, MapAdapter, Rule

from app.errors import ServiceError
from app.http.requests import (
    ACCEPT_PATCH,
    JSON,
    check_conditions,
    check_path,
    current_request,
    has_conditions,
    read_body,
    read_dry_run,
    read_query,
)
from app.schemas.base import ParametersSchema, StrictSchema

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PUBLIC = "public"  # scope of a route without authentication
OUTSIDE_PREFIX = "order_service.outside_prefix"  # WSGI environment key: the path is not below URL_PREFIX
WITHOUT_PREFIX = ("/healthz", "/readyz", "/metrics")  # load balancers and monitoring call the service directly
_NO_PARAMETERS = ParametersSchema()

View = TypeVar("View", bound=Callable[..., Response])

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Content:
    """Media types and JSON schema of a response body that has no marshmallow schema."""

    media_types: tuple[str, ...]
    schema: Mapping[str, Any]


Body = Schema | Content | tuple[Schema | Content, ...] | None


@dataclass(frozen=True, slots=True)
class Operation:
    """The declaration of one route.

    `responses` maps each success status to its body: a schema for JSON, `Content` for others, a tuple of both if the
    client chooses, None for no body.
    `problems` omits those common to all routes of the same kind (401, 413, …). `dry_run`: the route takes the query
    parameter of that name, which `change_request` and `is_dry_run` evaluate.
    """

    method: str
    path: str
    name: str
    summary: str
    description: str
    scope: str
    responses: Mapping[int, Body]
    path_schema: Schema | None = None
    query: Schema | None = None
    body: StrictSchema | None = None
    body_media_type: str = JSON
    body_required: bool = True
    dry_run: bool = False
    problems: tuple[type[ServiceError], ...] = ()
    request_headers: tuple[str, ...] = ()
    response_headers: tuple[str, ...] = ()

    @property
    def checks_conditions(self) -> bool:
        """Whether If-Match and If-None-Match are checked before the view: its resource has no entity tag."""
        may_be_missing = any(problem.status == 404 for problem in self.problems)  # the view checks that first
        return self.method != "GET" and not may_be_missing

    @property
    def refuses_query(self) -> bool:
        """Whether any query parameter is an error: `dry_run` would be ignored where something is changed."""
        return self.method != "GET" and self.query is None and not self.dry_run


class Blueprint(flask.Blueprint):
    """A Flask blueprint whose routes are declared with `operation`."""

    def __init__(self, name: str, import_name: str, *, description: str) -> None:
        super().__init__(name, import_name)
        self.description = description
        self.operations: dict[str, Operation] = {}  # by the name of the view

    def operation(self, method: str, path: str, *, scope: str, **declaration: Any) -> Callable[[View], View]:
        """Register a view. `scope` is one of `app.models.principal.SCOPES` or PUBLIC; see `Operation` for the others.

        The view is called with the path variables, and with `query` and `body` if they are declared. Its docstring is
        the operation's summary.
        """

        def register(view: View) -> View:
            summary, _, description = cleandoc(view.__doc__ or "").partition("\n\n")
            operation = Operation(
                method, path, view.__name__, summary.removesuffix("."), description, scope, **declaration
            )
            self.operations[view.__name__] = operation
            self.add_url_rule(path, view.__name__, _with_input(view, operation, self), methods=[method])
            return view

        return register

    def has_representation(self, path: str) -> bool:
        """Whether a resource with this path can be read."""
        return any(operation.method == "GET" and operation.path == path for operation in self.operations.values())


def _with_input(view: View, operation: Operation, blueprint: Blueprint) -> Callable[..., Response]:
    """Wrap the view in validation: Flask calls it with the path variables only."""
    path_schema, query, body = operation.path_schema, operation.query, operation.body
    refuses_query, checks_conditions = operation.refuses_query, operation.checks_conditions

    @wraps(view)
    def call(**arguments: Any) -> Response:
        request = current_request()
        if path_schema is not None:
            check_path(path_schema, request)
        if query is not None:
            arguments["query"] = read_query(query, request)
        if operation.dry_run:
            read_dry_run(request)
        if refuses_query:
            read_query(_NO_PARAMETERS, request)
        if body is not None:
            arguments["body"] = read_body(body, request)
        if checks_conditions and has_conditions(request) and blueprint.has_representation(operation.path):
            check_conditions()
        return view(**arguments)

    return call


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

    The figures at the overridden hooks: how many more instructions a create/read takes without them.
    """

    url_rule_class = OrderRule
    session_interface = NoSessions()  # 16/25 %: Flask would set up the signing of a cookie with SECRET_KEY

    def make_default_options_response(self) -> Response:
        """Answer OPTIONS with 204, `Allow`, and `Accept-Patch` where PATCH is allowed (RFC 5789 §3.1)."""
        methods = super().make_default_options_response().allow
        headers = {"Allow": ", ".join(sorted(methods))}
        if "PATCH" in methods:
            headers["Accept-Patch"] = ACCEPT_PATCH
        return Response(status=204, headers=headers)

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function unchanged. Flask's check for coroutines, six times a request, costs 2.2/3.8 %."""
        return func

    def log_exception(self, exc_info: Any) -> None:
        """Log an unhandled exception without the request path, which may contain personal data."""
        log.error("request failed", exc_info=exc_info)

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Bind the URL map to the request's path, without host matching: 5/9 %.

        Raises NotFound for a path that begins with two slashes, because Werkzeug strips them and //metrics would bypass
        a proxy's rule for /metrics; and for a path outside the URL prefix. Raises the response to `OPTIONS *`.
        """
        if request is None:
            return None
        path: str = request.environ["PATH_INFO"]
        if path.startswith(("//", "*")):
            if path == "*" and request.method == "OPTIONS":  # of the whole service (RFC 9110 §9.3.7)
                methods = {method for rule in self.url_map.iter_rules() for method in rule.methods or ()}
                raise HTTPException(response=Response(status=204, headers={"Allow": ", ".join(sorted(methods))}))
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
        forwarded_prefix = environ.get("HTTP_X_FORWARDED_PREFIX", "").rpartition(",")[2].strip().rstrip("/")
        if forwarded_prefix != self._prefix and path not in WITHOUT_PREFIX:
            remainder = path.removeprefix(self._prefix)
            if remainder == path or remainder[:1] not in ("", "/"):
                environ[OUTSIDE_PREFIX] = True
            else:
                environ["PATH_INFO"] = remainder
        return self._application(environ, start_response)
