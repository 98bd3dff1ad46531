"""The collection runs against the service, from the creation of an order to its return."""

import json
from pathlib import Path

from tests.api.conftest import Tool
from tests.support.servers import Server

SUCCESSFUL = {
    "Create an order", "List orders by time of creation", "Create up to 1,000 orders",
    "Read an order, or an earlier version of it", "List the events of an order, oldest first",
    "Update an order by a JSON merge patch", "Confirm a pending order", "Cancel an order, or some of its units",
    "Complete a confirmed order, even if units are not fulfilled", "Reopen an order that has ended", "Record a payment",
    "Record a fulfillment", "Record what happened to a fulfillment", "Record a return", "Receive an expected return",
    "List or stream the events of all orders", "List all webhooks with their health", "Read this API description",
}  # fmt: skip


def test_every_request_of_the_collection_gets_a_documented_response(
    run: Tool, service: Server, directory: Path
) -> None:
    (directory / "collection.json").write_bytes(service.request("GET", "/docs/collection.json").body)

    base_url = f"baseUrl=http://127.0.0.1:{service.port}"
    report = ["--reporters", "cli,json", "--reporter-json-export", "report.json", "--timeout-request", "60000"]
    run("newman", "run", "collection.json", "--env-var", base_url, "--ignore-redirects", *report)

    executions = json.loads((directory / "report.json").read_text())["run"]["executions"]
    statuses = {execution["item"]["name"]: execution["response"]["code"] for execution in executions}
    assert {name: statuses[name] for name in SUCCESSFUL if statuses[name] >= 300} == {}
    assert len(statuses) == len(executions) > 40
