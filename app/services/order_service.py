"""Creating orders."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.errors import (
    DuplicateExternalRef,
    IdempotencyKeyReused,
    InternalError,
    RequestInFlight,
    ServiceError,
    ServiceUnavailable,
)
from app.models.faults import FAULTS, is_lock_timeout, is_unavailable
from app.models.per_database import PerDatabase
from app.services.group import Group
from app.services.new_order import FIRST_VERSION, NewOrder, OrderRequest, new_order
from app.services.order_writes import Collisions, find_collisions, insert_orders

_TOGETHER = 100  # orders of concurrent requests in one statement; more would make each wait longer than it gains
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


# An error is returned, not raised, where it is one order's among many.
Outcome = StoredOrder | ServiceError


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request, and the order that is tried for it. Its id is fixed: tried twice, it is stored once."""

    order: NewOrder
    ref_is_key: bool


def create_order(request: OrderRequest) -> StoredOrder:
    """Create one order, or answer again what its idempotency key was answered the first time.

    It shares its statement with the requests that arrive at the same moment. Raises IdempotencyKeyReused for another
    body under the key, DuplicateExternalRef, and RequestInFlight when a twin holds the key for longer than the lock
    timeout.
    """
    outcome: Outcome | None = None
    for _ in range(_NUMBER_ATTEMPTS):
        outcome = _CREATIONS.get().call(_attempt(request))
        if isinstance(outcome, StoredOrder):
            return outcome
        if outcome is not None:
            raise outcome
    raise _no_number()


def create_orders(requests: Sequence[OrderRequest]) -> list[Outcome]:
    """Create many orders, each judged alone; the outcomes come in the order of the requests.

    It takes one statement, or a few where the orders are long ones; what failed leaves nothing behind.
    """
    outcomes: dict[int, Outcome] = {}
    for _ in range(_NUMBER_ATTEMPTS):
        pending = {i: _attempt(request) for i, request in enumerate(requests) if i not in outcomes}
        attempts = list(pending.values())
        judged = [outcome for part in _parts(attempts) for outcome in _store(part)]
        outcomes |= {i: outcome for i, outcome in zip(pending, judged, strict=True) if outcome is not None}
    return [outcomes.get(i) or _no_number() for i in range(len(requests))]


def _attempt(request: OrderRequest) -> Attempt:
    return Attempt(new_order(request), request.ref_is_key)


def _no_number() -> ServiceUnavailable:
    return ServiceUnavailable("No free order number was found.")


def _parts(attempts: Sequence[Attempt]) -> Iterator[list[Attempt]]:
    part: list[Attempt] = []
    lines = 0
    for attempt in attempts:
        lines += len(attempt.order.items)
        if lines > _LINES_AT_ONCE and part:
            yield part
            part, lines = [], len(attempt.order.items)
        part.append(attempt)
    if part:
        yield part


def _store(attempts: Sequence[Attempt]) -> list[Outcome | None]:
    """What became of each; None where the order's random number is taken, so that it is to be made anew."""
    try:
        stored = insert_orders([attempt.order for attempt in attempts])
    except FAULTS as error:
        return _store_one_by_one(attempts, error)
    collided = [attempt.order for attempt in attempts if attempt.order.id not in stored]
    there = find_collisions(collided) if collided else None
    return [
        _created(attempt.order) if there is None or attempt.order.id in stored else _judge_collision(attempt, there)
        for attempt in attempts
    ]


def _store_one_by_one(attempts: Sequence[Attempt], error: Exception) -> list[Outcome | None]:
    """A fault of the whole statement: only the order that causes it shall fail.

    Where the database is away or full it is everybody's, and trying them all would only make it worse.
    """
    if len(attempts) == 1 or (is_unavailable(error) and not is_lock_timeout(error)):
        return [_judge_fault(attempt.order, error) for attempt in attempts]
    outcomes: list[Outcome | None] = []
    deadline = time.monotonic() + _PATIENCE
    for attempt in attempts:
        if time.monotonic() < deadline:
            outcomes += _store([attempt])
        else:
            outcomes.append(ServiceUnavailable("Other orders of the list took too long; send this one again."))
    return outcomes


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


def _created(order: NewOrder) -> StoredOrder:
    return StoredOrder(order.id, FIRST_VERSION, order.snapshot.decode())


def _judge_collision(attempt: Attempt, there: Collisions) -> Outcome | None:
    order, columns = attempt.order, attempt.order.columns
    if order.id in there.by_id:  # stored by an attempt whose connection broke before the answer came
        return _created(order)
    row = there.by_key.get((columns["principal"], columns["idempotency_key"]))
    if row is not None:
        if row.fingerprint != columns["fingerprint"]:
            return IdempotencyKeyReused("The key was used with another body; take a new key for a new order.")
        return StoredOrder(row.id, FIRST_VERSION, row.snapshot, replayed=True)
    row = there.by_ref.get((columns["principal"], columns["external_ref"]))
    if row is not None:
        if attempt.ref_is_key and columns["idempotency_key"] is None and row.fingerprint == columns["fingerprint"]:
            return StoredOrder(row.id, FIRST_VERSION, row.snapshot, replayed=True)
        return DuplicateExternalRef(f"Order {row.id} already has this external_ref.", order_id=row.id)
    return None


# Commits the creations of this process together.
_CREATIONS = PerDatabase(lambda: Group[Attempt, Outcome | None](_store, most=_TOGETHER))
