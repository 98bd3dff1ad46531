"""The deliveries of webhooks as a queue in the database: add events of the feed, claim what is due, record attempts.

A delivery is due if no earlier event of its order is pending for the same endpoint, so each endpoint receives the
events of an order in order. A claim is a lease: a delivery whose worker dies is due again after LEASE, and results that
the worker reports later are ignored. Any number of workers may run.

With an attempt, the health of its endpoint is recorded, which may pause or disable it. At the end: the documents of
deliveries, and the erasure of what endpoints have responded.
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any

import orjson
import structlog
from sqlalchemy import (
    JSON,
    ColumnElement,
    Integer,
    Select,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    column,
    false,
    func,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import aliased

from app.db.engine import UUID, Timestamp, db, read_timestamp, rfc3339
from app.db.statements import Lookup, Statement, in_transaction, json_rows, read_rows, typed_columns, without_index
from app.models import DELIVERIES, FeedEntry, FeedHead, Order, OrderEvent, WebhookDelivery, WebhookEndpoint
from app.models.order_id import new_id
from app.models.webhook import (
    ENABLED,
    FAILED,
    GIVE_UP_AFTER,
    PENDING,
    PENDING_LITERAL,
    SUCCEEDED,
    SUCCESS_RECORDED_EVERY,
    WITH_ORDER,
    event_id,
    includes_channels,
    retry_pause,
)

log = structlog.get_logger()

FAN_OUT_MAX = 1_000  # events in one transaction
_EVENT_KEY = ("order_id", "version", "endpoint_id")  # a unique key of a delivery: each event is queued once
# The values of a delivery that is queued, with `next_attempt_at`.
QUEUED: dict[str, Any] = {
    "status": PENDING,
    "attempt_count": 0,
    "lease": None,
    "first_attempt_at": None,
    "finished_at": None,
}
_ENDPOINTS_BEHIND = Statement(
    select(WebhookEndpoint.id).where(
        WebhookEndpoint.status == ENABLED, WebhookEndpoint.last_seq != select(FeedHead.seq).scalar_subquery()
    )
)

LEASE = timedelta(seconds=30)  # longer than the longest request and the wait for its turn
# How many of the oldest due deliveries a claim examines for each that it may claim. One that waits for an earlier
# delivery costs a lookup.
WINDOW = 2
# How many of the oldest due deliveries are examined, to postpone those that wait for the next attempt of another.
POSTPONED_MAX = 1_000
ORDERS_MAX = 2_000  # orders among which a claim searches for a delivery if the oldest ones all wait; takes about 0.04 s
# How many of the oldest due deliveries of an endpoint `oldest_due` examines: more than a claim, which postpones those
# that wait if it finds no others.
_LAG_WINDOW = 500
ATTEMPTS_KEPT = 50  # of a delivery, the latest ones


def fan_out() -> bool:
    """Queue the new events of the feed for each enabled endpoint, and return whether there were any.

    For each endpoint at most FAN_OUT_MAX events are read; call it again until it returns False.
    """
    return any([in_transaction(partial(_fan_out_to, endpoint_id)) for [endpoint_id] in _ENDPOINTS_BEHIND.rows()])


def _fan_out_to(endpoint_id: str) -> bool:
    query = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.status == ENABLED)
    endpoint = db.session.scalar(query.with_for_update(skip_locked=True))
    if endpoint is None:  # another worker is queueing its events, or it has been disabled
        return False
    head = db.session.execute(select(FeedHead.seq, FeedHead.pruned_seq)).one()
    if endpoint.last_seq < head.pruned_seq:
        log.warning("webhook missed events", endpoint_id=endpoint.id, after=endpoint.last_seq, until=head.pruned_seq)
        endpoint.last_seq = head.pruned_seq
    if endpoint.last_seq > head.seq:  # the feed was restored, and gives these numbers again
        log.warning("webhook is ahead of the feed", endpoint_id=endpoint.id, after=endpoint.last_seq, until=head.seq)
        endpoint.last_seq = head.seq
    until = min(head.seq, endpoint.last_seq + FAN_OUT_MAX)
    queue_events(endpoint, after=endpoint.last_seq, until=until, types=endpoint.events, again=False)
    endpoint.last_seq = until
    return True


def queue_events(endpoint: WebhookEndpoint, *, after: int, until: int, types: Sequence[str] | None, again: bool) -> int:
    """Queue the events of the feed with `after` < seq <= `until` that match the endpoint's channels and the types.

    With `again`, even those that were delivered or have failed. Called in a transaction.
    """
    query = (
        select(FeedEntry.seq, FeedEntry.order_id, FeedEntry.version, OrderEvent.type)
        .join(OrderEvent, (OrderEvent.order_id == FeedEntry.order_id) & (OrderEvent.version == FeedEntry.version))
        .where(FeedEntry.seq > after, FeedEntry.seq <= until)
        .order_by(FeedEntry.seq)
    )
    if types is not None:
        query = query.where(OrderEvent.type.in_(types))
    if endpoint.channels is not None:
        query = query.join(Order, Order.id == FeedEntry.order_id).where(Order.channel.in_(endpoint.channels))
    return queue_rows(endpoint.id, [row._asdict() for row in db.session.execute(query)], again=again)


def queue_rows(endpoint_id: str, events: Iterable[Mapping[str, Any]], *, again: bool) -> int:
    """Queue events given as {"type", "order_id", "version", "seq"}, those of endpoints as {"type", "data"}.

    With `again`, even those that were delivered or have failed. Called in a transaction.
    """
    now = datetime.now(UTC)
    rows = [
        # Microseconds apart, so that the ids sort as the events do.
        _new_delivery(endpoint_id, event, id=new_id(now + timedelta(microseconds=i)), at=now)
        for i, event in enumerate(events)
    ]
    if rows:
        # Those that exist are locked, in the order in which all transactions lock the deliveries of an endpoint.
        _insert_deliveries(sorted(rows, key=itemgetter("order_id", "version")), again=again, at=now)
    return len(rows)


def _insert_deliveries(rows: Sequence[Mapping[str, Any]], *, again: bool, at: datetime) -> None:
    """Insert deliveries; with `again`, queue those that exist and have been sent."""
    # A delivery that is being sent is sent again: its success may not be stored yet, although the receiver has the
    # event.
    is_sent = or_(DELIVERIES.c.status != PENDING, DELIVERIES.c.lease.is_not(None)) if again else false()
    connection = db.session.connection()
    if connection.dialect.name == "postgresql":
        # All rows in one parameter take a third of the CPU time of one statement each.
        source = json_rows(cast(bindparam("rows", type_=Text), JSON), "rows", *typed_columns(DELIVERIES.c))
        insert = postgresql.insert(DELIVERIES).from_select([c.name for c in DELIVERIES.c], select(*source.c))
        changes = _changes_if_queued_again(insert.excluded, at)
        statement = insert.on_conflict_do_update(index_elements=_EVENT_KEY, set_=changes, where=is_sent)
        connection.execute(statement, {"rows": orjson.dumps(rows).decode()})
        return
    of_sqlite = sqlite.insert(DELIVERIES)
    changes = _changes_if_queued_again(of_sqlite.excluded, at)
    connection.execute(of_sqlite.on_conflict_do_update(index_elements=_EVENT_KEY, set_=changes, where=is_sent), rows)


def _changes_if_queued_again(new: Any, at: datetime) -> dict[str, Any]:
    """The changes to a delivery that is queued again: its event may have another number in the feed now, or none."""
    return QUEUED | {"next_attempt_at": at, "seq": func.coalesce(new.seq, DELIVERIES.c.seq)}


def _new_delivery(endpoint_id: str, event: Mapping[str, Any], *, id: str, at: datetime) -> dict[str, Any]:
    members = dict.fromkeys(("order_id", "version", "seq", "data")) | dict(event)
    return members | QUEUED | {
        "endpoint_id": endpoint_id, "id": id, "attempts": [], "next_attempt_at": at, "created_at": at,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attempt:
    """The result of one request: `status` and `response`, the beginning of the body; or `error`, why there is none.

    `retry_after` is in seconds.
    """

    at: datetime
    milliseconds: int
    status: int | None = None
    response: str | None = None
    error: str | None = None
    retry_after: float | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the endpoint has accepted the event."""
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class DueEndpoint:
    """An endpoint with due deliveries, as it was read."""

    id: str
    url: str
    payload: str
    secrets: tuple[str, ...]  # sealed
    consecutive_failures: int
    last_success_at: datetime | None


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """A delivery that this worker may send until its lease ends."""

    endpoint: DueEndpoint
    id: str
    order_id: str | None
    version: int | None
    event_id: str
    body: bytes
    lease: str
    attempt_count: int
    attempts: list[dict[str, Any]]
    first_attempt_at: datetime | None
    traceparent: str | None  # of the request that caused the event


