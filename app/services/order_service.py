"""Creating orders: building their rows and documents, storing them, and answering retries.

An order is built first, with its id and its document, and stored in one statement with those of concurrent requests, or
of its batch. One that is not stored conflicts with a stored order, whose document answers a retry; otherwise it is an
error. If the statement fails, each of its orders is stored alone, unless the database is unavailable. If the connection
was lost, the ids are looked up, because the statement may have been executed.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from app.db.batching import Batcher, PerApplication
from app.db.engine import DATABASE_ERRORS, is_file_locked, is_lock_timeout, is_lost_connection, is_unavailable
from app.errors import (
    DuplicateExternalRef,
    IdempotencyKeyReused,
    InternalError,
    RequestInFlight,
    ServiceError,
    ServiceUnavailable,
)
from app.models.lifecycle import NEW_ORDER_ACTIONS
from app.models.money import order_totals, price_lines, priced_lines
from app.models.order import CONTENT, IMMUTABLE_CONTENT, ITEM_CONTENT
from app.models.order_aggregate import StoredOrder, render_order, visible_order
from app.models.order_id import CREATE, fingerprint, hash_key, hash_reference, new_order_id, order_number
from app.models.principal import Principal
from app.services.order_storage import (
    NEW_ORDER_STATE,
    Conflicts,
    NewOrder,
    find_conflicts,
    find_stored_ids,
    insert_orders,
)
from app.tracing import current_traceparent

FIRST_VERSION = 1
GROUP_COMMIT_MAX = 100  # orders of concurrent requests in one statement; more would delay each request without a gain
STATEMENT_ITEMS_MAX = 10_000  # items in one statement: it takes 0.5 s of the 3 s of statement_timeout
ONE_BY_ONE_DEADLINE = 5.0  # seconds for storing the orders of a failed statement one by one; each may wait for a lock
_NUMBER_ATTEMPTS = 4  # a number has 40 random bits; of the pairs of orders of one day, one in 10^12 has the same
_ABSENT_CONTENT: dict[str, Any] = dict.fromkeys(IMMUTABLE_CONTENT) | CONTENT


# The objects of a request are not frozen: it would cost a create 2.2 % more instructions.
@dataclass(slots=True)
class CreateRequest:
    """A validated `POST /orders` body, its principal, its idempotency key and its request id.

    The schema adds the `prices` to the body (`app.models.money`); if they are missing, they are computed.

    `reference_as_key`: without a key, the external_ref is the key. Repeating the same order is a replay, not a
    conflict.
    """

    data: Mapping[str, Any]
    principal: Principal
    idempotency_key: str | None = None
    reference_as_key: bool = False
    request_id: str | None = None
    dry_run: bool = False


# In a batch an error is returned, not raised: it concerns one order of many.
Outcome = StoredOrder | ServiceError


def create_order(request: CreateRequest) -> StoredOrder:
    """Create one order, or replay the response to the first request with its idempotency key. This commits.

    Requests that arrive at the same time share one statement. Raises IdempotencyKeyReused for another body under the
    key, DuplicateExternalRef, RequestInFlight if another request holds the key for longer than the lock timeout, and
    Forbidden for an order of another customer or channel.
    """
    request = authorize(request)
    for _ in range(_NUMBER_ATTEMPTS):
        order = new_order(request)
        outcome = _preview([order])[0] if request.dry_run else _CREATIONS.get().submit(order)
        if isinstance(outcome, StoredOrder):
            return visible_order(outcome, request.principal) if outcome.replayed else outcome
        if outcome is not None:
            raise outcome
    raise _no_free_number()


def authorize(request: CreateRequest) -> CreateRequest:
    """The request, with the channel of its principal if it names none and there is only one.

    Raises Forbidden for an order of another customer or channel.
    """
    data, principal = request.data, request.principal
    if principal.customer_id is not None:
        principal.require_own_customer(data["customer_id"])
    if principal.channels is None:
        return request
    return replace(request, data={**data, "channel": principal.channel_of_new_order(data.get("channel"))})


def create_orders(requests: Sequence[CreateRequest], *, dry_run: bool = False) -> list[Outcome]:
    """Create orders, each independently; their outcomes in the same order. This commits, unless it is a dry run.

    It takes one statement, or a few where the orders have many items. An order that fails stores nothing.
    """
    if dry_run:
        return _preview([new_order(request) for request in requests])
    outcomes: dict[int, Outcome] = {}
    for _ in range(_NUMBER_ATTEMPTS):
        pending = [i for i in range(len(requests)) if i not in outcomes]
        # Orders are built at most one statement ahead: VISIBLE_AFTER counts from `created_at`.
        statements = _split(new_order(requests[i]) for i in pending)
        results = [outcome for orders in statements for outcome in _store(orders)]
        outcomes |= {i: outcome for i, outcome in zip(pending, results, strict=True) if outcome is not None}
    return [outcomes.get(i) or _no_free_number() for i in range(len(requests))]


def _no_free_number() -> ServiceUnavailable:
    return ServiceUnavailable("No free order number was found. Send the request again.")


def _split(orders: Iterable[NewOrder]) -> Iterator[list[NewOrder]]:
    """The orders of each statement."""
    statement: list[NewOrder] = []
    items = 0
    for order in orders:
        items += len(order.items)
        if items > STATEMENT_ITEMS_MAX and statement:
            yield statement
            statement, items = [], len(order.items)
        statement.append(order)
    if statement:
        yield statement


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
        "fingerprint": order_fingerprint(content, items),
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
        channels=request.principal.channels,
    )


def content_columns(data: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of an order that the caller sets, from a validated body."""
    given = {name: value for name, value in data.items() if value is not None and name in _ABSENT_CONTENT}
    columns = _ABSENT_CONTENT | given
    columns["adjustments"] = adjustment_columns(columns["adjustments"])
    return columns


