"""The API description (OpenAPI 3.1), built with apispec from the blueprints' operations and the schemas."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from http import HTTPStatus
from inspect import cleandoc
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
from app.http.openapi_components import (
    BEARER,
    ENUMERATIONS,
    PATH_PARAMETERS,
    PROBLEM_HEADERS,
    RESPONSE_HEADERS,
    SECURITY_SCHEME,
    camel_case,
    header_parameters,
    payload_example,
    problem_example,
    reference,
    request_example,
    response_example,
    webhooks,
)
from app.http.problems import MEDIA_TYPE
from app.http.requests import JSON, public_path
from app.schemas.documents import (
    BatchOrderSchema,
    BatchProblemSchema,
    ChangedOrderSchema,
    ErasureSchema,
    OrderSchema,
    ProblemSchema,
)
from app.schemas.fields import TEXT_PATTERN, Choices, Metadata, MetadataPatch
from app.schemas.order import BatchEntryInSchema
from app.schemas.order_actions import BulkActionInSchema
from app.schemas.parameters import METADATA_MAX, DryRunQuerySchema, MetadataFilter
from app.schemas.webhook import EndpointPayloadSchema, PayloadSchema, WebhookSchema
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

_building = Lock()


def api_description() -> bytes:
    """Return the description as JSON. It is built on first use, because it would slow down every start."""
    with _building:
        return _build(public_path("/"), authenticated=current_app.config["AUTH"] != "off")


@cache
def _build(server: str, *, authenticated: bool) -> bytes:
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
    description = _name_enumerations(spec.to_dict() | {"webhooks": webhooks()})
    for values, (name, meaning) in ENUMERATIONS.items():
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
    spec.components.security_scheme(BEARER, SECURITY_SCHEME)
    for name, header in RESPONSE_HEADERS.items():
        spec.components.header(name, header)
    for name, parameter in header_parameters().items():
        spec.components.parameter(camel_case(name), "header", parameter)
    # No operation refers to these.
    for schema in (ProblemSchema, BatchEntryInSchema, PayloadSchema, EndpointPayloadSchema):
        spec.components.schema(schema.__name__.removesuffix("Schema"), schema=schema)
    for name in ("Payload", "EndpointPayload"):
        spec.components.example(name, {"value": payload_example(name)})
    _add_bulk_actions(spec)
    _add_batch_results(spec)
    for operation in operations:
        for problem in _problems(operation):
            if problem.slug not in spec.components.examples:
                spec.components.example(problem.slug, {"value": problem_example(problem.slug)})
    for resource, operation in _linked(operations):
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
        mapping[action] = reference("schemas", f"{camel_case(action)}Action")["$ref"]
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
        either = [reference("schemas", name), reference("schemas", "BatchProblem")]
        spec.components.schema(union, {"description": "An order or a problem, by `status`.", "oneOf": either})


def _linked(operations: Iterable[Operation]) -> Iterator[tuple[type[Schema], Operation]]:
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
    if parameters := _parameters(operation):
        operation_object["parameters"] = parameters
    if operation.body is not None:
        content = {operation.body_media_type: {"schema": operation.body} | request_example(_operation_id(operation))}
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
    return [*([] if authenticated else [{}]), {BEARER: [scope]}]


def _parameters(operation: Operation) -> list[dict[str, Any] | str]:
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
    return {"in": "path", "name": name, "required": True} | PATH_PARAMETERS[name]


def _success_responses(spec: APISpec, operation: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    dry_run = ["Dry-Run"] if operation.dry_run else []
    rate_limit = ["RateLimit-Policy", "RateLimit"] if operation.scope != PUBLIC else []
    for status, body in operation.responses.items():
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "headers": _headers(*operation.response_headers, *dry_run, *rate_limit),
            **_content(_operation_id(operation), status, body),
        }
        if "Location" in operation.response_headers and type(body) in _RESOURCES:
            responses[str(status)]["links"] = _links(spec, _RESOURCES[type(body)])
    return responses


def _links(spec: APISpec, variable: str) -> dict[str, Any]:
    return {
        name: reference("links", name) for name, link in spec.components.links.items() if variable in link["parameters"]
    }


def _content(operation_id: str, status: int, body: Body) -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    for part in body if isinstance(body, tuple) else (body,):
        if isinstance(part, Content):
            schemas |= {media_type: dict(part.schema) for media_type in part.media_types}
        elif part is not None:
            schemas[JSON] = part
    content = {
        media_type: {"schema": schema} | response_example(operation_id, status, media_type)
        for media_type, schema in schemas.items()
    }
    return {"content": content} if content else {}


def _problems(operation: Operation) -> list[type[ServiceError]]:
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


def _problem_responses(spec: APISpec, operation: Operation) -> dict[str, Any]:
    """One response for each status, a component that is named after its problem types."""
    by_status: dict[int, list[type[ServiceError]]] = {}
    for problem in _problems(operation):
        by_status.setdefault(problem.status, []).append(problem)
    responses = {}
    for status, problems in by_status.items():
        name = "Or".join(problem.__name__ for problem in problems)
        if name not in spec.components.responses:
            spec.components.response(name, _problem_response(problems))
        responses[str(status)] = name
    return responses


def _problem_response(problems: list[type[ServiceError]]) -> dict[str, Any]:
    headers = {name for problem in problems for name in PROBLEM_HEADERS.get(problem, ())}
    retry_after = ["Retry-After"] if any(problem.retry_after for problem in problems) else []
    examples = {problem.slug: reference("examples", problem.slug) for problem in problems}
    return {
        "description": ", or ".join(problem.title for problem in problems),
        "headers": _headers(*retry_after, *sorted(headers)),
        "content": {MEDIA_TYPE: {"schema": reference("schemas", "Problem"), "examples": examples}},
    }


def _headers(*names: str) -> dict[str, Any]:
    return {name: reference("headers", name) for name in ("X-Request-Id", *names)}


def _describe_choices(_converter: Any, field: Any, **_: Any) -> dict[str, Any]:
    """Values separated by commas, where apispec's default is a parameter for each; and a parameter for each pair."""
    if isinstance(field, MetadataFilter):
        value = {"type": "string", "pattern": TEXT_PATTERN, "maxLength": Metadata.VALUE_LENGTH}
        pairs = {"patternProperties": {r"^metadata\.[ -~]{1,40}$": value}, "additionalProperties": False}
        return {"style": "form", "explode": True, "schema": {"type": "object", "maxProperties": METADATA_MAX} | pairs}
    return {"style": "form", "explode": False} if isinstance(field, Choices) else {}


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
    return reference("schemas", name) if name else {}


