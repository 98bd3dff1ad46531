"""Storing a changed order as its next version, unless another writer has stored that version first.

PostgreSQL does it in one statement and one round trip. SQLite, which cannot insert inside WITH, uses a transaction.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import orjson
from sqlalchemy import (
    JSON,
    Integer,
    Text,
    and_,
    bindparam,
    cast,
    column,
    delete,
    func,
    insert,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import aliased

from app.db.engine import db
from app.db.statement import Statement, json_row, json_rows, typed
from app.db.transactions import read_rows
from app.errors import TooManyIdempotencyKeys
from app.models import CHANGE_KEYS, EVENTS, ITEMS, ORDERS, ChangeKey, Order, OrderEvent
from app.models.event import CHANGE_KEYS_MAX
from app.models.principal import Owner
from app.services.order_inserts import insert_events, insert_events_from
from app.services.order_queries import owned_by, owner_parameters, owner_values

_IMMUTABLE = {"id", "number", "principal", "customer_id", "idempotency_key_hash", "fingerprint", "created_at"}
_MUTABLE = [str(name) for name in ORDERS.c.keys() if name not in _IMMUTABLE]  # orjson takes no quoted_name


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The hash of the idempotency key of a change, and the fingerprint of the body that it is sent with."""

    key_hash: str
    fingerprint: str | None


@dataclass(frozen=True, slots=True)
class CurrentOrder:
    """The current snapshot of an order, the columns that it does not hold, and the response to an earlier request with
    the same idempotency key.

    `replayed_version` is None where the key is new; `replayed_fingerprint` is None after an erasure.
    """

    id: str
    principal: str
    external_ref_hash: str | None
    document: str
    replayed_version: int | None
    replayed_fingerprint: str | None
    replayed_document: str | None


def find_current_order(order_id: str, *, owner: Owner, key: IdempotencyKey | None) -> CurrentOrder | None:
    """The order, if it is the owner's."""
    rows = CURRENT_ORDER.rows(id=order_id, **owner_values(owner), key_hash=None if key is None else key.key_hash)
    return CurrentOrder(*rows[0]) if rows else None


def store_key(key: IdempotencyKey, *, order_id: str, version: int) -> bool:
    """Store the key of a request that changed nothing, with the version that it is answered with.

    False where the order is at another version by now, the key has been used, or the order has CHANGE_KEYS_MAX keys.
    """
    dialect = db.engine.dialect.name
    values = {"id": order_id, "version": version, "key_hash": key.key_hash, "fingerprint": key.fingerprint}
    values["keys_max"] = CHANGE_KEYS_MAX
    if dialect == "sqlite":
        with db.engine.begin() as connection:  # BEGIN IMMEDIATE waits for another process's write, a statement does not
            return connection.execute(_INSERT_KEY[dialect], values).first() is not None
    return bool(_STORE_KEY.rows(**values))


def require_room_for_key(order_id: str) -> None:
    """Raise TooManyIdempotencyKeys if the order has CHANGE_KEYS_MAX keys."""
    [row] = read_rows(select(func.count().label("keys")).where(ChangeKey.order_id == order_id))
    if row.keys >= CHANGE_KEYS_MAX:
        raise TooManyIdempotencyKeys(
            f"The order has {row.keys} idempotency keys, the maximum for requests that change nothing."
        )


def store_version(
    order: Order, event: dict[str, Any], *, key: IdempotencyKey | None, before: Mapping[str, Any]
) -> bool:
    """Store the changed order, its key, its event and its outbox row. False where another version is stored by now.

    `before` is the document that the order was parsed from. Raises the driver's error: nothing is stored then, except
    that this is unknown after a lost connection. A key that another request has stored in between is a duplicate.
    """
    columns = order.columns()
    change = {name: columns[name] for name in _MUTABLE} | event | {"items": _changed_items(order, before)}
    change |= {"key_hash": key and key.key_hash, "fingerprint": key and key.fingerprint, "last_line": len(order.items)}
    if db.engine.dialect.name == "sqlite":
        return _store_in_transaction(change)
    change["snapshot"] = orjson.Fragment(event["snapshot"])
    return bool(UPDATE_ORDER.rows(change=orjson.dumps(change).decode()))