def order_fingerprint(content: Mapping[str, Any], items: Iterable[Mapping[str, Any]]) -> str:
    """The fingerprint of an order to create, from its columns and those of its items.

    What is absent is left out, so that a member that a later release adds does not change it.
    """
    given = {name: value for name, value in content.items() if value != _ABSENT_CONTENT[name]}
    lines = [{name: item[name] for name in ITEM_CONTENT if item[name] is not None} for item in items]
    return fingerprint([given, lines])


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


def _store(orders: Sequence[NewOrder]) -> list[Outcome | None]:
    """Store the orders; the outcome is None for one whose random number is in use: it must be built again.

    It may be called again with the same orders: their ids are already chosen, and an id is stored once.
    """
    try:
        stored = insert_orders(orders)
    except DATABASE_ERRORS as error:
        return _find_stored(orders, error) if is_lost_connection(error) else _store_one_by_one(orders, error)
    conflicting = [order for order in orders if order.id not in stored]
    if not conflicting:
        return [_created(order) for order in orders]
    outcomes = dict(zip((order.id for order in conflicting), _resolve_conflicts(conflicting), strict=True))
    return [outcomes[order.id] if order.id in outcomes else _created(order) for order in orders]


def _preview(orders: Sequence[NewOrder]) -> list[Outcome]:
    """The outcomes that storing the orders one after the other would have. Nothing is stored."""
    conflicts, outcomes = find_conflicts(orders), list[Outcome]()
    for order in orders:
        outcome = _resolve_conflict(order, conflicts)
        if outcome is None:
            outcome = _created(order)
            conflicts.add(order)
        outcomes.append(outcome)
    return outcomes


def _resolve_conflicts(orders: Sequence[NewOrder]) -> list[Outcome | None]:
    """The outcomes of orders that were not inserted. A database error fails these orders only: the others are
    committed."""
    try:
        conflicts = find_conflicts(orders)
    except DATABASE_ERRORS as error:
        return [_service_error(order, error) for order in orders]
    return [_resolve_conflict(order, conflicts) for order in orders]


def _find_stored(orders: Sequence[NewOrder], error: Exception) -> list[Outcome | None]:
    """After a lost connection, read which orders are stored: a client without a key that retries after a 503 would
    create a second order. Those that are not may still be committed."""
    try:
        stored = find_stored_ids(orders)
    except DATABASE_ERRORS:
        stored = set()
    return [_created(order) if order.id in stored else _service_error(order, error, in_doubt=True) for order in orders]


