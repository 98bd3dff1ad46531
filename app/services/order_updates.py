"""How a changed order gets into the database: as its next version, unless another writer has made that one.

PostgreSQL does it in one statement, one round trip; SQLite, which cannot write in a WITH, in one transaction.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import orjson
from sqlalchemy import (
    JSON,
    Integer,
    Table,
    Text,
    and_,
    bindparam,
    cast,
    column,
    delete,
    insert,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import aliased

from app.db.engine import db
from app.db.statement import Statement, json_row, json_rows, typed
from app.models import CHANGE_KEYS, EVENTS, FULFILLMENTS, ITEMS, ORDERS, OUTBOX, RETURNS, ChangeKey, Order, OrderEvent

_FIXED = {"id", "number", "principal", "customer_id", "idempotency_key_hash", "fingerprint", "created_at"}
_CHANGING = [str(name) for name in ORDERS.c.keys() if name not in _FIXED]  # orjson takes no quoted_name
_CHILDREN = {"order_items": ITEMS, "fulfillments": FULFILLMENTS, "returns": RETURNS}


@dataclass(frozen=True, slots=True)
class Current:
    """An order as it is, and what the caller's key was answered, if it was used before.

    `replayed_fingerprint` is None where an erasure took it.
    """

    id: str
    principal: str
    external_ref_hash: str | None
    document: str
    replayed_version: int | None
    replayed_fingerprint: str | None
    replayed_document: str | None


@dataclass(frozen=True, slots=True)
class KeyOfChange:
    """The hash of the idempotency key that a change is requested under, and the body's fingerprint; None without a
    key."""

    key_hash: str | None
    fingerprint: str | None


def read_current(order_id: str, *, owner: str | None, key_hash: str | None) -> Current | None:
    """The order; None where there is none, or `owner` is given and it is another customer's."""
    rows = _CURRENT.rows(id=order_id, owner=owner, key_hash=key_hash)
    return Current(*rows[0]) if rows else None


def store_unchanged(order: Order, *, key: KeyOfChange) -> bool:
    """Whether the key of a request that changes nothing is stored, with the order's version as its answer.

    If not, the order is at another version by now, or the key has been used.
    """
    statement = _KEEP_KEY[db.engine.dialect.name]
    values = {"id": order.id, "version": order.version, "key_hash": key.key_hash, "fingerprint": key.fingerprint}
    return bool(statement.rows(**values))


def store_version(order: Order, event: dict[str, Any], *, key: KeyOfChange, before: Mapping[str, Any]) -> bool:
    """Whether the changed order is stored, with its key and with its event, which is given by its columns; if not, it
    is not at the version of the document `before` any more.

    Raises the driver's error, and then nothing is stored; nobody knows it where the connection was lost. A key that
    has been used meanwhile for a request that changed nothing is a duplicate.
    """
    columns = order.columns()
    change = {name: columns[name] for name in _CHANGING} | event | _new_rows(order, before)
    change |= {"key_hash": key.key_hash, "fingerprint": key.fingerprint}
    change["last_line"] = len(order.items)
    if db.engine.dialect.name == "sqlite":
        return _store_in_transaction(change)
    change["snapshot"] = orjson.Fragment(event["snapshot"])
    return bool(_UPDATE.rows(change=orjson.dumps(change).decode()))


