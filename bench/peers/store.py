"""Orders in PostgreSQL with asyncpg and no ORM: a create is one statement, so that it needs no transaction.

Run as a command it creates the tables.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from bench.peers import orders
from bench.peers.orders import DuplicateExternalRef, IdempotencyKeyReused, NewOrder

POOL_SIZE = 10  # per worker, as many as the service has

Outcome = tuple[str, bool] | IdempotencyKeyReused | DuplicateExternalRef  # the document, and whether it is a replay

_COLUMNS = """
    id, number, customer_id, external_ref, idempotency_key, fingerprint, status, fulfillment_status, currency,
    adjustments, items_total, adjustments_total, shipping_address, billing_address, note, metadata, version, created_at,
    updated_at"""
_CREATE = f"""
WITH made AS (
    INSERT INTO orders ({_COLUMNS})
    VALUES ($1, $2, $3, $4, $5, $6, 'pending', 'unfulfilled', $7, $8, $9, $10, $11, $12, $13, $14, 1, $15, $15)
    ON CONFLICT DO NOTHING RETURNING id
), items AS (
    INSERT INTO order_items (order_id, item_id, quantity, unit_price, line, fulfilled, returned)
    SELECT made.id, item.*, 0, 0
    FROM made, unnest($16::text[], $17::int[], $18::bigint[]) WITH ORDINALITY AS item
), queued AS (
    INSERT INTO outbox SELECT id, 1, $15::timestamptz FROM made
)
INSERT INTO order_events (order_id, version, type, at, snapshot)
SELECT id, 1, 'order.created', $15::timestamptz, $19 FROM made RETURNING order_id"""
_CREATE_MANY = f"""
WITH new AS (
    SELECT * FROM json_to_recordset($1::json) AS new (
        id uuid, number text, customer_id text, external_ref text, idempotency_key text, fingerprint text, status text,
        fulfillment_status text, currency text, adjustments json, items_total bigint, adjustments_total bigint,
        shipping_address json, billing_address json, note text, metadata json, version int, created_at timestamptz,
        updated_at timestamptz, items json, snapshot json)
), made AS (
    INSERT INTO orders ({_COLUMNS}) SELECT {_COLUMNS} FROM new ON CONFLICT DO NOTHING RETURNING id
), items AS (
    INSERT INTO order_items (order_id, line, item_id, quantity, unit_price, fulfilled, returned)
    SELECT new.id, item.* FROM new JOIN made USING (id), json_to_recordset(new.items) AS item (
        line int, item_id text, quantity int, unit_price bigint, fulfilled int, returned int)
), queued AS (
    INSERT INTO outbox SELECT new.id, 1, created_at FROM new JOIN made USING (id)
)
INSERT INTO order_events (order_id, version, type, at, snapshot)
SELECT new.id, 1, 'order.created', created_at, snapshot FROM new JOIN made USING (id) RETURNING order_id::text"""
_COLLISIONS = """
SELECT idempotency_key, external_ref, fingerprint, snapshot
FROM orders JOIN order_events ON order_id = id AND order_events.version = 1
WHERE idempotency_key = ANY ($1) OR external_ref = ANY ($2)"""
_ORDER = """
SELECT id::text, number, customer_id, external_ref, status, fulfillment_status, currency, adjustments,
    items_total, adjustments_total, shipping_address, billing_address, note, metadata, version,
    created_at, updated_at, (
        SELECT json_agg(json_build_object('line', line, 'item_id', item_id, 'quantity', quantity,
            'unit_price', unit_price, 'fulfilled', fulfilled, 'returned', returned) ORDER BY line)
        FROM order_items WHERE order_id = id
    ) AS items
