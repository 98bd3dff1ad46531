"""Changing an order: read it, let the model decide, write one version and one event; again if another was first.

What is read is the last event's document. The tables follow from the log (`flask verify` tells where they do not).
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import select

from app.db.errors import DATABASE_ERRORS, DatabaseError, is_duplicate, is_lost_connection
from app.db.transactions import read_rows
from app.errors import (
    DuplicateExternalRef,
    Forbidden,
    IdempotencyKeyReused,
    OrderNotFound,
    ServiceUnavailable,
    VersionMismatch,
)
from app.models import Order
from app.models.lifecycle import ACTIONS
from app.models.order_id import LOWEST_ID, first_order_id, hash_key, parse_uuid
from app.models.principal import Principal
from app.services.new_order import caller_columns, item_columns
from app.services.order_document import StoredOrder, parse_order, render_stored_order
from app.services.order_queries import OrderKey, find_snapshot
from app.services.order_updates import Current, KeyOfChange, read_current, store_unchanged, store_version

_PATIENCE = 2.0  # seconds in which other writers of the order may come first, as long as a lock may take
_CHANGE_UNKNOWN = "The database broke off; whether the order was changed is not known."

# What a change does with the order, at a moment. It is done again to what another writer has made of the order.
Change = Callable[[Order, datetime], None]


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """Who asks for which action (a name of `lifecycle.ACTIONS`), and on which conditions.

    `expected_versions` are those the caller takes the order at, None for any. The fingerprint is that of the validated
    body. A key belongs to one action of one order.
    """

    action: str
    principal: Principal
    expected_versions: frozenset[int] | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None

    @property
    def key(self) -> KeyOfChange:
        """The key as it is stored."""
        if self.idempotency_key is None:
            return KeyOfChange(None, None)
        hashed = hash_key(self.idempotency_key, principal=self.principal.id, operation=self.action)
        return KeyOfChange(hashed, self.fingerprint)


def change_order(order_id: str, change: Change, *, request: ChangeRequest) -> StoredOrder:
    """Carry out a change, as one version with one event. A change that alters nothing makes neither, but its key is
    kept: the same request is answered the same, whatever happened in between.

    Raises OrderNotFound, VersionMismatch, IdempotencyKeyReused, DuplicateExternalRef, ServiceUnavailable where other
    writers come first for seconds, and what the change raises (IllegalAction, QuantityExceeded, InvalidRequest).
    """
    unknown: list[StoredOrder] = []  # what became of these, the lost connection did not tell
    deadline, key = time.monotonic() + _PATIENCE, request.key
    while time.monotonic() < deadline:
        if made := next(filter(_is_stored, unknown), None):
            return made
        current = _read(order_id, request.principal, key)
        if current.replayed_document is not None:
            return _replay(current, request)
        before = orjson.loads(current.document)
        order = parse_order(before, principal=current.principal, external_ref_hash=current.external_ref_hash)
        _require_expected(order.version, request)
        change(order, datetime.now(UTC))
        if order.version == before["version"]:
            if key.key_hash is None or store_unchanged(order, key=key):
                return StoredOrder(order.id, order.version, current.document)
            continue
        changed = StoredOrder(order.id, order.version, render_stored_order(order).decode())
        try:
            if store_version(order, _event(order, changed.document, request), key=key, before=before):
                return changed
        except DATABASE_ERRORS as error:
            if is_lost_connection(error):
                unknown.append(changed)
            else:
                _judge_fault(error, order, before=before, request=request)
    raise ServiceUnavailable(_CHANGE_UNKNOWN if unknown else "Other changes of the order keep coming first.")


def _read(order_id: str, principal: Principal, key: KeyOfChange) -> Current:
    known_id = parse_uuid(order_id)
    current = known_id and read_current(known_id, owner=principal.customer_id, key_hash=key.key_hash)
    if not current:
        raise OrderNotFound(f"There is no order {order_id[:64]}.")
    return current


def _replay(current: Current, request: ChangeRequest) -> StoredOrder:
    assert current.replayed_version is not None and current.replayed_document is not None
    if current.replayed_fingerprint is None:  # erased since: the order is answered as it is kept
        version = orjson.loads(current.document)["version"]
        return StoredOrder(current.id, version, current.document, replayed=True)
    if current.replayed_fingerprint != request.fingerprint:
        raise IdempotencyKeyReused("The key was used with another body; take a new key for a new request.")
    return StoredOrder(current.id, current.replayed_version, current.replayed_document, replayed=True)


def _require_expected(version: int, request: ChangeRequest) -> None:
    if request.expected_versions is not None and version not in request.expected_versions:
        raise VersionMismatch(f"The order is at version {version} now.", current_version=version)


def _judge_fault(error: DatabaseError, order: Order, *, before: Mapping[str, Any], request: ChangeRequest) -> None:
    """Raise what the fault means; a key that a twin has used meanwhile is no fault, and is found by reading again."""
    if not is_duplicate(error):
        raise error
    if _read(order.id, request.principal, request.key).replayed_document is not None:
        return
    if order.external_ref == before["external_ref"]:
        raise error
    raise _taken(order) from error


def _is_stored(made: StoredOrder) -> bool:
    return find_snapshot(OrderKey(made.id, None, made.version)) == (made.version, made.document)


def _event(order: Order, document: str, request: ChangeRequest) -> dict[str, Any]:
    return {
        "order_id": order.id,
        "version": order.version,
        "type": ACTIONS[request.action].event,
        "actor": request.principal.id,
        "at": order.updated_at,
        "snapshot": document,
    }


def _taken(order: Order) -> DuplicateExternalRef:
    own = Order.external_ref == order.external_ref
    holder = select(Order.id).where(own, Order.external_ref_hash == order.external_ref_hash)
    others = {"order_id": row.id for row in read_rows(holder)}
    return DuplicateExternalRef("Another order has this external_ref.", **others)


_ITEM_MEMBERS = ("item_id", "quantity", "unit_price")
_PERSONAL = {"note", "shipping_address", "billing_address"}


def revision(revise: Callable[[dict[str, Any]], Mapping[str, Any]], *, principal: Principal) -> Change:
    """The change that brings an order to the content that `revise` makes of its present one.

    `revise` is given the order as a `POST /orders` body without its null members, and returns a validated one. Where
    nothing differs, nothing changes.
    """

    def change(order: Order, at: datetime) -> None:
        data = revise(_body(order))
        stored = order.columns()
        changed = {name: value for name, value in caller_columns(data).items() if value != stored[name]}
        items = item_columns(data)
        if [_said(item) for item in items] != [_said(vars(item)) for item in order.items]:
            changed["items"] = items
        if not changed:
            return
        if principal.customer_id is not None and principal.id != order.principal:
            _require_personal(changed)
        order.update(changed, at=at)

    return change


def _require_personal(changed: Iterable[str]) -> None:
    """Of an order that somebody else made for them, customers change what is theirs to say.

    Not the price a shop gave them, nor its books; and whether a reference is free among its orders is not theirs to
    know.
    """
    others = sorted(set(changed) - _PERSONAL)
    if others:
        raise Forbidden(f"{', '.join(others)}: this belongs to whoever created the order.")


def _said(item: Mapping[str, Any]) -> list[Any]:
    return [item[name] for name in _ITEM_MEMBERS]


def _body(order: Order) -> dict[str, Any]:
    columns = order.columns()
    body: dict[str, Any] = {name: columns[name] for name in caller_columns(columns | {"items": []})}
    body["items"] = [{name: getattr(item, name) for name in _ITEM_MEMBERS} for item in order.items]
    return {name: value for name, value in body.items() if value is not None}


def merge_patch(target: Any, patch: Any) -> Any:
    """The target with the patch applied (§2): null removes, objects merge, all else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


