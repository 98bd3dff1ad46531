"""Changes of an order: confirm, cancel, complete, hold, release, fulfill, return, pay, update, …

Each change reads the order, lets the model check and apply it, and stores the new version with its event in one
transaction. If another writer stores a version in between, the change starts again from that version.

The order is parsed from its current snapshot: one row, instead of those of the order and its items. `flask verify`
checks that both agree.

Time causes changes, too: holds end, orders become late, and pending orders expire. `flask worker` and
`flask orders expire` make these. Several processes may do so at once: an order that changes at the same time is left to
the next run.
"""

import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import orjson
import structlog
from sqlalchemy import Row, Select, literal, select, tuple_

from app.db.batching import BatchAbandoned
from app.db.engine import DATABASE_ERRORS, DatabaseError, is_duplicate, is_lost_connection, is_unavailable, rfc3339
from app.db.statements import read_rows
from app.errors import (
    AmountExceeded,
    DuplicateExternalRef,
    DuplicatePayment,
    Forbidden,
    IdempotencyKeyReused,
    IllegalAction,
    InvalidRequest,
    OrderTooLarge,
    PreconditionFailed,
    QuantityExceeded,
    ServiceError,
    ServiceUnavailable,
    VersionMismatch,
)
from app.models import Order
from app.models.lifecycle import OPEN
from app.models.money import UNPAID, InvalidPrices
from app.models.order import CONTENT, CONTENT_TIMES, IMMUTABLE_CONTENT, ITEM_CONTENT, Units
from app.models.order_aggregate import (
    HOLDS_MAX,
    OrderAggregate,
    StoredOrder,
    load_document,
    merge_patch,
    parse_order,
    render_order,
    visible_order,
)
from app.models.order_id import EPOCH, LOWEST_ID, first_order_id, hash_key, is_alias, time_ago
from app.models.principal import Principal
from app.schemas.base import body_errors, load_body
from app.schemas.order import UpdatedOrderSchema
from app.services.order_queries import (
    OrderKey,
    find_snapshot,
    order_not_found,
    owned_by,
    owner_parameters,
    owner_values,
    parse_order_id,
)
from app.services.order_service import adjustment_columns, content_columns, item_columns
from app.services.order_storage import (
    CurrentOrder,
    HashedKey,
    event_row,
    find_current_order,
    require_room_for_key,
    store_key,
    store_version,
)
from app.tracing import current_traceparent

log = structlog.get_logger()

CONFLICT_DEADLINE = 2.0  # seconds in which a change is repeated after conflicts; the same as PostgreSQL's lock_timeout
# Characters of an order's document. It is stored again with every version, and cancelled fulfillments, and
# cancellations before a reopening, stay in it.
DOCUMENT_MAX = 2**20
_IN_DOUBT = "The database connection was lost, and the order may have been changed. Read it before you retry."
_CUSTOMER_CONTENT = {"note", "shipping_address", "billing_address"}

# Applies a change to an order, called with the order and `at`, and returns the event type, or None if nothing changes.
# It runs again after a conflict.
Change = Callable[..., str | None]

_UPDATED_ORDER = UpdatedOrderSchema()
# Errors that depend on the state of the order: they get its `current_version`.
_CONFLICTS = (AmountExceeded, DuplicatePayment, IllegalAction, QuantityExceeded)

EXPIRY = Principal("system:expiry", frozenset())
SCHEDULE = Principal("system:schedule", frozenset())
_SCHEDULE_PAGE = 100  # orders that are due, or that expire, in one query


@dataclass(slots=True)
class ChangeRequest:
    """The principal of a change and its conditions. `dry_run`: nothing is stored.

    `expected_versions` are the versions that If-Match names, None for any version; `excluded_versions` are those that
    If-None-Match names. `fingerprint` is a hash of the validated body, None without an idempotency key.
    """

    principal: Principal
    expected_versions: frozenset[int] | None = None
    excluded_versions: Container[int] = ()
    idempotency_key: str | None = None
    fingerprint: str | None = None
    request_id: str | None = None
    dry_run: bool = False


def confirm_order(order_id: str, *, request: ChangeRequest) -> StoredOrder:
    """Confirm a pending order. This commits, as the functions below do, which raise the same errors.

    Raises OrderNotFound, VersionMismatch, IdempotencyKeyReused, IllegalAction, TooManyVersions, OrderTooLarge,
    TooManyIdempotencyKeys, and ServiceUnavailable if other writers store their versions first for CONFLICT_DEADLINE
    seconds.
    """
    return _change_order(order_id, "confirm", OrderAggregate.confirm, request=request)


