"""The deliveries of webhooks as a queue in the database: adding events of the feed, and the documents of deliveries.

`app.services.webhook_claims` claims the deliveries that are due, to be sent.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import itemgetter
from typing import Any

import orjson
import structlog
from sqlalchemy import JSON, Text, bindparam, cast, false, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.db.engine import db
from app.db.statement import Statement, json_rows, typed_columns
from app.db.transactions import in_transaction
from app.db.types import rfc3339
from app.models import DELIVERIES, FeedEntry, FeedHead, Order, OrderEvent, WebhookEndpoint
from app.models.order_id import new_id
from app.models.webhook import ENABLED, PENDING, WITH_ORDER, event_id

log = structlog.get_logger()

FAN_OUT_MAX = 1_000  # events in one transaction
_OF_EVENT = ("order_id", "version", "endpoint_id")
# The values of a delivery that is queued, with `next_attempt_at`.
QUEUED: dict[str, Any] = {
    "status": PENDING,
    "attempt_count": 0,
    "lease": None,
    "first_attempt_at": None,
    "finished_at": None,
}
_BEHIND = Statement(
    select(WebhookEndpoint.id).where(
        WebhookEndpoint.status == ENABLED, WebhookEndpoint.last_seq != select(FeedHead.seq).scalar_subquery()
    )
)


def fan_out() -> bool:
    """Queue the new events of the feed for each enabled endpoint, and return whether there were any.

    For each endpoint at most FAN_OUT_MAX events are read; call it again until it returns False.
    """
    return any([in_transaction(partial(_fan_out_to, endpoint_id)) for [endpoint_id] in _BEHIND.rows()])


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
        _new_row(endpoint_id, event, id=new_id(now + timedelta(microseconds=i)), at=now)
        for i, event in enumerate(events)
    ]
    if rows:
        # Those that exist are locked, in the order in which all transactions lock the deliveries of an endpoint.
        _insert_rows(sorted(rows, key=itemgetter("order_id", "version")), again=again, at=now)
    return len(rows)


def _insert_rows(rows: Sequence[Mapping[str, Any]], *, again: bool, at: datetime) -> None:
    """Insert deliveries; with `again`, queue those that exist and have been sent."""
    # A delivery that is being sent is sent again: its success may not be stored yet, although the receiver has the
    # event.
    is_sent = or_(DELIVERIES.c.status != PENDING, DELIVERIES.c.lease.is_not(None)) if again else false()
    connection = db.session.connection()
    if connection.dialect.name == "postgresql":
        # All rows in one parameter take a third of the CPU time of one statement each.
        source = json_rows(cast(bindparam("rows", type_=Text), JSON), "rows", *typed_columns(DELIVERIES.c))
        insert = postgresql.insert(DELIVERIES).from_select([c.name for c in DELIVERIES.c], select(*source.c))
        changes = _changes(insert.excluded, at)
        statement = insert.on_conflict_do_update(index_elements=_OF_EVENT, set_=changes, where=is_sent)
        connection.execute(statement, {"rows": orjson.dumps(rows).decode()})
        return
    of_sqlite = sqlite.insert(DELIVERIES)
    changes = _changes(of_sqlite.excluded, at)
    connection.execute(of_sqlite.on_conflict_do_update(index_elements=_OF_EVENT, set_=changes, where=is_sent), rows)


def _changes(new: Any, at: datetime) -> dict[str, Any]:
    """The changes to a delivery that is queued again: its event may have another number in the feed now, or none."""
    return QUEUED | {"next_attempt_at": at, "seq": func.coalesce(new.seq, DELIVERIES.c.seq)}


def _new_row(endpoint_id: str, event: Mapping[str, Any], *, id: str, at: datetime) -> dict[str, Any]:
    members = dict.fromkeys(("order_id", "version", "seq", "data")) | dict(event)
    return members | QUEUED | {
        "endpoint_id": endpoint_id, "id": id, "attempts": [], "next_attempt_at": at, "created_at": at,
    }  # fmt: skip


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
        db.session.connection().execute(_ERASURE, erased)


_ERASURE = (
    update(DELIVERIES)
    .where(DELIVERIES.c.endpoint_id == bindparam("of_endpoint"), DELIVERIES.c.id == bindparam("of_id"))
    .values(attempts=bindparam("new_attempts"), lease=None)
)
