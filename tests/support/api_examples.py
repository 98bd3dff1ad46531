"""The examples of the API description (`app/http/examples.json`): real requests and responses, recorded.

`python -m tests.support.api_examples` records them again (`make examples`). Values that differ between runs,
such as ids, is replaced by fixed values.
"""

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from hashlib import blake2b
from typing import Any
from unittest.mock import patch

import time_machine
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import update
from werkzeug.test import TestResponse

from app import create_app
from app.db.engine import db
from app.http.openapi import EXAMPLES, camel_case
from app.models import order_aggregate
from app.models.event import CHANGE_KEYS_MAX
from app.models.order import Order
from app.models.order_aggregate import VERSIONS_MAX
from app.models.order_id import hash_key
from app.services import order_actions, order_service, order_storage
from app.services.event_feed import prune_feed
from app.services.order_actions import DOCUMENT_MAX
from app.services.webhook_service import ENDPOINTS_MAX
from tests.support.applications import Applications
from tests.support.credentials import app_with_auth, bearer, token
from tests.support.postgres import private_postgres
from tests.support.receivers import receiver
from tests.support.search import project
from tests.support.tables import delete_all_rows
from tests.support.webhooks import create_webhook, deliver, queue_events, webhook_rules

NOW = "2026-11-22T09:41:07.123456Z"
ABSENT = "019dab70-0000-7000-8000-000000000000"
REQUEST_ID = "8e03978e40d543e8bc936894a57f9324"
KEY = "5f0c1f0e-7d27-4d6a-9f5d-2f1f3b0c9f11"

ADDRESS = {
    "name": "Ada Lovelace",
    "line1": "12 St James's Square",
    "city": "London",
    "postal_code": "SW1Y 4JH",
    "country": "GB",
}
ORDER = {
    "customer_id": "c-123",
    "currency": "EUR",
    "items": [
        {"item_id": "sku-1", "title": "Mug", "quantity": 2, "unit_price": 1250},
        {"item_id": "sku-2", "title": "Tea", "quantity": 1, "unit_price": 700},
    ],
    "adjustments": [
        {"type": "discount", "label": "WELCOME10", "amount": -320},
        {"type": "shipping", "label": "Standard", "amount": 490},
    ],
    "shipping_address": ADDRESS,
    "tags": ["gift"],
    "metadata": {"cart": "7f3a"},
}
SMALL = {"customer_id": "c-123", "items": [{"item_id": "sku-1", "quantity": 2}]}
LINE_1 = [{"line": 1, "quantity": 2}]


class Recorder:
    """Sends requests, and keeps requests and responses by operation."""

    def __init__(self, app: Flask, clock: time_machine.Traveller) -> None:
        self.app, self.client, self._clock = app, app.test_client(), clock
        self.client.environ_base["HTTP_X_REQUEST_ID"] = REQUEST_ID
        self.operations: dict[str, dict[str, Any]] = {}
        self.problems: dict[str, Any] = {}
        self.payloads: dict[str, Any] = {}

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> TestResponse:
        """Send a request and keep it. An underscore in a header stands for a hyphen."""
        self._clock.shift(timedelta(minutes=1))
        response = _send(self.client, method, path, body, **headers)
        assert response.status_code < 400, response.text
        name = self._operation(response)
        recorded = self.operations.setdefault(name, {})
        if body is not None:
            recorded["request"] = body
        content = response.json if response.is_json else response.text
        if content:
            recorded.setdefault("responses", {}).setdefault(str(response.status_code), {})[response.mimetype] = content
        return response

    def _operation(self, response: TestResponse) -> str:
        endpoint, _ = self.app.url_map.bind("localhost").match(response.request.path, response.request.method)
        name = camel_case(endpoint.rpartition(".")[2])
        return name[0].lower() + name[1:]

    def fail(self, method: str, path: str, body: Any = None, *, client: FlaskClient | None = None, **more: Any) -> None:
        """Send a request and keep the problem in its response."""
        response = _send(client or self.client, method, path, body, **more)
        assert response.status_code >= 400 and response.json, response.text
        recorded = {"request": _request_text(method, path, body, more), "problem": response.json}
        self.problems[response.json["type"].removeprefix("/problems/")] = recorded


def _request_text(method: str, path: str, body: Any, more: dict[str, Any]) -> str:
    """The request as HTTP text, without headers that all requests share; a long body is truncated."""
    headers = [f"{name.replace('_', '-')}: {value}" for name, value in more.items() if name[0].isupper()]
    headers = [header if "Bearer" not in header else "Authorization: Bearer …" for header in headers]
    if "content_type" in more:
        headers.append(f"Content-Type: {more['content_type']}")
    content = more.get("data", b"").decode() if body is None else json.dumps(body)
    lines = [f"{method} {path}", *headers, *(["", content[:200]] if content.strip() else [])]
    return "\n".join(lines) + ("…" if len(content.strip()) > 200 else "")