def _changed_items(order: Order, before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The columns of the items that are new or changed."""
    items = [item.columns() for item in order.items]
    for item in items:
        del item["order_id"]
    return [item for item, old in zip_longest(items, before["items"]) if item and item != old]


def _store_in_transaction(change: Mapping[str, Any]) -> bool:
    order_id = change["order_id"]

    def values(names: Iterable[str]) -> dict[str, Any]:
        return {name: change[name] for name in names}

    with db.engine.begin() as connection:
        before = and_(ORDERS.c.id == order_id, ORDERS.c.version == change["version"] - 1)
        if not connection.execute(update(ORDERS).where(before).values(values(_MUTABLE))).rowcount:
            return False
        connection.execute(delete(ITEMS).where(ITEMS.c.order_id == order_id, ITEMS.c.line > change["last_line"]))
        if items := change["items"]:
            connection.execute(_upsert(sqlite.insert(ITEMS)), [{"order_id": order_id, **item} for item in items])
        insert_events(connection, [values(EVENTS.c.keys())])
        if change["key_hash"] is not None:
            connection.execute(insert(CHANGE_KEYS), values(CHANGE_KEYS.c.keys()))
    return True


def _upsert(items: Any) -> Any:
    """The insert; an item whose line exists already is updated."""
    values = {c.name: items.excluded[c.name] for c in ITEMS.c if not c.primary_key}
    return items.on_conflict_do_update(index_elements=ITEMS.primary_key, set_=values)


def _current_statement() -> Statement:
    used = and_(ChangeKey.order_id == Order.id, ChangeKey.key_hash == bindparam("key_hash"))

    def snapshot(version: Any) -> Any:
        # A scalar subquery: a join may be planned to read all versions of the order for one.
        event = aliased(OrderEvent)
        document = select(cast(event.snapshot, Text)).where(event.order_id == Order.id, event.version == version)
        return document.scalar_subquery()

    return Statement(
        select(cast(Order.id, Text), Order.principal, Order.external_ref_hash, snapshot(Order.version))
        .add_columns(ChangeKey.version, ChangeKey.fingerprint, snapshot(ChangeKey.version))
        .outerjoin(ChangeKey, used)
        .where(Order.id == bindparam("id"), owned_by(*owner_parameters()))
    )


def _insert_key(dialect: Any) -> Any:
    row = select(Order.id, bindparam("key_hash", type_=Text), Order.version, bindparam("fingerprint", type_=Text))
    row = row.where(Order.id == bindparam("id"), Order.version == bindparam("version", type_=Integer))
    keys = select(func.count()).where(ChangeKey.order_id == Order.id).correlate(Order).scalar_subquery()
    row = row.where(keys < bindparam("keys_max", type_=Integer))
    # The row lock waits for a concurrent change or erasure of the order, and then sees its result.
    row = row.with_for_update(read=True)
    names = ["order_id", "key_hash", "version", "fingerprint"]
    keys = dialect.insert(CHANGE_KEYS).from_select(names, row).on_conflict_do_nothing()
    return keys.returning(CHANGE_KEYS.c.version)


def _update_statement() -> Statement:
    columns = [
        *typed(EVENTS.c),
        *typed(CHANGE_KEYS.c[name] for name in ("key_hash", "fingerprint")),
        *typed(ORDERS.c[name] for name in _MUTABLE if name not in EVENTS.c),
        column("items", JSON),
        column("last_line", Integer),
    ]
    change = select(json_row(cast(bindparam("change", type_=Text), JSON), "change", *columns)).cte("change")
    changed = (
        update(ORDERS)
        .where(ORDERS.c.id == change.c.order_id, ORDERS.c.version == change.c.version - 1)
        .values({ORDERS.c[name]: change.c[name] for name in _MUTABLE})
        .returning(ORDERS.c.id)
        .cte("changed")
    )
    stored = change.join(changed, change.c.order_id == changed.c.id)

    item = json_rows(change.c["items"], "item", *typed(c for c in ITEMS.c if c.name != "order_id"))
    items = select(change.c.order_id, *item.c).select_from(stored.join(item, true()))
    events, outbox = insert_events_from(stored, dict(change.c))
    writes = {"new_items": _upsert(postgresql.insert(ITEMS).from_select(["order_id", *item.c.keys()], items))}
    writes["removed_items"] = delete(ITEMS).where(ITEMS.c.order_id == changed.c.id, ITEMS.c.line > change.c.last_line)
    writes["new_outbox"] = outbox
    key = select(*(change.c[name] for name in CHANGE_KEYS.c.keys())).select_from(stored)
    writes["new_key"] = insert(CHANGE_KEYS).from_select(CHANGE_KEYS.c.keys(), key.where(change.c.key_hash.is_not(None)))
    return Statement(
        events.add_cte(*(one.cte(name) for name, one in writes.items())).returning(EVENTS.c.version),
        repeatable=False,  # repeated, it would find the version that it has stored itself
    )


CURRENT_ORDER, UPDATE_ORDER = _current_statement(), _update_statement()
_INSERT_KEY = {"postgresql": _insert_key(postgresql), "sqlite": _insert_key(sqlite)}
_STORE_KEY = Statement(_INSERT_KEY["postgresql"])
