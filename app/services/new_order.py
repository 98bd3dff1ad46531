"""Building a new order from a validated request."""

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import orjson

from app.models.lifecycle import NEW_ORDER_ACTIONS
from app.models.order import CONTENT, IMMUTABLE_CONTENT
from app.models.order_id import hash_key, hash_reference, new_order_id, order_number
from app.models.pricing import order_totals, price_lines, priced_lines
from app.models.principal import ANY_OWNER, Owner, Principal
from app.services.order_document import render_order
from app.tracing import current_traceparent

FIRST_VERSION = 1
CREATE = "create"  # the operation of the idempotency keys of new orders
# The columns of a new order that always have the same values, which the database fills in.
NEW_ORDER_STATE: dict[str, Any] = {
    "fulfillment_status": "unfulfilled",
    "payment_status": "unpaid",
    "return_status": "none",
    "holds": [],
    "payments": [],
    "fulfillments": [],
    "returns": [],
    "cancellations": [],
    "reopening": None,
    "late": False,
}


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """A validated `POST /orders` body, its principal, its idempotency key and its request id.

    The schema adds the `prices` to the body (`app.models.pricing`); if they are missing, they are computed.

    `reference_as_key`: without a key, the external_ref is the key. The same order again is a replay, not a conflict.
    """

    data: Mapping[str, Any]
    principal: Principal
    idempotency_key: str | None = None
    reference_as_key: bool = False
    request_id: str | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class NewOrder:
    """An order to store: its columns, the columns of its items, its document, the id of its request and its span.

    `owner`: whose orders its principal has access to, since it may conflict with another principal's order.
    """

    columns: dict[str, Any]
    items: list[dict[str, Any]]
    document: str
    request_id: str | None = None
    traceparent: str | None = None
    owner: Owner = ANY_OWNER

    @property
    def id(self) -> str:
        return str(self.columns["id"])


def new_order(
    request: CreateRequest, *, at: datetime | None = None, randbits: Callable[[int], int] = secrets.randbits
) -> NewOrder:
    """Build the pending order of a request, created now or at the aware time `at`. It is not stored yet."""
    now = at or datetime.now(UTC)
    principal = request.principal.id
    ref_hash = hash_reference(request.data.get("external_ref"), principal=principal)
    key_hash = ref_hash if request.reference_as_key else None
    if request.idempotency_key is not None:
        key_hash = hash_key(request.idempotency_key, principal=principal, operation=CREATE)
    order_id = new_order_id(now, key_hash=key_hash, randbits=randbits)
    content, items = content_columns(request.data), item_columns(request.data)
    prices = request.data.get("prices") or price_lines(items, content["adjustments"])
    totals = order_totals(prices, (), is_cancelled=False)
    columns = content | {
        "id": order_id,
        "number": order_number(order_id, now),
        "principal": principal,
        "external_ref_hash": ref_hash,
        "idempotency_key_hash": key_hash,
        "fingerprint": fingerprint([content, items]),
        "status": "pending",
        "total": totals and totals["total"],
        "due_at": content["ship_by"],
        "version": FIRST_VERSION,
        "created_at": now,
        "updated_at": now,
    }
    derived = {
        "items": priced_lines(items, prices),
        "totals": totals,
        "allowed_actions": NEW_ORDER_ACTIONS[totals is not None],
    }
    document = render_order(columns | NEW_ORDER_STATE | derived)
    return NewOrder(
        columns,
        items,
        document,
        request_id=request.request_id,
        traceparent=current_traceparent(),
        owner=request.principal.owner,
    )


def fingerprint(content: Any) -> str:
    """A hash of a validated body in canonical form, with sorted members: the JSON's spelling does not matter."""
    return blake2b(orjson.dumps(content, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def content_columns(data: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of an order that the caller sets, from a validated body."""
    columns = {name: data.get(name) for name in (*IMMUTABLE_CONTENT, *CONTENT)}
    columns["metadata"] = columns["metadata"] or {}
    columns["tags"], columns["related_orders"] = columns["tags"] or [], columns["related_orders"] or []
    columns["adjustments"] = adjustment_columns(columns["adjustments"] or ())
    return columns


def adjustment_columns(adjustments: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The adjustments of a validated body with all their members."""
    return [{name: adjustment.get(name) for name in ("type", "label", "amount", "line")} for adjustment in adjustments]


def item_columns(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The columns of the items of a validated body, with all units open."""
    return [
        {
            "line": line,
            "item_id": item["item_id"],
            "title": item.get("title"),
            "quantity": item["quantity"],
            "unit_price": item.get("unit_price"),
            "cancelled": 0,
            "fulfilled": 0,
            "returned": 0,
        }
        for line, item in enumerate(data["items"], start=1)
    ]
