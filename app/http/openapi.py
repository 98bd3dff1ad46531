"""The API description (OpenAPI 3.1), built with apispec from the blueprints' operations and the schemas."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from http import HTTPStatus
from inspect import cleandoc
from threading import Lock
from typing import Any

import orjson
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import current_app

from app.errors import (
    BadRequest,
    ContentTooLarge,
    Forbidden,
    InternalError,
    InvalidRequest,
    MalformedJSON,
    RequestTimeout,
    ServiceError,
    ServiceUnavailable,
    TooManyRequests,
    Unauthenticated,
    UnsupportedMediaType,
)
from app.http.application import public_path
from app.http.blueprint import PUBLIC, Blueprint, Body, Content, Operation
from app.http.problems import MEDIA_TYPE, problem_document
from app.http.request_input import JSON, KEY_PATTERN
from app.models.lifecycle import EVENT_TYPES
from app.models.webhook import ENDPOINT_EVENT_TYPES, TEST
from app.schemas.documents import ProblemSchema
from app.schemas.fields import TEXT_PATTERN, Choices, Metadata, MetadataPatch
from app.schemas.order import BatchEntryInSchema, DryRunQuerySchema
from app.schemas.order_actions import BulkActionInSchema
from app.schemas.webhook import EndpointPayloadSchema, PayloadSchema

_INTRODUCTION = """\
Creates and manages customer orders. An acknowledged order is never lost, and one Idempotency-Key never creates two
orders. Every error is a problem document (RFC 9457); its `type` is the address of a page that says what to do.

Amounts are integers in minor units of the order's currency. Timestamps are RFC 3339 in UTC.

