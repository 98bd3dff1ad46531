"""Whether the events of an order form its history, and its columns agree with the first event and with the last."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Row

from app.db.types import read_timestamp, rfc3339
from app.models.erasure import scrub
from app.models.lifecycle import CREATED, IMPORTED
from app.models.order_id import fingerprint, hash_reference, is_alias
from app.models.payment import sum_payments
from app.models.pricing import InvalidPrices, order_totals, priced_lines
from app.services.change_checks import VersionChange, differing_members, is_allowed, wrong_members
from app.services.document_checks import Document, UnitCounts, VersionChecks, due_at, order_prices
from app.services.feed_checks import FeedOrder
from app.services.order_document import render_order
from app.services.order_inserts import NEW_ORDER_STATE
from app.services.order_service import content_columns, item_columns

_NOT_A_DOCUMENT = (KeyError, TypeError, AttributeError, ValueError)  # raised by reading another document
EVENT_COLUMNS = (
    "version",
    "type",
    "actor",
    "request_id",
    "traceparent",
    "at",
    "snapshot",
)  # of `order_events`, compared here


@dataclass(frozen=True, slots=True)
class OrderRow:
    """The columns of an order and those of its items, in the order of the lines."""

    columns: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]

    @property
    def id(self) -> str:
        return str(self.columns["id"])


def compare_events(
    order: OrderRow, log: Iterator[Row[Any]], *, alias: str | None, kept_since: datetime
) -> Iterator[str]:
    """The differences between the events of an order, given in the order of their versions, and the order.

    Two snapshots are in memory at a time. `alias` is that of a running erasure of the customer, which may have erased
    only some of the snapshots. `kept_since` is the time after which no event has been removed from the feed.
    """
    before: _Version | None = None
    feed_order, checks = FeedOrder(kept_since), VersionChecks()
    for event in log:
        yield from feed_order.verify(event)
        try:
            snapshot = orjson.loads(event.snapshot)
            yield from _verify_snapshot(order, event, snapshot)
            differing = differing_members(before.snapshot, snapshot) if before else set(snapshot)
            for member in checks.inconsistent_members(snapshot, differing):
                yield f"{member} contradicts other members in the snapshot of version {event.version}"
            version = _Version(event, snapshot, checks.units(snapshot))
            if before is None:
                yield from _verify_first(order.columns, event, snapshot, alias=alias)
            else:
                yield from _verify_change(before, version, differing, alias=alias)
        except orjson.JSONDecodeError:
            yield f"the snapshot of version {event.version} is not JSON"
            return
        except _NOT_A_DOCUMENT:
            yield f"the snapshot of version {event.version} is not the document of an order"
            return
        if before is not None and event.version != before.event.version + 1:
            yield f"version {event.version} follows version {before.event.version} in the log"
        before = version
    if before is not None:
        yield from _verify_tables(order, before.event, before.snapshot)


class _Version(NamedTuple):
    event: Row[Any]
    snapshot: Document
    units: UnitCounts


def _verify_snapshot(order: OrderRow, event: Row[Any], snapshot: Document) -> Iterator[str]:
    columns = event.order_id, event.version, rfc3339(event.at)
    members = snapshot["id"], snapshot["version"], snapshot["updated_at"]
    if members != columns:
        for name, member, column in zip(("id", "version", "updated_at"), members, columns, strict=True):
            if member != column:
                where = f"in the snapshot of version {event.version}"
                yield f"{name} is {_abbreviated(member)} {where}, {_abbreviated(column)} in its event"
    if orjson.dumps(snapshot).decode() != event.snapshot:
        yield f"the snapshot of version {event.version} is not written as it was rendered"
    if is_alias(order.columns["customer_id"]):  # all snapshots are erased before the order is
        erased = {"customer_id": order.columns["customer_id"], "request_id": None, "traceparent": None}
        actual = {"customer_id": snapshot["customer_id"]}
        actual |= {"request_id": event.request_id, "traceparent": event.traceparent}
        for name in (name for name in erased if actual[name] != erased[name]):
            yield f"{name} is {_abbreviated(actual[name])} in version {event.version} of an erased order"


def _verify_first(order: Document, event: Row[Any], snapshot: Document, *, alias: str | None) -> Iterator[str]:
    """The first event, and the columns of the order that are derived from it."""
    if alias is not None and snapshot["customer_id"] == alias:
        return  # this snapshot is erased, and the order's row not yet
    if event.type != IMPORTED and (event.type, event.version, snapshot["status"]) != (CREATED, 1, "pending"):
        yield f"the log begins with {event.type} at version {event.version}"
    if event.type == CREATED:
        for name in (name for name, value in NEW_ORDER_STATE.items() if snapshot[name] != value):
            yield f"{name} is {_abbreviated(snapshot[name])} in version {event.version}, which is {event.type}"
    principal, key_hash, first_fingerprint = order["principal"], order["idempotency_key_hash"], order["fingerprint"]
    if principal != event.actor:
        yield f"principal is {principal!r} in the table, {event.actor!r} in the log"
    if key_hash is not None and key_hash[-4:] != order["id"][-4:]:
        yield "idempotency_key_hash is not the one that the id was made for"
    if first_fingerprint is None and is_alias(order["customer_id"]):
        return  # an erasure removes it; it may also have renamed the principal, and leaves the hash of the reference
    dates = {name: snapshot[name] and read_timestamp(snapshot[name]) for name in ("ship_by", "deliver_by")}
    if first_fingerprint != fingerprint([content_columns({**snapshot, **dates}), item_columns(snapshot)]):
        yield "fingerprint is not that of the first version"
    if order["external_ref_hash"] != hash_reference(order["external_ref"], principal=principal):
        yield "external_ref_hash is not that of the principal's external_ref"


def _verify_change(before: _Version, version: _Version, differing: set[str], *, alias: str | None) -> Iterator[str]:
    """An event and its snapshot, compared with the version before."""
    event, old, new = version.event, before.snapshot, version.snapshot
    if alias is not None:
        old, new = scrub(old, alias=alias), scrub(new, alias=alias)
        differing = differing_members(old, new)
    if not is_allowed(event.type, old):
        yield f"version {event.version}, which is {event.type}, cannot follow version {old['version']}"
        return
    change = VersionChange(old, new, differing, before.units, version.units)
    for name in wrong_members(event.type, change, actor=event.actor):
        yield f"{name} in version {event.version} is not what {event.type} makes of it"


def _verify_tables(order: OrderRow, event: Row[Any], snapshot: Document) -> Iterator[str]:
    """The last snapshot, compared with what the tables render to, and with the columns that the document leaves out.

    The tables have no `allowed_actions`; those of the snapshot agree with its other members.
    """
    try:
        rendered = _render_tables(order, snapshot["allowed_actions"])
    except InvalidPrices as error:
        yield f"{' and '.join(error.messages)} in the tables do not add up"
        return
    except _NOT_A_DOCUMENT as error:
        yield f"the tables do not render to the document of an order ({type(error).__name__}: {error})"
        return
    if rendered != event.snapshot:
        yield from _compare_rendered(orjson.loads(rendered), snapshot)
    totals = snapshot["totals"] or {"total": None}
    for name, value in (("total", totals["total"]), ("due_at", due_at(snapshot, version=event.version))):
        if order.columns[name] != value:
            yield f"{name} is {_abbreviated(order.columns[name])} in the tables, {_abbreviated(value)} by the log"


def _compare_rendered(tables: Document, snapshot: Document) -> Iterator[str]:
    names = differing_members(tables, snapshot)
    for name in sorted(names):
        yield f"{name} is {_abbreviated(tables.get(name))} in the tables, {_abbreviated(snapshot.get(name))} in the log"
    if not names:
        yield "the newest snapshot is not written as the tables render it"


def _render_tables(order: OrderRow, allowed_actions: Sequence[str]) -> str:
    columns, items = order.columns, order.items
    prices, sums = order_prices(items, columns["adjustments"]), sum_payments(columns["payments"])
    totals = order_totals(
        prices, items, is_cancelled=columns["status"] == "cancelled", paid=sums.captured, refunded=sums.refunded
    )
    derived = {"items": priced_lines(items, prices), "totals": totals, "allowed_actions": allowed_actions}
    return render_order({**columns, **derived})


def _abbreviated(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 80 else text[:79] + "…"