def cancel_order(
    order_id: str,
    *,
    reason: str,
    note: str | None = None,
    items: Units | None = None,
    adjustments: list[dict[str, Any]] | None = None,
    request: ChangeRequest,
) -> StoredOrder:
    """Cancel open units of an order, all of them by default; `adjustments` replace the order's.

    Also raises QuantityExceeded, InvalidRequest for unknown lines and a negative total, and Forbidden where a customer
    sends adjustments.
    """
    if adjustments is not None and request.principal.customer_id is not None:
        raise Forbidden("A customer cannot change the adjustments of an order. Send the request without them.")
    new = None if adjustments is None else adjustment_columns(adjustments)
    change = partial(OrderAggregate.cancel, reason=reason, note=note, items=items, adjustments=new)
    return _change_order(order_id, "cancel", change, request=request)


def complete_order(order_id: str, *, request: ChangeRequest) -> StoredOrder:
    """Complete a confirmed order, whatever has been fulfilled."""
    return _change_order(order_id, "complete", OrderAggregate.complete, request=request)


def reopen_order(order_id: str, *, reason: str, request: ChangeRequest) -> StoredOrder:
    """Reopen a completed order as confirmed, or a cancelled one as pending."""
    return _change_order(order_id, "reopen", partial(OrderAggregate.reopen, reason=reason), request=request)


def place_hold(
    order_id: str,
    handle: str,
    *,
    kind: str,
    reason: str | None = None,
    until: datetime | None = None,
    request: ChangeRequest,
) -> StoredOrder:
    """Place a hold on an open order, or replace the one with the same handle. The same hold again changes nothing.

    Also raises InvalidRequest for an `until` in the past.
    """
    change = partial(
        OrderAggregate.place_hold, handle=handle, kind=kind, reason=reason, until=until, placed_by=request.principal.id
    )
    return _change_order(order_id, f"hold {handle}", change, request=request)


def release_hold(order_id: str, handle: str, *, request: ChangeRequest) -> StoredOrder:
    """Release one hold of an order. Without a hold of this handle nothing changes."""
    change = partial(OrderAggregate.release_hold, handle=handle)
    return _change_order(order_id, f"release {handle}", change, request=request)


def record_payment(
    order_id: str,
    *,
    type: str,
    amount: int,
    reference: str,
    method: str | None = None,
    occurred_at: datetime | None = None,
    note: str | None = None,
    request: ChangeRequest,
) -> StoredOrder:
    """Record a payment; `amount` is in minor units. A stored type and reference with this amount changes nothing.

    Also raises DuplicatePayment for another amount, AmountExceeded, and InvalidRequest for a time in the future and for
    a reversal without its payment.
    """
    change = partial(
        OrderAggregate.record_payment,
        type=type,
        amount=amount,
        reference=reference,
        method=method,
        occurred_at=occurred_at,
        note=note,
    )
    return _change_order(order_id, "pay", change, request=request)


def fulfill_order(
    order_id: str, *, items: Units, tracking: dict[str, str] | None = None, request: ChangeRequest
) -> StoredOrder:
    """Record a fulfillment. Also raises QuantityExceeded and InvalidRequest for unknown lines."""
    change = partial(OrderAggregate.fulfill, items=items, tracking=tracking)
    return _change_order(order_id, "fulfill", change, request=request)


def update_tracking(
    order_id: str, number: int, *, tracking: dict[str, str | None] | None, request: ChangeRequest
) -> StoredOrder:
    """Update the tracking of a fulfillment by a JSON merge patch. Also raises FulfillmentNotFound."""
    change = partial(OrderAggregate.update_tracking, number=number, patch=tracking)
    return _change_order(order_id, f"track {number}", change, request=request)


def record_delivery_event(
    order_id: str,
    number: int,
    *,
    type: str,
    occurred_at: datetime | None = None,
    description: str | None = None,
    request: ChangeRequest,
) -> StoredOrder:
    """Record a delivery event of a fulfillment, now or at `occurred_at`.

    Also raises FulfillmentNotFound, and InvalidRequest for a time in the future.
    """
    change = partial(
        OrderAggregate.record_delivery_event, number=number, type=type, occurred_at=occurred_at, description=description
    )
    return _change_order(order_id, f"deliver {number}", change, request=request)


