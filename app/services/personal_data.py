"""Erasure of a customer's personal data (GDPR, Article 17), and its export (Articles 15 and 20).

An erasure keeps what was sold. It is a row of `erasures`, processed in steps. Each step is a short transaction: it
erases one page of snapshots of one order, oldest first, and records its position in the row. The step that reaches the
order's current version also erases the order's own rows and records the event `order.erased`. Until then the order
keeps its customer id, so that after a crash or a time limit the next request finds it and continues. The row's lock
keeps two processes from running steps of one erasure at the same time.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import structlog
from sqlalchemy import Integer, Row, Text, bindparam, cast, func, literal, select, text, tuple_, update

from app.db.engine import DATABASE_ERRORS, UUID, db, is_duplicate, is_unavailable, rewrite_sqlite_file, rfc3339
from app.db.statements import in_transaction, read_rows, rows_within
from app.errors import ErasureNotFound, OpenOrders
from app.models import DELIVERIES, EVENTS, ORDERS, ChangeKey, Erasure, Order, OrderEvent
from app.models.lifecycle import ERASED, OPEN
from app.models.order import DONE, PERSONAL_COLUMNS, RUNNING, scrub
from app.models.order_aggregate import load_document, parse_order, render_order, visible_actor
from app.models.order_id import LOWEST_ID, first_order_id, is_alias, new_alias, new_id, parse_uuid, time_ago
from app.models.principal import Principal, customer_principal_id
from app.services.order_queries import (
    EXPORT_PAGE_BYTES,
    export_connection,
    find_events,
    next_after,
    render_events,
    stream_orders,
)
from app.services.order_storage import event_row, insert_events
from app.services.search_projection import search_row, store_rows
from app.services.webhook_queue import delivery_document, erase_responses

log = structlog.get_logger()

REWRITE_MAX = 64 * 1024 * 1024  # bytes; the largest SQLite file that a request rewrites, which takes about a second
# Bytes a second that requests rewrite on average: about 3 % of a worker's time, however many erasures there are.
REWRITE_PACE = 2 * 1024 * 1024
# Seconds for which a request, and a command, tries each step of a rewrite while other processes use the file.
_REQUEST_REWRITE_SECONDS, COMMAND_REWRITE_SECONDS = 0.5, 30.0

# Snapshots of one step, which has at most EXPORT_PAGE_BYTES and one snapshot, so that it is short and takes little
# memory. The database reads the sizes of all that a step may erase, so after large ones the next step may erase few.
_PAGE_FIRST, _PAGE_MAX = 1, 100
_KEYS_PAGE = 1000  # fingerprints that one step removes
# Seconds between two steps. Other requests of this process run in them: SQLite blocks the process throughout a step,
# and gevent polls for new events only when it waits, which it does not in a sleep of 0.
_PAUSE = 0.01
_LOCKED_PAUSE = 0.05  # seconds before the next attempt, if another process has locked the row
_EVENTS_PAGE = 100  # events
_DELIVERIES_PAGE = 20  # deliveries; each contains the beginnings of several responses
# The size of the SQLite database in bytes, without its write-ahead log.
_FILE_SIZE = text("SELECT page_count * page_size AS size FROM pragma_page_count, pragma_page_size")


@dataclass(frozen=True, slots=True)
class ErasureState:
    """The progress of an erasure. `orders` is the number of erased orders."""

    id: str
    status: str
    orders: int
    created_at: datetime
    finished_at: datetime | None


def erase_customer(customer_id: str, *, principal: Principal, seconds: float) -> ErasureState:
    """Start the erasure of a customer's personal data, or continue a running one, for about `seconds`.

    A random alias replaces the customer id, the same in all orders. Idempotency keys stay as hashes, so that a retry
    creates no second order; the fingerprints of bodies are removed. An alias has nothing to erase. Orders that are
    placed while the erasure runs, and are open, are not erased. If an order is reopened meanwhile, the erasure waits
    until it has ended again. Raises OpenOrders if there are any at the start.
    """
    return continue_erasure(_find_or_add(customer_id, principal), seconds=seconds)


def get_erasure(erasure_id: str, *, principal: Principal, seconds: float) -> ErasureState:
    """Continue an erasure for up to `seconds`, and return its progress. Raises ErasureNotFound.

    Customers see only the erasures of their own data, and of these the finished ones only if they requested them.
    """
    parsed_id = parse_uuid(erasure_id)
    if parsed_id is None or not _is_visible(parsed_id, principal):
        raise ErasureNotFound(f"Erasure {erasure_id[:64]} was not found.")
    state = _get_state(parsed_id)
    return state if state.status == DONE else continue_erasure(parsed_id, seconds=seconds)


def continue_erasures(*, seconds: float) -> Iterator[bool]:
    """Continue the erasures that are not done, oldest first, each for up to `seconds`.

    Yields for each whether it made progress: one may wait for a reopened order, or for the SQLite file. One that fails
    is logged, and does not prevent the others.
    """
    for erasure_id in running_erasures():
        before = _position(erasure_id)
        try:
            continue_erasure(erasure_id, seconds=seconds)
        except Exception as error:
            if isinstance(error, DATABASE_ERRORS) and is_unavailable(error):
                raise
            log.error("erasure failed", erasure_id=erasure_id, exc_info=error)
        yield _position(erasure_id) != before


def running_erasures() -> list[str]:
    """The ids of the erasures that are not done, oldest first."""
    query = select(Erasure.id).where(Erasure.status == RUNNING).order_by(Erasure.id)
    return [row.id for row in read_rows(query)]


def find_waiting_erasures(*, older_than: timedelta) -> list[tuple[str, str | None]]:
    """The ids of up to 10 erasures that have been running for longer, oldest first, each with the id of an order that
    was reopened, if it waits for one."""
    of_customer = Order.customer_id == Erasure.customer_id, Order.status.in_(OPEN)
    order = select(func.min(cast(Order.id, Text))).where(*of_customer).scalar_subquery().label("order_id")
    query = select(Erasure.id, order).where(Erasure.status == RUNNING, Erasure.created_at < time_ago(older_than))
    return [(row.id, row.order_id) for row in read_rows(query.order_by(Erasure.id).limit(10))]


def continue_erasure(erasure_id: str, *, seconds: float, rewrite_always: bool = False) -> ErasureState:
    """Continue an erasure until it is done or `seconds` have passed, and return its progress.

    On SQLite an erasure is done when the data is out of the file and the write-ahead log too. Unless `rewrite_always`
    is set, the file is not rewritten if it has more than REWRITE_MAX bytes, nor sooner after the last time than
    REWRITE_PACE allows; the erasure then stays running, as it does if other processes keep using the file.
    """
    deadline = time.monotonic() + seconds
    for _ in _steps(erasure_id):
        if time.monotonic() >= deadline:
            return _get_state(erasure_id)
    while (pause := _finish(rewrite_always)) > 0 and time.monotonic() + pause < deadline:
        time.sleep(pause)
    return _get_state(erasure_id)


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
            if not is_duplicate(error):  # a concurrent request has added it
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
    by_the_customer = principal.id == customer_principal_id(customer_id)
    erasure = Erasure(
        id=new_id(now),
        customer_id=None if nothing else customer_id,
        alias=alias,
        actor=customer_principal_id(alias) if by_the_customer else principal.id,
        status=RUNNING,
        orders=0,
        erased_version=0,
        created_at=now,
    )
    db.session.add(erasure)
    return erasure.id


def _steps(erasure_id: str) -> Iterator[None]:
    """Run the steps one after the other until no order remains."""
    limit = _PAGE_FIRST
    while (next_limit := in_transaction(lambda: _erase_page(erasure_id, limit))) is not None:
        time.sleep(_PAUSE if next_limit else _LOCKED_PAUSE)
        limit = next_limit or limit
        yield


def _erase_page(erasure_id: str, limit: int) -> int | None:
    """Erase up to `limit` snapshots of one order and, after the last one, the order itself.

    Returns the limit of the next step, 0 if another process has locked the row, None if no order remains or only open
    ones.
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
        reopened = Order.customer_id == erasure.customer_id, Order.id < first_order_id(erasure.created_at)
        if not db.session.scalar(select(Order.id).where(*reopened).limit(1)):
            erasure.customer_id = erasure.order_id = None
        return None
    with db.session.no_autoflush:  # one UPDATE of the erasure is enough
        if erasure.order_id != order.id:
            erasure.order_id, erasure.erased_version = order.id, 0
        events = _erase_snapshots(erasure, limit)
        all_erased = not events or erasure.erased_version >= order.version
        if all_erased and not _erase_fingerprints(order.id):
            _erase_order(erasure)
        if events:
            # Last: workers that store attempts wait until the commit, and others wait for their endpoints.
            erase_responses(order.id, after=events[0].version - 1, until=events[-1].version)
    are_large = bool(events) and events[-1].bytes_so_far >= EXPORT_PAGE_BYTES
    return min(_PAGE_MAX, 2 * (len(events) if are_large else limit))


