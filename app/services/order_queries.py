"""Reading one order: its current snapshot, or an earlier version.

Concurrent requests share one statement, as in a group commit: one round trip and one plan for all of them.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    Subquery,
    Text,
    and_,
    bindparam,
    cast,
    column,
    func,
    or_,
    select,
)

from app.db.batching import Batcher, PerApplication
from app.db.statement import Lookup, Statement, is_one_of
from app.db.types import UUID
from app.errors import OrderNotFound
from app.models import Order, OrderEvent
from app.models.order_id import hash_reference, parse_uuid
from app.models.principal import Principal
from app.services.order_document import StoredOrder, visible_order

GROUP_READ_MAX = 100  # orders in one statement

# The version and the document of an order.
Snapshot = tuple[int, str]


@dataclass(frozen=True, slots=True)
class OrderKey:
    """The order `id`, if the principal has access to it, at `version`. None stands for the current version."""

    id: str
    principal: Principal
    version: int | None


def find_snapshot(key: OrderKey) -> Snapshot | None:
    """Find an order, in one statement with those of concurrent requests."""
    return _READS.get().submit(key)


def get_order(order_id: str, *, principal: Principal, version: int | None = None) -> StoredOrder:
    """The current order, or the order at `version` (1 or more). Raises OrderNotFound, also for another owner's."""
    parsed_id = parse_uuid(order_id)
    snapshot = find_snapshot(OrderKey(parsed_id, principal, version)) if parsed_id else None
    if parsed_id is None or snapshot is None:
        raise order_not_found(order_id, version=version)
    return visible_order(StoredOrder(parsed_id, *snapshot), principal)


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


def order_not_found(order_id: str, *, version: int | None = None) -> OrderNotFound:
    """The error for an order, or a version of it, that does not exist or has another owner."""
    which = f"Version {version} of order" if version else "Order"
    return OrderNotFound(f"{which} {order_id[:64]} was not found.")


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

    `values` are those of each filter. A filter without a value is left where no order can match.
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
