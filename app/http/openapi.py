"""The API description (OpenAPI 3.1), built with apispec from the blueprints' operations and the schemas.

First the operations; then what they share (security, parameters and headers, enumerations), the requests to webhooks,
and the examples, which `make examples` has recorded in app/http/examples.json; last a collection for Postman, Bruno,
Insomnia and newman (Postman's format, version 2.1), which is built from the description.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from http import HTTPStatus
from inspect import cleandoc
from pathlib import Path
from threading import Lock
from typing import Any

import orjson
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import current_app
from marshmallow import Schema, fields, validate

from app.errors import (
    BadRequest,
    ContentTooLarge,
    Forbidden,
    InternalError,
    InvalidRequest,
    MalformedJSON,
    PreconditionFailed,
    RequestTimeout,
    ServiceError,
    ServiceUnavailable,
    TooManyRequests,
    Unauthenticated,
    UnsupportedMediaType,
    problem_types,
)
from app.http.application import PUBLIC, Blueprint, Body, Content, Operation
from app.http.requests import JSON, KEY_PATTERN, PROBLEM_JSON, public_path
from app.models.lifecycle import (
    ACTIONS,
    DELIVERY_EVENTS,
    EVENT_TYPES,
    FULFILLMENT_STATUSES,
    RETURN_RECORD_STATUSES,
    RETURN_STATUSES,
    STATUSES,
)
from app.models.money import PAYMENT_STATUSES, PAYMENT_TYPES
from app.models.webhook import DELIVERY_STATUSES, ENDPOINT_EVENT_TYPES, PAYLOADS, TEST
from app.schemas.base import TEXT_PATTERN, Choices, Metadata, MetadataPatch
from app.schemas.documents import (
    BatchOrderSchema,
    BatchProblemSchema,
    ChangedOrderSchema,
    ErasureSchema,
    OrderSchema,
    ProblemSchema,
)
from app.schemas.order import (
    ADJUSTMENT_TYPES,
    CANCELLATION_REASONS,
    CURRENCIES,
    HOLD_KINDS,
    RELATIONS,
    BatchEntryInSchema,
    BulkActionInSchema,
)
from app.schemas.parameters import METADATA_MAX, DryRunQuerySchema, MetadataFilter
from app.schemas.webhook import SUBSCRIBABLE, EndpointPayloadSchema, PayloadSchema, WebhookSchema
from app.services.batches import BULK_ACTIONS

INTRODUCTION = """\
Creates and manages customer orders. An acknowledged order is never lost, and one Idempotency-Key never creates two
orders. Every error is a problem document (RFC 9457); its `type` is the address of a page that says what to do.

Amounts are integers in minor units of the order's currency. Timestamps are RFC 3339 in UTC.

