"""The API description with all references resolved except those to schemas."""

from typing import Any

from flask.testing import FlaskClient

SCHEMA_ROOT = "#/components/schemas/"


def api_description(client: FlaskClient) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").json
    resolved: dict[str, Any] = _resolve(document, document)
    return resolved


def _resolve(document: dict[str, Any], value: Any) -> Any:
    if isinstance(value, list):
        return [_resolve(document, entry) for entry in value]
    if not isinstance(value, dict):
        return value
    target = value.get("$ref", SCHEMA_ROOT)
    if target.startswith(SCHEMA_ROOT):
        return {name: _resolve(document, member) for name, member in value.items()}
    component: Any = document
    for step in target.removeprefix("#/").split("/"):
        component = component[step]
    return _resolve(document, component)