def _send(client: FlaskClient, method: str, path: str, body: Any = None, **more: Any) -> TestResponse:
    options = {name: more.pop(name) for name in ("data", "content_type", "environ_overrides") if name in more}
    headers = {"X-Request-Id": REQUEST_ID} | {name.replace("_", "-"): value for name, value in more.items()}
    if body is not None:
        options["data"] = json.dumps(body)
        options["content_type"] = "application/merge-patch+json" if method == "PATCH" else "application/json"
    return client.open(path, method=method, headers=headers, **options)


def record(app: Flask) -> dict[str, Any]:
    """Record the examples of all operations and problems. SQLite has no example of `request-in-flight`."""
    with time_machine.travel(NOW, tick=False) as clock:
        recorder = Recorder(app, clock)
        for part in (_orders, _batches, _events, _webhooks, _customers, _health, _problems):
            delete_all_rows(app)
            part(recorder)
    recorded = {"operations": recorder.operations, "payloads": recorder.payloads, "problems": recorder.problems}
    fixed: dict[str, Any] = json.loads(_with_fixed_values(json.dumps(recorded)))
    return fixed


def _orders(recorder: Recorder) -> None:
    send = recorder.send
    path = send("POST", "/orders", ORDER, Idempotency_Key=KEY).headers["Location"]
    send("GET", path)
    send("PATCH", path, {"external_ref": "shop-1", "note": "Ring twice."})
    send("GET", "/orders/by-ref/shop-1")
    send("PUT", f"{path}/holds/fraud-check", {"kind": "fraud", "reason": "velocity"})
    send("DELETE", f"{path}/holds/fraud-check")
    send("POST", f"{path}/confirm")
    send("GET", f"{path}/history?limit=1")
    payment = {"type": "capture", "amount": 3370, "reference": "pi_3Nd81b", "method": "card"}
    send("POST", f"{path}/payments", payment)
    send("POST", f"{path}/payments", payment)
    tracking = {"carrier": "DHL", "number": "00340434161094042557"}
    send("POST", f"{path}/fulfillments", {"items": LINE_1, "tracking": tracking})
    url = "https://example.com/track/00340434161094042557"
    send("PATCH", f"{path}/fulfillments/1", {"tracking": {"url": url}})
    send("POST", f"{path}/fulfillments/1/events", {"type": "delivered", "description": "Left with a neighbour."})
    send("POST", f"{path}/cancel", {"reason": "customer", "items": [{"line": 2, "quantity": 1}]})
    send("POST", f"{path}/reopen", {"reason": "The customer wants the tea after all."})
    send("POST", f"{path}/complete")
    unit = [{"line": 1, "quantity": 1}]
    send("POST", f"{path}/returns", {"items": unit, "status": "expected", "reason": "broken"})
    send("POST", f"{path}/returns/1/receive")
    send("POST", f"{path}/returns", {"items": unit, "status": "expected", "reason": "broken"})
    send("POST", f"{path}/returns/2/reject")
    send("GET", "/orders?limit=1")
    project(recorder.app)
    send("GET", "/orders/search?q=mug")
    send("GET", "/orders/export", Accept="text/csv")
    send("GET", "/orders/export", Accept="application/x-ndjson")


def _batches(recorder: Recorder) -> None:
    without_currency = SMALL | {"items": [{"item_id": "sku-1", "quantity": 2, "unit_price": 1250}]}
    created = recorder.send("POST", "/orders/batch", {"orders": [SMALL, without_currency]})
    order_id = created.json["results"][0]["order"]["id"]
    confirm, cancel = ({"action": action, "order_id": order_id} for action in ("confirm", "cancel"))
    recorder.send("POST", "/orders/actions", {"actions": [confirm | {"if_match": 1}, cancel | {"reason": "customer"}]})


def _events(recorder: Recorder) -> None:
    recorder.client.post("/orders", json=SMALL)
    with recorder.app.app_context():
        queue_events()
    recorder.send("GET", "/events")