`GET /orders/export` and `GET /events` choose their media type by `Accept`. Every other resource has one media type and
ignores `Accept` (RFC 9110 §12.4.1).
"""

_SERVER = "The service that this description is read from, be it local, staging or production."
_PATH_VARIABLE = re.compile(r"<(?:\w+:)?(\w+)>")

# The path variable that is the `id` of each of these resources. Their creation has links to the operations on them.
_RESOURCES: dict[type[Any], str] = {
    OrderSchema: "order_id",
    WebhookSchema: "webhook_id",
    ErasureSchema: "erasure_id",
}

# Problems that follow from the declaration of an operation.
_COMMON_PROBLEMS = (BadRequest, InternalError)
_AUTHENTICATION_PROBLEMS = (Unauthenticated, Forbidden, TooManyRequests, ServiceUnavailable)
_BODY_PROBLEMS = (MalformedJSON, RequestTimeout, ContentTooLarge, UnsupportedMediaType)

_BUILDING = Lock()


def api_description() -> bytes:
    """Return the description as JSON. It is built on first use, because it would slow down every start."""
    with _BUILDING:
        return _build_description(public_path("/"), authenticated=current_app.config["AUTH"] != "off")


@cache
def _build_description(server: str, *, authenticated: bool) -> bytes:
    plugin = MarshmallowPlugin()
    spec = APISpec(
        title="Order Service",
        version="1.0.0",
        openapi_version="3.1.0",
        plugins=[plugin],
        servers=[{"url": server.rstrip("/") or "/", "description": _SERVER, "x-internal": False}],
        info={"description": INTRODUCTION, "license": {"name": "MIT", "identifier": "MIT"}},
    )
    assert plugin.converter is not None
    for describe in (_describe_metadata, _describe_integers, _describe_references):
        plugin.converter.add_attribute_function(describe)  # type: ignore[no-untyped-call]
    plugin.converter.add_parameter_attribute_function(_describe_choices)
    operations = list(_operations())
    _add_components(spec, [operation for _, operation in operations])
    for blueprint in dict.fromkeys(blueprint for blueprint, _ in operations):
        spec.tag({"name": blueprint.name, "description": blueprint.description})
    for blueprint, operation in operations:
        _add_operation(spec, operation, tag=blueprint.name, authenticated=authenticated)
    for (schema_class, *_), name in plugin.converter.refs.items():
        spec.components.schemas[name]["description"] = cleandoc(schema_class.__doc__)
    description = _name_enumerations(spec.to_dict() | {"webhooks": _webhooks()})
    for values, (name, meaning) in _ENUMERATIONS.items():
        schema = {"type": "string", "enum": values, "description": meaning}
        description["components"]["schemas"][name] = schema
    _share_parameters(description)
    return orjson.dumps(description)


def described_operations() -> Iterator[tuple[str, str, str]]:
    """Yield the method, the path and the summary of every operation."""
    for _, operation in _operations():
        yield operation.method, _PATH_VARIABLE.sub(r"{\1}", operation.path), operation.summary


def _operations() -> Iterator[tuple[Blueprint, Operation]]:
    for blueprint in current_app.blueprints.values():
        if isinstance(blueprint, Blueprint):
            for operation in blueprint.operations.values():
                yield blueprint, operation


def _add_components(spec: APISpec, operations: list[Operation]) -> None:
    spec.components.security_scheme(_BEARER, _SECURITY_SCHEME)
    for name, header in RESPONSE_HEADERS.items():
        spec.components.header(name, header)
    for name, parameter in _header_parameters().items():
        spec.components.parameter(camel_case(name), "header", parameter)
    # No operation refers to these.
    for schema in (ProblemSchema, BatchEntryInSchema, PayloadSchema, EndpointPayloadSchema):
        spec.components.schema(schema.__name__.removesuffix("Schema"), schema=schema)
    for name in ("Payload", "EndpointPayload"):
        spec.components.example(name, {"value": _payload_example(name)})
    _add_bulk_actions(spec)
    _add_batch_results(spec)
    for operation in operations:
        for problem in _problems_of(operation):
            if problem.slug not in spec.components.examples:
                spec.components.example(problem.slug, {"value": problem_example(problem.slug)})
    for resource, operation in _linked_operations(operations):
        name = _operation_id(operation)
        parameters = {_RESOURCES[resource]: "$response.body#/id"}
        spec.components.links[name] = {"operationId": name, "parameters": parameters, "description": operation.summary}


def _add_bulk_actions(spec: APISpec) -> None:
    """Add the union of the actions of `POST /orders/actions`, which have members of their own."""
    mapping = {}
    for action, bulk_action in BULK_ACTIONS.items():
        members = {
            "action": fields.String(required=True, validate=validate.Equal(action)),
            "__doc__": f"The action `{action}` on an order.",
        }
        schema = type(f"{camel_case(action)}ActionSchema", (BulkActionInSchema, type(bulk_action.schema)), members)
        spec.components.schema(f"{camel_case(action)}Action", schema=schema)
        mapping[action] = _reference("schemas", f"{camel_case(action)}Action")["$ref"]
    spec.components.schema(
        "BulkActionIn",
        {
            "description": cleandoc(BulkActionInSchema.__doc__ or ""),
            "oneOf": [{"$ref": target} for target in mapping.values()],
            "discriminator": {"propertyName": "action", "mapping": mapping},
        },
    )


def _add_batch_results(spec: APISpec) -> None:
    """Add the results of the entries of a batch, unions of success and problem; `status` tells them apart."""
    spec.components.schema("BatchProblem", schema=BatchProblemSchema)
    failures = sorted({problem.status for problem in problem_types()})
    spec.components.schemas["BatchProblem"]["properties"]["status"]["enum"] = failures
    successes = {"BatchResult": BatchOrderSchema, "ActionResult": ChangedOrderSchema}
    for union, success in successes.items():
        name = success.__name__.removesuffix("Schema")
        spec.components.schema(name, schema=success)
        either = [_reference("schemas", name), _reference("schemas", "BatchProblem")]
        spec.components.schema(union, {"description": "An order or a problem, by `status`.", "oneOf": either})


def _linked_operations(operations: Iterable[Operation]) -> Iterator[tuple[type[Schema], Operation]]:
    """Yield the operations that need nothing but the id of a resource, each with the schema of the resource."""
    for resource, variable in _RESOURCES.items():
        for operation in operations:
            if _PATH_VARIABLE.findall(operation.path) == [variable]:
                yield resource, operation


def _add_operation(spec: APISpec, operation: Operation, *, tag: str, authenticated: bool) -> None:
    variables = _PATH_VARIABLE.findall(operation.path)
    operation_object: dict[str, Any] = {
        "operationId": _operation_id(operation),
        "summary": operation.summary,
        "description": operation.description,
        "tags": [tag],
        "security": _security(operation.scope, authenticated=authenticated),
        "responses": _success_responses(spec, operation) | _problem_responses(spec, operation),
    }
    if parameters := _parameters_of(operation):
        operation_object["parameters"] = parameters
    if operation.body is not None:
        content = {operation.body_media_type: {"schema": operation.body} | _request_example(_operation_id(operation))}
        operation_object["requestBody"] = {"required": operation.body_required, "content": content}
    path = _PATH_VARIABLE.sub(r"{\1}", operation.path)
    described = operation.path_schema.fields if operation.path_schema else ()
    path_parameters = [_path_parameter(name) for name in variables if name not in described]
    spec.path(path, operations={operation.method.lower(): operation_object}, parameters=path_parameters)


def _operation_id(operation: Operation) -> str:
    name = camel_case(operation.name)
    return name[0].lower() + name[1:]


def _security(scope: str, *, authenticated: bool) -> list[dict[str, list[str]]]:
    if scope == PUBLIC:
        return []
    return [*([] if authenticated else [{}]), {_BEARER: [scope]}]


def _parameters_of(operation: Operation) -> list[dict[str, Any] | str]:
    """The operation's own parameters, and the names of those that are components."""
    parameters: list[dict[str, Any] | str] = []
    if operation.path_schema:
        parameters.append({"in": "path", "schema": operation.path_schema})
    if operation.query:
        parameters.append({"in": "query", "schema": operation.query})
    if operation.dry_run:
        parameters.append({"in": "query", "schema": DryRunQuerySchema})
    return parameters + [camel_case(name) for name in operation.request_headers]