def _name_enumerations(value: Any) -> Any:
    """Replace the enumerations in a description, or a part of it, by references to their components."""
    if isinstance(value, list):
        return [_name_enumerations(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    named = {name: _name_enumerations(member) for name, member in value.items()}
    values = named.get("enum")
    key = tuple(entry for entry in values if entry is not None) if isinstance(values, list) else ()
    if key not in ENUMERATIONS:
        return named
    schema = reference("schemas", ENUMERATIONS[key][0])
    others = {name: member for name, member in named.items() if name not in ("type", "enum")}
    return others | ({"anyOf": [schema, {"type": "null"}]} if None in named["enum"] else schema)


def _share_parameters(description: dict[str, Any]) -> None:
    """Turn each parameter that several operations share into a component."""
    owners = [item for path in description["paths"].values() for item in (path, *path.values())]
    lists = [owner["parameters"] for owner in owners if isinstance(owner, dict) and "parameters" in owner]
    count = Counter(_content_of(parameter) for parameters in lists for parameter in parameters)
    for parameters in lists:
        for i, parameter in enumerate(parameters):
            if "$ref" not in parameter and count[_content_of(parameter)] > 1:
                name = camel_case(f"{parameter['name']}_{parameter['in']}")
                assert description["components"]["parameters"].setdefault(name, parameter) == parameter, name
                parameters[i] = reference("parameters", name)


def _content_of(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