def _store_one_by_one(orders: Sequence[NewOrder], error: Exception) -> list[Outcome | None]:
    """After an error of the whole statement, store each order alone: only the order that causes it fails.

    If the database is unavailable, every order fails at once: more statements would only add load.
    """
    is_row_locked = is_lock_timeout(error) and not is_file_locked(error)
    if len(orders) == 1 or (is_unavailable(error) and not is_row_locked):
        return [_service_error(order, error) for order in orders]
    outcomes: list[Outcome | None] = []
    deadline = time.monotonic() + ONE_BY_ONE_DEADLINE
    for order in orders:
        if time.monotonic() < deadline:
            outcomes += _store([order])
        else:
            outcomes.append(
                ServiceUnavailable("The batch ran out of time before this order was stored. Send the order again.")
            )
    return outcomes


def _service_error(order: NewOrder, error: Exception, *, in_doubt: bool = False) -> ServiceError:
    """The error of an order. `in_doubt`: it is unknown whether the order was stored."""
    outcome: ServiceError
    has_key = order.columns["idempotency_key_hash"] or order.columns["external_ref"]
    if is_lock_timeout(error) and not is_file_locked(error) and has_key:
        outcome = RequestInFlight(
            "A request with the same Idempotency-Key or external_ref is still being processed. Send this again later."
        )
    elif in_doubt and not has_key:
        outcome = ServiceUnavailable(
            "The database connection was lost, and the order may have been created. List the orders before you send it "
            "again."
        )
    elif is_unavailable(error):
        outcome = ServiceUnavailable("The database is temporarily unavailable. Send the request again.")
    else:
        outcome = InternalError("The order could not be stored. The error is logged under the request id.")
    outcome.__cause__ = error
    return outcome


def _created(order: NewOrder) -> StoredOrder:
    return StoredOrder(order.id, FIRST_VERSION, order.document)


def _resolve_conflict(order: NewOrder, conflicts: Conflicts) -> Outcome | None:
    """A replay if the key, or the reference in its place, was used with this body; otherwise an error; None if the
    order conflicts only by its number.

    An erasure removes the fingerprint: from then on any body is a replay, and the response is the current order.
    """
    columns = order.columns
    if order.id in conflicts.by_id:  # stored by an attempt whose connection was lost before the response
        return _created(order)
    key_hash, ref_hash = columns["idempotency_key_hash"], columns["external_ref_hash"]
    reference_as_key = key_hash is not None and key_hash == ref_hash
    of_key, of_ref = conflicts.by_key.get(key_hash), conflicts.by_ref.get(ref_hash)
    for stored in (of_key, of_ref if reference_as_key else None):
        if stored is None or not _may_see(order, stored):
            continue
        if stored.fingerprint in (None, columns["fingerprint"]):
            return StoredOrder(stored.id, stored.version, stored.snapshot, replayed=True)
    if of_key is not None and not reference_as_key:
        return IdempotencyKeyReused(
            "The Idempotency-Key was already used with a different body. Use a new key for a new order."
        )
    return _duplicate_external_ref(order, of_key=of_key, of_ref=of_ref) if of_key or of_ref else None


def _may_see(order: NewOrder, stored: Any) -> bool:
    """Whether the principal of the new order has access to the stored one."""
    return order.channels is None or stored.channel in order.channels


def _duplicate_external_ref(order: NewOrder, *, of_key: Any, of_ref: Any) -> DuplicateExternalRef:
    """The error names the order that has the reference only if the principal has access to it."""
    existing = of_ref or of_key
    if not _may_see(order, existing):
        return DuplicateExternalRef("Another order already has this external_ref.")
    detail = f"Order {existing.id} already has this external_ref."
    if of_ref is None:
        detail = (
            f"Order {existing.id} was created with this external_ref and a different body. Use another external_ref."
        )
    return DuplicateExternalRef(detail, order_id=existing.id)


# Group commit of the orders that concurrent requests create.
_CREATIONS = PerApplication(
    lambda: Batcher[NewOrder, Outcome | None](_store, max_batch=GROUP_COMMIT_MAX, operation="create")
)
