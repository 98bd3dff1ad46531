"""Erasing what is known of a person (GDPR, Article 17), and nothing of what was sold.

An erasure is a row of `erasures` that is worked on in steps, each a short transaction of its own. A step erases one
page of snapshots of one order, oldest first, and notes in the row how far it came. The step that reaches the order's
current version also rewrites the order's own rows and records `order.erased`. Until then the order is found under its
old customer id, so that whoever goes on after a crash, a stop or a time limit finds it, and the place in it. Steps of
several processes exclude each other by the lock on the row.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import selectinload

from app.db.engine import db
from app.db.errors import DATABASE_ERRORS, is_duplicate
from app.db.sqlite_rewrite import rewrite_file
from app.db.transactions import in_transaction, read_rows
from app.errors import ErasureNotFound, OpenOrders
from app.models import EVENTS, ChangeKey, Erasure, Order, OrderEvent, OutboxEntry
from app.models.erasure import DONE, RUNNING, is_alias, new_alias, scrub
from app.models.lifecycle import ERASED, OPEN
from app.models.order_id import new_id, parse_uuid
from app.models.principal import Principal, customer_principal_id
from app.services.order_document import render_stored_order

REWRITE_MAX = 64 * 1024 * 1024  # bytes of a SQLite file that a request rewrites: writers wait for about a second

# Snapshots of one step: few of large ones, so that memory and the time that others wait stay bounded. The size of the
# last ones tells that of the next: an order begins small, and grows by little from version to version.
_PAGE_FIRST, _PAGE_MAX, _PAGE_CHARACTERS = 1, 100, 250_000
# Seconds between two steps, in which this process serves others: SQLite keeps it busy throughout a step, and a pause of
# 0 starves them, since gevent looks for what has arrived only where it waits.
_PAUSE = 0.01
_LOCKED_PAUSE = 0.05  # seconds until the row is tried again that another process is working on


@dataclass(frozen=True, slots=True)
class ErasureState:
    """How far an erasure has come. `orders` counts those that are erased."""

    id: str
    status: str
    orders: int
    created_at: datetime
    finished_at: datetime | None


def erase_customer(customer_id: str, *, principal: Principal, seconds: float) -> ErasureState:
    """Begin to erase the customer's personal data, or go on where it was begun, for about so many seconds.

    The customer of these orders is a random alias from then on, the same in all of them. An alias has nothing to erase.
    Idempotency keys stay as hashes, so that a retry makes no second order; the fingerprints of the bodies do not.
    Orders that are placed later, and are still open, are left alone. Raises OpenOrders if there are any to begin with.
    """
    return continue_erasure(_find_or_add(customer_id, principal), seconds=seconds)


def get_erasure(erasure_id: str, *, principal: Principal, seconds: float) -> ErasureState:
    """How far an erasure has come, after working on it for up to so many seconds. Raises ErasureNotFound.

    For a customer there are only their own, and those that are done: these name nobody, and their ids are not guessed.
    """
    known_id = parse_uuid(erasure_id)
    if known_id is None or not _is_visible(known_id, principal):
        raise ErasureNotFound(f"Erasure {erasure_id[:64]} was not found.")
    state = _state(known_id)
    return state if state.status == DONE else continue_erasure(known_id, seconds=seconds)


def running_erasures() -> list[str]:
    """The ids of the erasures that are not done, oldest first."""
    query = select(Erasure.id).where(Erasure.status == RUNNING).order_by(Erasure.id)
    return [row.id for row in read_rows(query)]


def continue_erasure(erasure_id: str, *, seconds: float, any_size: bool = False) -> ErasureState:
    """Work on an erasure until it is done or so many seconds are over, and return how far it has come.

    On SQLite it is done when nothing is left in the file and its write-ahead log either. Without `any_size` a file of
    more than REWRITE_MAX bytes stays as it is, and the erasure running.
    """
    deadline = time.monotonic() + seconds
    for _ in _steps(erasure_id):
        if time.monotonic() >= deadline:
            return _state(erasure_id)
    _finish(any_size)
    return _state(erasure_id)


def _is_visible(erasure_id: str, principal: Principal) -> bool:
    query = select(Erasure.customer_id, Erasure.actor, Erasure.alias).where(Erasure.id == erasure_id)
    erasure = next(iter(read_rows(query)), None)
    if erasure is None or principal.customer_id is None:
        return erasure is not None
    if erasure.customer_id is not None:
        return bool(erasure.customer_id == principal.customer_id)
    return bool(erasure.actor == customer_principal_id(erasure.alias))


def _find_or_add(customer_id: str, principal: Principal) -> str:
    for _ in range(2):
        try:
            return in_transaction(lambda: _running_or_new(customer_id, principal))
        except DATABASE_ERRORS as error:
            if not is_duplicate(error):  # else another request has begun it just now
                raise
    return in_transaction(lambda: _running_or_new(customer_id, principal))


def _running_or_new(customer_id: str, principal: Principal) -> str:
    of_customer = Order.customer_id == customer_id
    open_order = db.session.scalar(select(Order.id).where(of_customer, Order.status.in_(OPEN)).limit(1))
    if open_order:
        raise OpenOrders("The customer has open orders. Complete or cancel them first.", order_id=open_order)
    running = db.session.scalar(select(Erasure.id).where(Erasure.customer_id == customer_id))
    if running:
        return running
    nothing = is_alias(customer_id) or not db.session.scalar(select(Order.id).where(of_customer).limit(1))
    now, alias = datetime.now(UTC), new_alias()
    themselves = principal.id == customer_principal_id(customer_id)
    erasure = Erasure(
        id=new_id(now),
        customer_id=None if nothing else customer_id,
        alias=alias,
        actor=customer_principal_id(alias) if themselves else principal.id,
        status=RUNNING,
        orders=0,
        erased_version=0,
        created_at=now,
    )
    db.session.add(erasure)
    return erasure.id


def _steps(erasure_id: str) -> Iterator[None]:
    """Carry out one step after the other until no order is left."""
    page = _PAGE_FIRST
    while (largest := in_transaction(lambda: _erase_page(erasure_id, page))) is not None:
        page = max(1, min(_PAGE_MAX, _PAGE_CHARACTERS // max(largest, 1)))
        time.sleep(_PAUSE if largest else _LOCKED_PAUSE)
        yield


def _erase_page(erasure_id: str, limit: int) -> int | None:
    """Erase up to so many snapshots of one order, and with the last one the order; the length of the longest snapshot.

    0 where another process is at work, None where no order is left.
    """
    row = select(Erasure).where(Erasure.id == erasure_id, Erasure.status == RUNNING)
    erasure = db.session.scalar(row.with_for_update(skip_locked=True))
    if erasure is None:
        return 0 if db.session.scalar(row.with_only_columns(Erasure.id)) else None
    if erasure.customer_id is None:
        return None
    ended = select(Order.id, Order.version).where(Order.customer_id == erasure.customer_id, Order.status.not_in(OPEN))
    order = db.session.execute(ended.order_by(Order.id).limit(1).with_for_update()).first()
    if order is None:
        erasure.customer_id = erasure.order_id = None
        return None
    with db.session.no_autoflush:  # one UPDATE of the erasure is enough
        if erasure.order_id != order.id:
            erasure.order_id, erasure.erased_version = order.id, 0
        erased = _erase_snapshots(erasure, limit)
        if len(erased) < limit or erasure.erased_version >= order.version:
            _erase_order(erasure)
    return max(erased, default=1)


def _erase_snapshots(erasure: Erasure, limit: int) -> list[int]:
    """Erase the next snapshots of the order that the erasure is at; their lengths. The one place where events are
    rewritten: the law goes before the log."""
    behind = OrderEvent.order_id == erasure.order_id, OrderEvent.version > erasure.erased_version
    query = select(OrderEvent.version, OrderEvent.actor, OrderEvent.snapshot).where(*behind)
    events = db.session.execute(query.order_by(OrderEvent.version).limit(limit)).all()
    if not events:
        return []
    db.session.connection().execute(_REWRITE_EVENT, [_rewritten(event, erasure) for event in events])
    erasure.erased_version = events[-1].version
    return [len(event.snapshot) for event in events]


def _rewritten(event: Any, erasure: Erasure) -> dict[str, Any]:
    assert erasure.customer_id is not None
    by_the_customer = event.actor == customer_principal_id(erasure.customer_id)
    return {
        "of_order": erasure.order_id,
        "of_version": event.version,
        "new_actor": customer_principal_id(erasure.alias) if by_the_customer else event.actor,
        "new_snapshot": orjson.dumps(scrub(orjson.loads(event.snapshot), alias=erasure.alias)).decode(),
    }


_REWRITE_EVENT = (
    update(EVENTS)
    .where(EVENTS.c.order_id == bindparam("of_order"), EVENTS.c.version == bindparam("of_version"))
    .values(actor=bindparam("new_actor"), snapshot=bindparam("new_snapshot"))
)


def _erase_order(erasure: Erasure) -> None:
    """Erase the order that the erasure is at, all of whose snapshots are erased, and record it."""
    children = selectinload(Order.items), selectinload(Order.fulfillments), selectinload(Order.returns)
    order = db.session.scalars(select(Order).where(Order.id == erasure.order_id).options(*children)).one()
    now = datetime.now(UTC)
    order.erase(alias=erasure.alias, at=now)
    db.session.execute(update(ChangeKey).where(ChangeKey.order_id == order.id).values(fingerprint=None))
    event = OrderEvent(
        order_id=order.id,
        version=order.version,
        type=ERASED,
        actor=erasure.actor,
        at=now,
        snapshot=render_stored_order(order),
    )
    db.session.add_all([event, OutboxEntry(order_id=order.id, version=order.version, at=now)])
    erasure.orders += 1
    erasure.order_id, erasure.erased_version = None, 0


def _finish(any_size: bool) -> None:
    """Mark the erasures done that have no order left."""
    without_orders = Erasure.status == RUNNING, Erasure.customer_id.is_(None)
    rows = read_rows(select(Erasure.id, Erasure.orders).where(*without_orders))
    # Where nothing was erased, there is nothing to rewrite.
    if not rows:
        return
    if db.engine.dialect.name == "sqlite" and any(row.orders for row in rows):
        if not rewrite_file(max_bytes=math.inf if any_size else REWRITE_MAX):
            return
    finished = (
        update(Erasure)
        .where(Erasure.id.in_([row.id for row in rows]), *without_orders)
        .values(status=DONE, finished_at=datetime.now(UTC))
        .execution_options(synchronize_session=False)
    )
    in_transaction(lambda: db.session.execute(finished))


def _state(erasure_id: str) -> ErasureState:
    columns = Erasure.id, Erasure.status, Erasure.orders, Erasure.created_at, Erasure.finished_at
    [row] = read_rows(select(*columns).where(Erasure.id == erasure_id))
    return ErasureState(row.id, row.status, row.orders, row.created_at, row.finished_at)
