"""The number of statements that a request sends to PostgreSQL: each is a network round trip."""

from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.support.marks import on_postgresql
from tests.support.protocol_trace import messages_sent
from tests.support.samples import MINIMAL

KEY = {"Idempotency-Key": "k-1"}
# BEGIN and COMMIT of a transaction count as statements.
ROUND_TRIPS: dict[str, tuple[int, Callable[[FlaskClient, str], TestResponse]]] = {
    "create": (1, lambda client, order: client.post("/orders", json=MINIMAL)),
    "create again": (4, lambda client, order: client.post("/orders", json=MINIMAL, headers=KEY)),
    "create a batch": (1, lambda client, order: client.post("/orders/batch", json={"orders": [MINIMAL] * 100})),
    "read": (1, lambda client, order: client.get(order)),
    "read a version": (1, lambda client, order: client.get(order, query_string={"version": 1})),
    "list": (1, lambda client, order: client.get("/orders", query_string={"customer_id": "c-123"})),
    "list by several statuses": (1, lambda client, order: client.get("/orders?status=pending,confirmed")),
    "history": (1, lambda client, order: client.get(f"{order}/history")),
    "confirm under a key": (2, lambda client, order: client.post(f"{order}/confirm", headers=KEY)),
    "no change": (1, lambda client, order: client.delete(f"{order}/holds/review")),
    "no change under a key": (2, lambda client, order: client.delete(f"{order}/holds/review", headers=KEY)),
    "confirm": (2, lambda client, order: client.post(f"{order}/confirm")),
}


@on_postgresql
@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_a_request_executes_the_expected_number_of_statements(
    app: Flask, client: FlaskClient, tmp_path: Path, name: str
) -> None:
    expected, send = ROUND_TRIPS[name]
    first, second = (client.post("/orders", json=MINIMAL).headers["Location"] for _ in range(2))
    client.post("/orders", json=MINIMAL, headers=KEY)
    assert send(client, first).status_code < 300  # the connection has prepared the statements

    sent = messages_sent(app, lambda: send(client, second), tmp_path / "trace")

    assert sent.count("Execute") + sent.count("Query") == expected, sent
