"""The examples of the API description: requests and responses that `make examples` has recorded."""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson

from app.http.requests import public_path

EXAMPLES = Path(str(files("app") / "http" / "examples.json"))


def request_example(operation_id: str) -> dict[str, Any]:
    """Return the member `example` of a request body, or nothing."""
    request = _recorded()["operations"].get(operation_id, {}).get("request")
    return {} if request is None else {"example": request}


def response_example(operation_id: str, status: int, media_type: str) -> dict[str, Any]:
    """Return the member `example` of a response, or nothing."""
    responses = _recorded()["operations"].get(operation_id, {}).get("responses", {})
    response = responses.get(str(status), {}).get(media_type)
    return {} if response is None else {"example": _with_prefix(response)}


def problem_example(slug: str) -> dict[str, Any]:
    """Return a problem document of this type."""
    problem: dict[str, Any] = _with_prefix(_recorded()["problems"][slug]["problem"])
    return problem


def problem_request(slug: str) -> str:
    """Return the request that `problem_example` is the response to, as HTTP text."""
    request: str = _recorded()["problems"][slug]["request"]
    return request


def payload_example(schema: str) -> Any:
    """Return the body of a request to a webhook."""
    return _recorded()["payloads"][schema]


@cache
def _recorded() -> dict[str, Any]:
    recorded: dict[str, Any] = orjson.loads(EXAMPLES.read_bytes())
    return recorded


def _with_prefix(example: Any) -> Any:
    """Put URL_PREFIX before the paths in problem documents."""
    if isinstance(example, list):
        return [_with_prefix(entry) for entry in example]
    if not isinstance(example, dict):
        return example
    is_problem = str(example.get("type")).startswith("/problems/")
    paths = {name: public_path(example[name]) for name in ("type", "instance")} if is_problem else {}
    return {name: _with_prefix(member) for name, member in example.items()} | paths