def any_due(now: datetime) -> bool:
    """Whether `due_endpoints` would find any: one short statement, for a worker that has nothing to do."""
    return bool(_ANY_DUE.rows(now=rfc3339(now)))


def due_endpoints(now: datetime) -> list[DueEndpoint]:
    """The enabled endpoints with deliveries that are due, except those that are paused after failures."""
    return [_due_endpoint(row, now) for row in read_rows(_DUE_ENDPOINTS.params(now=now))]


def oldest_due(now: datetime) -> datetime | None:
    """The time since which the oldest delivery has been due, of those that wait neither for an earlier one nor for a
    pause."""
    due_times = [
        read_timestamp(due_time)
        for endpoint in due_endpoints(now)
        for [due_time] in OLDEST_DUE.rows(of_endpoint=endpoint.id, now=rfc3339(now), window=_LAG_WINDOW)
    ]
    return min(due_times, default=None)


def _due_endpoint(row: Any, now: datetime) -> DueEndpoint:
    sealed = [row.secret]
    if row.previous_secret is not None and row.previous_secret_until > now:
        sealed.append(row.previous_secret)
    return DueEndpoint(row.id, row.url, row.payload, tuple(sealed), row.consecutive_failures, row.last_success_at)


def _has_due_delivery(now: Any) -> ColumnElement[bool]:
    """Whether an endpoint is enabled, not paused after failures, and has a delivery that is due."""
    endpoint, delivery = WebhookEndpoint, WebhookDelivery
    due = select(delivery.id).where(
        delivery.endpoint_id == endpoint.id, delivery.status == PENDING_LITERAL, delivery.next_attempt_at <= now
    )
    return and_(endpoint.status == ENABLED, or_(endpoint.retry_at.is_(None), endpoint.retry_at <= now), due.exists())


