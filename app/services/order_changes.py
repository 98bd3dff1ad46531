"""Changing an order: read and lock it, let the model decide, write one version and one event.

The caller holds the transaction and commits it (`app.services.transactions`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import selectinload
from sqlalchemy.orm.attributes import set_committed_value

from app.errors import IdempotencyKeyReused, OrderNotFound, VersionMismatch
from app.extensions import db
from app.models import Order, OrderEvent, OutboxEntry
from app.models.identifiers import parse_uuid
from app.models.lifecycle import ACTIONS
from app.models.principal import Principal
from app.services.order_document import render_stored_order
from app.services.order_service import StoredOrder

# What a change does with the locked order, at a moment.
Change = Callable[[Order, datetime], None]


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """Who asks for which action (a name of `lifecycle.ACTIONS`), and on which conditions.

    `expected_versions` are those the caller takes the order at, None for any. The fingerprint is that of the validated
    body.
    """

    action: str
    principal: Principal
    expected_versions: frozenset[int] | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None


def change_order(order_id: str, change: Change, *, request: ChangeRequest) -> StoredOrder:
    """Carry out a change, as one version with one event. A change that alters nothing makes neither.

    Raises OrderNotFound, VersionMismatch, IdempotencyKeyReused, and what the model raises (IllegalAction,
    QuantityExceeded, InvalidRequest).
    """
    order = _lock_order(order_id, request.principal)
    event_type = ACTIONS[request.action].event
    if request.idempotency_key is not None:
        # After the lock: a twin that holds it has stored its event when this statement begins.
        replay = _find_replay(order.id, event_type, request)
        if replay is not None:
            return replay
    if request.expected_versions is not None and order.version not in request.expected_versions:
        raise VersionMismatch(f"The order is at version {order.version} now.", current_version=order.version)
    before, now = order.version, datetime.now(UTC)
    change(order, now)
    document = render_stored_order(order).decode()
    if order.version != before:
        db.session.flush()  # the UPDATE comes first: it tells whether the version was still there to be changed
        event = OrderEvent(
            order_id=order.id,
            version=order.version,
            type=event_type,
            actor=request.principal.id,
            at=now,
            idempotency_key=request.idempotency_key,
            fingerprint=request.fingerprint,
            snapshot=document,
        )
        db.session.add_all([event, OutboxEntry(order_id=order.id, version=order.version, at=now)])
    return StoredOrder(order.id, order.version, document)


def _lock_order(order_id: str, principal: Principal) -> Order:
    """The order, which nobody else can change until the transaction ends.

    The lock spares racing writers their retries; what keeps them from losing a change is the version in the UPDATE.
    """
    known_id = parse_uuid(order_id)
    query = select(Order).where(Order.id == known_id).options(selectinload(Order.items)).with_for_update()
    if principal.customer_id is not None:
        query = query.where(Order.customer_id == principal.customer_id)
    order = db.session.scalar(query) if known_id else None
    if order is None:
        raise OrderNotFound(f"There is no order {order_id[:64]}.")
    if order.fulfillment_status != "unfulfilled":
        db.session.refresh(order, ["fulfillments", "returns"])
    else:  # nothing was sent, so nothing came back: two questions less
        set_committed_value(order, "fulfillments", [])
        set_committed_value(order, "returns", [])
    return order


def _find_replay(order_id: str, event_type: str, request: ChangeRequest) -> StoredOrder | None:
    event = db.session.scalar(
        select(OrderEvent).where(
            OrderEvent.order_id == order_id,
            OrderEvent.actor == request.principal.id,
            OrderEvent.type == event_type,
            OrderEvent.idempotency_key == request.idempotency_key,
        )
    )
    if event is None:
        return None
    if event.fingerprint != request.fingerprint:
        raise IdempotencyKeyReused("The key was used with another body; take a new key for a new request.")
    return StoredOrder(order_id, event.version, event.snapshot, replayed=True)
