"""Creating orders."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import orjson
from sqlalchemy import Row

from app.errors import DuplicateExternalRef, IdempotencyKeyReused, RequestInFlight, ServiceError
from app.models.faults import FAULTS, is_lock_timeout
from app.models.identifiers import new_order_id, order_number
from app.models.lifecycle import NEW_ORDER_ACTIONS
from app.models.money import order_totals
from app.services.order_document import render_order
from app.services.order_writes import FIRST_VERSION, NewOrder, find_collisions, insert_orders

_NUMBER_ATTEMPTS = 4  # two orders of one day share 40 random bits once in 10^12 pairs


@dataclass(frozen=True, slots=True)
class StoredOrder:
    """One version of an order, as the bytes every reader gets."""

    id: str
    version: int
    document: str
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class OrderRequest:
    """A validated `POST /orders` body (`app.schemas.order`), who asks, and under which idempotency key."""

    data: Mapping[str, Any]
    principal: str
    idempotency_key: str | None = None


def create_order(request: OrderRequest) -> StoredOrder:
    """Create one order, or answer again what its idempotency key was answered the first time.

    Raises IdempotencyKeyReused for another body under the key, DuplicateExternalRef, and RequestInFlight when a twin
    holds the key for longer than the lock timeout.
    """
    [outcome] = create_orders([request])
    if isinstance(outcome, ServiceError):
        raise outcome
    return outcome


def create_orders(requests: Sequence[OrderRequest]) -> list[StoredOrder | ServiceError]:
    """Create many orders, each judged alone; the outcomes come in the order of the requests.

    Everything that is stored is stored at once, and what failed leaves nothing behind.
    """
    outcomes: dict[int, StoredOrder | ServiceError] = {}
    for _ in range(_NUMBER_ATTEMPTS):
        pending = {i: new_order(request) for i, request in enumerate(requests) if i not in outcomes}
        outcomes |= _store(pending)
        if len(outcomes) == len(requests):
            break
    return [outcomes[i] for i in range(len(requests))]


def _store(pending: dict[int, NewOrder]) -> dict[int, StoredOrder | ServiceError]:
    """The outcomes of those that have one; an order whose random number is taken has none and is to be made anew."""
    orders = list(pending.values())
    try:
        stored = insert_orders(orders)
    except FAULTS as error:
        named = all(order.columns["idempotency_key"] or order.columns["external_ref"] for order in orders)
        if named and is_lock_timeout(error):
            raise RequestInFlight("A request with the same key or reference has not finished yet.") from error
        raise
    outcomes: dict[int, StoredOrder | ServiceError] = {
        i: _outcome(order) for i, order in pending.items() if order.id in stored
    }
    collided = {i: order for i, order in pending.items() if order.id not in stored}
    if collided:
        rows = find_collisions(list(collided.values()))
        outcomes |= {i: outcome for i, order in collided.items() if (outcome := _judge_collision(order, rows))}
    return outcomes


def _outcome(order: NewOrder) -> StoredOrder:
    return StoredOrder(order.id, FIRST_VERSION, order.snapshot.decode())


def _judge_collision(order: NewOrder, rows: Sequence[Row[Any]]) -> StoredOrder | ServiceError | None:
    mine = [row for row in rows if row.principal == order.columns["principal"]]
    for row in mine:
        if row.id == order.id:  # stored by an attempt whose connection broke before the answer came
            return _outcome(order)
    key, ref = order.columns["idempotency_key"], order.columns["external_ref"]
    for row in mine:
        if key is not None and row.idempotency_key == key:
            if row.fingerprint != order.columns["fingerprint"]:
                return IdempotencyKeyReused("The key was used with another body; take a new key for a new order.")
            return StoredOrder(row.id, FIRST_VERSION, row.snapshot, replayed=True)
    for row in mine:
        if ref is not None and row.external_ref == ref:
            return DuplicateExternalRef(f"Order {row.id} already has this external_ref.", order_id=row.id)
    return None


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


def new_order(
    request: OrderRequest, *, at: datetime | None = None, randbits: Callable[[int], int] = secrets.randbits
) -> NewOrder:
    """The pending order that a request makes now, or at the aware time `at`; it is not stored yet."""
    now = at or datetime.now(UTC)
    order_id = new_order_id(
        now, principal=request.principal, idempotency_key=request.idempotency_key, randbits=randbits
    )
    said, items = caller_columns(request.data), item_columns(request.data)
    items_total, adjustments_total = order_totals(items, said["adjustments"])
    columns = said | {
        "id": order_id,
        "number": order_number(order_id, now),
        "principal": request.principal,
        "idempotency_key": request.idempotency_key,
        "fingerprint": None if request.idempotency_key is None else fingerprint([said, items]),
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