_DUE_ENDPOINTS = select(WebhookEndpoint.__table__).where(_has_due_delivery(bindparam("now")))
_ANY_DUE = Statement(select(WebhookEndpoint.id).where(_has_due_delivery(bindparam("now"))).limit(literal_column("1")))


def claim(endpoint: DueEndpoint, limit: int) -> list[ClaimedDelivery]:
    """Claim up to `limit` deliveries that are due, the oldest first, at most one of each order."""
    now = datetime.now(UTC)
    values = {
        "of_endpoint": endpoint.id,
        "now": rfc3339(now),
        "new_lease": secrets.token_hex(16),
        "leased_until": rfc3339(now + LEASE),
    }
    dialect = db.engine.dialect.name
    window = WINDOW * limit
    rows = CLAIM_OLDEST[dialect].rows(**values, max_count=limit, window=window)
    if len(rows) < limit and (not rows or rows[0][-1] == window):
        # The window is full of deliveries that wait for earlier ones of their orders.
        POSTPONE.rows(of_endpoint=endpoint.id, now=rfc3339(now), window=POSTPONED_MAX)
        rows += _CLAIM_BY_ORDER[dialect].rows(**values, max_count=limit - len(rows))
    return _with_payloads(endpoint, [_ClaimedRow(*row[:-1]) for row in rows], lease=values["new_lease"])


@dataclass(frozen=True, slots=True)
class _ClaimedRow:
    """A claimed delivery as the driver returns it; JSON and times are texts on SQLite."""

    id: str
    type: str
    order_id: str | None
    version: int | None
    seq: int | None
    data: str | None
    created_at: datetime | str
    attempt_count: int
    attempts: str
    first_attempt_at: datetime | str | None


