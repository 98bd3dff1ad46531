"""A collection for Postman, Bruno, Insomnia and newman, built from the API description (Postman's format, version
2.1)."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import orjson

from app.http.openapi import api_description
from app.http.requests import public_path

_SCHEMA = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"
_ADDRESS = "http://127.0.0.1:8000"  # of `make run`
_FRESH_KEY = "{{$guid}}"  # a new one for each request
_STREAM = "text/event-stream"  # a response that does not end
_NUMBER = 1  # of the first fulfillment or return of an order


def collection() -> bytes:
    """Return the collection as JSON. Its scripts store the id of a created resource for the requests that follow."""
    return _build(api_description(), _ADDRESS + public_path(""))


@cache
def _build(description_json: bytes, address: str) -> bytes:
    description = orjson.loads(description_json)
    folders = [
        {"name": tag["name"], "description": tag["description"], "item": list(_requests(description, tag["name"]))}
        for tag in description["tags"]
    ]
    return orjson.dumps(
        {
            "info": {"name": description["info"]["title"], "schema": _SCHEMA},
            "auth": {"type": "bearer", "bearer": [{"key": "token", "value": "{{token}}", "type": "string"}]},
            # The token is for the reader to fill in.
            "variable": [{"key": "baseUrl", "value": address}, {"key": "token", "value": ""}],
            "item": folders,
        }
    )


def _requests(description: dict[str, Any], tag: str) -> Iterator[dict[str, Any]]:
    for path, item in description["paths"].items():
        for method, operation in item.items():
            if method == "parameters" or tag not in operation["tags"] or _is_stream(operation):
                continue
            parameters = [
                _resolve(description, parameter)
                for parameter in (*item.get("parameters", []), *operation.get("parameters", []))
            ]
            yield {
                "name": operation["summary"],
                "event": [{"listen": "test", "script": {"exec": _script(description, operation)}}],
                "request": {
                    "method": method.upper(),
                    "description": operation["description"],
                    "header": _headers(operation, parameters),
                    "url": _url(path, parameters),
                    **_body(operation),
                },
            }


def _is_stream(operation: dict[str, Any]) -> bool:
    return list(operation["responses"].get("200", {}).get("content", {})) == [_STREAM]


def _resolve(description: dict[str, Any], parameter: dict[str, Any]) -> dict[str, Any]:
    name = parameter.get("$ref", "").rpartition("/")[2]
    resolved: dict[str, Any] = description["components"]["parameters"][name] if name else parameter
    return resolved


def _url(path: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    variables = {parameter["name"]: str(_value(parameter)) for parameter in parameters if parameter["in"] == "path"}
    segments = [part.replace("{", ":").replace("}", "") for part in path.strip("/").split("/")]
    return {
        "raw": "/".join(["{{baseUrl}}", *segments]),
        "host": ["{{baseUrl}}"],
        "path": segments,
        "variable": [{"key": name, "value": value} for name, value in variables.items()],
    }


def _value(parameter: dict[str, Any]) -> Any:
    """The example of a path parameter; a number; or the variable that `_script` sets."""
    if "example" in parameter:
        return parameter["example"]
    return _NUMBER if parameter["schema"]["type"] == "integer" else f"{{{{{parameter['name']}}}}}"


def _headers(operation: dict[str, Any], parameters: list[dict[str, Any]]) -> list[dict[str, str]]:
    headers = {"Content-Type": media_type for media_type in operation.get("requestBody", {}).get("content", {})}
    if any(parameter["name"] == "Idempotency-Key" for parameter in parameters):
        headers["Idempotency-Key"] = _FRESH_KEY
    return [{"key": name, "value": value} for name, value in headers.items()]


def _body(operation: dict[str, Any]) -> dict[str, Any]:
    for content in operation.get("requestBody", {}).get("content", {}).values():
        example = orjson.dumps(content.get("example", {}), option=orjson.OPT_INDENT_2).decode()
        return {"body": {"mode": "raw", "raw": example, "options": {"raw": {"language": "json"}}}}
    return {}


def _script(description: dict[str, Any], operation: dict[str, Any]) -> list[str]:
    """Test that the status is documented, and store the id of a resource that has links to its operations."""
    statuses = ", ".join(operation["responses"])
    lines = [f'pm.test("documented status", () => pm.expect([{statuses}]).to.include(pm.response.code));']
    links = [link for response in operation["responses"].values() for link in response.get("links", {})]
    for name in links[:1]:
        [variable] = description["components"]["links"][name]["parameters"]
        lines.append(f'if (pm.response.code < 300) pm.collectionVariables.set("{variable}", pm.response.json().id);')
    return lines