def return_items(
    order_id: str, *, items: Units, status: str, reason: str | None = None, request: ChangeRequest
) -> StoredOrder:
    """Record a return, received or expected. Also raises QuantityExceeded and InvalidRequest for unknown lines."""
    change = partial(OrderAggregate.return_items, items=items, status=status, reason=reason)
    return _change_order(order_id, "return", change, request=request)


def settle_return(order_id: str, number: int, *, status: str, request: ChangeRequest) -> StoredOrder:
    """Receive or reject an expected return: `status` is RECEIVED or REJECTED. Also raises ReturnNotFound."""
    change = partial(OrderAggregate.settle_return, number=number, status=status)
    return _change_order(order_id, f"{status} {number}", change, request=request)


def update_order(order_id: str, *, patch: Mapping[str, Any], request: ChangeRequest) -> StoredOrder:
    """Change the order's content by a JSON merge patch. A patch that alters nothing stores no version.

    Also raises InvalidRequest for invalid content, Forbidden for members that a customer must not change, and
    DuplicateExternalRef.
    """
    change = partial(_apply_patch, patch=patch, principal=request.principal)
    return _change_order(order_id, "update", change, request=request)


def _change_order(order_id: str, operation: str, change: Change, *, request: ChangeRequest) -> StoredOrder:
    """Apply a change and commit it as one version with one event.

    `operation` is part of the stored hash of the idempotency key: if it is renamed, retries no longer find their key.

    A change that alters nothing stores no version, only its idempotency key: a retry gets the same response, whatever
    has changed in between.
    """
    in_doubt: list[StoredOrder] = []  # versions of which it is unknown whether they were committed
    deadline, key = time.monotonic() + CONFLICT_DEADLINE, _idempotency_key(operation, request)
    try:
        while time.monotonic() < deadline:
            order = _try_change(order_id, change, key=key, request=request, in_doubt=in_doubt)
            if order is not None:
                return visible_order(order, request.principal)
    except DATABASE_ERRORS as error:
        if key is not None or not in_doubt:
            raise
        raise ServiceUnavailable(_IN_DOUBT) from error
    if key is None and in_doubt:
        raise ServiceUnavailable(_IN_DOUBT)
    raise ServiceUnavailable("Too many concurrent changes of this order. Send the request again.")


def _try_change(
    order_id: str, change: Change, *, key: HashedKey | None, request: ChangeRequest, in_doubt: list[StoredOrder]
) -> StoredOrder | None:
    """Apply a change and commit it. Returns None if another writer was first, or if the commit is in doubt."""
    current = _get_current_order(order_id, request.principal, key)
    for stored in in_doubt:  # after the read: a version that is committed later than this is a conflict
        if _is_stored(stored, request.principal):
            return stored
    if current.replayed_document is not None:
        return _replay(current, request)
    before = load_document(current.document)
    order = parse_order(before, principal=current.principal, external_ref_hash=current.external_ref_hash)
    _require_expected_version(order.version, request)
    event_type = _apply(change, order)
    if request.dry_run:
        return _preview(order, event_type, current, before=before, request=request)
    if event_type is None:
        if key is not None and not store_key(key, order_id=order.id, version=order.version):
            require_room_for_key(order.id)
            return None
        return StoredOrder(order.id, order.version, current.document, unchanged=True)
    changed = _changed_order(order, before=before, length=len(current.document))
    event = _event(order, changed, event_type=event_type, request=request)
    try:
        return changed if store_version(order, event, key=key, before=before) else None
    except BatchAbandoned:
        in_doubt.append(changed)
    except DATABASE_ERRORS as error:
        if is_lost_connection(error):
            in_doubt.append(changed)
        else:
            _raise_unless_replayed(error, order, before=before, key=key, principal=request.principal)
    return None


def _preview(
    order: OrderAggregate,
    event_type: str | None,
    current: CurrentOrder,
    *,
    before: Mapping[str, Any],
    request: ChangeRequest,
) -> StoredOrder:
    """The response that the change would get. Raises what storing it would raise."""
    if event_type is None:
        if request.idempotency_key is not None:
            require_room_for_key(order.id)
        return StoredOrder(order.id, order.version, current.document, unchanged=True)
    if order.external_ref not in (None, before["external_ref"]) and read_rows(_select_same_reference(order)):
        raise _duplicate_external_ref(order, request.principal)
    return _changed_order(order, before=before, length=len(current.document))


