"""Looking up single orders, those of concurrent requests together: one round trip, one plan, for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import orjson
from sqlalchemy import (
    JSON,
    ColumnElement,
    Integer,
    Select,
    String,
    Subquery,
    Text,
    and_,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    or_,
    select,
    true,
)

from app.db.engine import db
from app.db.group_commit import GroupCommit, PerEngine
from app.db.statement import Statement, json_rows, rows_within
from app.db.types import UUID, read_timestamp, rfc3339
from app.errors import OrderNotFound
from app.models import Order, OrderEvent
from app.models.order_id import parse_uuid
from app.models.principal import Principal
from app.services.order_document import StoredOrder, visible_actor, visible_document, visible_order

_TOGETHER = 100  # orders in one statement

# A version of an order and its document; None where there is no such order for the one who asks.
Snapshot = tuple[int, str] | None


@dataclass(frozen=True, slots=True)
class OrderKey:
    """The order `id` at a version, None for the current one; only if it is the customer's `owner`, None for any."""

    id: str
    owner: str | None
    version: int | None


def find_snapshot(wanted: OrderKey) -> Snapshot:
    """Find one order, together with those that other requests want at the same moment."""
    return _LOOKUPS.get().submit(wanted)


def get_order(order_id: str, *, principal: Principal, version: int | None = None) -> StoredOrder:
    """The order now, or as it was at `version` (from 1). Raises OrderNotFound, also for one of another customer."""
    known_id = parse_uuid(order_id)
    found = find_snapshot(OrderKey(known_id, principal.customer_id, version)) if known_id else None
    if known_id and found:
        return visible_order(StoredOrder(known_id, *found), principal)
    raise order_not_found(order_id, version=version)


def order_not_found(order_id: str, *, version: int | None = None) -> OrderNotFound:
    """The error for an order, or a version of it, that does not exist or belongs to another customer."""
    which = f"Version {version} of order" if version else "Order"
    return OrderNotFound(f"{which} {order_id[:64]} was not found.")


def owned_by(owner: ColumnElement[Any]) -> ColumnElement[bool]:
    """The owner predicate: orders of the customer `owner` only; all orders where it is NULL."""
    return or_(owner.is_(None), Order.customer_id == owner)


def _find(wanted: Sequence[OrderKey]) -> list[Snapshot]:
    batch = orjson.dumps(
        [{"position": i, "id": one.id, "owner": one.owner, "version": one.version} for i, one in enumerate(wanted)]
    ).decode()
    rows = _STATEMENTS[db.engine.dialect.name].rows(wanted=batch)
    found = {position: (version, document) for position, version, document in rows}
    return [found.get(i) for i in range(len(wanted))]


def _version_of(wanted: Subquery) -> Select[int, str]:
    """The wanted version of the wanted order, if it is the owner's."""
    own = and_(Order.id == wanted.c.id, owned_by(wanted.c.owner))
    version = func.coalesce(wanted.c.version, Order.version)
    event = and_(OrderEvent.order_id == Order.id, OrderEvent.version == version)
    return select(OrderEvent.version, OrderEvent.snapshot).join(Order, event).where(own)


def _on_postgresql() -> Statement:
    columns: list[Any] = [
        column("position", Integer), column("id", UUID), column("owner", String), column("version", Integer)
    ]  # fmt: skip
    batch = cast(bindparam("wanted", type_=Text), JSON)
    rows = json_rows(batch, "rows", *columns)
    wanted = select(*rows.c).subquery("wanted")
    # One order after the other, each by its key. A plan for all of them reads the whole table while that is small, and
    # the plan is kept when it has grown.
    found = _version_of(wanted).limit(literal_column("1")).lateral("found")
    return Statement(select(wanted.c.position, *found.c).select_from(wanted).join(found, true()))


def _on_sqlite() -> Statement:
    rows = func.json_each(bindparam("wanted", type_=Text)).table_valued("value", name="rows")
    members = ("position", "id", "owner", "version")
    wanted = select(*(func.json_extract(rows.c.value, f"$.{name}").label(name) for name in members)).subquery("wanted")
    return Statement(_version_of(wanted).with_only_columns(wanted.c.position, OrderEvent.version, OrderEvent.snapshot))


_STATEMENTS = {"postgresql": _on_postgresql(), "sqlite": _on_sqlite()}
_LOOKUPS = PerEngine(lambda: GroupCommit[OrderKey, Snapshot](_find, max_batch=_TOGETHER))


_PAGE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Event:
    """One change of an order, with the order as it was after it."""

    order_id: str
    version: int
    type: str
    actor: str
    snapshot: str
    at: datetime


def list_history(order_id: str, *, principal: Principal, after: int, limit: int) -> tuple[list[Event], bool]:
    """Up to `limit` events behind the version `after`, oldest first, and whether more follow. Raises OrderNotFound.

    There are fewer where their documents would come to more than _PAGE_BYTES.
    """
    known_id = parse_uuid(order_id)
    owner = {} if principal.customer_id is None else {"owner": principal.customer_id}
    rows = _history_statement(bool(owner)).rows(id=known_id, after=after, limit=limit, **owner) if known_id else []
    # At least one event follows the cursors we issue. A forged one may be beyond the last: check that the order exists.
    if not rows and not (known_id and after and find_snapshot(OrderKey(known_id, principal.customer_id, None))):
        raise OrderNotFound(f"Order {order_id[:64]} was not found.")
    events = [
        Event(
            order_id,
            version,
            kind,
            visible_actor(actor, principal),
            visible_document(snapshot, principal),
            read_timestamp(at),
        )
        for order_id, version, kind, actor, snapshot, at, _, _ in rows
    ]
    return events, any(version < current for _, version, *_, current, _ in rows[-1:])


@cache
def _history_statement(own: bool) -> Statement:
    query = (
        select(
            cast(OrderEvent.order_id, Text),
            OrderEvent.version,
            OrderEvent.type,
            OrderEvent.actor,
            OrderEvent.snapshot,
            OrderEvent.at,
            Order.version.label("current_version"),
        )
        .join(Order, Order.id == OrderEvent.order_id)
        .where(
            OrderEvent.order_id == bindparam("id", type_=UUID), OrderEvent.version > bindparam("after", type_=Integer)
        )
    )
    if own:
        query = query.where(Order.customer_id == bindparam("owner", type_=Text))
    query = query.order_by(OrderEvent.version).limit(bindparam("limit", type_=Integer))
    return Statement(rows_within(query, position="version", document="snapshot", size=_PAGE_BYTES, descending=False))


def render_event(event: Event) -> str:
    """An event as JSON text. Its id is the order's and the version's: one change, one version, one event."""
    return orjson.dumps(
        {
            "id": f"{event.order_id}:{event.version}",
            "type": event.type,
            "order_id": event.order_id,
            "version": event.version,
            "actor": event.actor,
            "at": rfc3339(event.at),
            "data": orjson.Fragment(event.snapshot),
        }
    ).decode()
