"""Reading one order: its current snapshot, an earlier version, or its history.

Concurrent requests for an order share one statement, as in a group commit: one round trip and one plan for all of them.
The history is the events, each with the changes from the version before. The changes are not stored: they are made when
the history is read, from the documents that the reader may see.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jsonpatch
import orjson
from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    Subquery,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    or_,
    select,
)
from sqlalchemy.orm import aliased

from app.db.batching import Batcher, PerApplication
from app.db.statement import Lookup, Statement, is_one_of, rows_within
from app.db.types import UUID, read_timestamp, rfc3339
from app.errors import OrderNotFound
from app.models import Order, OrderEvent
from app.models.order_id import hash_reference, parse_uuid
from app.models.principal import Principal
from app.services.order_document import StoredOrder, visible_actor, visible_document, visible_order

GROUP_READ_MAX = 100  # orders in one statement
HISTORY_PAGE_BYTES = 1024 * 1024

# The version and the document of an order.
Snapshot = tuple[int, str]


@dataclass(slots=True)
class OrderKey:
    """The order `id`, if the principal has access to it, at `version`. None stands for the current version."""

    id: str
    principal: Principal
    version: int | None


def find_snapshot(key: OrderKey) -> Snapshot | None:
    """Find an order, in one statement with those of concurrent requests."""
    return _READS.get().submit(key)


def get_order(order_id: str, *, principal: Principal, version: int | None = None) -> StoredOrder:
    """The current order, or the order at `version` (1 or more). Raises OrderNotFound, even if another owner has it."""
    parsed_id = parse_order_id(order_id)
    snapshot = find_snapshot(OrderKey(parsed_id, principal, version))
    if snapshot is not None:
        return visible_order(StoredOrder(parsed_id, *snapshot), principal)
    if version is not None and (current := find_snapshot(OrderKey(parsed_id, principal, None))):
        raise OrderNotFound(f"Order {parsed_id} has no version {version}: it is at version {current[0]}.")
    raise order_not_found(order_id)


def get_order_by_reference(external_ref: str, *, principal: Principal) -> StoredOrder:
    """The current order with an external reference of the principal's own. Raises OrderNotFound.

    The reference belongs to the principal that created the order: the same one of another principal is not found. An
    erasure keeps references, so the order is found after it as well, except by the customer, who no longer owns it.
    """
    ref_hash = hash_reference(external_ref, principal=principal.id)
    keys = {"external_ref": external_ref, "external_ref_hash": ref_hash}
    rows = _BY_REFERENCE.rows(**keys, **owner_values(principal))
    if not rows:
        raise OrderNotFound("You have no order with this external_ref.")
    return visible_order(StoredOrder(*rows[0]), principal)


def parse_order_id(order_id: str) -> str:
    """The id in its canonical form. Raises OrderNotFound if it is not a UUID."""
    parsed_id = parse_uuid(order_id)
    if parsed_id is None:
        raise order_not_found(order_id)
    return parsed_id


def order_not_found(order_id: str) -> OrderNotFound:
    """The error for an order that does not exist or has another owner."""
    return OrderNotFound(f"Order {order_id[:64]} was not found.")


def owned_by(customer_id: ColumnElement[Any], channels: ColumnElement[Any]) -> ColumnElement[bool]:
    """The owner predicate: orders of the customer only, and of the channels, a JSON array, only; NULL admits any.

    Every statement that reads or changes an order for a principal has it, with the values of `owner_values`.
    """
    return and_(
        or_(customer_id.is_(None), Order.customer_id == customer_id),
        or_(channels.is_(None), is_one_of(Order.channel, channels)),
    )


def owner_parameters() -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """The parameters `customer_id` and `channels` of a statement, for `owned_by`."""
    return cast(bindparam("customer_id"), Text), cast(bindparam("channels"), Text)


def owner_values(principal: Principal) -> dict[str, str | None]:
    """The values of `owner_parameters`."""
    channels = None if principal.channels is None else orjson.dumps(sorted(principal.channels)).decode()
    return {"customer_id": principal.customer_id, "channels": channels}


def restrict_to_owner(values: dict[str, list[Any]], principal: Principal) -> None:
    """The owner predicate of lists and searches: limit the filters by customer and by channel, which indexes serve.

    `values` are those of each filter. A filter without values remains if no order can match.
    """
    if principal.customer_id is not None:
        _restrict(values, "customer_id", {principal.customer_id})
    if principal.channels is not None:
        _restrict(values, "channel", principal.channels)


def _restrict(values: dict[str, list[Any]], name: str, allowed: Set[str]) -> None:
    """Limit a filter to the values that are allowed."""
    values[name] = [value for value in values.get(name, sorted(allowed)) if value in allowed]


def _find_snapshots(keys: Sequence[OrderKey]) -> Sequence[Snapshot | None]:
    return SNAPSHOTS.rows([{"id": key.id, "version": key.version, **owner_values(key.principal)} for key in keys])


def _select_snapshot(key: Subquery) -> Select[int, str]:
    order = and_(Order.id == key.c.id, owned_by(key.c.customer_id, key.c.channels))
    version = func.coalesce(key.c.version, Order.version)
    event = and_(OrderEvent.order_id == Order.id, OrderEvent.version == version)
    return select(OrderEvent.version, OrderEvent.snapshot).select_from(OrderEvent).join(Order, event).where(order)


def _reference_statement() -> Statement:
    event = and_(OrderEvent.order_id == Order.id, OrderEvent.version == Order.version)
    snapshot = select(OrderEvent.snapshot).where(event).scalar_subquery()
    names = "external_ref", "external_ref_hash"
    own = (Order.__table__.c[name] == bindparam(name, type_=Text) for name in names)
    query = select(cast(Order.id, Text), Order.version, snapshot)
    return Statement(query.where(*own, owned_by(*owner_parameters())))


ORDER_KEY_COLUMNS = (column("id", UUID), column("customer_id", Text), column("channels", Text))  # of an `OrderKey`
SNAPSHOTS = Lookup([*ORDER_KEY_COLUMNS, column("version", Integer)], _select_snapshot)
_BY_REFERENCE = _reference_statement()
_READS = PerApplication(lambda: Batcher[OrderKey, Snapshot | None](_find_snapshots, max_batch=GROUP_READ_MAX))


@dataclass(frozen=True, slots=True)
class EventRow:
    """A row of `_HISTORY`.

    `snapshot_before` is set in the first row only: for each other row, it is the snapshot of the preceding row.
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
    parsed_id = parse_order_id(order_id)
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

    There is no move: an operation states the new value, and equal numbers in two members are unrelated.
    """
    # Only what differs: comparing all members would take ten times as long.
    old = {name: value for name, value in before.items() if name not in after or after[name] != value}
    new = {name: value for name, value in after.items() if name not in before or before[name] != value}
    patch = jsonpatch.JsonPatch.from_diff(old, new, optimization=False, dumps=_dumps)
    operations: list[dict[str, Any]] = patch.patch
    return operations


def _dumps(value: Any) -> str:
    """The JSON text that jsonpatch compares values by; with the standard library's, a patch takes twice the time."""
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
