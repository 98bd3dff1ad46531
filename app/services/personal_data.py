"""Exporting all that is stored about a customer (GDPR, Articles 15 and 20)."""

from collections.abc import Iterator

import orjson
from sqlalchemy import Integer, literal, select, tuple_

from app.db.transactions import read_rows
from app.db.types import UUID, rfc3339
from app.models import DELIVERIES, Erasure
from app.models.order_id import LOWEST_ID
from app.models.principal import Principal, customer_principal_id
from app.services.order_document import visible_actor
from app.services.order_export import PAGE_BYTES, export_connection, stream_orders
from app.services.order_history import find_events, next_after, render_events
from app.services.webhook_queue import delivery_document

_EVENTS_PAGE = 100  # events
_DELIVERIES_PAGE = 20  # deliveries; each has the beginnings of several responses


def stream_personal_data(customer_id: str, *, principal: Principal, after: str | None = None) -> Iterator[str]:
    """All that is stored about a customer, as JSON objects, each with one member that names its kind.

    Each of the customer's orders, oldest first, after the order with the id `after`: {"order": …}, the order as it is
    now, {"event": …} for each entry of its history, and {"delivery": …} for each delivery of an event to a webhook. At
    the end {"erasure": …}, an erasure that is running. One that is done has left nothing that could be found by the
    customer's id. Hashes of idempotency keys are left out: they name nobody, and nobody can read anything from them. A
    customer gets orders and events as they may see them, and no deliveries.

    All is read page by page, in at most PAGE_BYTES and one document of memory. An order that changes during the export
    may have more events than the order before them tells.
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
            events = find_events(order_id, principal=principal, after=after, limit=_EVENTS_PAGE, page_bytes=PAGE_BYTES)
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