def _erase_snapshots(erasure: Erasure, limit: int) -> Sequence[Row[Any]]:
    """Erase the next snapshots of the current order, and return their events. No other function updates events."""
    order_id = erasure.order_id
    assert order_id is not None
    remaining = OrderEvent.order_id == order_id, OrderEvent.version > erasure.erased_version
    query = select(OrderEvent.version, OrderEvent.actor, OrderEvent.snapshot).where(*remaining)
    query = query.order_by(OrderEvent.version).limit(limit)
    page = rows_within(query, position="version", document="snapshot", size=EXPORT_PAGE_BYTES, descending=False)
    events: Sequence[Row[Any]] = db.session.execute(page).all()
    if not events:
        return events
    db.session.connection().execute(_UPDATE_EVENT, [_erased_event(event, erasure) for event in events])
    erasure.erased_version = events[-1].version
    return events


def _erased_event(event: Any, erasure: Erasure) -> dict[str, Any]:
    return {
        "of_order": erasure.order_id,
        "of_version": event.version,
        "new_actor": _erased_actor(event.actor, erasure),
        "new_snapshot": orjson.dumps(scrub(load_document(event.snapshot), alias=erasure.alias)).decode(),
    }


def _erased_actor(principal: str, erasure: Erasure) -> str:
    """The id of a principal without the customer's id."""
    assert erasure.customer_id is not None
    is_customer = principal == customer_principal_id(erasure.customer_id)
    return customer_principal_id(erasure.alias) if is_customer else principal


