"""The finished API description (OpenAPI 3.1)."""

from functools import cache
from threading import Lock
from typing import Any

import orjson
from flask import Flask, current_app

from app.extensions import api
from app.http.blueprint import Blueprint
from app.schemas.batch import BatchEntryIn
from app.schemas.fields import TEXT_PATTERN, Metadata, MetadataPatch
from app.schemas.problem import Problem

_INTRODUCTION = """\
Creates and manages customer orders. An order that was acknowledged is never lost, and one Idempotency-Key never makes
two. Every error is a problem document (RFC 9457); its `type` is the address of a page that says what to do.
"""

_LIBRARY = ("Error", "PaginationMetadata")
_PATH_PARAMETERS: dict[str, dict[str, Any]] = {
    "order_id": {"schema": {"type": "string", "format": "uuid"}, "example": "019dab70-c2b3-7c51-b9f8-1d6f2a6c3e11"},
    "slug": {"example": "order-not-found"},
    "name": {"example": "swagger-ui.css"},
}


_SECURITY_SCHEMES = {
    "apiKey": {"type": "http", "scheme": "bearer", "description": "A service's key: `osk_<id>.<secret>`."},
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A token of the configured issuer. Without the scope `orders:manage` its subject is a customer, "
        "for whom no other customer's orders exist.",
    },
}


_building = Lock()


def init_app(app: Flask) -> None:
    """Start the description. What the routes say comes in with its first reader: it would slow down every start."""
    api.init_app(app)
    api.ma_plugin.converter.add_attribute_function(_describe_metadata)
    api.spec.components.schema("Problem", schema=Problem)
    api.spec.components.schema("BatchEntryIn", schema=BatchEntryIn)


def api_description() -> bytes:
    """The description as JSON. It says of every path what the URL map does: a test holds the two equal."""
    with _building:
        return _finished_description()


@cache
def _finished_description() -> bytes:
    for blueprint in current_app.blueprints.values():
        assert isinstance(blueprint, Blueprint)
        blueprint.register_views_in_doc(api, current_app, api.spec, name=blueprint.name, parameters=None)
        api.spec.tag({"name": blueprint.name, "description": blueprint.description})
    document: dict[str, Any] = api.spec.to_dict()
    document["info"]["description"] = _INTRODUCTION
    document["info"]["license"] = {"name": "MIT", "identifier": "MIT"}
    # The library's own errors and pages are not ours.
    schemas = document["components"]["schemas"]
    document["components"] = {
        "schemas": {name: schemas[name] for name in sorted(schemas) if name not in _LIBRARY},
        "securitySchemes": _SECURITY_SCHEMES,
    }
    for path in document["paths"].values():
        for parameter in path.get("parameters", []):
            parameter |= _PATH_PARAMETERS.get(parameter["name"], {})
    return orjson.dumps(document)


def _describe_metadata(_converter: Any, field: Any, **_: Any) -> dict[str, Any]:
    if not isinstance(field, Metadata):
        return {}
    text = {"type": ["string", "null"] if isinstance(field, MetadataPatch) else "string", "pattern": TEXT_PATTERN}
    return {
        "maxProperties": field.KEYS,
        "propertyNames": {"minLength": 1, "maxLength": Metadata.KEY_LENGTH, "pattern": TEXT_PATTERN},
        "additionalProperties": text | {"maxLength": Metadata.VALUE_LENGTH},
    }
