"""Declaration of routes: one decorator states a route's scope, input, responses and problems.

`app.http.auth` enforces the scope, `app.http.openapi` describes the operation, and the view receives validated input.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from inspect import cleandoc
from typing import Any, TypeVar

import flask
from marshmallow import Schema

from app.errors import ServiceError
from app.http.request_input import JSON, check_path, read_body, read_dry_run, read_query
from app.schemas.fields import ParametersSchema

_NO_PARAMETERS = ParametersSchema()
PUBLIC = "public"  # scope of a route without authentication

View = TypeVar("View", bound=Callable[..., flask.Response])


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
    body: Schema | None = None
    body_media_type: str = JSON
    body_required: bool = True
    dry_run: bool = False
    problems: tuple[type[ServiceError], ...] = ()
    request_headers: tuple[str, ...] = ()
    response_headers: tuple[str, ...] = ()

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
            declared = Operation(
                method, path, view.__name__, summary.removesuffix("."), description, scope, **declaration
            )
            self.operations[view.__name__] = declared
            self.add_url_rule(path, view.__name__, _with_input(view, declared), methods=[method])
            return view

        return register


def _with_input(view: View, operation: Operation) -> Callable[..., flask.Response]:
    """Wrap the view in validation: Flask calls it with the path variables only."""
    path_schema, query, body = operation.path_schema, operation.query, operation.body
    refuses_query = operation.refuses_query
    if path_schema is None and query is None and body is None and not operation.dry_run and not refuses_query:
        return view

    @wraps(view)
    def call(**arguments: Any) -> flask.Response:
        if path_schema is not None:
            check_path(path_schema)
        if query is not None:
            arguments["query"] = read_query(query)
        if operation.dry_run:
            read_dry_run()
        if refuses_query:
            read_query(_NO_PARAMETERS)
        if body is not None:
            arguments["body"] = read_body(body)
        return view(**arguments)

    return call
