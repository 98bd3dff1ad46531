"""Creating orders."""

import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from app.db.errors import DATABASE_ERRORS, is_file_locked, is_lock_timeout, is_unavailable
from app.db.group_commit import GroupCommit, PerEngine
from app.errors import (
    DuplicateExternalRef,
    IdempotencyKeyReused,
    InternalError,
    InvalidRequest,
    RequestInFlight,
    ServiceError,
    ServiceUnavailable,
)
from app.models.principal import Principal
from app.schemas.order import BatchEntryInSchema
from app.schemas.strict_json import load_body
from app.services.new_order import FIRST_VERSION, CreateRequest, NewOrder, new_order
from app.services.order_document import StoredOrder
from app.services.order_inserts import Conflicts, find_conflicts, insert_orders

_TOGETHER = 100  # orders of concurrent requests in one statement; more would make each wait longer than it gains
_LINES_AT_ONCE = 10_000  # lines of one statement: half a second, where the database allows three
_PATIENCE = 5.0  # seconds for the orders of a statement that failed: each may wait for a lock of its own
# By when an order can be read, counted from its `created_at`, which is before the statement that stores it: the
# database is given up after 10 s, single orders of a statement that failed after 5 s more, and the first order of a
# part of a batch waits for the part before it. The rest is for machines whose clocks differ.
VISIBLE_AFTER = timedelta(seconds=60)
BATCH_FAULTS_MAX = 1_000  # faults that one response reports; entries after them are only reported as invalid
_BATCH_ENTRY = BatchEntryInSchema()
_NUMBER_ATTEMPTS = 4  # two orders of one day share 40 random bits once in 10^12 pairs


# An error is returned, not raised, where it is one order's among many.
Outcome = StoredOrder | ServiceError


def create_order(request: CreateRequest) -> StoredOrder:
    """Create one order, or answer again what its idempotency key was answered the first time.

    It shares its statement with the requests that arrive at the same moment. Raises IdempotencyKeyReused for another
    body under the key, DuplicateExternalRef, and RequestInFlight when a twin holds the key for longer than the lock
    timeout.
    """
    request.principal.require_own_customer(request.data["customer_id"])
    for _ in range(_NUMBER_ATTEMPTS):
        outcome = _CREATIONS.get().submit(new_order(request))
        if isinstance(outcome, StoredOrder):
            return outcome
        if outcome is not None:
            raise outcome
    raise _no_number()


def create_batch(entries: Iterable[Any], *, principal: Principal) -> list[Outcome]:
    """Validate and create the entries of a batch, each independently; their outcomes in the same order."""
    outcomes: dict[int, Outcome] = {}
    requests: dict[int, CreateRequest] = {}
    faults = 0
    for i, entry in enumerate(entries):
        try:
            requests[i] = _load_entry(entry, principal, pointer=f"#/orders/{i}", brief=faults >= BATCH_FAULTS_MAX)
        except ServiceError as error:
            outcomes[i] = error.with_traceback(None)  # its frames refer to the outcomes and the entry: a cycle
            faults += len(error.members.get("errors", ()))
    outcomes |= zip(requests, create_orders(list(requests.values())), strict=True)
    return [outcomes[i] for i in range(len(outcomes))]


def _load_entry(entry: Any, principal: Principal, *, pointer: str, brief: bool) -> CreateRequest:
    """The request of an entry. `brief`: report that the entry is invalid, and not why."""
    if brief and _BATCH_ENTRY.load_valid(entry) is None:
        detail = f"This entry is not valid. Only the first {BATCH_FAULTS_MAX:,} errors of a batch are listed."
        raise InvalidRequest(detail, errors=[{"pointer": pointer, "detail": "This entry is not valid."}])
    data = load_body(_BATCH_ENTRY, entry, pointer=pointer)
    key = data.pop("idempotency_key", None)
    principal.require_own_customer(data["customer_id"])
    return CreateRequest(data, principal=principal, idempotency_key=key, reference_as_key=True)


def create_orders(requests: Sequence[CreateRequest]) -> list[Outcome]:
    """Create many orders, each judged alone; the outcomes come in the order of the requests.

    It takes one statement, or a few where the orders are long ones; what failed leaves nothing behind.
    """
    outcomes: dict[int, Outcome] = {}
    for _ in range(_NUMBER_ATTEMPTS):
        pending = [i for i in range(len(requests)) if i not in outcomes]
        # Each order is made just before its statement, or the one before that: VISIBLE_AFTER rests on it.
        parts = _parts(new_order(requests[i]) for i in pending)
        judged = [outcome for part in parts for outcome in _store(part)]
        outcomes |= {i: outcome for i, outcome in zip(pending, judged, strict=True) if outcome is not None}
    return [outcomes.get(i) or _no_number() for i in range(len(requests))]