def _path_parameter(name: str) -> dict[str, Any]:
    return {"in": "path", "name": name, "required": True} | _PATH_PARAMETERS[name]


def _success_responses(spec: APISpec, operation: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    dry_run = ["Dry-Run"] if operation.dry_run else []
    rate_limit = ["RateLimit-Policy", "RateLimit"] if operation.scope != PUBLIC else []
    for status, body in operation.responses.items():
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "headers": _response_headers(*operation.response_headers, *dry_run, *rate_limit),
            **_response_content(_operation_id(operation), status, body),
        }
        if "Location" in operation.response_headers and type(body) in _RESOURCES:
            responses[str(status)]["links"] = _links(spec, _RESOURCES[type(body)])
    return responses


def _links(spec: APISpec, variable: str) -> dict[str, Any]:
    return {
        name: _reference("links", name)
        for name, link in spec.components.links.items()
        if variable in link["parameters"]
    }


def _response_content(operation_id: str, status: int, body: Body) -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    for part in body if isinstance(body, tuple) else (body,):
        if isinstance(part, Content):
            schemas |= {media_type: dict(part.schema) for media_type in part.media_types}
        elif part is not None:
            schemas[JSON] = part
    content = {
        media_type: {"schema": schema} | _response_example(operation_id, status, media_type)
        for media_type, schema in schemas.items()
    }
    return {"content": content} if content else {}


def _problem_responses(spec: APISpec, operation: Operation) -> dict[str, Any]:
    """One response for each status, a component that is named after its problem types."""
    by_status: dict[int, list[type[ServiceError]]] = {}
    for problem in _problems_of(operation):
        by_status.setdefault(problem.status, []).append(problem)
    responses = {}
    for status, problems in by_status.items():
        name = "Or".join(problem.__name__ for problem in problems)
        if name not in spec.components.responses:
            spec.components.response(name, _problem_response(problems))
        responses[str(status)] = name
    return responses