def _webhooks(recorder: Recorder) -> None:
    app, send = recorder.app, recorder.send
    with webhook_rules(app):
        body = {"url": "https://hooks.example.com/orders", "events": ["order.created"], "description": "Warehouse"}
        path = send("POST", "/webhooks", body).headers["Location"]
        send("PATCH", path, {"events": ["order.created", "order.cancelled"]})
        send("GET", path)
        send("GET", "/webhooks")
        send("POST", f"{path}/rotate-secret")
        send("DELETE", path)
        with receiver() as hook:
            path = f"/webhooks/{create_webhook(recorder.client, hook.url)['id']}"
            recorder.client.post("/orders", json=SMALL)
            deliver(app)
            send("GET", f"{path}/deliveries")  # a single one: ids of the same moment are not in order
            send("POST", f"{path}/test")
            deliver(app)
            send("POST", f"{path}/replay", {"from_seq": 1, "to_seq": 1})
            for request in sorted(hook.requests, key=lambda request: str(request.json["type"])):
                name = "EndpointPayload" if request.json["type"] == "webhook.test" else "Payload"
                recorder.payloads[name] = request.json


def _customers(recorder: Recorder) -> None:
    path = recorder.client.post("/orders", json=SMALL).headers["Location"]
    recorder.client.post(f"{path}/cancel", json={"reason": "customer"})
    recorder.send("GET", "/customers/c-123/personal-data")
    with patch("app.routes.customer_routes.REQUEST_SECONDS", -1.0):
        erasure = recorder.send("DELETE", "/customers/c-123/personal-data").headers["Location"]
    recorder.send("GET", erasure)
    recorder.send("DELETE", "/customers/c-123/personal-data")


def _health(recorder: Recorder) -> None:
    recorder.send("GET", "/healthz")
    recorder.send("GET", "/readyz")


def _problems(recorder: Recorder) -> None:
    for part in (_input_problems, _missing, _conflicts, _limits, _refusals, _failures):
        delete_all_rows(recorder.app)
        part(recorder)


def _input_problems(recorder: Recorder) -> None:
    fail = recorder.fail
    fail("GET", "/orders?customer_id=%ff")
    fail("POST", "/orders", data=b"{\"customer_id\": 'c-123'}", content_type="application/json")
    fail("POST", "/orders", {"customer_id": "c-123", "items": [{"item_id": "sku-1", "quantity": 0}], "colour": "red"})
    fail("GET", "/orders?cursor=x")
    fail("POST", "/orders", SMALL, Idempotency_Key="a b")
    fail("GET", "/orders/export", Accept="application/xml")
    fail("PUT", "/orders", {})
    fail("POST", "/orders", data=b" " * 70_000, content_type="application/json")
    fail("POST", "/orders", data=b"customer_id=c-123", content_type="text/plain")
    stalled = {"CONTENT_LENGTH": "9", "wsgi.input": Stalled()}
    fail("POST", "/orders", content_type="application/json", environ_overrides=stalled)


class Stalled:
    """A body that does not arrive in time."""

    def read(self, size: int = -1) -> bytes:
        raise TimeoutError


def _missing(recorder: Recorder) -> None:
    path = recorder.client.post("/orders", json=SMALL).headers["Location"]
    recorder.fail("GET", "/order")
    recorder.fail("GET", f"/orders/{ABSENT}")
    recorder.fail("GET", f"/erasures/{ABSENT}")
    recorder.fail("GET", f"/webhooks/{ABSENT}")
    recorder.fail("PATCH", f"{path}/fulfillments/2", {"tracking": None})
    recorder.fail("POST", f"{path}/returns/2/receive")
    with webhook_rules(recorder.app):
        webhook = create_webhook(recorder.client)["id"]
    recorder.fail("POST", f"/webhooks/{webhook}/replay", {"event_id": f"{ABSENT}:1"})


def _conflicts(recorder: Recorder) -> None:
    fail, client = recorder.fail, recorder.client
    path = _send(client, "POST", "/orders", ORDER | {"external_ref": "shop-1"}, Idempotency_Key=KEY).headers["Location"]
    fail("POST", "/orders", SMALL, Idempotency_Key=KEY)
    fail("POST", "/orders", SMALL | {"external_ref": "shop-1"})
    fail("DELETE", "/customers/c-123/personal-data")
    fail("POST", f"{path}/cancel", {"reason": "customer", "items": [{"line": 1, "quantity": 3}]})
    client.post(f"{path}/payments", json={"type": "capture", "amount": 3370, "reference": "pi_3Nd81b"})
    fail("POST", f"{path}/payments", {"type": "capture", "amount": 3000, "reference": "pi_3Nd81b"})
    fail("POST", f"{path}/payments", {"type": "refund", "amount": 5000, "reference": "re_1"})
    client.post(f"{path}/confirm")
    fail("POST", f"{path}/confirm", If_Match='"1"')
    fail("POST", f"{path}/confirm")
    client.post(f"{path}/complete")
    project(recorder.app)
    fail("POST", f"{path}/confirm", If_None_Match="*")
    with recorder.app.app_context():
        prune_feed(older_than=-timedelta(days=1))
    fail("GET", "/events?after=1")
    if db_name(recorder.app) == "postgresql":
        with _key_in_use(recorder.app, "held"):
            fail("POST", "/orders", SMALL, Idempotency_Key="held")


