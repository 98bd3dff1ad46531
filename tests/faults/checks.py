"""Checks after any fault: everything acknowledged is stored once, and the tables equal the events."""

import sys
from collections import Counter

import orjson

from tests.faults.traffic import Traffic
from tests.support.commands import FLASK, run_python
from tests.support.servers import send_request

SETTINGS = {"LOG_LEVEL": "error", "WEB_CONCURRENCY": "2"}


def assert_each_order_once(traffic: Traffic, port: int) -> None:
    record = traffic.record
    stream = send_request(port, "GET", "/orders/export").body
    orders = {order["id"]: order for order in map(orjson.loads, stream.splitlines())}
    promised = Counter(order_id for order_id, _ in record.documents)
    print(f"{len(orders)} orders, {record.action_keys} actions, {record.resent} requests sent again", file=sys.stderr)

    assert record.surprises == []
    assert orders.keys() == promised.keys() and len(orders) == record.creation_keys
    assert {order_id: order["version"] for order_id, order in orders.items()} == promised
    assert sum(order["version"] - 1 for order in orders.values()) == record.action_keys
    assert len(orders[traffic.hot["id"]]["fulfillments"]) == orders[traffic.hot["id"]]["version"] - 2
    for (order_id, version), document in record.documents.items():
        response = send_request(port, "GET", f"/orders/{order_id}?version={version}")
        assert (response.status, response.body) == (200, document)


def assert_tables_valid(url: str) -> None:
    verified = run_python(*FLASK, "verify", DATABASE_URL=url, **SETTINGS)
    assert (verified.returncode, verified.stderr) == (0, ""), verified.stdout
