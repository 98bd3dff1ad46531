"""The blueprint of every route: strict arguments, and a description that tells the headers and the problems."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import flask_smorest
from marshmallow import Schema

from app.errors import (
    BadRequest,
    ContentTooLarge,
    Forbidden,
    InternalError,
    InvalidRequest,
    MalformedJSON,
    ServiceError,
    ServiceUnavailable,
    TooManyRequests,
    Unauthenticated,
    UnsupportedMediaType,
)
from app.http.arguments import read_arguments
from app.http.idempotency import KEY_PATTERN
from app.http.problems import MEDIA_TYPE, problem_document

View = TypeVar("View", bound=Callable[..., Any])

_TEXT = {"type": "string"}
REQUEST_HEADERS: dict[str, dict[str, Any]] = {
    "Idempotency-Key": {
        "description": "Makes a retry safe: the same key and body are answered with the first response, for as long as "
        "the order exists. Bare, or as a quoted string.",
        "schema": _TEXT | {"pattern": KEY_PATTERN},
        "example": "8e03978e-40d5-43e8-bc93-6894a57f9324",
    },
    "If-Match": {
        "description": "The entity tag of the order as you know it; 412 if it has changed since.",
        "schema": _TEXT,
        "example": '"1"',
    },
    "If-None-Match": {
        "description": "The entity tag you have; 304 if it is still the current one.",
        "schema": _TEXT,
        "example": '"1"',
    },
}
RESPONSE_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {"description": "The request's id in the logs: yours if you sent one.", "schema": _TEXT},
    "ETag": {
        "description": "Of what was answered, for `If-None-Match`; an order's is its version.",
        "schema": _TEXT,
        "example": '"1"',
    },
    "Location": {"description": "The new order's address.", "schema": _TEXT | {"format": "uri-reference"}},
    "Idempotent-Replayed": {
        "description": "`true` where the key had been used before and its first response is given again.",
        "schema": _TEXT | {"enum": ["true"]},
    },
    "Link": {"description": 'The next page, with `rel="next"` (RFC 8288).', "schema": _TEXT},
    "Allow": {"description": "The methods that the resource knows.", "schema": _TEXT},
    "Retry-After": {"description": "Seconds to wait before the next try.", "schema": {"type": "integer"}},
    "WWW-Authenticate": {
        "description": "What is missing (RFC 6750 §3).",
        "schema": _TEXT,
        "example": 'Bearer realm="orders", error="insufficient_scope", scope="orders:write"',
    },
    "RateLimit-Policy": {
        "description": "Your share: `q` requests in `w` seconds (draft-ietf-httpapi-ratelimit-headers).",
        "schema": _TEXT,
        "example": '"customers";q=600;w=60',
    },
    "RateLimit": {
        "description": "What is left of it: `r` requests now, more in `t` seconds.",
        "schema": _TEXT,
        "example": '"customers";r=599;t=1',
    },
}
# What a problem is told with, beside the request's id.
_PROBLEM_HEADERS: dict[type[ServiceError], tuple[str, ...]] = {
    Unauthenticated: ("WWW-Authenticate",),
    Forbidden: ("WWW-Authenticate",),
    TooManyRequests: ("RateLimit-Policy", "RateLimit"),
}
_SUCCESS = ("200", "201", "202", "204", "304")
_ANY_REQUEST = (BadRequest, InternalError)
_WITH_SCOPE = (Unauthenticated, Forbidden, TooManyRequests)
_WITH_ARGUMENTS = (InvalidRequest, ServiceUnavailable)
_WITH_BODY = (MalformedJSON, ContentTooLarge, UnsupportedMediaType)


PUBLIC = "public"


class Blueprint(flask_smorest.Blueprint):
    """Routes with strict arguments that say which headers and problems they know.

    From the library comes the description alone. Its own wrappers around a view, three of them, would take longer than
    the view: our arguments are read by `read_arguments`, and our views answer with responses that are ready.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prepare_doc_cbks.append(self._prepare_description)

    def arguments(self, schema: Schema, *, location: str = "json", **described: Any) -> Callable[[View], View]:
        """Call the view with what the schema makes of the body, of the query or of the path's variables."""
        describe = super().arguments(schema, location=location, **described)

        def decorate(view: View) -> View:
            @wraps(view)
            def read_and_call(*args: Any, **kwargs: Any) -> Any:
                return view(read_arguments(schema, location), *args, **kwargs)

            return _described_like(describe(view), read_and_call)  # type: ignore[return-value]

        return decorate

    def response(self, *args: Any, **described: Any) -> Callable[[View], View]:
        """Tell what the view answers."""
        describe = super().response(*args, **described)
        return lambda view: _described_like(describe(view), view)

    def alt_response(self, *args: Any, **described: Any) -> Callable[[View], View]:
        """Tell what else it answers."""
        describe = super().alt_response(*args, **described)
        return lambda view: _described_like(describe(view), view)

    def requires(self, scope: str) -> Callable[[View], View]:
        """Let in whoever has the scope, or everybody: PUBLIC. A route that does not say stops the start-up."""

        def decorate(view: View) -> View:
            view.required_scope = scope  # type: ignore[attr-defined]
            view._apidoc = {**getattr(view, "_apidoc", {}), "scope": scope}  # type: ignore[attr-defined]
            return view

        return decorate

    def describe(
        self,
        *,
        problems: tuple[type[ServiceError], ...] = (),
        request_headers: tuple[str, ...] = (),
        response_headers: tuple[str, ...] = (),
    ) -> Callable[[View], View]:
        """Declare what the schemas do not tell: a view's own problems, and the headers it reads and writes.

        The operation's id is the view's name, in camel case.
        """

        def decorate(view: View) -> View:
            first, *rest = view.__name__.split("_")
            told = {
                "operation_id": first + "".join(word.capitalize() for word in rest),
                "problems": problems,
                "request_headers": request_headers,
                "response_headers": response_headers,
            }
            view._apidoc = {**getattr(view, "_apidoc", {}), "description": told}  # type: ignore[attr-defined]
            return view

        return decorate

    @staticmethod
    def _prepare_description(doc: dict[str, Any], doc_info: dict[str, Any], **_: Any) -> dict[str, Any]:
        told = doc_info["description"]
        doc["operationId"] = told["operation_id"]
        for name in told["request_headers"]:
            parameter = {"name": name, "in": "header", "required": False} | REQUEST_HEADERS[name]
            doc.setdefault("parameters", []).append(parameter)
        # The library's own errors, and its "default", are not what this service answers.
        answers = {str(status): answer for status, answer in doc["responses"].items()}
        doc["responses"] = {status: answer for status, answer in answers.items() if status in _SUCCESS}
        for response in doc["responses"].values():
            response.setdefault("headers", {}).update(_headers(told["response_headers"]))
        problems = _ANY_REQUEST + told["problems"]
        doc["security"] = []
        if doc_info["scope"] != PUBLIC:
            doc["security"] = [{"apiKey": [doc_info["scope"]]}, {"token": [doc_info["scope"]]}]
            problems += _WITH_SCOPE
        if doc.get("parameters"):
            problems += _WITH_ARGUMENTS
        if "requestBody" in doc:
            problems += (*_WITH_ARGUMENTS, *_WITH_BODY)
        doc["responses"].update(_problem_responses(problems))
        return doc


