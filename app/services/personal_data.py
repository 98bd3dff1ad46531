"""Exporting all that is stored about a customer (GDPR, Articles 15 and 20)."""

from collections.abc import Iterator

import orjson
from sqlalchemy import select

from app.db.transactions import read_rows
from app.db.types import rfc3339
from app.models import Erasure
from app.models.principal import Principal, customer_principal_id
from app.services.order_document import visible_actor
from app.services.order_export import PAGE_BYTES, export_connection, stream_orders
from app.services.order_history import find_events, next_after, render_events

_EVENTS_PAGE = 100  # events


def stream_personal_data(customer_id: str, *, principal: Principal, after: str | None = None) -> Iterator[str]:
    """All that is stored about a customer, as JSON objects, each with one member that names its kind.

    Each of the customer's orders, oldest first, after the order with the id `after`: {"order": …}, the order as it is
    now, and {"event": …} for each entry of its history. At the end {"erasure": …}, an erasure that is running. One that
    is done has left nothing that could be found by the customer's id. Hashes of idempotency keys are left out: they
    name nobody, and nobody can read anything from them. A customer gets all of it as they may see it.

    Orders and events are read page by page, in at most PAGE_BYTES and one document of memory. An order that changes
    during the export may have more events than the order before them tells.
    """
    for document in stream_orders({"customer_id": customer_id, "sort": "created_at"}, principal=principal, after=after):
        yield f'{{"order":{document}}}'
        for event in _stream_events(orjson.loads(document)["id"], principal):
            yield f'{{"event":{event}}}'
    yield from _erasures(customer_id, principal)


def _stream_events(order_id: str, principal: Principal) -> Iterator[str]:
    after: int | None = 0
    while after is not None:
        with export_connection():
            events = find_events(order_id, principal=principal, after=after, limit=_EVENTS_PAGE, page_bytes=PAGE_BYTES)
        yield from render_events(order_id, events, principal=principal)
        after = next_after(events)


def _erasures(customer_id: str, principal: Principal) -> Iterator[str]:
    query = select(Erasure.id, Erasure.status, Erasure.actor, Erasure.alias, Erasure.orders, Erasure.created_at)
    for erasure in read_rows(query.where(Erasure.customer_id == customer_id)):
        by_the_customer = erasure.actor == customer_principal_id(erasure.alias)
        actor = visible_actor(customer_principal_id(customer_id) if by_the_customer else erasure.actor, principal)
        document = {"id": erasure.id, "status": erasure.status, "actor": actor, "orders": erasure.orders}
        yield orjson.dumps({"erasure": document | {"created_at": rfc3339(erasure.created_at)}}).decode()