def db_name(app: Flask) -> str:
    with app.app_context():
        return db.engine.dialect.name


@contextmanager
def _key_in_use(app: Flask, key: str) -> Iterator[None]:
    """Another transaction has used the key and is not committed."""
    columns = {"idempotency_key_hash": hash_key(key, principal="anonymous", operation="create")}
    with app.app_context(), db.engine.begin() as other:
        other.execute(update(Order).values(columns))
        yield
        other.rollback()


def _limits(recorder: Recorder) -> None:
    """Lower limits are reached sooner; `_with_fixed_values` restores the real limits in the text."""
    fail, client = recorder.fail, recorder.client
    path = client.post("/orders", json=SMALL).headers["Location"]
    with patch.object(order_aggregate, "VERSIONS_MAX", 1):
        fail("POST", f"{path}/confirm")
    with patch.object(order_actions, "DOCUMENT_MAX", 500):
        fail("PATCH", path, {"note": "n" * 100})
    with patch.object(order_storage, "CHANGE_KEYS_MAX", 0):
        fail("PATCH", path, {}, Idempotency_Key=KEY)
    with webhook_rules(recorder.app):
        for _ in range(ENDPOINTS_MAX):
            create_webhook(client)
        fail("POST", "/webhooks", {"url": "https://hooks.example.com/orders"})
    with patch.dict(recorder.app.config, {"REQUIRE_IF_MATCH": True}):
        fail("POST", f"{path}/confirm")


def _refusals(recorder: Recorder) -> None:
    url = recorder.app.config["DATABASE_URL"]
    customer = bearer(token(scope="orders:read"))
    with app_with_auth(url) as app:
        recorder.fail("GET", "/orders", client=app.test_client())
        recorder.fail("POST", f"/orders/{ABSENT}/confirm", client=app.test_client(), **customer)
    with app_with_auth(url, RATE_LIMIT_CUSTOMERS="5") as app:
        client = app.test_client()
        for _ in range(5):
            client.get("/orders", headers=customer)
        recorder.fail("GET", "/orders", client=client, **customer)


def _failures(recorder: Recorder) -> None:
    with patch.dict(recorder.app.config, {"PROPAGATE_EXCEPTIONS": False}):
        with patch.object(order_service, "insert_orders", side_effect=ZeroDivisionError):
            recorder.fail("POST", "/orders", SMALL)
    with tempfile.TemporaryDirectory() as directory:
        app = create_app({"DATABASE_URL": f"sqlite:///{directory}/missing/orders.db", "AUTH": "off", "TESTING": True})
        recorder.fail("POST", "/orders", SMALL, client=app.test_client())
        with app.app_context():
            db.engine.dispose()


def _with_fixed_values(text: str) -> str:
    """Replace values that differ between runs, equal values by equal ones."""
    known: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        count = known.setdefault(match[0], len(known))
        return blake2b(str(count).encode(), digest_size=6).hexdigest()

    text = re.sub(
        r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}",
        lambda match: match[0] if match[0] == ABSENT else f"019dab70-c2b3-7c51-b9f8-{number(match)}",
        text,
    )
    text = re.sub(r"\b261122-[0-9A-Z]{8}\b", lambda match: f"261122-{number(match)[:8].upper()}", text)
    text = re.sub(r'(cursor": ")[^"]+', r"\1AAAAAAAAABFq2zYPDsqd8g==", text)
    text = re.sub(r"whsec_[A-Za-z0-9+/=]+", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", text)
    text = re.sub(r"http://127\.0\.0\.1:\d+/hook", "https://hooks.example.com/orders", text)
    text = text.replace(
        "has 1 versions; the maximum is 1.", f"has {VERSIONS_MAX:,} versions; the maximum is {VERSIONS_MAX:,}."
    )
    text = re.sub(
        r"have \d+ characters; the maximum is 500",
        f"have {DOCUMENT_MAX + 52:,} characters; the maximum is {DOCUMENT_MAX:,}",
        text,
    )
    text = text.replace("has 0 idempotency keys", f"has {CHANGE_KEYS_MAX} idempotency keys")
    return re.sub(r'("milliseconds": )\d+', r"\g<1>12", text)


def main() -> None:
    with private_postgres() as url, Applications() as applications:
        examples = record(applications.migrated(url))
    EXAMPLES.write_text(json.dumps(examples, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
