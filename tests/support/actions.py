"""Every action as a request, and orders after sequences of actions."""

from itertools import count
from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.support.samples import priced

ITEM = {"item_id": "sku-1", "quantity": 2, "unit_price": 1000}
UNIT = {"items": [{"line": 1, "quantity": 1}]}
# The method, the path below the order, and the status of the response.
ROUTES: dict[str, tuple[str, str, int]] = {
    "confirm": ("POST", "/confirm", 200),
    "cancel": ("POST", "/cancel", 200),
    "complete": ("POST", "/complete", 200),
    "hold": ("PUT", "/holds/{}", 200),
    "release": ("DELETE", "/holds/{}", 200),
    "fulfill": ("POST", "/fulfillments", 201),
    "track": ("POST", "/fulfillments/{}/events", 201),
    "return": ("POST", "/returns", 201),
    "receive": ("POST", "/returns/{}/receive", 200),
    "reject": ("POST", "/returns/{}/reject", 200),
    "pay": ("POST", "/payments", 201),
    "reopen": ("POST", "/reopen", 200),
    "update": ("PATCH", "", 200),
}
# What an action is about, in its path.
TARGETS = {"hold": "review", "release": "review"}  # of the others, the record with the number 1
VARIANTS = {"expect": ("POST", "/returns", 201), "tracking": ("PATCH", "/fulfillments/{}", 200)}  # of actions
VARIANT_BODIES = {"expect": UNIT | {"status": "expected"}}
POSTED = sorted(name for name, (method, _, _) in ROUTES.items() if method == "POST")
BODIES: dict[str, Any] = {
    "cancel": {"reason": "customer"},
    "fulfill": UNIT,
    "track": {"type": "in_transit"},
    "return": UNIT,
    "reopen": {"reason": "by mistake"},
    "pay": {"type": "capture", "amount": 1, "reference": "pi_1"},
}
_fresh = count()

# The actions that lead to each status; and, for each action, those that lead to an order that allows it.
TO_STATUS = {
    "pending": (),
    "confirmed": ("confirm",),
    "completed": ("confirm", "fulfill", "complete"),
    "cancelled": ("cancel",),
}
READY = {
    "update": (),
    "confirm": (),
    "cancel": (),
    "hold": (),
    "release": ("hold",),
    "fulfill": ("confirm",),
    "complete": ("confirm",),
    "track": ("confirm", "fulfill"),
    "return": ("confirm", "fulfill"),
    "receive": ("confirm", "fulfill", "expect"),
    "reject": ("confirm", "fulfill", "expect"),
    "pay": (),
    "reopen": ("cancel",),
}


def send_action(
    client: FlaskClient, path: str, name: str, body: Any = None, *, query: str = "", **headers: str
) -> TestResponse:
    """Send an action with the body, or with one that causes a change; an underscore in a header stands for a hyphen."""
    method, below, _ = (ROUTES | VARIANTS)[name]
    fresh = {"hold": {"kind": "review", "reason": f"check {next(_fresh)}"}, "update": {"note": f"note {next(_fresh)}"}}
    if "Idempotency_Key" not in headers:  # a payment with a key must be the same when it is repeated
        fresh["pay"] = BODIES["pay"] | {"reference": f"pi_{next(_fresh)}"}
    content = body if body is not None else fresh.get(name) or (BODIES | VARIANT_BODIES).get(name)
    given = {"json": content} if content is not None else {}
    named = {header.replace("_", "-"): value for header, value in headers.items()}
    address = path + below.format(TARGETS.get(name, 1)) + query
    return client.open(address, method=method, headers=named, **given)


def order_after(client: FlaskClient, *names: str, **members: Any) -> str:
    """The path of a new order on which these actions have succeeded."""
    path = client.post("/orders", json=priced() | {"items": [ITEM]} | members).headers["Location"]
    for name in names:
        response = send_action(client, path, name)
        assert response.status_code == (ROUTES | VARIANTS)[name][2], (name, response.text)
    return path


def event_types(client: FlaskClient, path: str) -> list[str]:
    """The types of the order's events, oldest first."""
    return [event["type"] for event in client.get(f"{path}/history?limit=100").json["events"]]
