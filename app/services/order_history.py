"""The history of an order: its events, each with the changes from the version before.

The changes are not stored. They are made when the history is read, from the documents that the reader may see.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jsonpatch
import orjson
from sqlalchemy import Integer, bindparam, case, select
from sqlalchemy.orm import aliased

from app.db.statement import Statement, rows_within
from app.db.types import UUID, read_timestamp, rfc3339
from app.models import Order, OrderEvent
from app.models.order_id import parse_uuid
from app.models.principal import Principal
from app.services.order_document import visible_actor, visible_document
from app.services.order_queries import (
    OrderKey,
    find_snapshot,
    order_not_found,
    owned_by,
    owner_parameters,
    owner_values,
)

HISTORY_PAGE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class EventRow:
    """A row of `_HISTORY`.

    `snapshot_before` is set in the first row only: each other row follows the one whose snapshot is before its own.
    """

    version: int
    type: str
    actor: str
    request_id: str | None
    snapshot: str
    at: datetime | str
    snapshot_before: str | None
    current_version: int
    bytes_so_far: int


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Event documents, rendered as they are read, and the version of the last one where more events follow.

    `size` is that of the orders in them, in bytes.
    """

    events: Iterator[str]
    next_after: int | None
    size: int


def list_history(order_id: str, *, principal: Principal, after: int, limit: int) -> HistoryPage:
    """Up to `limit` events after the version `after`, oldest first. Raises OrderNotFound.

    A page ends early where its documents would exceed HISTORY_PAGE_BYTES.
    """
    parsed_id = parse_uuid(order_id)
    if parsed_id is None:
        raise order_not_found(order_id)
    events = find_events(parsed_id, principal=principal, after=after, limit=limit, page_bytes=HISTORY_PAGE_BYTES)
    # At least one event follows the cursors we issue. A forged one may be beyond the last: check that the order exists.
    if not events and not (after and find_snapshot(OrderKey(parsed_id, principal, None))):
        raise order_not_found(order_id)
    size = events[-1].bytes_so_far if events else 0
    return HistoryPage(render_events(parsed_id, events, principal=principal), next_after(events), size)


def find_events(order_id: str, *, principal: Principal, after: int, limit: int, page_bytes: int) -> list[EventRow]:
    """Up to `limit` events of an order of the principal's after the version `after`.

    The last one is the first whose document exceeds `page_bytes` together with those before it.
    """
    parameters = {"id": order_id, "after": after, "limit": limit, "page_bytes": page_bytes}
    return [EventRow(*row) for row in _HISTORY.rows(**parameters, **owner_values(principal))]


def next_after(events: Sequence[EventRow]) -> int | None:
    """The version after which the next page of events begins; None if no event follows."""
    return events[-1].version if events and events[-1].version < events[-1].current_version else None


def json_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The JSON Patch (RFC 6902) from one order document to another, by add, remove and replace.

    There is no move: an operation tells the new value, and equal numbers in two places have nothing in common.
    """
    # Only what differs: comparing all members would take ten times as long.
    old = {name: value for name, value in before.items() if name not in after or after[name] != value}
    new = {name: value for name, value in after.items() if name not in before or before[name] != value}
    patch = jsonpatch.JsonPatch.from_diff(old, new, optimization=False, dumps=_dumps)
    operations: list[dict[str, Any]] = patch.patch
    return operations


def _dumps(value: Any) -> str:
    """The JSON by which the library compares values; with the standard library's, a patch takes twice the time."""
    return orjson.dumps(value).decode()


def render_events(order_id: str, events: Sequence[EventRow], *, principal: Principal) -> Iterator[str]:
    """The documents of consecutive events, as the principal may see them."""
    before: dict[str, Any] | None = None
    for event in events:
        if event.snapshot_before is not None:
            before = orjson.loads(visible_document(event.snapshot_before, principal))
        document = visible_document(event.snapshot, principal)
        after = orjson.loads(document)
        changes = None if before is None else json_patch(before, after)
        yield _render_event(order_id, event, principal, document=document, changes=changes)
        before = after


def _render_event(
    order_id: str, event: EventRow, principal: Principal, *, document: str, changes: list[dict[str, Any]] | None
) -> str:
    """The event document. Its id names order and version, since each version is one event."""
    own = principal.customer_id is None or event.actor == principal.id
    return orjson.dumps(
        {
            "id": f"{order_id}:{event.version}",
            "type": event.type,
            "order_id": order_id,
            "version": event.version,
            "actor": visible_actor(event.actor, principal),
            "request_id": event.request_id if own else None,
            "at": rfc3339(read_timestamp(event.at)),
            "changes": changes,
            "data": orjson.Fragment(document),
        }
    ).decode()


def _history_statement() -> Statement:
    before, after = aliased(OrderEvent), bindparam("after", type_=Integer)
    snapshot_before = select(before.snapshot).where(
        before.order_id == bindparam("id", type_=UUID), before.version == after
    )
    query = (
        select(OrderEvent.version, OrderEvent.type, OrderEvent.actor, OrderEvent.request_id, OrderEvent.snapshot)
        .add_columns(OrderEvent.at)
        .add_columns(
            case((OrderEvent.version == after + 1, snapshot_before.scalar_subquery())).label("snapshot_before")
        )
        .add_columns(Order.version.label("current_version"))
        .join(Order, Order.id == OrderEvent.order_id)
        .where(OrderEvent.order_id == bindparam("id", type_=UUID), owned_by(*owner_parameters()))
        .where(OrderEvent.version > after)
        .order_by(OrderEvent.version)
        .limit(bindparam("limit", type_=Integer))
    )
    size = bindparam("page_bytes", type_=Integer)
    return Statement(rows_within(query, position="version", document="snapshot", size=size, descending=False))


_HISTORY = _history_statement()
