"""The API description: valid, complete, and correct."""

import re
from collections.abc import Iterator
from typing import Any

import pcre2
import pytest
import re2
import regress
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from werkzeug.test import TestResponse

from app.errors import problem_types
from tests.support.description import SCHEMA_ROOT, api_description
from tests.support.samples import MINIMAL, RICHEST, priced


@pytest.fixture
def description(client: FlaskClient) -> dict[str, Any]:
    return api_description(client)


@pytest.fixture
def document(client: FlaskClient) -> dict[str, Any]:
    """The description as it is served."""
    content: dict[str, Any] = client.get("/openapi.json").json
    return content


def operations(description: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in description["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                yield method.upper(), path, operation | {"shared": item.get("parameters", [])}


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON value, however deep."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for below in value:
            yield from nodes(below)


def resolved(description: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without external references."""
    return schema | {"components": description["components"]}


def test_the_description_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


def test_the_description_equals_the_url_map(app: Flask, description: dict[str, Any]) -> None:
    routes = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }

    assert {(method, path) for method, path, _ in operations(description)} == routes


def test_each_operation_has_a_unique_id_a_summary_a_description_and_a_tag(description: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(description)]

    assert len(ids) == len(set(ids))
    for _, _, operation in operations(description):
        assert re.fullmatch("[a-z]+[A-Za-z]*", operation["operationId"])
        assert operation["summary"] and "\n" not in operation["summary"]
        assert not operation["summary"].endswith(".")
        assert operation["description"].endswith("."), operation["operationId"]
        assert set(operation["tags"]) <= {tag["name"] for tag in description["tags"]}


def test_every_schema_is_described_by_a_sentence(description: dict[str, Any]) -> None:
    for name, schema in description["components"]["schemas"].items():
        assert schema["description"].endswith("."), name


def test_each_operation_documents_its_success_and_its_problems(description: dict[str, Any]) -> None:
    for method, path, operation in operations(description):
        answers = operation["responses"]
        assert [status for status in answers if status < "400"], (method, path)
        expected = {"400", "500"} | ({"408", "413", "415"} if "requestBody" in operation else set())
        assert expected <= answers.keys(), (method, path)
        # Erasing a customer without orders finishes at once.
        assert ("404" in answers) == ("{" in path and "{customer_id}" not in path), (method, path)
        for status, answer in answers.items():
            assert "X-Request-Id" in answer["headers"]
            if status >= "400":
                [(media_type, content)] = answer["content"].items()
                assert (media_type, content["schema"]["$ref"]) == ("application/problem+json", SCHEMA_ROOT + "Problem")
                assert {example["value"]["status"] for example in content["examples"].values()} == {int(status)}


def test_each_operation_that_reads_the_database_documents_503(description: dict[str, Any]) -> None:
    for method, path, operation in operations(description):
        assert ("503" in operation["responses"]) == bool(operation["security"] or path == "/readyz"), (method, path)


def test_only_temporary_problems_have_retry_after(description: dict[str, Any]) -> None:
    waiting = {f"/problems/{kind.slug}" for kind in problem_types() if kind.retry_after}

    for _, _, operation in operations(description):
        for answer in operation["responses"].values():
            examples = answer.get("content", {}).get("application/problem+json", {}).get("examples", {})
            types = {example["value"]["type"] for example in examples.values()}
            assert ("Retry-After" in answer["headers"]) == bool(types & waiting)


def test_examples_are_valid(description: dict[str, Any]) -> None:
    for schema in nodes(description["components"]["schemas"]):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)  # responses may gain members, but all are described
    for node in nodes(description):
        if "schema" in node:
            examples = [example["value"] for example in node.get("examples", {}).values()]
            for example in examples + ([node["example"]] if "example" in node else []):
                Draft202012Validator(resolved(description, node["schema"])).validate(example)
        elif "example" in node and "type" in node:
            schema = {name: value for name, value in node.items() if name != "example"}
            Draft202012Validator(resolved(description, schema)).validate(node["example"])


def test_each_json_body_has_an_example(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in (body.get("content", {}) for body in bodies):
            for media_type, body in content.items():
                optional = body["schema"] in ({"$ref": SCHEMA_ROOT + "Empty"}, {"type": "object"})
                is_json = media_type.partition("/")[2] in ("json", "merge-patch+json")
                assert not is_json or optional or "example" in body, (method, path)
    for event in document["webhooks"].values():
        assert event["post"]["requestBody"]["content"]["application/json"]["examples"]


def inputs(description: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema that validates a client's input, with a name for the message."""
    waiting = []
    for method, path, operation in operations(description):
        parameters = operation.get("parameters", []) + operation["shared"]
        waiting += [(f"{path} {p['name']}", p["schema"]) for p in parameters if p["in"] == "query"]
        for content in operation.get("requestBody", {}).get("content", {}).values():
            waiting.append((f"{method} {path}", content["schema"]))
    seen = set()
    while waiting:
        name, schema = waiting.pop()
        if "$ref" in schema:
            target = schema["$ref"].removeprefix(SCHEMA_ROOT)
            if target not in seen:
                seen.add(target)
                waiting.append((target, description["components"]["schemas"][target]))
            continue
        yield name, schema
        waiting += [(f"{name}.{member}", below) for member, below in schema.get("properties", {}).items()]
        waiting += [(f"{name}[]", schema["items"])] if "items" in schema else []
        waiting += [(name, below) for below in (*schema.get("anyOf", []), *schema.get("oneOf", []))]
        if isinstance(schema.get("additionalProperties"), dict):
            waiting.append((f"{name}{{}}", schema["additionalProperties"]))


def test_every_input_documents_its_limits(description: dict[str, Any]) -> None:
    for name, schema in inputs(description):
        kind = schema.get("type")
        kinds = set(kind) if isinstance(kind, list) else {kind}
        if "string" in kinds:
            assert schema.keys() & {"maxLength", "enum", "pattern", "format"}, name
        if "integer" in kinds:
            assert {"minimum", "maximum"} <= schema.keys(), name
        if "array" in kinds:
            assert "maxItems" in schema, name
        if "object" in kinds:
            assert schema["additionalProperties"] is False or "maxProperties" in schema, name
        if "enum" in schema:
            assert (None in schema["enum"]) == ("null" in kinds), name
        assert "nullable" not in schema, name


FRAGMENTS = [chr(code) for code in (*range(1, 0x180), 0x2028, 0x3000, 0xFEFF, 0xFFFF, 0x10FFFF) if chr(code) != "\n"]
TEXTS = [
    "", "Straße", "Übel", "Зоя", "東京", "🙂", "DE", "de", "k-1", "k 1", '"k-1"', '"a b"', r'"a\\b"', '"a"b"',
    "a/b", "a/./b", "..", "...", ".a/..b", "/", "http://a", "https://ä.example/?q=1", "http://a b", "ftp://a",
    "k" * 255, "k" * 256, "Ring.\n\tTwice.", "À" * 60 + "\x85", "Â\x85", *FRAGMENTS, *(f"a{one}z" for one in FRAGMENTS),
    *(f"http://{one}z" for one in FRAGMENTS), *(f'"{one}"' for one in FRAGMENTS),
]  # fmt: skip


def test_every_pattern_means_the_same_to_every_engine(description: dict[str, Any]) -> None:
    """ECMA 262, of JSON Schema and TypeScript clients; PCRE2, of PHP's; RE2, of Go's."""
    patterns = {node["pattern"] for node in nodes(description) if isinstance(node.get("pattern"), str)}
    assert len(patterns) >= 6
    for pattern in patterns:
        assert set(re.findall(r"\\(.)", pattern)) <= set(r"x-.[]\""), (
            pattern
        )  # PCRE2 may be built with more character properties
        ecma, pcre, go = regress.Regex(pattern, "u"), pcre2.compile(pattern), re2.compile(pattern)
        php = pcre2.compile(pattern.encode())  # generated clients lack the u flag, so they match bytes
        for text in TEXTS:
            expected = re.search(pattern, text) is not None
            found = [ecma.find(text) is not None, pcre.search(text) is not None, go.search(text) is not None]
            assert found == [expected] * 3, (pattern, text)
            assert php.search(text.encode()) or not expected, (pattern, text)


@pytest.mark.parametrize("schema, member", [("AddressIn", "name"), ("OrderIn", "note"), ("OrderIn", "customer_id")])
def test_a_pattern_rejects_what_the_service_rejects(description: dict[str, Any], schema: str, member: str) -> None:
    pattern = description["components"]["schemas"][schema]["properties"][member]["pattern"]
    allowed = "\t\n\r" if member == "note" else ""
    controls = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in allowed]

    assert not [control for control in controls if regress.Regex(pattern, "u").find(f"a{control}b")]
    for text in ("Straße", "Übel", "東京 🙂\u2028", f"a{allowed}b"):
        assert regress.Regex(pattern, "u").find(text), text


def test_the_limits_of_an_order_are_those_of_the_design(description: dict[str, Any]) -> None:
    schemas = description["components"]["schemas"]
    order, item = schemas["OrderIn"]["properties"], schemas["ItemIn"]["properties"]

    for text in (order["customer_id"], order["external_ref"], item["item_id"]):
        assert (text["minLength"], text["maxLength"]) == (1, 64)
        assert "pattern" in text
    assert (order["items"]["minItems"], order["items"]["maxItems"]) == (1, 100)
    assert (item["quantity"]["minimum"], item["quantity"]["maximum"]) == (1, 1_000_000)
    assert (item["unit_price"]["minimum"], item["unit_price"]["maximum"]) == (0, 10**12)
    assert item["unit_price"]["type"] == ["integer", "null"]
    assert order["note"]["maxLength"] == 2000
    assert (order["metadata"]["maxProperties"], order["metadata"]["propertyNames"]["maxLength"]) == (50, 40)
    assert order["metadata"]["additionalProperties"]["maxLength"] == 500
    assert order["currency"]["anyOf"] == [{"$ref": SCHEMA_ROOT + "Currency"}, {"type": "null"}]
    assert "EUR" in schemas["Currency"]["enum"]
    assert schemas["AdjustmentType"]["enum"] == ["discount", "tax", "shipping", "fee", "other"]
    assert order["shipping_address"] == {"anyOf": [{"$ref": SCHEMA_ROOT + "AddressIn"}, {"type": "null"}]}


def outputs(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every component of responses and webhook bodies."""
    answers = [
        operation["responses"]
        for path in document["paths"].values()
        for operation in path.values()
        if "responses" in operation
    ]
    waiting = list(nodes([answers, document["components"]["responses"], document["webhooks"]]))
    seen = set()
    while waiting:
        target = waiting.pop().get("$ref", "").removeprefix(SCHEMA_ROOT)
        if target in document["components"]["schemas"].keys() - seen:
            seen.add(target)
            yield target, document["components"]["schemas"][target]
            waiting += nodes(document["components"]["schemas"][target])


def test_response_schemas_allow_additional_members_without_inventing_any(document: dict[str, Any]) -> None:
    names = dict(outputs(document))

    assert names.keys() >= {"Order", "Item", "Totals", "OrderList", "Problem", "RequestError", "Event", "BatchProblem"}
    for name, schema in names.items():
        assert "additionalProperties" not in schema, name


def test_each_enumeration_is_one_component(document: dict[str, Any]) -> None:
    assert {"Action", "Currency", "EventType", "HoldKind", "OrderStatus", "PaymentType"} <= document["components"][
        "schemas"
    ].keys()
    enumerations = [tuple(node["enum"]) for node in nodes(document) if len(node.get("enum", ())) > 2]
    assert len(enumerations) == len(set(enumerations))


def test_definitions_that_several_operations_share_are_components(document: dict[str, Any]) -> None:
    for path in document["paths"].values():
        for operation in path.values():
            for status, answer in operation["responses"].items() if "responses" in operation else ():
                assert status < "400" or answer.keys() == {"$ref"}
                assert all(header.keys() == {"$ref"} for header in answer.get("headers", {}).values())
    inline = [
        (parameter["in"], parameter["name"], str(parameter))
        for node in nodes(document["paths"])
        for parameter in node.get("parameters", [])
        if isinstance(parameter, dict) and "$ref" not in parameter
    ]
    assert len(inline) == len(set(inline))
    assert all(parameter.get("description") for parameter in document["components"]["parameters"].values())


def test_integers_have_a_format_of_sufficient_size(description: dict[str, Any]) -> None:
    schemas = description["components"]["schemas"]

    for node in nodes(description):
        if "integer" in (kind if isinstance(kind := node.get("type"), list) else [kind]) and "enum" not in node:
            assert node.get("format") in ("int32", "int64"), node
            assert node["format"] == "int64" or node.get("maximum", 0) < 2**31, node
    for schema, member in (("Item", "total"), ("Totals", "due"), ("Payment", "amount"), ("FeedEvent", "seq")):
        assert schemas[schema]["properties"][member]["format"] == "int64"


@pytest.mark.parametrize(
    ("union", "success", "status"), [("BatchResult", "BatchOrder", 201), ("ActionResult", "ChangedOrder", 200)]
)
def test_the_results_of_a_batch_are_distinguished_by_their_status(
    description: dict[str, Any], union: str, success: str, status: int
) -> None:
    schemas = description["components"]["schemas"]
    assert schemas[union]["oneOf"] == [{"$ref": SCHEMA_ROOT + success}, {"$ref": SCHEMA_ROOT + "BatchProblem"}]

    assert schemas[success]["properties"]["status"]["enum"] == [status]
    failures = set(schemas["BatchProblem"]["properties"]["status"]["enum"])
    assert failures == {kind.status for kind in problem_types()}


def test_each_action_of_a_batch_has_its_own_members(description: dict[str, Any]) -> None:
    schemas = description["components"]["schemas"]
    mapping = schemas["BulkActionIn"]["discriminator"]["mapping"]

    assert sorted(mapping) == schemas["Action"]["enum"]
    for action, target in mapping.items():
        schema = schemas[target.removeprefix(SCHEMA_ROOT)]
        assert schema["properties"]["action"]["enum"] == [action]
        assert {"order_id", "idempotency_key", "if_match"} <= schema["properties"].keys()
    assert "reason" in schemas["CancelAction"]["required"]


def test_a_new_resource_links_to_the_operations_on_it(description: dict[str, Any]) -> None:
    ids = {operation["operationId"] for _, _, operation in operations(description)}
    for path in ("/orders", "/webhooks"):
        links = description["paths"][path]["post"]["responses"]["201"]["links"]
        assert {link["operationId"] for link in links.values()} <= ids
    links = description["paths"]["/orders"]["post"]["responses"]["201"]["links"]
    assert {"getOrder", "confirmOrder", "cancelOrder", "fulfillOrder"} <= links.keys()
    assert links["getOrder"]["parameters"] == {"order_id": "$response.body#/id"}


def test_optional_headers_are_not_prefilled(description: dict[str, Any]) -> None:
    for _, _, operation in operations(description):
        for parameter in operation.get("parameters", []):
            assert parameter["in"] != "header" or not parameter.keys() & {"example", "examples"}


def test_a_cursor_has_the_same_type_everywhere(description: dict[str, Any]) -> None:
    cursors = [
        parameter["schema"]
        for _, _, operation in operations(description)
        for parameter in operation.get("parameters", [])
        if parameter["name"] == "cursor"
    ]
    assert len(cursors) >= 3
    assert all(cursor == cursors[0] for cursor in cursors)


def real_responses(client: FlaskClient) -> Iterator[tuple[str, TestResponse]]:
    """Responses of every kind, each with the path of its operation in the description."""
    key = {"Idempotency-Key": "k-1"}
    for body in (MINIMAL, RICHEST, priced(-250, 40)):
        yield "/orders", client.post("/orders", json=body)
    for body in (MINIMAL, MINIMAL, RICHEST | {"external_ref": "r-2"}, {}, RICHEST):
        yield "/orders", client.post("/orders", json=body, headers=key)
    yield "/orders", client.post("/orders", json=RICHEST)
    yield "/orders", client.post("/orders", json=MINIMAL, headers={"Idempotency-Key": "a b"})
    yield "/orders", client.post("/orders", data=b"{", content_type="application/json")
    yield "/orders", client.post("/orders", data=b"x" * 70_000, content_type="application/json")
    yield "/orders", client.post("/orders", data=b"x")
    for query in ("", "?limit=1", "?limit=0&x=1", "?cursor=x", "?status=cancelled"):
        yield "/orders", client.get("/orders" + query)
    order_id = client.get("/orders").json["orders"][0]["id"]
    for query in ("", "?version=1", "?version=2", "?version=x"):
        yield "/orders/{order_id}", client.get(f"/orders/{order_id}{query}")
    yield "/orders/{order_id}", client.get(f"/orders/{order_id}", headers={"If-None-Match": '"1"'})
    yield "/problems/{slug}", client.get("/problems/not-found")
    yield "/problems/{slug}", client.get("/problems/nothing")
    yield "/docs/{name}", client.get("/docs/swagger-ui.css", buffered=True)
    for path in ("/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/problems"):
        yield path, client.get(path)


def test_real_responses_match_the_description(client: FlaskClient, description: dict[str, Any]) -> None:
    for path, response in real_responses(client):
        answer = description["paths"][path][response.request.method.lower()]["responses"][str(response.status_code)]

        assert set(answer["headers"]) >= {name for name in response.headers.keys() if name in NOTABLE}
        if response.status_code in (302, 304):
            assert response.data == b""
            continue
        content = answer["content"]
        assert response.mimetype in content or "*/*" in content
        if response.is_json:
            schema = resolved(description, content[response.mimetype]["schema"])
            Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(response.json)


NOTABLE = {
    "Accept", "Accept-Patch", "Allow", "ETag", "Idempotent-Replayed", "Link", "Location", "Retry-After", "X-Request-Id",
}  # fmt: skip


def test_the_documentation_page_loads_from_this_service_alone(client: FlaskClient) -> None:
    page = client.get("/docs").text

    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(addresses) >= 3
    for address in addresses:
        assert re.match("/[a-z]", address), address
        assert client.get(address, buffered=True).status_code == 200, address
    assert "<script>" not in page  # a content security policy can forbid scripts in the page
    assert '"openapi.json"' in client.get("/docs/start.js", buffered=True).text