def _is_due(delivery: Any, status: Any) -> ColumnElement[bool]:
    """Whether a delivery of the endpoint is due; `status` is its column, with or without the use of an index."""
    return and_(
        delivery.endpoint_id == bindparam("of_endpoint", type_=UUID),
        status == PENDING_LITERAL,
        delivery.next_attempt_at <= bindparam("now"),
    )


def _select_window(name: str) -> tuple[Select[Any], ColumnElement[Any]]:
    """A column of the oldest due deliveries that wait for no earlier one, and how many were examined."""
    delivery, other = aliased(WebhookDelivery), aliased(WebhookDelivery)
    window = select(delivery.order_id, delivery.version, getattr(delivery, name).label(name))
    window = window.where(_is_due(delivery, delivery.status))
    oldest = window.order_by(delivery.next_attempt_at).limit(bindparam("window", type_=Integer)).cte("oldest")
    earlier = select(other.version).where(
        other.endpoint_id == bindparam("of_endpoint", type_=UUID),
        other.order_id == oldest.c.order_id,
        other.version < oldest.c.version,
        other.status == PENDING_LITERAL,
    )
    # A scalar subquery is one look-up by index for each candidate. NOT EXISTS could be planned as a join of all that is
    # pending. The sort makes the planner use the index by order, even with outdated statistics.
    first_earlier = earlier.order_by(other.version).limit(literal_column("1")).scalar_subquery()
    values = select(oldest.c[name]).where(first_earlier.is_(None))
    return values, select(func.count()).select_from(oldest).scalar_subquery()


def _first_of_each_order() -> tuple[Select[Any], ColumnElement[Any]]:
    """The ids of the first pending deliveries of the first ORDERS_MAX orders, if they are due. However many deliveries
    an order has, only the first is read: the recursion goes from order to order in the index.
    """
    delivery, first, other = (aliased(WebhookDelivery) for _ in range(3))
    of_endpoint = bindparam("of_endpoint", type_=UUID)
    one: ColumnElement[int] = literal_column("1")
    start = select(delivery.order_id).where(
        delivery.endpoint_id == of_endpoint, delivery.status == PENDING_LITERAL, delivery.order_id.is_not(None)
    )
    first_order = start.order_by(delivery.order_id).limit(one).scalar_subquery()
    orders = select(first_order.label("order_id"), one.label("number")).cte("orders", recursive=True)
    following = select(other.order_id).where(
        other.endpoint_id == of_endpoint, other.status == PENDING_LITERAL, other.order_id > orders.c.order_id
    )
    step = select(following.order_by(other.order_id).limit(one).scalar_subquery(), orders.c.number + one)
    is_within = orders.c.number < bindparam("max_orders", ORDERS_MAX, Integer)
    orders = orders.union_all(step.where(orders.c.order_id.is_not(None), is_within))
    id_if_due = case((first.next_attempt_at <= bindparam("now"), first.id))
    firsts = select(id_if_due).where(
        first.endpoint_id == of_endpoint, first.status == PENDING_LITERAL, first.order_id == orders.c.order_id
    )
    due = select(firsts.order_by(first.version).limit(one).scalar_subquery().label("id")).select_from(orders)
    due_ids = due.offset(literal_column("0")).subquery("due_ids")  # OFFSET 0: the subquery is not computed twice
    return select(due_ids.c.id).where(due_ids.c.id.is_not(None)), literal_column("0")


def _postpone_statement() -> Statement:
    """Postpone the oldest due deliveries that wait for the next attempt of an earlier one until that attempt. Otherwise
    they would fill the window of each claim, and hide those that can be sent.
    """
    delivery, other = aliased(WebhookDelivery), aliased(WebhookDelivery)
    is_waiting = and_(other.lease.is_(None), other.next_attempt_at > bindparam("now"))
    earlier = select(case((is_waiting, other.next_attempt_at))).where(
        other.endpoint_id == bindparam("of_endpoint", type_=UUID),
        other.order_id == delivery.order_id,
        other.version < delivery.version,
        other.status == PENDING_LITERAL,
    )
    # The first one decides: while it is sent, a search among the others would read all of the order for each.
    next_attempt_at = earlier.order_by(other.version).limit(literal_column("1")).scalar_subquery()
    oldest = (
        select(delivery.endpoint_id, delivery.id, next_attempt_at.label("next_attempt_at"))
        .where(_is_due(delivery, delivery.status))
        .order_by(delivery.next_attempt_at)
        .limit(bindparam("window", type_=Integer))
        .with_for_update(skip_locked=True, of=delivery)
        .cte("oldest")
    )
    columns = DELIVERIES.c
    postponed = update(DELIVERIES).where(
        columns.endpoint_id == oldest.c.endpoint_id, columns.id == oldest.c.id, oldest.c.next_attempt_at.is_not(None)
    )
    return Statement(postponed.values(next_attempt_at=oldest.c.next_attempt_at).returning(literal_column("1")))