def _problems_of(operation: Operation) -> list[type[ServiceError]]:
    """The problems of an operation, sorted: the order of a set of types differs between processes."""
    problems: set[type[ServiceError]] = {*_COMMON_PROBLEMS, *operation.problems}
    if operation.scope != PUBLIC:
        problems |= {*_AUTHENTICATION_PROBLEMS}
    if operation.path_schema or operation.query or operation.method != "GET":
        problems.add(InvalidRequest)
    if operation.method != "GET" or (operation.scope == PUBLIC and operation.request_headers):
        problems.add(PreconditionFailed)
    if operation.body:
        problems |= {*_BODY_PROBLEMS}
    return sorted(problems, key=lambda problem: (problem.status, problem.slug))


def _problem_response(problems: list[type[ServiceError]]) -> dict[str, Any]:
    headers = {name for problem in problems for name in _PROBLEM_HEADERS.get(problem, ())}
    retry_after = ["Retry-After"] if any(problem.retry_after for problem in problems) else []
    examples = {problem.slug: _reference("examples", problem.slug) for problem in problems}
    return {
        "description": ", or ".join(problem.title for problem in problems),
        "headers": _response_headers(*retry_after, *sorted(headers)),
        "content": {PROBLEM_JSON: {"schema": _reference("schemas", "Problem"), "examples": examples}},
    }


def _response_headers(*names: str) -> dict[str, Any]:
    return {name: _reference("headers", name) for name in ("X-Request-Id", *names)}


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


def _describe_integers(_converter: Any, field: Any, *, ret: dict[str, Any], **_: Any) -> dict[str, Any]:
    """The size of an integer, for clients in languages that have several."""
    if not isinstance(field, fields.Integer) or "format" in ret:
        return {}
    return {"format": "int64" if ret.get("maximum", 0) >= 2**31 else "int32"}


def _describe_references(_converter: Any, field: Any, **_: Any) -> dict[str, Any]:
    """A field whose values are described by a component."""
    name = field.metadata.get("component")
    return _reference("schemas", name) if name else {}


def _describe_choices(_converter: Any, field: Any, **_: Any) -> dict[str, Any]:
    """Values separated by commas, where apispec's default is a parameter for each; and a parameter for each pair."""
    if isinstance(field, MetadataFilter):
        value = {"type": "string", "pattern": TEXT_PATTERN, "maxLength": Metadata.VALUE_LENGTH}
        pairs = {"patternProperties": {r"^metadata\.[ -~]{1,40}$": value}, "additionalProperties": False}
        return {"style": "form", "explode": True, "schema": {"type": "object", "maxProperties": METADATA_MAX} | pairs}
    return {"style": "form", "explode": False} if isinstance(field, Choices) else {}


