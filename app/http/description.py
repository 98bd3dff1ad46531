"""The finished API description (OpenAPI 3.1)."""

from typing import Any

import orjson
from flask import Flask

from app.extensions import api
from app.schemas.problem import Problem

_INTRODUCTION = """\
Creates and manages customer orders. An order that was acknowledged is never lost, and one Idempotency-Key never makes
two. Every error is a problem document (RFC 9457); its `type` is the address of a page that says what to do.
"""


def init_app(app: Flask) -> None:
    """Start the description; the blueprints that are registered next add to it."""
    api.init_app(app)
    api.spec.components.schema("Problem", schema=Problem)


def api_description() -> bytes:
    """The description as JSON. It says of every path what the URL map does: a test holds the two equal."""
    document: dict[str, Any] = api.spec.to_dict()
    document["info"]["description"] = _INTRODUCTION
    document["info"]["license"] = {"name": "MIT", "identifier": "MIT"}
    document["components"] = {"schemas": document["components"]["schemas"]}  # the library's own errors are not ours
    return orjson.dumps(document)
