"""Looking up single orders, those of concurrent requests together: one round trip, one plan, for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import (
    JSON,
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
from app.db.group_commit import Group
from app.db.per_engine import PerDatabase
from app.db.statement import Statement
from app.db.types import UUID
from app.models import Order, OrderEvent
from app.models.tables import json_rows

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
    return _LOOKUPS.get().call(wanted)


def _find(wanted: Sequence[OrderKey]) -> list[Snapshot]:
    batch = orjson.dumps(
        [{"position": i, "id": one.id, "owner": one.owner, "version": one.version} for i, one in enumerate(wanted)]
    ).decode()
    rows = _STATEMENTS[db.engine.dialect.name].rows(wanted=batch)
    found = {position: (version, document) for position, version, document in rows}
    return [found.get(i) for i in range(len(wanted))]


def _version_of(wanted: Subquery) -> Select[int, str]:
    """The wanted version of the wanted order, if it is the owner's."""
    own = and_(Order.id == wanted.c.id, or_(wanted.c.owner.is_(None), Order.customer_id == wanted.c.owner))
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
_LOOKUPS = PerDatabase(lambda: Group[OrderKey, Snapshot](_find, most=_TOGETHER))
