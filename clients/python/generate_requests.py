"""Generates `order_service_client/requests.py` from the API description: a function for each operation.

python generate_requests.py openapi.json order_service_client/requests.py
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Document = dict[str, Any]

HEADER = '''# Generated from the API description by make client-types.
"""The requests of the API, named as in its description. A request is an object that a client sends."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from order_service_client import documents as d
from order_service_client.core import EventStream, Export, Listing, OrderRef, Request, query_of, segment
'''
IDEMPOTENT = {"GET", "PUT", "DELETE"}  # RFC 9110 §9.2.2
NEW_KEY = "secrets.token_hex(16)"
NDJSON, EVENT_STREAM = "application/x-ndjson", "text/event-stream"
TYPES = {"integer": "int", "boolean": "bool", "object": "Mapping[str, str]"}
# The description does not define the types of lines and events.
LINES = {
    "export_orders": "Export[d.Order]",
    "export_customer": "Export[dict[str, Any]]",
    "stream_order_events": "EventStream[d.Event]",
    "stream_events": "EventStream[d.FeedEvent]",
}
NOT_OF_STREAMS = {"format", "bom", "limit", "wait"}  # a resumed export would start its limit again


class Operation:
    """An operation of the description as a Python function."""

    def __init__(self, document: Document, method: str, path: str, operation: Document) -> None:
        self._document, self._method, self._path, self._operation = document, method.upper(), path, operation
        shared = document["paths"][path].get("parameters", [])
        self._parameters = [self._resolved(each) for each in shared + operation.get("parameters", [])]
        bodies = self._resolved(operation.get("requestBody", {})).get("content", {}).values()
        names = {self._name(each["schema"]) for each in bodies} - {"d.Empty"}
        self._body = names.pop() if names else None

    def functions(self) -> Iterator[str]:
        """Yield a function for each way to read the response: the feed is both a list and a stream."""
        name = re.sub("([A-Z])", r"_\1", self._operation["operationId"]).lower()
        _, response = min((code, each) for code, each in self._operation["responses"].items() if code < "3")
        content = self._resolved(response).get("content", {})
        if "application/json" in content:
            yield self._function(name, *self._document_kind(content["application/json"]["schema"]))
            name = name.replace("list_feed", "stream")
        elif not content:
            yield self._function(name, "Request[None]", [])
        if NDJSON in content or EVENT_STREAM in content:
            yield self._function(name, LINES[name], [])

    def _document_kind(self, schema: Document) -> tuple[str, list[str]]:
        """Return the type of a request for a document, and the arguments that only this type has."""
        page, members = self._name(schema), self._resolved(schema)["properties"]
        if "next_cursor" not in members:
            return f"Request[{page}]", []
        member, items = next((name, each["items"]) for name, each in members.items() if each.get("type") == "array")
        cursor = "cursor" if any(each["name"] == "cursor" for each in self._parameters) else "after"
        return f"Listing[{page}, {self._name(items)}]", [f'member="{member}"', f'cursor="{cursor}"']

    def _function(self, name: str, kind: str, arguments: list[str]) -> str:
        left_out = set() if kind.startswith(("Request", "Listing")) else NOT_OF_STREAMS
        places = {each: self._place(each) for each in re.findall(r"{(\w+)}", self._path)}
        query = {each["name"]: each["schema"] for each in self._parameters if each["in"] == "query"}
        keywords = {each: self._type(schema) for each, schema in query.items() if each not in left_out}
        is_keyed, is_batch = self._has("Idempotency-Key"), self._body in ("d.BatchIn", "d.BulkActionsIn")

        parameters = [f"{place}: {type_}" for place, type_ in places.values()]
        parameters += [f"body: {self._body}"] if self._body else []
        optional = keywords | ({"idempotency_key": "str"} if is_keyed else {})
        parameters += ["*"] if optional else []
        parameters += [f"{keyword}: {type_} | None = None" for keyword, type_ in optional.items()]

        path = re.sub(r"{(\w+)}", lambda match: f"{{segment({places[match[1]][0]})}}", self._path)
        values = [f'"{self._method}"', f'{"f" if places else ""}"{path}"']
        values += ["body=" + (self._keyed_batch() if is_batch else "body")] if self._body else []
        values += [f"query=query_of({', '.join(self._value(*each) for each in keywords.items())})"] if keywords else []
        values += ["order=order"] if is_keyed and "order_id" in places else []
        values += [f"idempotency_key=idempotency_key or {NEW_KEY}"] if is_keyed else []
        values += ["repeatable=True"] if is_keyed or is_batch or self._method in IDEMPOTENT else []
        return (
            f"\n\ndef {name}({', '.join(parameters)}) -> {kind}:\n"
            f'    """{self._operation["summary"]}."""\n'
            f"    return {kind.partition('[')[0]}({', '.join(values + arguments)})\n"
        )

    def _keyed_batch(self) -> str:
        """Return a batch with an idempotency key for each entry that has none."""
        [member] = self._document["components"]["schemas"][self._body.removeprefix("d.")]["properties"]
        entry = f'{{**each, "idempotency_key": each.get("idempotency_key") or {NEW_KEY}}}'
        return f'{{"{member}": [{entry} for each in body["{member}"]]}}'

    def _value(self, keyword: str, type_: str) -> str:
        """Return an argument of query_of."""
        if type_.startswith("Mapping"):
            return f'**{{f"{keyword}.{{key}}": value for key, value in ({keyword} or {{}}).items()}}'
        return f"{keyword}={keyword}"

    def _has(self, name: str) -> bool:
        return any(each["name"] == name for each in self._parameters)

    def _place(self, name: str) -> tuple[str, str]:
        """Return the name and type of a variable part of the path."""
        if name == "order_id":
            return "order", "OrderRef"
        return name, next(self._type(each["schema"]) for each in self._parameters if each["name"] == name)

    def _type(self, schema: Document) -> str:
        if "$ref" in schema:
            return self._name(schema)
        if schema.get("enum") == ["true", "false"]:
            return "bool"
        if "enum" in schema:
            return f"Literal{json.dumps(schema['enum'])}"
        if schema.get("type") == "array":
            return f"Sequence[{self._type(schema['items'])}]"
        return TYPES.get(schema.get("type", ""), "str")

    def _name(self, schema: Document) -> str:
        name: str = schema["$ref"].rpartition("/")[2]
        return f"d.{name}"

    def _resolved(self, value: Document) -> Document:
        """Resolve references."""
        while "$ref" in value:
            place: Any = self._document
            for name in value["$ref"].removeprefix("#/").split("/"):
                place = place[name]
            value = place
        return value


def generate(document: Document) -> str:
    """Return the module. Operations without authentication are pages and probes, and are omitted."""
    operations = (
        Operation(document, method, path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method != "parameters" and operation.get("security")
    )
    return HEADER + "".join(function for operation in operations for function in operation.functions())


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(generate(json.loads(source.read_text())))