def _claim_statement(candidates: Select[Any], window_size: ColumnElement[Any], *, dialect: str) -> Statement:
    delivery, columns = aliased(WebhookDelivery), DELIVERIES.c
    ids = candidates.limit(bindparam("max_count", type_=Integer)).scalar_subquery()
    # An array, not IN: the planner would make a join of that.
    is_candidate = delivery.id == func.any(func.array(ids)) if dialect == "postgresql" else delivery.id.in_(ids)
    # A delivery that another worker has claimed since is no longer due. The candidates are found by the primary key,
    # not by an index of all that is pending.
    is_due = _is_due(delivery, without_index(delivery.status))
    due = select(delivery.endpoint_id, delivery.id).where(is_due, is_candidate)
    locked = due.with_for_update(skip_locked=True, of=delivery).cte("due")
    claimed = (
        update(DELIVERIES)
        # With a constant endpoint, the plan for a small table would be a join with all of its deliveries.
        .where(columns.endpoint_id == locked.c.endpoint_id, columns.id == locked.c.id)
        .values(lease=bindparam("new_lease"), next_attempt_at=bindparam("leased_until"))
        .returning(
            cast(columns.id, Text), columns.type, cast(columns.order_id, Text), columns.version, columns.seq,
            cast(columns.data, Text), columns.created_at, columns.attempt_count, cast(columns.attempts, Text),
            columns.first_attempt_at, window_size.label("window_size"),
        )
    )  # fmt: skip
    return Statement(claimed)


CLAIM_OLDEST = {name: _claim_statement(*_select_window("id"), dialect=name) for name in ("postgresql", "sqlite")}
_CLAIM_BY_ORDER = {name: _claim_statement(*_first_of_each_order(), dialect=name) for name in ("postgresql", "sqlite")}
OLDEST_DUE = Statement(_select_window("next_attempt_at")[0].order_by("next_attempt_at").limit(literal_column("1")))
POSTPONE = _postpone_statement()

_STORED_EVENTS = Lookup(
    [column("order_id", UUID), column("version", Integer)],
    lambda key: select(OrderEvent.at, OrderEvent.snapshot, OrderEvent.traceparent).where(
        OrderEvent.order_id == key.c.order_id, OrderEvent.version == key.c.version
    ),
)


def _with_payloads(endpoint: DueEndpoint, rows: Sequence[_ClaimedRow], *, lease: str) -> list[ClaimedDelivery]:
    """The claimed deliveries, oldest first, with the current snapshots of their events.

    The events are read after the claim: after an erasure in between, they are sent without the personal data, and a
    later erasure finds the lease.
    """
    rows = sorted(rows, key=attrgetter("id"))
    keys = [(row.order_id, row.version) for row in rows if row.order_id is not None]
    stored = (
        _STORED_EVENTS.rows([{"order_id": order_id, "version": version} for order_id, version in keys]) if keys else []
    )
    events: dict[Any, Any] = dict(zip(keys, stored, strict=True))
    return [_claimed_delivery(endpoint, row, events.get((row.order_id, row.version)), lease=lease) for row in rows]


def _claimed_delivery(
    endpoint: DueEndpoint, row: _ClaimedRow, event: tuple[Any, ...] | None, *, lease: str
) -> ClaimedDelivery:
    return ClaimedDelivery(
        endpoint=endpoint,
        id=row.id,
        order_id=row.order_id,
        version=row.version,
        event_id=event_id(row.order_id, row.version, row.id),
        body=_render_payload(row, event, payload=endpoint.payload),
        lease=lease,
        attempt_count=row.attempt_count,
        attempts=orjson.loads(row.attempts),
        first_attempt_at=None if row.first_attempt_at is None else read_timestamp(row.first_attempt_at),
        traceparent=event[2] if event else None,
    )