FROM orders"""
_GET = f"{_ORDER} WHERE id = $1"
# Not `ORDER BY id`: that would sort by the selected text, which has no index.
_LIST = f"{_ORDER} WHERE id < $1 ORDER BY orders.id DESC LIMIT $2"
_CONFIRM = """
WITH changed AS (
    UPDATE orders SET status = 'confirmed', version = $2, updated_at = $3
    WHERE id = $1 AND version = $2 - 1 RETURNING id
), queued AS (
    INSERT INTO outbox SELECT id, $2, $3 FROM changed
)
INSERT INTO order_events (order_id, version, type, at, snapshot)
SELECT id, $2, 'order.confirmed', $3, $4 FROM changed RETURNING order_id"""
NEWEST = UUID(int=2**128 - 1)


async def open_pool() -> asyncpg.Pool:
    return await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=POOL_SIZE, max_size=POOL_SIZE)


async def create(pool: asyncpg.Pool, order: NewOrder) -> tuple[str, bool]:
    """Store an order; return its document and whether it existed. Raises IdempotencyKeyReused, DuplicateExternalRef."""
    document, items = order.document, order.document["items"]
    items_total, adjustments_total = _sums(document)
    made = await pool.fetchval(
        _CREATE, document["id"], document["number"], document["customer_id"], document["external_ref"],
        order.idempotency_key, order.fingerprint, document["currency"], _json(document["adjustments"]), items_total,
        adjustments_total, _json(document["shipping_address"]), _json(document["billing_address"]), document["note"],
        _json(document["metadata"]), document["created_at"], [item["item_id"] for item in items],
        [item["quantity"] for item in items], [item["unit_price"] for item in items], order.snapshot,
    )  # fmt: skip
    if made:
        return order.snapshot, False
    [outcome] = await _collisions(pool, [order])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def create_many(pool: asyncpg.Pool, batch: Sequence[NewOrder]) -> list[Outcome]:
    """Store orders with one statement, each accepted or refused independently."""
    # All processes lock in the same order: otherwise two batches with the same keys would deadlock.
    batch_sorted = sorted(batch, key=lambda order: order.idempotency_key or "")
    parameter = orjson.dumps([_row(order) for order in batch_sorted]).decode()
    made = {row[0] for row in await pool.fetch(_CREATE_MANY, parameter)}
    missing = [order for order in batch if order.document["id"] not in made]
    collisions = iter(await _collisions(pool, missing) if missing else ())
    return [(order.snapshot, False) if order.document["id"] in made else next(collisions) for order in batch]


async def find(pool: asyncpg.Pool, order_id: UUID) -> asyncpg.Record | None:
    return await pool.fetchrow(_GET, order_id)


async def page(pool: asyncpg.Pool, *, limit: int, after: UUID | None) -> tuple[list[asyncpg.Record], str | None]:
    """Return the newest orders after `after`, and the start of the next page."""
    rows = await pool.fetch(_LIST, after or NEWEST, limit + 1)
    return rows[:limit], rows[limit - 1]["id"] if len(rows) > limit else None


async def confirm(pool: asyncpg.Pool, row: asyncpg.Record, render: Callable[[dict[str, Any]], bytes]) -> bytes | None:
    """Confirm an order that was read; None if it is no longer pending."""
    if row["status"] != "pending":
        return None
    at, version = orders.now(), row["version"] + 1
    document = render({**row, "status": "confirmed", "version": version, "updated_at": at})
    changed = await pool.fetchval(_CONFIRM, row["id"], version, at, document.decode())
    return document if changed else None


async def _collisions(pool: asyncpg.Pool, missing: Sequence[NewOrder]) -> list[Outcome]:
    """Read the conflicting orders, after the insert: within it, the winner of a race is not visible yet."""
    keys = [order.idempotency_key for order in missing]
    rows = await pool.fetch(_COLLISIONS, keys, [order.document["external_ref"] for order in missing])
    by_key = {row["idempotency_key"]: row for row in rows if row["idempotency_key"] is not None}
    return [_judge(order, by_key.get(order.idempotency_key)) for order in missing]


def _judge(order: NewOrder, row: asyncpg.Record | None) -> Outcome:
    if row is None:
        return DuplicateExternalRef()
    return (row["snapshot"], True) if row["fingerprint"] == order.fingerprint else IdempotencyKeyReused()


def _row(order: NewOrder) -> dict[str, Any]:
    items_total, adjustments_total = _sums(order.document)
    return order.document | {
        "idempotency_key": order.idempotency_key,
        "fingerprint": order.fingerprint,
        "items_total": items_total,
        "adjustments_total": adjustments_total,
        "snapshot": orjson.Fragment(order.snapshot),
    }


def _sums(document: dict[str, Any]) -> tuple[int | None, int | None]:
    sums = document["totals"] or {}
    return sums.get("items"), sums.get("adjustments")


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


async def _create_tables() -> None:
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    await connection.execute(Path(__file__).with_name("tables.sql").read_text())
    await connection.close()


if __name__ == "__main__":
    asyncio.run(_create_tables())