_BEARER = "bearer"  # name of the security scheme
_SECURITY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key of this service, `osk_<id>.<secret><checksum>`, or a JWT of the configured issuer. "
    "Without the scope `orders:manage`, the subject of a token is a customer, who has access to the orders of that "
    "customer only. The names after each operation's security requirement are the scopes it requires.",
}
_TEXT_SCHEMA = {"type": "string"}
_UUID_SCHEMA = {"type": "string", "format": "uuid"}
_NUMBER_SCHEMA = {"type": "integer", "format": "int32", "minimum": 1, "maximum": 2**31 - 1}
_PATH_PARAMETERS: dict[str, dict[str, Any]] = {
    "order_id": {"schema": _UUID_SCHEMA, "description": "The id of the order."},
    "erasure_id": {"schema": _UUID_SCHEMA, "description": "The id of the erasure."},
    "webhook_id": {"schema": _UUID_SCHEMA, "description": "The id of the webhook."},
    "number": {
        "schema": _NUMBER_SCHEMA,
        "description": "The number of the fulfillment or return in its order, from 1.",
    },
    "slug": {
        "schema": {"type": "string", "maxLength": 64, "pattern": "^[a-z-]+$"},
        "description": "The last part of the problem's `type`.",
        "example": "order-not-found",
    },
    "guide": {
        "schema": {"type": "string", "maxLength": 64, "pattern": "^[a-z-]+$"},
        "description": "The name of the guide.",
        "example": "idempotency",
    },
    "name": {
        "schema": {"type": "string", "maxLength": 255},
        "description": "The name of the file.",
        "example": "swagger-ui.css",
    },
}
# None has an example, which documentation would send with every request.
_REQUEST_HEADERS: dict[str, dict[str, Any]] = {
    "Idempotency-Key": {
        "description": "Makes a retry safe: a request with the same key and body returns the first response, at any "
        "later time. The same key with a different body returns 422. After an erasure any body returns the erased "
        "order. The key may be bare or a quoted string; a UUID is a good key.",
        "schema": _TEXT_SCHEMA | {"pattern": KEY_PATTERN},
    },
    "If-Match": {
        "description": 'The `ETag` of the order as you read it, such as `"1"`. If the order has changed since, the '
        "response is 412.",
        "schema": _TEXT_SCHEMA,
    },
    "If-None-Match": {
        "description": "The `ETag` of your copy. If it is still current, the response is 304, without a body.",
        "schema": _TEXT_SCHEMA,
    },
    "Last-Event-ID": {
        "description": "The `id` of the last event that was received, as browsers send it when they connect again. It "
        "takes precedence over `after`.",
        "schema": _TEXT_SCHEMA,
    },
}
RESPONSE_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {
        "description": "The id of the request in the logs; the `X-Request-Id` of the request if it has one.",
        "schema": _TEXT_SCHEMA,
    },
    "ETag": {
        "description": "The entity tag of the response, for `If-Match` and `If-None-Match`. The tag of an order is its "
        "version; an erasure appends `-erased`, and a customer's view that omits something `-customer`.",
        "schema": _TEXT_SCHEMA,
        "example": '"1"',
    },
    "Location": {
        "description": "The address of the created resource, or of the documentation.",
        "schema": _TEXT_SCHEMA | {"format": "uri-reference"},
    },
    "Idempotent-Replayed": {
        "description": "`true` if this is the response to an earlier request with the same Idempotency-Key.",
        "schema": _TEXT_SCHEMA | {"enum": ["true"]},
    },
    "Dry-Run": {"description": "The request has stored nothing.", "schema": _TEXT_SCHEMA | {"enum": ["true"]}},
    "Complete-Until": {
        "description": "All orders created before this time are readable now. Orders with a later `created_at` may "
        "still be missing: `created_at` is set before an order is stored.",
        "schema": _TEXT_SCHEMA | {"format": "date-time"},
        "example": "2026-11-22T09:40:07Z",
    },
    "Link": {"description": 'The address of the next page, with `rel="next"` (RFC 8288).', "schema": _TEXT_SCHEMA},
    "Accept": {"description": "The media types that the body may have, except for PATCH.", "schema": _TEXT_SCHEMA},
    "Accept-Patch": {"description": "The media types that the body of a PATCH may have.", "schema": _TEXT_SCHEMA},
    "Accept-Encoding": {"description": "The content codings that the body may have.", "schema": _TEXT_SCHEMA},
    "Retry-After": {
        "description": "Seconds to wait before the next attempt.",
        "schema": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 2**31 - 1},
    },
    "WWW-Authenticate": {
        "description": "The required credentials or scope (RFC 6750 §3).",
        "schema": _TEXT_SCHEMA,
        "example": 'Bearer realm="orders", error="insufficient_scope", scope="orders:write"',
    },
    "RateLimit-Policy": {
        "description": "The rate limit, if there is one: `q` requests per `w` seconds "
        "(draft-ietf-httpapi-ratelimit-headers).",
        "schema": _TEXT_SCHEMA,
        "example": '"customers";q=600;w=60',
    },
    "RateLimit": {
        "description": "`r` requests remain; the next one is added in `t` seconds.",
        "schema": _TEXT_SCHEMA,
        "example": '"customers";r=599;t=1',
    },
}
_PROBLEM_HEADERS: dict[type[ServiceError], tuple[str, ...]] = {
    Unauthenticated: ("WWW-Authenticate",),
    Forbidden: ("WWW-Authenticate",),
    TooManyRequests: ("RateLimit-Policy", "RateLimit"),
    UnsupportedMediaType: ("Accept", "Accept-Patch", "Accept-Encoding"),
}