def _render_payload(row: _ClaimedRow, event: tuple[Any, ...] | None, *, payload: str) -> bytes:
    """The body of a request, from a delivery and its event, a row of `_STORED_EVENTS`; None for one of an endpoint."""
    if event is None:
        data = orjson.Fragment(row.data or "null")
        return orjson.dumps({"type": row.type, "timestamp": rfc3339(read_timestamp(row.created_at)), "data": data})
    assert row.order_id is not None and row.version is not None
    at, snapshot, _traceparent = event
    return render_event(
        row.type, at=read_timestamp(at), order_id=row.order_id, version=row.version, seq=row.seq, snapshot=snapshot,
        payload=payload,
    )  # fmt: skip


def render_event(
    event_type: str, *, at: datetime, order_id: str, version: int, seq: int | None, snapshot: str, payload: str
) -> bytes:
    """The body that reports an order's event to an endpoint; `payload` is thin or order."""
    data = event_data(orjson.loads(snapshot), order_id=order_id, version=version, seq=seq)
    if payload == WITH_ORDER:
        data["order"] = orjson.Fragment(snapshot)
    return orjson.dumps({"type": event_type, "timestamp": rfc3339(at), "data": data})


def event_data(order: Any, *, order_id: str, version: int, seq: int | None) -> dict[str, Any]:
    """The data of an order's event in a thin payload, without personal data.

    Without statuses if the document is not that of an order: the event must not stop all later ones.
    """
    members = order if isinstance(order, dict) else {}
    statuses = {name: value for name, value in members.items() if name == "status" or name.endswith("_status")}
    return {"order_id": order_id, "version": version, "seq": seq} | statuses


def complete(results: Sequence[tuple[ClaimedDelivery, Attempt]]) -> None:
    """Store the results of attempts, and the health of their endpoints.

    A result whose lease has been taken over is ignored.
    """
    in_transaction(lambda: _complete(results))


def _complete(results: Sequence[tuple[ClaimedDelivery, Attempt]]) -> None:
    # First the endpoints, then their deliveries: the order in which all transactions lock.
    endpoints = _lock_endpoints(results)
    completions = [_completion(delivery, attempt, endpoints.get(delivery.endpoint.id)) for delivery, attempt in results]
    connection = db.session.connection()
    if connection.dialect.name == "postgresql":
        connection.execute(_USE_INDEXES)
        connection.execute(_JOINT_COMPLETION, {"completions": orjson.dumps(completions).decode()})
    else:
        connection.execute(_COMPLETION, completions)
    for delivery, attempt in results:
        endpoint = endpoints.get(delivery.endpoint.id)
        if endpoint is not None:
            _record_health(endpoint, attempt)


def _lock_endpoints(results: Sequence[tuple[ClaimedDelivery, Attempt]]) -> dict[str, WebhookEndpoint]:
    """The endpoints whose health changes, by id. Most successes leave the row of the endpoint unchanged."""
    ids = {delivery.endpoint.id for delivery, attempt in results if _changes_health(delivery.endpoint, attempt)}
    if not ids:
        return {}
    query = select(WebhookEndpoint).where(WebhookEndpoint.id.in_(ids))
    locked = db.session.scalars(query.order_by(WebhookEndpoint.id).with_for_update())
    return {endpoint.id: endpoint for endpoint in locked}


def _changes_health(endpoint: DueEndpoint, attempt: Attempt) -> bool:
    if not attempt.succeeded or endpoint.consecutive_failures or endpoint.last_success_at is None:
        return True
    return attempt.at - endpoint.last_success_at >= SUCCESS_RECORDED_EVERY