EXPIRY = Principal("system:expiry", frozenset())
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # no order is older
_BATCH = 100  # orders that are looked for at once


def expire_orders(*, older_than: timedelta) -> Iterator[int]:
    """Cancel the pending orders that were made longer ago than that, and yield how many at a time.

    Orders on hold wait for somebody, and are left alone. Doing it twice, or in two processes at once, does no harm.
    """
    now = datetime.now(UTC)
    before = first_order_id(now - min(older_than, now - EPOCH))
    last = LOWEST_ID
    while ids := _stale_orders(after=last, before=before):
        yield sum(map(_expire, ids))
        last = ids[-1]


def _stale_orders(*, after: str, before: str) -> list[str]:
    stale = Order.status == "pending", Order.hold.is_(None)
    query = select(Order.id).where(*stale, Order.id > after, Order.id < before)
    return [row.id for row in read_rows(query.order_by(Order.id).limit(_BATCH))]


def _expire(order_id: str) -> bool:
    stale = False

    def cancel_if_stale(order: Order, at: datetime) -> None:
        nonlocal stale
        stale = order.status == "pending" and order.hold is None  # it may have changed since the list was made
        if stale:
            order.cancel(reason="expired", note=None, at=at)

    try:
        change_order(order_id, cancel_if_stale, request=ChangeRequest("cancel", principal=EXPIRY))
    except ServiceUnavailable:  # somebody is at work on it: the next run will see
        return False
    return stale