def _changed_order(order: OrderAggregate, *, before: Mapping[str, Any], length: int) -> StoredOrder:
    """The new version of an order whose document was `before`, of `length` characters.

    Raises OrderTooLarge beyond DOCUMENT_MAX, unless the change ends the order or makes it smaller.
    """
    document = render_order(vars(order))
    ends = before["status"] in OPEN and order.status not in OPEN
    if len(document) > max(DOCUMENT_MAX, length) and not ends:
        raise OrderTooLarge(f"The order would have {len(document):,} characters; the maximum is {DOCUMENT_MAX:,}.")
    return StoredOrder(order.id, order.version, document)


def _apply(change: Change, order: OrderAggregate) -> str | None:
    version = order.version
    try:
        return change(order, at=datetime.now(UTC))
    except _CONFLICTS as error:
        error.members["current_version"] = version
        raise
    except InvalidPrices as error:
        raise InvalidRequest(
            "The prices do not add up. Correct what `errors` lists.", errors=list(body_errors(error.messages))
        ) from None


def _idempotency_key(operation: str, request: ChangeRequest) -> HashedKey | None:
    """The key as it is stored. It belongs to one operation on one order."""
    if request.idempotency_key is None:
        return None
    key_hash = hash_key(request.idempotency_key, principal=request.principal.id, operation=operation)
    return HashedKey(key_hash, request.fingerprint)


def _get_current_order(order_id: str, principal: Principal, key: HashedKey | None) -> CurrentOrder:
    current = find_current_order(parse_order_id(order_id), principal=principal, key=key)
    if current is None:
        raise order_not_found(order_id)
    return current


def _replay(current: CurrentOrder, request: ChangeRequest) -> StoredOrder:
    assert current.replayed_version is not None and current.replayed_document is not None
    if current.replayed_fingerprint is None:  # an erasure removed it: the response is the current order
        version = orjson.loads(current.document)["version"]
        return StoredOrder(current.id, version, current.document, replayed=True)
    if current.replayed_fingerprint != request.fingerprint:
        raise IdempotencyKeyReused(
            "The Idempotency-Key was already used with a different body. Use a new key for a new request."
        )
    return StoredOrder(
        current.id,
        current.replayed_version,
        current.replayed_document,
        replayed=True,
        unchanged=not current.replayed_change,
    )


def _require_expected_version(version: int, request: ChangeRequest) -> None:
    if request.expected_versions is not None and version not in request.expected_versions:
        raise VersionMismatch(f"The order is at version {version}.", current_version=version)
    if version in request.excluded_versions:
        raise PreconditionFailed(f"The order exists, at version {version}, which If-None-Match excludes.")


def _event(order: OrderAggregate, changed: StoredOrder, *, event_type: str, request: ChangeRequest) -> dict[str, Any]:
    is_erased = is_alias(order.customer_id)
    return event_row(
        order.id,
        order.version,
        event_type=event_type,
        actor=request.principal.id,
        at=order.updated_at,
        snapshot=changed.document,
        request_id=None if is_erased else request.request_id,  # no later erasure would find it
        traceparent=None if is_erased else current_traceparent(),
    )


def _raise_unless_replayed(
    error: DatabaseError,
    order: OrderAggregate,
    *,
    before: Mapping[str, Any],
    key: HashedKey | None,
    principal: Principal,
) -> None:
    """Raise the database error, unless a concurrent request with the same key has stored the key first."""
    if not is_duplicate(error):
        raise error
    if _get_current_order(order.id, principal, key).replayed_document is not None:
        return
    if order.external_ref == before["external_ref"]:
        raise error
    raise _duplicate_external_ref(order, principal) from error


def _duplicate_external_ref(order: OrderAggregate, principal: Principal) -> DuplicateExternalRef:
    """The error names the order that has the reference only if the principal has access to it."""
    query = _select_same_reference(order).where(owned_by(*owner_parameters())).params(**owner_values(principal))
    existing = {"order_id": row.id for row in read_rows(query)}
    return DuplicateExternalRef("Another order already has this external_ref.", **existing)


def _select_same_reference(order: OrderAggregate) -> Select[str]:
    same = Order.external_ref == order.external_ref, Order.external_ref_hash == order.external_ref_hash
    return select(Order.id).where(*same)


def _is_stored(order: StoredOrder, principal: Principal) -> bool:
    return find_snapshot(OrderKey(order.id, principal, order.version)) == (order.version, order.document)