def _described_like(described: Any, view: View) -> View:
    view._apidoc = described._apidoc  # type: ignore[attr-defined]
    return view


def _headers(names: tuple[str, ...]) -> dict[str, Any]:
    return {name: RESPONSE_HEADERS[name] for name in ("X-Request-Id", *names)}


def _problem_responses(types: tuple[type[ServiceError], ...]) -> dict[str, Any]:
    """One response a status, with an example of each problem that has it."""
    responses: dict[str, Any] = {}
    for kind in sorted(set(types), key=lambda kind: (kind.status, kind.slug)):
        response = responses.setdefault(
            str(kind.status),
            {
                "description": "",
                "headers": _headers(()),
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        response["description"] += f"{', or ' if response['description'] else ''}{kind.title}"
        waiting = ("Retry-After",) if kind.retry_after else ()
        response["headers"] |= _headers((*waiting, *_PROBLEM_HEADERS.get(kind, ())))
        response["content"][MEDIA_TYPE]["examples"][kind.slug] = {"value": _example(kind)}
    return responses


def _example(kind: type[ServiceError]) -> dict[str, Any]:
    meaning = " ".join((kind.__doc__ or "").split())
    return problem_document(kind(meaning)) | {"instance": "/orders", "request_id": "8e03978e40d543e8bc936894a57f9324"}
