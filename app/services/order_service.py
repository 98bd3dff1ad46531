"""Creating orders."""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import orjson

from app.errors import (
    DuplicateExternalRef,
    IdempotencyKeyReused,
    InternalError,
    RequestInFlight,
    ServiceError,
    ServiceUnavailable,
)
from app.models.faults import FAULTS, is_lock_timeout, is_unavailable
from app.models.identifiers import new_order_id, order_number
from app.models.lifecycle import NEW_ORDER_ACTIONS
from app.models.money import order_totals
from app.models.principal import Principal
from app.services.order_document import render_order
from app.services.order_writes import FIRST_VERSION, Collisions, NewOrder, find_collisions, insert_orders

_LINES_AT_ONCE = 10_000  # lines of one statement: half a second, where the database allows three
_PATIENCE = 5.0  # seconds for the orders of a statement that failed: each may wait for a lock of its own
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
    """A validated `POST /orders` body (`app.schemas.order`), who asks, and under which idempotency key.

    `ref_is_key` lets the external reference stand for the key: the same order again is a replay, not a conflict.
    """

    data: Mapping[str, Any]
    principal: Principal
    idempotency_key: str | None = None
    ref_is_key: bool = False


# An error is returned, not raised, where it is one order's among many.
Outcome = StoredOrder | ServiceError


def create_order(request: OrderRequest) -> StoredOrder:
    """Create one order, or answer again what its idempotency key was answered the first time.

    Raises IdempotencyKeyReused for another body under the key, DuplicateExternalRef, and RequestInFlight when a twin
    holds the key for longer than the lock timeout.
    """
    [outcome] = create_orders([request])
    if isinstance(outcome, ServiceError):
        raise outcome
    return outcome


def create_orders(requests: Sequence[OrderRequest]) -> list[Outcome]:
    """Create many orders, each judged alone; the outcomes come in the order of the requests.

    It takes one statement, or a few where the orders are long ones; what failed leaves nothing behind.
    """
    outcomes: dict[int, Outcome] = {}
    for _ in range(_NUMBER_ATTEMPTS):
        pending = {i: new_order(request) for i, request in enumerate(requests) if i not in outcomes}
        if not pending:
            break
        for part in _parts(pending):
            outcomes |= _store(part, requests)
    unlucky = ServiceUnavailable("No free order number was found.")
    return [outcomes.get(i, unlucky) for i in range(len(requests))]


def _parts(pending: dict[int, NewOrder]) -> Iterator[dict[int, NewOrder]]:
    part: dict[int, NewOrder] = {}
    lines = 0
    for i, order in pending.items():
        lines += len(order.items)
        if lines > _LINES_AT_ONCE and part:
            yield part
            part, lines = {}, len(order.items)
        part[i] = order
    yield part


def _store(pending: dict[int, NewOrder], requests: Sequence[OrderRequest]) -> dict[int, Outcome]:
    """The outcomes of those that have one; an order whose random number is taken has none and is to be made anew."""
    try:
        stored = insert_orders(list(pending.values()))
    except FAULTS as error:
        return _store_one_by_one(pending, requests, error)
    outcomes: dict[int, Outcome] = {i: _outcome(order) for i, order in pending.items() if order.id in stored}
    collided = {i: order for i, order in pending.items() if i not in outcomes}
    if collided:
        there = find_collisions(list(collided.values()))
        for i, order in collided.items():
            outcome = _judge_collision(order, there, ref_is_key=requests[i].ref_is_key)
            if outcome is not None:
                outcomes[i] = outcome
    return outcomes


def _store_one_by_one(
    pending: dict[int, NewOrder], requests: Sequence[OrderRequest], error: Exception
) -> dict[int, Outcome]:
    """A fault of the whole statement: only the order that causes it shall fail.

    Where the database is away or full it is everybody's, and trying them all would only make it worse.
    """
    if len(pending) > 1 and (is_lock_timeout(error) or not is_unavailable(error)):
        outcomes: dict[int, Outcome] = {}
        deadline = time.monotonic() + _PATIENCE
        for i, order in pending.items():
            if time.monotonic() < deadline:
                outcomes |= _store({i: order}, requests)
            else:
                outcomes[i] = ServiceUnavailable("Other orders of the list took too long; send this one again.")
        return outcomes
    return {i: _judge_fault(order, error) for i, order in pending.items()}


def _judge_fault(order: NewOrder, error: Exception) -> ServiceError:
    outcome: ServiceError
    if is_lock_timeout(error) and (order.columns["idempotency_key"] or order.columns["external_ref"]):
        outcome = RequestInFlight("A request with the same key or reference has not finished yet.")
    elif is_unavailable(error):
        outcome = ServiceUnavailable("The database cannot answer just now.")
    else:
        outcome = InternalError("The order could not be stored; this has been logged under the request id.")
    outcome.__cause__ = error
    return outcome


def _outcome(order: NewOrder) -> StoredOrder:
    return StoredOrder(order.id, FIRST_VERSION, order.snapshot.decode())


def _judge_collision(order: NewOrder, there: Collisions, *, ref_is_key: bool) -> Outcome | None:
    columns = order.columns
    if order.id in there.by_id:  # stored by an attempt whose connection broke before the answer came
        return _outcome(order)
    row = there.by_key.get((columns["principal"], columns["idempotency_key"]))
    if row is not None:
        if row.fingerprint != columns["fingerprint"]:
            return IdempotencyKeyReused("The key was used with another body; take a new key for a new order.")
        return StoredOrder(row.id, FIRST_VERSION, row.snapshot, replayed=True)
    row = there.by_ref.get((columns["principal"], columns["external_ref"]))
    if row is not None:
        if ref_is_key and columns["idempotency_key"] is None and row.fingerprint == columns["fingerprint"]:
            return StoredOrder(row.id, FIRST_VERSION, row.snapshot, replayed=True)
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
        now, principal=request.principal.id, idempotency_key=request.idempotency_key, randbits=randbits
    )
    said, items = caller_columns(request.data), item_columns(request.data)
    items_total, adjustments_total = order_totals(items, said["adjustments"])
    columns = said | {
        "id": order_id,
        "number": order_number(order_id, now),
        "principal": request.principal.id,
        "idempotency_key": request.idempotency_key,
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