def _completion(delivery: ClaimedDelivery, attempt: Attempt, endpoint: WebhookEndpoint | None) -> dict[str, Any]:
    """The values of a delivery after an attempt: it has succeeded, has failed for good, or is tried again later: at
    once if the attempt began before the endpoint was changed."""
    first_attempt_at = delivery.first_attempt_at or attempt.at
    count = delivery.attempt_count + 1
    remaining = first_attempt_at + GIVE_UP_AFTER - attempt.at
    values: dict[str, Any] = {"new_status": PENDING, "due_at": None, "new_finished_at": None}
    if attempt.succeeded or remaining <= timedelta(0):
        values |= {"new_status": SUCCEEDED if attempt.succeeded else FAILED, "new_finished_at": attempt.at}
    elif endpoint is not None and _precedes_change(attempt, endpoint):
        values["due_at"] = attempt.at
    else:  # the last attempt is made when GIVE_UP_AFTER has passed
        values["due_at"] = attempt.at + min(remaining, retry_pause(count, retry_after=attempt.retry_after))
    return _leased_key(delivery) | values | {
        "new_attempts": [*delivery.attempts, _attempt_document(attempt)][-ATTEMPTS_KEPT:],
        "new_count": count,
        "new_first_attempt_at": first_attempt_at,
    }  # fmt: skip


def _leased_key(delivery: ClaimedDelivery) -> dict[str, Any]:
    return {"of_endpoint": delivery.endpoint.id, "of_id": delivery.id, "of_lease": delivery.lease}


def _attempt_document(attempt: Attempt) -> dict[str, Any]:
    return {
        "at": rfc3339(attempt.at),
        "status": attempt.status,
        "milliseconds": attempt.milliseconds,
        "error": attempt.error,
        "response": attempt.response,
    }


def _record_health(endpoint: WebhookEndpoint, attempt: Attempt) -> None:
    """Record the health of a locked endpoint after an attempt, and queue the events that report it.

    A failure that began before the endpoint was changed does not count.
    """
    if attempt.succeeded:
        endpoint.record_success(attempt.at)
    elif not _precedes_change(attempt, endpoint):
        report = endpoint.record_failure(attempt.at, status=attempt.status, retry_after=attempt.retry_after)
        if report is not None:
            _report(endpoint, report, attempt)


def _precedes_change(attempt: Attempt, endpoint: WebhookEndpoint) -> bool:
    """Whether the attempt began before the endpoint was changed: it may have been repaired, enabled, or got another URL
    since."""
    return attempt.at < endpoint.updated_at


def _report(endpoint: WebhookEndpoint, event_type: str, attempt: Attempt) -> None:
    """Log that an endpoint fails or is disabled, and queue the event for the other endpoints that subscribe to it."""
    data = {
        "endpoint_id": endpoint.id,
        "status": endpoint.status,
        "disabled_reason": endpoint.disabled_reason,
        "consecutive_failures": endpoint.consecutive_failures,
        "failing_since": endpoint.failing_since and rfc3339(endpoint.failing_since),
        "response_status": attempt.status,
        "error": attempt.error,
    }
    log.warning(event_type, **data)
    event = {"type": event_type, "data": data}
    others = select(WebhookEndpoint).where(WebhookEndpoint.status == ENABLED, WebhookEndpoint.id != endpoint.id)
    for other in db.session.scalars(others):
        if event_type in (other.events or ()) and includes_channels(other.channels, endpoint.channels):
            queue_rows(other.id, [event], again=False)


def release(deliveries: Sequence[ClaimedDelivery]) -> None:
    """Release deliveries that were not sent, so that they are due at once."""
    now = datetime.now(UTC)
    rows = [_leased_key(delivery) | {"due_at": now} for delivery in sorted(deliveries, key=_lock_key)]
    in_transaction(lambda: db.session.connection().execute(_RELEASE, rows))


def _lock_key(delivery: ClaimedDelivery) -> tuple[Any, ...]:
    """The position of a delivery in the order in which all transactions lock the deliveries, so that they do not
    deadlock: by endpoint, order and version. Those without an order are last, as in PostgreSQL."""
    return delivery.endpoint.id, delivery.order_id is None, delivery.order_id, delivery.version, delivery.id


# The columns of `_completion`.
_COMPLETION_TYPES: dict[str, Any] = {
    "of_endpoint": UUID,
    "of_id": UUID,
    "of_lease": Text,
    "new_status": Text,
    "new_attempts": JSON,
    "new_count": Integer,
    "due_at": Timestamp,
    "new_first_attempt_at": Timestamp,
    "new_finished_at": Timestamp,
}
_COMPLETION_PARAMETERS: dict[str, Any] = {name: bindparam(name) for name in _COMPLETION_TYPES}

