"""Personal data with a marker, by which it can be found wherever it is stored."""

import random
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from flask import Flask
from sqlalchemy import select, text, update

from app.db.engine import db, rfc3339
from app.models import EVENTS, ORDERS, Order
from app.services.order_storage import insert_events
from tests.support.samples import ADDRESS

CANARY = "canary"
CUSTOMER = f"{CANARY}-customer"


def canary(length: int = 0) -> str:
    """A unique text with the marker."""
    return f"{CANARY}{random.randrange(10**9):09}".ljust(length, "x")


def address() -> dict[str, str]:
    return {name: canary() if name != "country" else "GB" for name in ADDRESS} | {"phone": canary()}


def personal_order(**members: Any) -> dict[str, Any]:
    return {
        "customer_id": CUSTOMER,
        "items": [{"item_id": "sku-1", "quantity": 2, "unit_price": 1250}],
        "currency": "EUR",
        "adjustments": [{"type": "discount", "label": canary(), "amount": -250}],
        "external_ref": f"ref-{random.randrange(10**9)}",
        "note": canary(random.choice((0, 2000))),
        "tags": [canary()],
        "metadata": {canary(): canary(random.choice((0, 500)))},
        "shipping_address": address(),
        "billing_address": address(),
    } | members


def live(post: Callable[..., Any], *, end: str) -> str:
    """Make every kind of change of an order, with `post(path, body, method)`; return the path of the order."""
    path: str = post("/orders", personal_order()).headers["Location"]
    post(path, {"note": canary(), "metadata": {canary(): canary()}, "shipping_address": address()}, "PATCH")
    post(f"{path}/holds/review", {"kind": "other", "reason": canary()}, "PUT")
    if end == "cancel":
        post(f"{path}/cancel", {"reason": "customer", "note": canary(1500)})
        return path
    post(f"{path}/holds/review", None, "DELETE")
    payment = {"type": "capture", "amount": 1, "reference": "pi_1"}
    post(f"{path}/payments", payment | {"method": "card", "note": canary(1500)})
    post(f"{path}/cancel", {"reason": "customer", "note": canary(1500)})
    post(f"{path}/reopen", {"reason": canary(1500)})
    post(f"{path}/confirm")
    tracking = {"carrier": canary(), "number": canary(), "url": f"https://{canary()}.example/{canary()}"}
    for _ in range(2):
        post(f"{path}/fulfillments", {"items": [{"line": 1, "quantity": 1}], "tracking": tracking})
    post(f"{path}/fulfillments/1", {"tracking": {"carrier": canary()}}, "PATCH")
    post(f"{path}/fulfillments/1/events", {"type": "delivered", "description": canary(200)})
    post(f"{path}/returns", {"items": [{"line": 1, "quantity": 1}], "reason": canary(1500)})
    post(path, {"note": canary(10), "billing_address": None}, "PATCH")
    return path


def traces(app: Flask) -> list[str]:
    """The tables, and on SQLite also the database files, that contain the marker."""
    with app.app_context(), db.engine.connect() as connection:
        found = [
            table.name
            for table in db.metadata.sorted_tables
            if CANARY in repr(connection.execute(text(f"SELECT * FROM {table.name}")).all())
        ]
        if connection.dialect.name == "sqlite":
            file = Path(db.engine.url.database or "")
            files = [file.with_name(file.name + suffix) for suffix in ("", "-wal", "-journal")]
            # In another process: if this one closed the file, it would lose SQLite's locks on it.
            grep = ["grep", "-l", "-a", CANARY, *(str(one) for one in files if one.exists())]
            found += subprocess.run(grep, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return found


def add_versions(app: Flask, order_id: str, count: int, *, note_length: int) -> None:
    """Add versions to the order, as changes of its note would do; over HTTP, each would take milliseconds."""
    with app.app_context(), db.engine.begin() as connection:
        newest = select(EVENTS.c.version, EVENTS.c.snapshot).where(EVENTS.c.order_id == order_id)
        version, snapshot = connection.execute(newest.order_by(EVENTS.c.version.desc()).limit(1)).one()
        document, events = orjson.loads(snapshot), []
        for number in range(version + 1, version + count + 1):
            now = datetime.now(UTC)
            document |= {"version": number, "note": canary(note_length), "updated_at": rfc3339(now)}
            event = {"order_id": order_id, "version": number, "type": "order.updated", "actor": "anonymous", "at": now}
            events.append(event | {"snapshot": orjson.dumps(document).decode()})
        insert_events(connection, events)
        changed = {"version": document["version"], "note": document["note"], "updated_at": events[-1]["at"]}
        connection.execute(update(ORDERS).where(Order.id == order_id).values(changed))