def _header_parameters() -> dict[str, dict[str, Any]]:
    """Return the request headers, and those of the service's own requests to webhooks, as parameters."""
    sent = {name: {"required": False} | header for name, header in _REQUEST_HEADERS.items()}
    received = {name: {"required": True} | header for name, header in _WEBHOOK_HEADERS.items()}
    return {name: {"in": "header", "name": name} | header for name, header in (sent | received).items()}


def _share_parameters(description: dict[str, Any]) -> None:
    """Turn each parameter that several operations share into a component."""
    owners = [item for path in description["paths"].values() for item in (path, *path.values())]
    lists = [owner["parameters"] for owner in owners if isinstance(owner, dict) and "parameters" in owner]
    count = Counter(_sorted_json(parameter) for parameters in lists for parameter in parameters)
    for parameters in lists:
        for i, parameter in enumerate(parameters):
            if "$ref" not in parameter and count[_sorted_json(parameter)] > 1:
                name = camel_case(f"{parameter['name']}_{parameter['in']}")
                assert description["components"]["parameters"].setdefault(name, parameter) == parameter, name
                parameters[i] = _reference("parameters", name)


def _sorted_json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


# Enumerations that are components of their own: the name and the description by the values.
_ENUMERATIONS: dict[tuple[str, ...], tuple[str, str]] = {
    STATUSES: ("OrderStatus", "The status of an order."),
    FULFILLMENT_STATUSES: ("FulfillmentStatus", "How much of an order is fulfilled."),
    PAYMENT_STATUSES: ("PaymentStatus", "How much of an order is paid."),
    RETURN_STATUSES: ("ReturnStatus", "How much of an order has been returned."),
    tuple(sorted(ACTIONS)): ("Action", "A change of an order."),
    CURRENCIES: ("Currency", "An active ISO 4217 currency code. Amounts are in its minor units."),
    EVENT_TYPES: ("EventType", "What happened to an order."),
    SUBSCRIBABLE: ("WebhookEventType", "A type of event that a webhook can subscribe to."),
    (*SUBSCRIBABLE, TEST): ("DeliveredEventType", "A type of event that webhooks receive."),
    (TEST, *ENDPOINT_EVENT_TYPES): ("EndpointEventType", "An event of a webhook, not of an order."),
    ADJUSTMENT_TYPES: ("AdjustmentType", "The type of an adjustment."),
    RELATIONS: ("Relation", "How another order relates to this one."),
    HOLD_KINDS: ("HoldKind", "Why an order is on hold."),
    CANCELLATION_REASONS: ("CancellationReason", "Why units are cancelled."),
    PAYMENT_TYPES: (
        "PaymentType",
        "The type of a payment. A reversal means that the payment was recorded by mistake, or failed: neither of them "
        "counts.",
    ),
    DELIVERY_EVENTS: ("DeliveryEventType", "What happened to a fulfillment; the latest event determines its status."),
    RETURN_RECORD_STATUSES: ("ReturnRecordStatus", "The status of a return."),
    DELIVERY_STATUSES: ("DeliveryStatus", "The status of the delivery of an event to a webhook."),
    PAYLOADS: ("WebhookPayload", "How much of an order a webhook receives."),
}