_UPDATE_EVENT = (
    update(EVENTS)
    .where(EVENTS.c.order_id == bindparam("of_order"), EVENTS.c.version == bindparam("of_version"))
    .values(actor=bindparam("new_actor"), request_id=None, traceparent=None, snapshot=bindparam("new_snapshot"))
)


def _erase_fingerprints(order_id: str) -> bool:
    """Remove a page of the order's fingerprints, and return whether more may be left."""
    remaining = ChangeKey.order_id == order_id, ChangeKey.fingerprint.is_not(None)
    page = select(ChangeKey.key_hash).where(*remaining).limit(_KEYS_PAGE)
    removal = update(ChangeKey).where(ChangeKey.order_id == order_id, ChangeKey.key_hash.in_(page))
    removal = removal.values(fingerprint=None).execution_options(synchronize_session=False)
    return len(db.session.scalars(removal.returning(ChangeKey.version)).all()) == _KEYS_PAGE


def _erase_order(erasure: Erasure) -> None:
    """Erase the current order, whose snapshots and fingerprints are all erased, and record the event."""
    current = OrderEvent.order_id == Order.id, OrderEvent.version == Order.version
    query = select(Order.principal, Order.external_ref_hash, OrderEvent.snapshot).where(*current)
    row = db.session.execute(query.where(Order.id == erasure.order_id)).one()
    principal = _erased_actor(row.principal, erasure)
    order = parse_order(load_document(row.snapshot), principal=principal, external_ref_hash=row.external_ref_hash)
    now = datetime.now(UTC)
    order.erase(alias=erasure.alias, at=now)
    columns = {name: getattr(order, name) for name in (*PERSONAL_COLUMNS, "principal", "version", "updated_at")}
    db.session.execute(update(ORDERS).where(ORDERS.c.id == order.id).values(columns | {"fingerprint": None}))
    snapshot = render_order(vars(order))
    event = event_row(order.id, order.version, event_type=ERASED, actor=erasure.actor, at=now, snapshot=snapshot)
    insert_events(db.session.connection(), [event])
    store_rows(db.session.connection(), [search_row(load_document(snapshot))])
    erasure.orders += 1
    erasure.order_id, erasure.erased_version = None, 0


def _finish(rewrite_always: bool) -> float:
    """Mark the erasures without a remaining order as done.

    Returns the seconds after which to try again: 0 if they are done, infinity if a request cannot finish them.
    """
    without_orders = Erasure.status == RUNNING, Erasure.customer_id.is_(None)
    rows = read_rows(select(Erasure.id, Erasure.orders).where(*without_orders))
    if not rows:
        return 0
    if db.engine.dialect.name == "sqlite" and any(row.orders for row in rows):
        pause = 0 if rewrite_always else _seconds_until_rewrite()
        if pause > 0:
            return pause
        if not rewrite_sqlite_file(seconds=COMMAND_REWRITE_SECONDS if rewrite_always else _REQUEST_REWRITE_SECONDS):
            return math.inf
    finished = (
        update(Erasure)
        .where(Erasure.id.in_([row.id for row in rows]), *without_orders)
        .values(status=DONE, finished_at=datetime.now(UTC))
        .execution_options(synchronize_session=False)
    )
    in_transaction(lambda: db.session.execute(finished))
    return 0


