"""A new order, made out of what a request says of it."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import orjson

from app.models.lifecycle import NEW_ORDER_ACTIONS
from app.models.order_id import hash_key, hash_reference, new_order_id, order_number
from app.models.order_item import order_totals
from app.models.principal import Principal
from app.services.order_document import render_order

FIRST_VERSION = 1
CREATE = "create"  # the operation that the idempotency keys of new orders belong to


@dataclass(frozen=True, slots=True)
class OrderRequest:
    """A validated `POST /orders` body (`app.schemas.order`), who asks, and under which idempotency key.

    `ref_is_key` lets the external reference stand for a key that is missing: the same order again is a replay, not a
    conflict.
    """

    data: Mapping[str, Any]
    principal: Principal
    idempotency_key: str | None = None
    ref_is_key: bool = False


@dataclass(frozen=True, slots=True)
class NewOrder:
    """An order ready to be stored: its columns, its lines' columns, and its document."""

    columns: dict[str, Any]
    items: list[dict[str, Any]]
    snapshot: bytes
    fulfillments: Sequence[dict[str, Any]] = ()
    returns: Sequence[dict[str, Any]] = ()

    @property
    def id(self) -> str:
        return str(self.columns["id"])


def new_order(
    request: OrderRequest, *, at: datetime | None = None, randbits: Callable[[int], int] = secrets.randbits
) -> NewOrder:
    """The pending order that a request makes now, or at the aware time `at`; it is not stored yet."""
    now = at or datetime.now(UTC)
    principal = request.principal.id
    ref_hash = hash_reference(request.data.get("external_ref"), principal=principal)
    key_hash = ref_hash if request.ref_is_key else None
    if request.idempotency_key is not None:
        key_hash = hash_key(request.idempotency_key, principal=principal, operation=CREATE)
    order_id = new_order_id(now, key_hash=key_hash, randbits=randbits)
    said, items = caller_columns(request.data), item_columns(request.data)
    items_total, adjustments_total = order_totals(items, said["adjustments"])
    columns = said | {
        "id": order_id,
        "number": order_number(order_id, now),
        "principal": principal,
        "external_ref_hash": ref_hash,
        "idempotency_key_hash": key_hash,
        "fingerprint": fingerprint([said, items]),
        "status": "pending",
        "fulfillment_status": "unfulfilled",
        "hold": None,
        "items_total": items_total,
        "adjustments_total": adjustments_total,
        "cancellation": None,
        "version": FIRST_VERSION,
        "created_at": now,
        "updated_at": now,
    }
    return NewOrder(columns, items, render_order(columns, items=items, allowed_actions=NEW_ORDER_ACTIONS))


def fingerprint(content: Any) -> str:
    """A hash of what a request says, in its canonical form: however its JSON was spelled, members sorted."""
    return blake2b(orjson.dumps(content, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def caller_columns(data: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that hold what the caller said of the order, from a validated body."""
    return {
        "customer_id": data["customer_id"],
        "external_ref": data.get("external_ref"),
        "currency": data.get("currency"),
        "adjustments": [
            {"type": adjustment["type"], "label": adjustment.get("label"), "amount": adjustment["amount"]}
            for adjustment in data.get("adjustments", [])
        ],
        "shipping_address": data.get("shipping_address"),
        "billing_address": data.get("billing_address"),
        "note": data.get("note"),
        "metadata": data.get("metadata", {}),
    }


def item_columns(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The columns of the lines of a validated body, of which nothing has been sent."""
    return [
        {
            "line": line,
            "item_id": item["item_id"],
            "quantity": item["quantity"],
            "unit_price": item.get("unit_price"),
            "fulfilled": 0,
            "returned": 0,
        }
        for line, item in enumerate(data["items"], start=1)
    ]
