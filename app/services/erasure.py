"""Erasing what is known of a person (GDPR, Article 17), and nothing of what was sold."""

from datetime import UTC, datetime

import orjson
from sqlalchemy import select, update
from sqlalchemy.orm import selectinload

from app.errors import OpenOrders
from app.extensions import db
from app.models import ChangeKey, Order, OrderEvent, OutboxEntry
from app.models.lifecycle import ERASED, OPEN
from app.models.personal_data import new_alias, scrub
from app.models.principal import Principal, customer_principal_id
from app.services.order_document import render_stored_order
from app.services.transactions import in_transaction


def erase_customer(customer_id: str, *, principal: Principal) -> None:
    """Take the customer's personal data out of all their orders, their log and every snapshot in it.

    The customer of these orders is a random name from then on, one for all of them. External references stay: they
    belong to the caller's books. Idempotency keys stay as hashes, so that a retry makes no second order; the
    fingerprints of the bodies do not. Done again, it finds nothing to do. Raises OpenOrders while there are any.
    """
    in_transaction(lambda: _erase(customer_id, principal))
    if db.engine.dialect.name == "sqlite":
        _rewrite_the_file()


def _rewrite_the_file() -> None:
    """What was moved from page to page leaves copies behind, which secure_delete does not reach (150 erased orders of
    600 left five), and the old pages wait in the write-ahead log. It takes seconds a gigabyte; PostgreSQL's own VACUUM
    comes by itself. Not on a Connection: inside of its transaction neither is possible.
    """
    pooled = db.engine.raw_connection()
    try:
        for statement in ("VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
            pooled.cursor().execute(statement).fetchall()
    finally:
        pooled.close()


def _erase(customer_id: str, principal: Principal) -> None:
    orders = db.session.scalars(
        select(Order)
        .where(Order.customer_id == customer_id)
        .order_by(Order.id)
        .options(selectinload(Order.items), selectinload(Order.fulfillments), selectinload(Order.returns))
        .with_for_update()
    ).all()
    for order in orders:
        if order.status in OPEN:
            raise OpenOrders("The customer has open orders; end them first.", order_id=order.id)
    alias, now = new_alias(), datetime.now(UTC)
    themselves = principal.id == customer_principal_id(customer_id)
    for order in orders:
        _erase_log(order.id, customer_id=customer_id, alias=alias)
        order.erase(alias=alias, at=now)
        event = OrderEvent(
            order_id=order.id,
            version=order.version,
            type=ERASED,
            actor=customer_principal_id(alias) if themselves else principal.id,
            at=now,
            snapshot=render_stored_order(order).decode(),
        )
        db.session.add_all([event, OutboxEntry(order_id=order.id, version=order.version, at=now)])


def _erase_log(order_id: str, *, customer_id: str, alias: str) -> None:
    """The one place where events are rewritten: the law goes before the log."""
    db.session.execute(update(ChangeKey).where(ChangeKey.order_id == order_id).values(fingerprint=None))
    for event in db.session.scalars(select(OrderEvent).where(OrderEvent.order_id == order_id)):
        event.snapshot = orjson.dumps(scrub(orjson.loads(event.snapshot), alias=alias)).decode()
        if event.actor == customer_principal_id(customer_id):
            event.actor = customer_principal_id(alias)