`GET /orders/export` and `GET /events` choose their media type by `Accept`. Every other resource has one media type and
ignores `Accept` (RFC 9110 §12.4.1).
"""

_SECURITY_SCHEMES = {
    "apiKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key of this service: `osk_<id>.<secret><checksum>`.",
    },
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A token of the configured issuer. Without the scope `orders:manage` its subject is a customer, "
        "who has access to the orders of that customer only.",
    },
}

_PATH_VARIABLE = re.compile(r"<(?:\w+:)?(\w+)>")
_PATH_PARAMETERS: dict[str, dict[str, Any]] = {
    "order_id": {"schema": {"type": "string", "format": "uuid"}, "example": "019dab70-c2b3-7c51-b9f8-1d6f2a6c3e11"},
    "erasure_id": {"schema": {"type": "string", "format": "uuid"}, "example": "019dab70-c2b3-7c51-b9f8-1d6f2a6c3e11"},
    "webhook_id": {"schema": {"type": "string", "format": "uuid"}, "example": "019dab70-c2b3-7c51-b9f8-1d6f2a6c3e11"},
    "slug": {"example": "order-not-found"},
    "name": {"example": "swagger-ui.css"},
}

_TEXT = {"type": "string"}
_REQUEST_HEADERS: dict[str, dict[str, Any]] = {
    "Idempotency-Key": {
        "description": "Makes a retry safe: a request with the same key and body returns the first response, at any "
        "later time. The same key with a different body returns 422. After an erasure any body returns the erased "
        "order. The key may be bare or a quoted string.",
        "schema": _TEXT | {"pattern": KEY_PATTERN},
        "example": "8e03978e-40d5-43e8-bc93-6894a57f9324",
    },
    "If-Match": {
        "description": "The `ETag` of the order as you read it. If the order has changed since, the response is 412.",
        "schema": _TEXT,
        "example": '"1"',
    },
    "If-None-Match": {
        "description": "The `ETag` of your copy. If it is still current, the response is 304, without a body.",
        "schema": _TEXT,
        "example": '"1"',
    },
    "Last-Event-ID": {
        "description": "The `id` of the last event that was received, as browsers send it when they connect again. It "
        "has precedence over `after`.",
        "schema": _TEXT,
        "example": "17",
    },
}
_RESPONSE_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {
        "description": "The id of the request in the logs; the `X-Request-Id` of the request if it has one.",
        "schema": _TEXT,
    },
    "ETag": {
        "description": "The entity tag of the response, for `If-Match` and `If-None-Match`. The tag of an order is its "
        "version; an erasure appends `-erased`, and a customer's view that omits something `-customer`.",
        "schema": _TEXT,
        "example": '"1"',
    },
    "Location": {
        "description": "The address of the created resource, or of the documentation.",
        "schema": _TEXT | {"format": "uri-reference"},
    },
    "Idempotent-Replayed": {
        "description": "`true` if this is the response to an earlier request with the same Idempotency-Key.",
        "schema": _TEXT | {"enum": ["true"]},
    },
    "Dry-Run": {"schema": {"type": "string", "const": "true"}, "description": "The request has stored nothing."},
    "Complete-Until": {
        "description": "All orders created before this time are readable now. Orders with a later `created_at` may "
        "still be missing: `created_at` is set before an order is stored.",
        "schema": _TEXT | {"format": "date-time"},
        "example": "2026-11-22T09:40:07Z",
    },
    "Link": {"description": 'The address of the next page, with `rel="next"` (RFC 8288).', "schema": _TEXT},
    "Accept": {"description": "The media types that the body may have, except for PATCH.", "schema": _TEXT},
    "Accept-Patch": {"description": "The media types that the body of a PATCH may have.", "schema": _TEXT},
    "Accept-Encoding": {"description": "The content codings that the body may have.", "schema": _TEXT},
    "Allow": {"description": "The methods that the resource supports.", "schema": _TEXT},
    "Retry-After": {"description": "Seconds to wait before the next attempt.", "schema": {"type": "integer"}},
    "WWW-Authenticate": {
        "description": "The required credentials or scope (RFC 6750 §3).",
        "schema": _TEXT,
        "example": 'Bearer realm="orders", error="insufficient_scope", scope="orders:write"',
    },
    "RateLimit-Policy": {
        "description": "The rate limit: `q` requests per `w` seconds (draft-ietf-httpapi-ratelimit-headers).",
        "schema": _TEXT,
        "example": '"customers";q=600;w=60',
    },
    "RateLimit": {
        "description": "`r` requests remain; the next one is added in `t` seconds.",
        "schema": _TEXT,
        "example": '"customers";r=599;t=1',
    },
}
_PROBLEM_HEADERS: dict[type[ServiceError], tuple[str, ...]] = {
    Unauthenticated: ("WWW-Authenticate",),
    Forbidden: ("WWW-Authenticate",),
    TooManyRequests: ("RateLimit-Policy", "RateLimit"),
    UnsupportedMediaType: ("Accept", "Accept-Patch", "Accept-Encoding"),
}

_WEBHOOK_HEADERS = [
    {
        "in": "header",
        "name": "webhook-id",
        "required": True,
        "description": "The id of the event, the same at each attempt: store it, and ignore an id that you have.",
        "schema": _TEXT,
    },
    {
        "in": "header",
        "name": "webhook-timestamp",
        "required": True,
        "description": "When this attempt was made, in seconds since 1970. Refuse one that is older than five minutes.",
        "schema": _TEXT | {"pattern": "^[0-9]+$"},
    },
    {
        "in": "header",
        "name": "webhook-signature",
        "required": True,
        "description": "One or more signatures, separated by spaces: `v1,` and the HMAC-SHA256 of "
        "`{webhook-id}.{webhook-timestamp}.{body}` in base64, with the secret's bytes (Standard Webhooks).",
        "schema": _TEXT | {"pattern": "^v1,"},
    },
]
_WEBHOOK_RESPONSES = {
    "2XX": {"description": "The event is delivered."},
    "410": {"description": "The webhook is disabled."},
    "429": {"description": "The event is sent again, not before `Retry-After`."},
    "default": {"description": "The event is sent again, for up to 72 hours."},
}

# Problems that follow from the declaration of an operation.
_COMMON_PROBLEMS = (BadRequest, InternalError)
_AUTHENTICATION_PROBLEMS = (Unauthenticated, Forbidden, TooManyRequests)
_INPUT_PROBLEMS = (InvalidRequest, ServiceUnavailable)
_BODY_PROBLEMS = (MalformedJSON, RequestTimeout, ContentTooLarge, UnsupportedMediaType)

_building = Lock()


def api_description() -> bytes:
    """Return the description as JSON. It is built on first use, because it would slow down every start."""
    with _building:
        return _build(public_path("/"))


@cache
def _build(server: str) -> bytes:
    plugin = MarshmallowPlugin()
    spec = APISpec(
        title="Order Service",
        version="1.0.0",
        openapi_version="3.1.0",
        plugins=[plugin],
        servers=[{"url": server.rstrip("/") or "/"}],
        info={"description": _INTRODUCTION, "license": {"name": "MIT", "identifier": "MIT"}},
    )
    assert plugin.converter is not None
    plugin.converter.add_attribute_function(_describe_metadata)  # type: ignore[no-untyped-call]
    plugin.converter.add_parameter_attribute_function(_describe_choices)
    for name, scheme in _SECURITY_SCHEMES.items():
        spec.components.security_scheme(name, scheme)
    # No operation names them as its own.
    for schema in (ProblemSchema, BatchEntryInSchema, BulkActionInSchema, PayloadSchema, EndpointPayloadSchema):
        spec.components.schema(schema.__name__.removesuffix("Schema"), schema=schema)
    for blueprint in current_app.blueprints.values():
        assert isinstance(blueprint, Blueprint)
        spec.tag({"name": blueprint.name, "description": blueprint.description})
        for operation in blueprint.operations.values():
            _add_operation(spec, operation, tag=blueprint.name)
    for (schema_class, *_), name in plugin.converter.refs.items():
        spec.components.schemas[name]["description"] = cleandoc(schema_class.__doc__)
    return orjson.dumps(spec.to_dict() | {"webhooks": _webhooks()})


def _add_operation(spec: APISpec, operation: Operation, *, tag: str) -> None:
    variables = _PATH_VARIABLE.findall(operation.path)
    operation_object: dict[str, Any] = {
        "operationId": _camel_case(operation.name),
        "summary": operation.summary,
        "tags": [tag],
        "security": _security(operation.scope),
        "responses": _success_responses(operation) | _problem_responses(_problems(operation)),
    }
    if operation.description:
        operation_object["description"] = operation.description
    if parameters := _parameters(operation, variables):
        operation_object["parameters"] = parameters
    if operation.body is not None:
        content = {operation.body_media_type: {"schema": operation.body}}
        operation_object["requestBody"] = {"required": operation.body_required, "content": content}
    path = _PATH_VARIABLE.sub(r"{\1}", operation.path)
    path_parameters = [] if operation.path_schema else [_path_parameter(name) for name in variables]
    spec.path(path, operations={operation.method.lower(): operation_object}, parameters=path_parameters)


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def _security(scope: str) -> list[dict[str, list[str]]]:
    return [] if scope == PUBLIC else [{scheme: [scope]} for scheme in _SECURITY_SCHEMES]


def _parameters(operation: Operation, variables: list[str]) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = []
    if operation.path_schema:
        parameters.append({"in": "path", "schema": operation.path_schema})
    if operation.query:
        parameters.append({"in": "query", "schema": operation.query})
    if operation.dry_run:
        parameters.append({"in": "query", "schema": DryRunQuerySchema})
    for name in operation.request_headers:
        parameters.append({"in": "header", "name": name, "required": False} | _REQUEST_HEADERS[name])
    return parameters


def _path_parameter(name: str) -> dict[str, Any]:
    return {"in": "path", "name": name, "required": True, "schema": _TEXT} | _PATH_PARAMETERS.get(name, {})


def _success_responses(operation: Operation) -> dict[str, Any]:
    return {
        str(status): {
            "description": HTTPStatus(status).phrase,
            "headers": _headers((*operation.response_headers, *(["Dry-Run"] if operation.dry_run else []))),
            **_content(body),
        }
        for status, body in operation.responses.items()
    }


def _content(body: Body) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for part in body if isinstance(body, tuple) else (body,):
        if isinstance(part, Content):
            content |= {media_type: {"schema": dict(part.schema)} for media_type in part.media_types}
        elif part is not None:
            content[JSON] = {"schema": part}
    return {"content": content} if content else {}


def _problems(operation: Operation) -> set[type[ServiceError]]:
    problems: set[type[ServiceError]] = {*_COMMON_PROBLEMS, *operation.problems}
    if operation.scope != PUBLIC:
        problems |= {*_AUTHENTICATION_PROBLEMS}
    if (
        operation.path_schema
        or operation.query
        or operation.dry_run
        or operation.refuses_query
        or (operation.request_headers and operation.scope != PUBLIC)
    ):
        problems |= {*_INPUT_PROBLEMS}
    if operation.body:
        problems |= {*_INPUT_PROBLEMS, *_BODY_PROBLEMS}
    return problems


def _problem_responses(types: Iterable[type[ServiceError]]) -> dict[str, Any]:
    """One response for each status, with an example of each problem type that has it."""
    responses: dict[str, Any] = {}
    for problem in sorted(types, key=lambda problem: (problem.status, problem.slug)):
        response = responses.setdefault(
            str(problem.status),
            {
                "description": "",
                "headers": _headers(()),
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        response["description"] += f"{', or ' if response['description'] else ''}{problem.title}"
        retry_after = ("Retry-After",) if problem.retry_after else ()
        response["headers"] |= _headers((*retry_after, *_PROBLEM_HEADERS.get(problem, ())))
        response["content"][MEDIA_TYPE]["examples"][problem.slug] = {"value": _example(problem)}
    return responses


def _headers(names: tuple[str, ...]) -> dict[str, Any]:
    return {name: _RESPONSE_HEADERS[name] for name in ("X-Request-Id", *names)}


def _example(problem: type[ServiceError]) -> Mapping[str, Any]:
    detail = " ".join((problem.__doc__ or "").split())
    occurrence = {"instance": public_path("/orders"), "request_id": "8e03978e40d543e8bc936894a57f9324"}
    return problem_document(problem(detail)) | occurrence


def _describe_choices(_converter: Any, field: Any, **_: Any) -> dict[str, Any]:
    """Values separated by commas, where apispec's default is a parameter for each."""
    return {"style": "form", "explode": False} if isinstance(field, Choices) else {}