def _apply_patch(order: OrderAggregate, *, patch: Mapping[str, Any], principal: Principal, at: datetime) -> str | None:
    columns = order.columns()
    dates = {name: columns[name] and rfc3339(columns[name]) for name in CONTENT_TIMES}
    lines = [{name: item[name] for name in ITEM_CONTENT} for item in order.items]
    content = {name: columns[name] for name in (*IMMUTABLE_CONTENT, *CONTENT)} | dates | {"items": lines}
    changes = {name: rfc3339(value) if isinstance(value, datetime) else value for name, value in patch.items()}
    data = load_body(_UPDATED_ORDER, merge_patch({k: v for k, v in content.items() if v is not None}, changes))
    changed = {name: value for name, value in content_columns(data).items() if value != columns[name]}
    items = item_columns(data)
    if [{name: item[name] for name in ITEM_CONTENT} for item in items] != lines:
        changed["items"] = items
    if not changed:
        return None
    if principal.customer_id is not None and principal.id != order.principal:
        _require_customer_content(changed)
    return order.update(changed, at=at)


def _require_customer_content(changed: Iterable[str]) -> None:
    """Raise Forbidden if a customer changes more than note and addresses of an order that a service created.

    Prices and references are for the service to set. A conflict would also reveal which references it uses.
    """
    others = sorted(set(changed) - _CUSTOMER_CONTENT)
    if others:
        raise Forbidden(f"A customer cannot change {', '.join(others)} of an order that a service created.")


def apply_due_changes() -> Iterator[int]:
    """Release the holds that have ended, and mark orders as late whose `ship_by` has passed.

    Yields the number of changes of each page. Each commits by itself.
    """
    now = datetime.now(UTC)
    after: tuple[datetime, str] = (EPOCH, LOWEST_ID)
    while orders := _find_due(after=after, before=now):
        yield sum(_apply_due_changes_of(order.id) for order in orders)
        after = orders[-1].due_at, orders[-1].id


def _find_due(*, after: tuple[datetime, str], before: datetime) -> Sequence[Row[Any]]:
    """A page of the orders whose `due_at` has passed, after the position `after`."""
    position = literal(after[0], Order.due_at.type), literal(after[1], Order.id.type)
    query = select(Order.id, Order.due_at).where(tuple_(Order.due_at, Order.id) > tuple_(*position))
    query = query.where(Order.due_at <= before)
    return read_rows(query.order_by(Order.due_at, Order.id).limit(_SCHEDULE_PAGE))


def _apply_due_changes_of(order_id: str) -> int:
    """Make all changes of an order that are due, each as a version of its own, and return their number."""
    request = ChangeRequest(SCHEDULE)
    change = partial(_change_order, order_id, "due", OrderAggregate.apply_due_change, request=request)
    for count in range(HOLDS_MAX + 2):
        order = _try_scheduled(order_id, change)
        if order is None or order.unchanged:
            return count
    return count


def _try_scheduled(order_id: str, change: Callable[[], StoredOrder]) -> StoredOrder | None:
    """Make a change. Returns None if it failed: the next run repeats it, and it must not prevent those of other
    orders."""
    try:
        return change()
    except ServiceError:
        return None
    except Exception as error:
        if isinstance(error, DATABASE_ERRORS) and is_unavailable(error):
            raise
        log.error("scheduled change failed", order_id=order_id, exc_info=error)
        return None


def expire_orders(*, older_than: timedelta) -> Iterator[int]:
    """Cancel the pending orders that were created longer ago, and yield the number of each page.

    An order on hold, with a payment, or that was reopened is left as it is. Each cancellation commits by itself.
    """
    before = first_order_id(time_ago(older_than))
    last = LOWEST_ID
    while orders := find_expired(after=last, before=before):
        yield sum(_expire(order.id, order.version) for order in orders if not order.holds)
        last = orders[-1].id


def find_expired(*, after: str, before: str) -> Sequence[Row[Any]]:
    """A page of the pending orders between two ids that are unpaid and were never reopened."""
    query = select(Order.id, Order.version, Order.holds).where(Order.status == "pending")
    query = query.where(Order.payment_status == UNPAID)  # a cancellation refunds nothing
    query = query.where(Order.reopening.is_(None))  # it was reopened to be worked on, whatever its age
    query = query.where(Order.id > after, Order.id < before)
    return read_rows(query.order_by(Order.id).limit(_SCHEDULE_PAGE))


def _expire(order_id: str, version: int) -> bool:
    request = ChangeRequest(EXPIRY, expected_versions=frozenset({version}))
    return _try_scheduled(order_id, partial(cancel_order, order_id, reason="expired", request=request)) is not None