def _no_number() -> ServiceUnavailable:
    return ServiceUnavailable("No free order number was found. Send the request again.")


def _parts(orders: Iterable[NewOrder]) -> Iterator[list[NewOrder]]:
    part: list[NewOrder] = []
    lines = 0
    for order in orders:
        lines += len(order.items)
        if lines > _LINES_AT_ONCE and part:
            yield part
            part, lines = [], len(order.items)
        part.append(order)
    if part:
        yield part


def _store(orders: Sequence[NewOrder]) -> list[Outcome | None]:
    """What became of each; None where the order's random number is taken, so that it is to be made anew.

    An order is made once, with its id: stored twice, it is stored once.
    """
    try:
        stored = insert_orders(orders)
    except DATABASE_ERRORS as error:
        return _store_one_by_one(orders, error)
    collided = [order for order in orders if order.id not in stored]
    judged = dict(zip((order.id for order in collided), _judge_collisions(collided), strict=True))
    return [judged[order.id] if order.id in judged else _created(order) for order in orders]


def _judge_collisions(orders: Sequence[NewOrder]) -> list[Outcome | None]:
    """A fault here is the answer to these orders alone: the others of the statement are committed by now."""
    if not orders:
        return []
    try:
        collisions = find_conflicts(orders)
    except DATABASE_ERRORS as error:
        return [_judge_fault(order, error) for order in orders]
    return [_judge_collision(order, collisions) for order in orders]


def _store_one_by_one(orders: Sequence[NewOrder], error: Exception) -> list[Outcome | None]:
    """A fault of the whole statement: only the order that causes it shall fail.

    Where the database is away, full or locked it is everybody's, and trying them all would only make it worse.
    """
    one_row_is_locked = is_lock_timeout(error) and not is_file_locked(error)
    if len(orders) == 1 or (is_unavailable(error) and not one_row_is_locked):
        return [_judge_fault(order, error) for order in orders]
    outcomes: list[Outcome | None] = []
    deadline = time.monotonic() + _PATIENCE
    for order in orders:
        if time.monotonic() < deadline:
            outcomes += _store([order])
        else:
            outcomes.append(
                ServiceUnavailable("The batch ran out of time before this order was stored. Send the order again.")
            )
    return outcomes


def _judge_fault(order: NewOrder, error: Exception) -> ServiceError:
    outcome: ServiceError
    has_key = order.columns["idempotency_key_hash"] or order.columns["external_ref"]
    if is_lock_timeout(error) and not is_file_locked(error) and has_key:
        outcome = RequestInFlight(
            "A request with the same Idempotency-Key or external_ref is still being processed. Send this again later."
        )
    elif is_unavailable(error):
        outcome = ServiceUnavailable("The database is temporarily unavailable. Send the request again.")
    else:
        outcome = InternalError("The order could not be stored. The error is logged under the request id.")
    outcome.__cause__ = error
    return outcome


def _created(order: NewOrder) -> StoredOrder:
    return StoredOrder(order.id, FIRST_VERSION, order.snapshot.decode())


def _judge_collision(order: NewOrder, collisions: Conflicts) -> Outcome | None:
    """A replay where the key, or the reference that stands for it, was used with this body.

    An erasure takes the fingerprint of the body: from then on any body is a replay, of the order as it is kept.
    """
    columns = order.columns
    if order.id in collisions.by_id:  # stored by an attempt whose connection broke before the answer came
        return _created(order)
    key_hash, ref_hash = columns["idempotency_key_hash"], columns["external_ref_hash"]
    reference_as_key = key_hash is not None and key_hash == ref_hash
    of_key, of_ref = collisions.by_key.get(key_hash), collisions.by_ref.get(ref_hash)
    for holder in (of_key, of_ref if reference_as_key else None):
        if holder is not None and holder.fingerprint in (None, columns["fingerprint"]):
            return StoredOrder(holder.id, holder.version, holder.snapshot, replayed=True)
    if of_key is not None and not reference_as_key:
        return IdempotencyKeyReused(
            "The Idempotency-Key was already used with a different body. Use a new key for a new order."
        )
    if of_ref is not None:
        return DuplicateExternalRef(f"Order {of_ref.id} already has this external_ref.", order_id=of_ref.id)
    if of_key is not None:
        detail = f"Order {of_key.id} was created with this external_ref and a different body. Use another external_ref."
        return DuplicateExternalRef(detail, order_id=of_key.id)
    return None


# Commits the creations of this process together.
_CREATIONS = PerEngine(lambda: GroupCommit[NewOrder, Outcome | None](_store, max_batch=_TOGETHER))