# A plan for a small table would read all of it, and is kept when it has grown.
_USE_INDEXES = text(
    "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),"
    " set_config('enable_mergejoin', 'off', true)"
)


def _is_leased(values: Any) -> tuple[ColumnElement[bool], ...]:
    """The condition that the worker still holds the lease of the delivery."""
    columns = DELIVERIES.c
    return (
        columns.endpoint_id == values["of_endpoint"],
        columns.id == values["of_id"],
        columns.lease == values["of_lease"],
    )


def _completion_statement(values: Any) -> Update:
    """The update that completes deliveries, still without a condition. The values are the parameters of one, or the
    columns of a table of them."""
    return update(DELIVERIES).values(
        lease=None,
        status=values["new_status"],
        attempts=values["new_attempts"],
        attempt_count=values["new_count"],
        next_attempt_at=values["due_at"],
        first_attempt_at=values["new_first_attempt_at"],
        finished_at=values["new_finished_at"],
    )


def _joint_completion() -> Update:
    """Complete all deliveries of the parameter `completions`: half of the database's CPU time of one statement each.

    They are locked first, in the order of `_lock_key`. The update alone would lock them in the order of its plan.
    """
    types = [column(name, kind) for name, kind in _COMPLETION_TYPES.items()]
    completions = json_rows(cast(bindparam("completions", type_=Text), JSON), "completions", *types).c
    columns = DELIVERIES.c
    leased = select(*completions).where(*_is_leased(completions))
    leased = leased.order_by(columns.endpoint_id, columns.order_id, columns.version, columns.id)
    locked = leased.with_for_update(of=DELIVERIES).cte("locked").c
    return _completion_statement(locked).where(
        columns.endpoint_id == locked["of_endpoint"], columns.id == locked["of_id"]
    )


_RELEASE = (
    update(DELIVERIES)
    .where(*_is_leased(_COMPLETION_PARAMETERS))
    .values(lease=None, next_attempt_at=bindparam("due_at"))
)
_COMPLETION = _completion_statement(_COMPLETION_PARAMETERS).where(*_is_leased(_COMPLETION_PARAMETERS))
_JOINT_COMPLETION = _joint_completion()


def delivery_document(row: Any) -> dict[str, Any]:
    """The document of a delivery, given as a row of all columns."""
    return {
        "id": row.id,
        "event_id": event_id(row.order_id, row.version, row.id),
        "type": row.type,
        "order_id": row.order_id,
        "version": row.version,
        "seq": row.seq,
        "status": row.status,
        "attempt_count": row.attempt_count,
        "attempts": row.attempts,
        "next_attempt_at": row.next_attempt_at and rfc3339(row.next_attempt_at),
        "created_at": rfc3339(row.created_at),
        "finished_at": row.finished_at and rfc3339(row.finished_at),
    }


_ERASE_RESPONSES = (
    update(DELIVERIES)
    .where(DELIVERIES.c.endpoint_id == bindparam("of_endpoint"), DELIVERIES.c.id == bindparam("of_id"))
    .values(attempts=bindparam("new_attempts"), lease=None)
)


def erase_responses(order_id: str, *, after: int, until: int) -> None:
    """Remove the responses of endpoints to the events of an order with `after` < version <= `until`.

    A response may quote the order. Open requests lose their lease, so their responses are not stored either; their
    events are sent again, without the personal data. Called in a transaction.
    """
    columns = DELIVERIES.c
    query = select(columns.endpoint_id, columns.id, columns.lease, columns.attempts)
    query = query.where(columns.order_id == order_id, columns.version > after, columns.version <= until)
    # The row locks wait for a claim that has read the events as they were and is not committed yet.
    rows = db.session.execute(query.order_by(columns.endpoint_id, columns.version).with_for_update()).all()
    erased = [
        {
            "of_endpoint": row.endpoint_id,
            "of_id": row.id,
            "new_attempts": [attempt | {"response": None} for attempt in row.attempts],
        }
        for row in rows
        if row.lease is not None or any(attempt["response"] for attempt in row.attempts)
    ]
    if erased:
        db.session.connection().execute(_ERASE_RESPONSES, erased)
