"""Exported orders on their way back in, restored as they were."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from typing import Any

import orjson

from app.db.errors import DATABASE_ERRORS, is_unavailable
from app.db.types import rfc3339
from app.errors import InternalError, InvalidRequest, RequestInFlight, ServiceError, ServiceUnavailable
from app.models import Fulfillment, Return
from app.models.lifecycle import allowed_actions
from app.models.order_id import hash_reference
from app.models.order_item import order_totals
from app.models.principal import Principal
from app.schemas.order import OrderInSchema
from app.schemas.order_import import ExportedOrderSchema
from app.schemas.strict_json import load_body, parse_json
from app.services.new_order import CreateRequest, NewOrder, content_columns, fingerprint, item_columns
from app.services.order_document import render_order
from app.services.order_inserts import find_conflicts, restore_orders
from app.services.order_service import create_orders
from app.services.verification import inconsistent_members

_STATE = ("number", "status", "fulfillment_status", "version", "created_at", "updated_at")


def restored_order(data: Mapping[str, Any], *, document: Mapping[str, Any], principal: str) -> NewOrder:
    """An order from its exported document, given as it was read and as the schema (`ExportedOrder`) loaded it.

    Raises InvalidRequest where the document contradicts itself or is not the one that the order's own columns render
    to, so that nothing comes in that `flask verify` would find fault with.
    """
    said = content_columns(data)
    items = [
        columns | {"fulfilled": item["fulfilled"], "returned": item["returned"]}
        for columns, item in zip(item_columns(data), data["items"], strict=True)
    ]
    items_total, adjustments_total = order_totals(items, said["adjustments"])
    columns = said | {name: data[name] for name in _STATE}
    columns |= {
        "id": str(data["id"]),
        "principal": principal,
        "external_ref_hash": hash_reference(said["external_ref"], principal=principal),
        "idempotency_key_hash": None,
        "fingerprint": fingerprint([said, item_columns(data)]),
        "hold": _with_text_times(data["hold"]),
        "cancellation": _with_text_times(data["cancellation"]),
        "items_total": items_total,
        "adjustments_total": adjustments_total,
    }
    fulfillments, returns = list(data["fulfillments"]), list(data["returns"])
    snapshot = render_order(
        columns,
        items=items,
        allowed_actions=allowed_actions(
            status=columns["status"],
            on_hold=columns["hold"] is not None,
            any_fulfilled=columns["fulfillment_status"] != "unfulfilled",
            any_returnable=any(item["fulfilled"] > item["returned"] for item in items),
        ),
        fulfillments=[Fulfillment(**fulfillment) for fulfillment in fulfillments],
        returns=[Return(**one) for one in returns],
    )
    _require_consistent(orjson.loads(snapshot), document)
    return NewOrder(columns, items, snapshot, fulfillments, returns)


def _require_consistent(rendered: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    wrong = inconsistent_members(document)
    differing = [name for name in rendered if name in wrong or rendered[name] != document.get(name)]
    if differing:
        faults = [
            {"pointer": f"#/{name}", "detail": "This contradicts other members of the document."} for name in differing
        ]
        raise InvalidRequest("Members of the document contradict each other.", errors=faults)


def _with_text_times(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {name: rfc3339(part) if isinstance(part, datetime) else part for name, part in value.items()}


_BODY, _DOCUMENT = OrderInSchema(), ExportedOrderSchema()


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file, counted from 1."""

    number: int
    text: bytes


@dataclass(slots=True)
class Import:
    """An import under way: whose orders they become, and what became of the lines so far."""

    principal: Principal
    created: int = 0
    there: int = 0
    bad: int = 0
    _seen: Counter[str] = field(default_factory=Counter)

    def store(self, lines: Sequence[Line]) -> Iterator[str]:
        """Store what is good in a batch, and yield a sentence for each line that is not.

        Raises ServiceUnavailable, RequestInFlight and the database's errors where no line is to blame.
        """
        requests: list[tuple[Line, CreateRequest]] = []
        documents: list[tuple[Line, NewOrder]] = []
        for line in lines:
            try:
                self._read(line, requests, documents)
            except ServiceError as error:
                yield self._fault(line, error)
        outcomes = create_orders([request for _, request in requests])
        for (line, _), outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, ServiceUnavailable | RequestInFlight):
                raise outcome
            if isinstance(outcome, ServiceError):
                yield self._fault(line, outcome)
            else:
                self._count(new=not outcome.replayed)
        yield from self._restore(documents)

    def _read(
        self, line: Line, requests: list[tuple[Line, CreateRequest]], documents: list[tuple[Line, NewOrder]]
    ) -> None:
        data = parse_json(line.text.strip())
        if isinstance(data, dict) and "id" in data:
            loaded = load_body(_DOCUMENT, data)
            documents.append((line, restored_order(loaded, document=data, principal=self.principal.id)))
            return
        body = load_body(_BODY, data)
        key = None if body.get("external_ref") else self._key(line)
        requests.append((line, CreateRequest(body, self.principal, idempotency_key=key, reference_as_key=True)))

    def _key(self, line: Line) -> str:
        """For a line without a reference: its text and how often it stood in the file so far."""
        digest = blake2b(line.text.strip(), digest_size=16).hexdigest()
        self._seen[digest] += 1
        return f"import:{digest}:{self._seen[digest]}"

    def _restore(self, documents: Sequence[tuple[Line, NewOrder]]) -> Iterator[str]:
        orders: dict[str, NewOrder] = {}
        for _, order in documents:
            orders.setdefault(order.id, order)  # the first of two lines with one order
        stored, refused = _store(list(orders.values()))
        missing = [order for order in orders.values() if order.id not in stored]
        there = find_conflicts(missing).by_id if missing else {}
        for line, order in documents:
            if order.id in stored or order.id in there:
                self._count(new=order.id in stored and orders[order.id] is order)
            else:
                taken = "Another order has this external_ref or number."
                yield self._fault(line, InternalError(refused.get(order.id, taken)))

    def _count(self, *, new: bool) -> None:
        self.created += new
        self.there += not new

    def _fault(self, line: Line, error: ServiceError) -> str:
        self.bad += 1
        faults: list[dict[str, Any]] = error.members.get("errors", [])
        told = "; ".join(f"{fault['pointer']}: {fault['detail']}" for fault in faults)
        cause = str(error.__cause__).partition("\n")[0] if error.__cause__ else ""
        return f"line {line.number}: {told or cause or error.detail}"


def _store(orders: Sequence[NewOrder]) -> tuple[set[str], dict[str, str]]:
    """The ids of the restored orders, and the reasons for which the database refused others."""
    try:
        return (restore_orders(orders), {}) if orders else (set(), {})
    except DATABASE_ERRORS as error:
        if is_unavailable(error):
            raise
        if len(orders) == 1:
            return set(), {orders[0].id: str(error).partition("\n")[0]}
    stored, refused = set[str](), dict[str, str]()
    for order in orders:  # a fault of the whole statement: only the order that causes it shall stay out
        one_stored, one_refused = _store([order])
        stored |= one_stored
        refused |= one_refused
    return stored, refused