def _seconds_until_rewrite() -> float:
    """How long a request must not rewrite the SQLite file: for its size by REWRITE_PACE since the last erasure that
    rewrote it; infinity above REWRITE_MAX."""
    [row] = read_rows(_FILE_SIZE)
    size: int = row.size
    if size > REWRITE_MAX:
        return math.inf
    [row] = read_rows(select(func.max(Erasure.finished_at).label("at")).where(Erasure.orders > 0))
    if row.at is None:
        return 0
    due: datetime = row.at + timedelta(seconds=size / REWRITE_PACE)
    return (due - datetime.now(UTC)).total_seconds()


def _position(erasure_id: str) -> tuple[Any, ...]:
    columns = Erasure.status, Erasure.orders, Erasure.order_id, Erasure.erased_version, Erasure.customer_id
    [row] = read_rows(select(*columns).where(Erasure.id == erasure_id))
    return tuple(row)


def _get_state(erasure_id: str) -> ErasureState:
    columns = Erasure.id, Erasure.status, Erasure.orders, Erasure.created_at, Erasure.finished_at
    [row] = read_rows(select(*columns).where(Erasure.id == erasure_id))
    return ErasureState(row.id, row.status, row.orders, row.created_at, row.finished_at)


def stream_personal_data(customer_id: str, *, principal: Principal, after: str | None = None) -> Iterator[str]:
    """All that is stored about a customer, as JSON objects, each with one member that names its kind.

    Each of the customer's orders, oldest first, after the order with the id `after`: {"order": …}, the order as it is
    now, {"event": …} for each entry of its history, and {"delivery": …} for each delivery of an event to a webhook. At
    the end {"erasure": …}, if one is running. A finished erasure has left nothing that could be found by the customer's
    id. Hashes of idempotency keys are left out: they identify nobody and reveal nothing. A customer gets the orders and
    events that they may see, and no deliveries.

    Everything is read page by page, in at most EXPORT_PAGE_BYTES and one document of memory. An order that changes
    during the export may have later events than the document that precedes them.
    """
    for document in stream_orders({"customer_id": customer_id, "sort": "created_at"}, principal=principal, after=after):
        order_id = orjson.loads(document)["id"]
        yield f'{{"order":{document}}}'
        for event in _stream_events(order_id, principal):
            yield f'{{"event":{event}}}'
        if principal.customer_id is None:
            yield from _stream_deliveries(order_id)
    yield from _erasures(customer_id, principal)


def _stream_events(order_id: str, principal: Principal) -> Iterator[str]:
    after: int | None = 0
    while after is not None:
        with export_connection():
            events = find_events(
                order_id, principal=principal, after=after, limit=_EVENTS_PAGE, page_bytes=EXPORT_PAGE_BYTES
            )
        yield from render_events(order_id, events, principal=principal)
        after = next_after(events)


def _stream_deliveries(order_id: str) -> Iterator[str]:
    columns, after = DELIVERIES.c, (0, LOWEST_ID)
    while True:
        position = tuple_(literal(after[0], Integer), literal(after[1], UUID))
        query = select(DELIVERIES).where(
            columns.order_id == order_id, tuple_(columns.version, columns.endpoint_id) > position
        )
        with export_connection():
            rows = read_rows(query.order_by(columns.version, columns.endpoint_id).limit(_DELIVERIES_PAGE))
        for row in rows:
            document = {"endpoint_id": row.endpoint_id} | delivery_document(row)
            yield orjson.dumps({"delivery": document}).decode()
        if len(rows) < _DELIVERIES_PAGE:
            return
        after = rows[-1].version, rows[-1].endpoint_id


def _erasures(customer_id: str, principal: Principal) -> Iterator[str]:
    query = select(Erasure.id, Erasure.status, Erasure.actor, Erasure.alias, Erasure.orders, Erasure.created_at)
    for erasure in read_rows(query.where(Erasure.customer_id == customer_id)):
        by_the_customer = erasure.actor == customer_principal_id(erasure.alias)
        actor = visible_actor(customer_principal_id(customer_id) if by_the_customer else erasure.actor, principal)
        document = {"id": erasure.id, "status": erasure.status, "actor": actor, "orders": erasure.orders}
        yield orjson.dumps({"erasure": document | {"created_at": rfc3339(erasure.created_at)}}).decode()
