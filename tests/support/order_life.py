"""Orders with every kind of change, over HTTP."""

from datetime import UTC, datetime, timedelta
from typing import Any

import time_machine
from flask import Flask
from flask.testing import FlaskClient

from app.services.order_actions import apply_due_changes
from tests.support.samples import RICHEST

LINES = [
    {"item_id": "sku-1", "title": "Mug", "quantity": 4, "unit_price": 1250},
    {"item_id": "sku-2", "quantity": 2, "unit_price": 999},
    {"item_id": "sku-3", "quantity": 3},
]
ADJUSTMENTS = [
    {"type": "discount", "label": "WELCOME10", "amount": -250},
    {"type": "discount", "amount": -100, "line": 2},
    {"type": "shipping", "label": "Express", "amount": 490},
]


PAYMENT = {"type": "authorization", "amount": 6000, "reference": "pi_1", "method": "card"}


def units(*quantities: int) -> dict[str, Any]:
    """A body with these quantities of lines 1, 2, …"""
    return {"items": [{"line": line, "quantity": n} for line, n in enumerate(quantities, start=1) if n]}


def complete_life(app: Flask) -> str:
    """The path of an order with every event that one order can have, except an import, an erasure and a cancellation of
    the whole order. It is completed at its last version."""
    client, now = app.test_client(), datetime.now(UTC)
    dates = {"ship_by": (now + timedelta(hours=1)).isoformat(), "deliver_by": (now + timedelta(days=3)).isoformat()}
    body = RICHEST | dates | {"items": LINES, "adjustments": ADJUSTMENTS, "channel": "web", "external_ref": "life-1"}
    path = created(client, body)
    until = (now + timedelta(minutes=30)).isoformat()
    change(client, "PATCH", path, {"note": "Ring once.", "items": [LINES[0] | {"quantity": 3}, *LINES[1:]]})
    change(client, "PUT", f"{path}/holds/fraud", {"kind": "fraud", "reason": "score 97"})
    change(client, "PUT", f"{path}/holds/stock", {"kind": "inventory", "reason": "counting", "until": until})
    change(client, "PUT", f"{path}/holds/fraud", {"kind": "review", "reason": "score 98"})
    change(client, "POST", f"{path}/payments", PAYMENT)
    change(client, "DELETE", f"{path}/holds/fraud")
    with time_machine.travel(now + timedelta(hours=2)):
        with app.app_context():
            assert sum(apply_due_changes()) == 2  # the end of the other hold; late
        for action, content in BEFORE_COMPLETION + AFTER_COMPLETION:
            change(client, "POST", f"{path}/{action}", content)
    return path


BEFORE_COMPLETION: list[tuple[str, Any]] = [
    ("confirm", {}),
    ("payments", {"type": "capture", "amount": 5500, "reference": "pi_1", "note": "by phone"}),
    ("cancel", units(0, 0, 1) | {"reason": "inventory", "note": "broken", "adjustments": ADJUSTMENTS[:2]}),
    ("fulfillments", units(1, 1)),
    ("fulfillments", units(2) | {"tracking": {"carrier": "DHL", "number": "JD014600"}}),
    ("fulfillments/1/events", {"type": "in_transit", "description": "Leipzig"}),
    ("fulfillments/1/events", {"type": "cancelled", "description": "lost"}),
    ("fulfillments", units(1, 1, 2)),
    ("cancel", units(0, 1) | {"reason": "customer"}),
]
AFTER_COMPLETION: list[tuple[str, Any]] = [
    ("fulfillments/2/events", {"type": "delivered"}),
    ("fulfillments/3/events", {"type": "delivered"}),
    ("returns", units(1) | {"reason": "too small"}),
    ("returns", units(0, 1) | {"status": "expected"}),
    ("returns/2/receive", None),
    ("returns", units(0, 0, 1) | {"status": "expected", "reason": "too large"}),
    ("returns/3/reject", None),
    ("payments", {"type": "refund", "amount": 1250, "reference": "re_1"}),
    ("reopen", {"reason": "by mistake"}),
    ("complete", None),
    ("payments", {"type": "chargeback", "amount": 1, "reference": "cb_1"}),
    ("payments", {"type": "chargeback_reversal", "amount": 1, "reference": "cb_1"}),
]


def cancelled_life(app: Flask) -> str:
    """The path of an order that was cancelled in two steps, reopened, held, and cancelled again."""
    client = app.test_client()
    path = created(client, RICHEST | {"items": LINES, "adjustments": ADJUSTMENTS, "external_ref": "life-2"})
    change(client, "POST", f"{path}/cancel", units(1) | {"reason": "customer", "note": "one is enough"})
    change(client, "POST", f"{path}/payments", PAYMENT)
    change(client, "POST", f"{path}/cancel", {"reason": "fraud", "note": "all of it"})
    change(client, "POST", f"{path}/reopen", {"reason": "it was her"})
    change(client, "PUT", f"{path}/holds/address", {"kind": "address"})
    change(client, "POST", f"{path}/payments", PAYMENT | {"type": "void"})
    change(client, "POST", f"{path}/cancel", {"reason": "staff"})
    return path


def created(client: FlaskClient, body: dict[str, Any]) -> str:
    """Create an order and return its path."""
    response = client.post("/orders", json=body)
    assert response.status_code == 201, response.text
    return response.headers["Location"]


def change(client: FlaskClient, method: str, path: str, body: Any = None) -> None:
    """Send a change, which must be accepted."""
    response = client.open(path, method=method, **({} if body is None else {"json": body}))
    assert response.status_code in (200, 201), (path, response.text)