def _webhooks() -> dict[str, Any]:
    """The requests that the service sends: a path item for each type of event."""
    items = {event_type: _webhook(event_type, "Payload") for event_type in EVENT_TYPES}
    return items | {event_type: _webhook(event_type, "EndpointPayload") for event_type in (*ENDPOINT_EVENT_TYPES, TEST)}


def _webhook(event_type: str, schema: str) -> dict[str, Any]:
    body = {"required": True, "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}
    return {
        "post": {
            "summary": f"The event {event_type}",
            "tags": ["webhooks"],
            "security": [],
            "parameters": _WEBHOOK_HEADERS,
            "requestBody": body,
            "responses": _WEBHOOK_RESPONSES,
        }
    }


def _describe_metadata(_converter: Any, field: Any, **_: Any) -> dict[str, Any]:
    """The limits of `metadata`, which is no schema of its own."""
    if not isinstance(field, Metadata):
        return {}
    text = {"type": ["string", "null"] if isinstance(field, MetadataPatch) else "string", "pattern": TEXT_PATTERN}
    return {
        "maxProperties": field.KEYS,
        "propertyNames": {"minLength": 1, "maxLength": Metadata.KEY_LENGTH, "pattern": TEXT_PATTERN},
        "additionalProperties": text | {"maxLength": Metadata.VALUE_LENGTH},
    }