def _name_enumerations(value: Any) -> Any:
    """Replace the enumerations in a description, or a part of it, by references to their components."""
    if isinstance(value, list):
        return [_name_enumerations(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    named = {name: _name_enumerations(member) for name, member in value.items()}
    values = named.get("enum")
    key = tuple(entry for entry in values if entry is not None) if isinstance(values, list) else ()
    if key not in _ENUMERATIONS:
        return named
    schema = _reference("schemas", _ENUMERATIONS[key][0])
    others = {name: member for name, member in named.items() if name not in ("type", "enum")}
    return others | ({"anyOf": [schema, {"type": "null"}]} if None in named["enum"] else schema)


_WEBHOOK_HEADERS: dict[str, dict[str, Any]] = {
    "webhook-id": {
        "description": "The id of the event, the same at each attempt: store it, and ignore an event whose id you have "
        "already stored.",
        "schema": _TEXT_SCHEMA | {"maxLength": 64},
    },
    "webhook-timestamp": {
        "description": "When this attempt was made, in seconds since 1970. Refuse a request that is older than five "
        "minutes.",
        "schema": _TEXT_SCHEMA | {"maxLength": 20, "pattern": "^[0-9]+$"},
    },
    "webhook-signature": {
        "description": "One or more signatures, separated by spaces: `v1,` and the HMAC-SHA256 of "
        "`{webhook-id}.{webhook-timestamp}.{body}` in base64, with the secret's bytes (Standard Webhooks).",
        "schema": _TEXT_SCHEMA | {"maxLength": 200, "pattern": "^v1,"},
    },
}
_WEBHOOK_RESPONSES = {
    "2XX": {"description": "The event is delivered."},
    "410": {"description": "The webhook is disabled."},
    "429": {"description": "The event is sent again, not before `Retry-After`."},
    "default": {"description": "The event is sent again, for up to 72 hours."},
}


def _webhooks() -> dict[str, Any]:
    """Return the requests that the service sends: a path item for each type of event."""
    items = {event_type: _webhook(event_type, "Payload") for event_type in EVENT_TYPES}
    return items | {event_type: _webhook(event_type, "EndpointPayload") for event_type in (*ENDPOINT_EVENT_TYPES, TEST)}


def _webhook(event_type: str, schema: str) -> dict[str, Any]:
    body = {"schema": _reference("schemas", schema), "examples": {"request": _reference("examples", schema)}}
    return {
        "post": {
            "operationId": f"on{camel_case(event_type)}",
            "summary": f"The event {event_type}",
            "description": "Sent to the `url` of each webhook that has subscribed to it, until that answers with 2xx.",
            "tags": ["webhooks"],
            "security": [],
            "parameters": [_reference("parameters", camel_case(name)) for name in _WEBHOOK_HEADERS],
            "requestBody": {"required": True, "content": {JSON: body}},
            "responses": _WEBHOOK_RESPONSES,
        }
    }


def _reference(kind: str, name: str) -> dict[str, str]:
    """Return a reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def camel_case(name: str) -> str:
    """Return a name such as `order_id`, `order.created` or `If-Match` as `OrderId`, `OrderCreated`, `IfMatch`."""
    return "".join(word[:1].upper() + word[1:] for word in re.split(r"\W|_", name))


EXAMPLES = Path(__file__).with_name("examples.json")


def _request_example(operation_id: str) -> dict[str, Any]:
    """Return the member `example` of a request body, or nothing."""
    request = _recorded_examples()["operations"].get(operation_id, {}).get("request")
    return {} if request is None else {"example": request}


def _response_example(operation_id: str, status: int, media_type: str) -> dict[str, Any]:
    """Return the member `example` of a response, or nothing."""
    responses = _recorded_examples()["operations"].get(operation_id, {}).get("responses", {})
    response = responses.get(str(status), {}).get(media_type)
    return {} if response is None else {"example": _with_url_prefix(response)}


def problem_example(slug: str) -> dict[str, Any]:
    """Return a problem document of this type."""
    problem: dict[str, Any] = _with_url_prefix(_recorded_examples()["problems"][slug]["problem"])
    return problem


def problem_request(slug: str) -> str:
    """Return the request that `problem_example` is the response to, as HTTP text."""
    request: str = _recorded_examples()["problems"][slug]["request"]
    return request


def _payload_example(schema: str) -> Any:
    """Return the body of a request to a webhook."""
    return _recorded_examples()["payloads"][schema]


@cache
def _recorded_examples() -> dict[str, Any]:
    recorded: dict[str, Any] = orjson.loads(EXAMPLES.read_bytes())
    return recorded


def _with_url_prefix(example: Any) -> Any:
    """Put URL_PREFIX before the paths in problem documents."""
    if isinstance(example, list):
        return [_with_url_prefix(entry) for entry in example]
    if not isinstance(example, dict):
        return example
    is_problem = str(example.get("type")).startswith("/problems/")
    paths = {name: public_path(example[name]) for name in ("type", "instance")} if is_problem else {}
    return {name: _with_url_prefix(member) for name, member in example.items()} | paths


_COLLECTION_SCHEMA = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"
_COLLECTION_ADDRESS = "http://127.0.0.1:8000"  # of `make run`
_FRESH_KEY = "{{$guid}}"  # a new one for each request
_EXAMPLE_NUMBER = 1  # of the first fulfillment or return of an order
_EVENT_STREAM = "text/event-stream"  # a response that does not end


def collection() -> bytes:
    """Return the collection as JSON. Its scripts store the id of a created resource for the requests that follow."""
    return _build_collection(api_description(), _COLLECTION_ADDRESS + public_path(""))


@cache
def _build_collection(description_json: bytes, address: str) -> bytes:
    description = orjson.loads(description_json)
    folders = [
        {
            "name": tag["name"],
            "description": tag["description"],
            "item": list(_collection_requests(description, tag["name"])),
        }
        for tag in description["tags"]
    ]
    return orjson.dumps(
        {
            "info": {"name": description["info"]["title"], "schema": _COLLECTION_SCHEMA},
            "auth": {"type": "bearer", "bearer": [{"key": "token", "value": "{{token}}", "type": "string"}]},
            # The token is for the reader to fill in.
            "variable": [{"key": "baseUrl", "value": address}, {"key": "token", "value": ""}],
            "item": folders,
        }
    )


def _collection_requests(description: dict[str, Any], tag: str) -> Iterator[dict[str, Any]]:
    for path, item in description["paths"].items():
        for method, operation in item.items():
            if method == "parameters" or tag not in operation["tags"] or _is_event_stream(operation):
                continue
            parameters = [
                _resolve_parameter(description, parameter)
                for parameter in (*item.get("parameters", []), *operation.get("parameters", []))
            ]
            yield {
                "name": operation["summary"],
                "event": [{"listen": "test", "script": {"exec": _collection_script(description, operation)}}],
                "request": {
                    "method": method.upper(),
                    "description": operation["description"],
                    "header": _collection_headers(operation, parameters),
                    "url": _collection_url(path, parameters),
                    **_collection_body(operation),
                },
            }


def _is_event_stream(operation: dict[str, Any]) -> bool:
    return list(operation["responses"].get("200", {}).get("content", {})) == [_EVENT_STREAM]


def _resolve_parameter(description: dict[str, Any], parameter: dict[str, Any]) -> dict[str, Any]:
    name = parameter.get("$ref", "").rpartition("/")[2]
    resolved: dict[str, Any] = description["components"]["parameters"][name] if name else parameter
    return resolved


def _collection_url(path: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    variables = {
        parameter["name"]: str(_collection_value(parameter)) for parameter in parameters if parameter["in"] == "path"
    }
    segments = [part.replace("{", ":").replace("}", "") for part in path.strip("/").split("/")]
    return {
        "raw": "/".join(["{{baseUrl}}", *segments]),
        "host": ["{{baseUrl}}"],
        "path": segments,
        "variable": [{"key": name, "value": value} for name, value in variables.items()],
    }


def _collection_value(parameter: dict[str, Any]) -> Any:
    """The example of a path parameter; a number; or the variable that `_collection_script` sets."""
    if "example" in parameter:
        return parameter["example"]
    return _EXAMPLE_NUMBER if parameter["schema"]["type"] == "integer" else f"{{{{{parameter['name']}}}}}"


def _collection_headers(operation: dict[str, Any], parameters: list[dict[str, Any]]) -> list[dict[str, str]]:
    headers = {"Content-Type": media_type for media_type in operation.get("requestBody", {}).get("content", {})}
    if any(parameter["name"] == "Idempotency-Key" for parameter in parameters):
        headers["Idempotency-Key"] = _FRESH_KEY
    return [{"key": name, "value": value} for name, value in headers.items()]


def _collection_body(operation: dict[str, Any]) -> dict[str, Any]:
    for content in operation.get("requestBody", {}).get("content", {}).values():
        example = orjson.dumps(content.get("example", {}), option=orjson.OPT_INDENT_2).decode()
        return {"body": {"mode": "raw", "raw": example, "options": {"raw": {"language": "json"}}}}
    return {}


def _collection_script(description: dict[str, Any], operation: dict[str, Any]) -> list[str]:
    """Test that the status is documented, and store the id of a resource that has links to its operations."""
    statuses = ", ".join(operation["responses"])
    lines = [f'pm.test("documented status", () => pm.expect([{statuses}]).to.include(pm.response.code));']
    links = [link for response in operation["responses"].values() for link in response.get("links", {})]
    for name in links[:1]:
        [variable] = description["components"]["links"][name]["parameters"]
        lines.append(f'if (pm.response.code < 300) pm.collectionVariables.set("{variable}", pm.response.json().id);')
    return lines