def _new_rows(order: Order, before: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows that are new or differ, by the names of their tables."""
    lines = zip_longest(_rows_of(ITEMS, order.items), before["items"])
    sent, back = len(before["fulfillments"]), len(before["returns"])
    return {
        "order_items": [line for line, old in lines if line and line != old],
        "fulfillments": _rows_of(FULFILLMENTS, order.fulfillments[sent:]),
        "returns": _rows_of(RETURNS, order.returns[back:]),
    }


def _rows_of(table: Table, children: Sequence[object]) -> list[dict[str, Any]]:
    names = [name for name in table.c.keys() if name != "order_id"]
    return [{name: getattr(child, name) for name in names} for child in children]


def _store_in_transaction(change: Mapping[str, Any]) -> bool:
    order_id = change["order_id"]

    def values(names: Iterable[str]) -> dict[str, Any]:
        return {name: change[name] for name in names}

    with db.engine.begin() as connection:
        before = and_(ORDERS.c.id == order_id, ORDERS.c.version == change["version"] - 1)
        if not connection.execute(update(ORDERS).where(before).values(values(_CHANGING))).rowcount:
            return False
        connection.execute(delete(ITEMS).where(ITEMS.c.order_id == order_id, ITEMS.c.line > change["last_line"]))
        for name, table in _CHILDREN.items():
            if rows := change[name]:
                connection.execute(_written(sqlite.insert(table)), [{"order_id": order_id, **row} for row in rows])
        connection.execute(insert(EVENTS), values(EVENTS.c.keys()))
        connection.execute(insert(OUTBOX), values(OUTBOX.c.keys()))
        if change["key_hash"] is not None:
            connection.execute(insert(CHANGE_KEYS), values(CHANGE_KEYS.c.keys()))
    return True


def _written(rows: Any) -> Any:
    """The insert, which for a line that is there already is an update. What was sent and came back is only added to."""
    if rows.table is not ITEMS:
        return rows
    values = {c.name: rows.excluded[c.name] for c in ITEMS.c if not c.primary_key}
    return rows.on_conflict_do_update(index_elements=ITEMS.primary_key, set_=values)


def _current_statement() -> Statement:
    owner = cast(bindparam("owner"), Text)
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
        .where(Order.id == bindparam("id"), or_(owner.is_(None), Order.customer_id == owner))
    )


def _keep_key_statement(dialect: Any) -> Statement:
    row = select(Order.id, bindparam("key_hash", type_=Text), Order.version, bindparam("fingerprint", type_=Text))
    row = row.where(Order.id == bindparam("id"), Order.version == bindparam("version", type_=Integer))
    # The row lock makes it wait for whoever changes or erases the order now, and then see what they made of it.
    row = row.with_for_update(read=True)
    names = ["order_id", "key_hash", "version", "fingerprint"]
    kept = dialect.insert(CHANGE_KEYS).from_select(names, row).on_conflict_do_nothing()
    return Statement(kept.returning(CHANGE_KEYS.c.version))


def _update_statement() -> Statement:
    columns = [
        *typed(EVENTS.c),
        *typed(CHANGE_KEYS.c[name] for name in ("key_hash", "fingerprint")),
        *typed(ORDERS.c[name] for name in _CHANGING if name not in EVENTS.c),
        *(column(name, JSON) for name in _CHILDREN),
        column("last_line", Integer),
    ]
    change = select(json_row(cast(bindparam("change", type_=Text), JSON), "change", *columns)).cte("change")
    changed = (
        update(ORDERS)
        .where(ORDERS.c.id == change.c.order_id, ORDERS.c.version == change.c.version - 1)
        .values({ORDERS.c[name]: change.c[name] for name in _CHANGING})
        .returning(ORDERS.c.id)
        .cte("changed")
    )
    stored = change.join(changed, change.c.order_id == changed.c.id)

    def copied(table: Table, *conditions: Any) -> Any:
        names = table.c.keys()
        row = select(*(change.c[name] for name in names)).select_from(stored)
        return insert(table).from_select(names, row.where(*conditions))

    def children(name: str, table: Table) -> Any:
        row = json_rows(change.c[name], "row", *typed(c for c in table.c if c.name != "order_id"))
        rows = select(change.c.order_id, *row.c).select_from(stored.join(row, true()))
        return _written(postgresql.insert(table).from_select(["order_id", *row.c.keys()], rows))

    gone = delete(ITEMS).where(ITEMS.c.order_id == changed.c.id, ITEMS.c.line > change.c.last_line)
    others = {"gone": gone, "queued": copied(OUTBOX), "key": copied(CHANGE_KEYS, change.c.key_hash.is_not(None))}
    others |= {f"new_{name}": children(name, table) for name, table in _CHILDREN.items()}
    return Statement(
        copied(EVENTS).add_cte(*(one.cte(name) for name, one in others.items())).returning(EVENTS.c.version),
        repeatable=False,  # run again, it would find the version that it has made itself
    )


_CURRENT, _UPDATE = _current_statement(), _update_statement()
_KEEP_KEY = {"postgresql": _keep_key_statement(postgresql), "sqlite": _keep_key_statement(sqlite)}
