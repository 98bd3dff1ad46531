"""Exported orders on their way back in, restored as they were."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson

from app.db.types import rfc3339
from app.errors import InvalidRequest
from app.models import Fulfillment, Return
from app.models.lifecycle import allowed_actions
from app.models.money import order_totals
from app.models.order_id import hash_reference
from app.services.new_order import NewOrder, caller_columns, fingerprint, item_columns
from app.services.order_document import render_order
from app.services.verification import contradictions

_STATE = ("number", "status", "fulfillment_status", "version", "created_at", "updated_at")


def restored_order(data: Mapping[str, Any], *, document: Mapping[str, Any], principal: str) -> NewOrder:
    """An order from its exported document, given as it was read and as the schema (`ExportedOrder`) loaded it.

    Raises InvalidRequest where the document contradicts itself or is not the one that the order's own columns render
    to, so that nothing comes in that `flask verify` would find fault with.
    """
    said = caller_columns(data)
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
            held=columns["hold"] is not None,
            fulfilled=columns["fulfillment_status"] != "unfulfilled",
            units_out=any(item["fulfilled"] > item["returned"] for item in items),
        ),
        fulfillments=[Fulfillment(**fulfillment) for fulfillment in fulfillments],
        returns=[Return(**one) for one in returns],
    )
    _require_consistent(orjson.loads(snapshot), document)
    return NewOrder(columns, items, snapshot, fulfillments, returns)


def _require_consistent(rendered: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    wrong = contradictions(document)
    differing = [name for name in rendered if name in wrong or rendered[name] != document.get(name)]
    if differing:
        faults = [{"pointer": f"#/{name}", "detail": "This does not fit the other members."} for name in differing]
        raise InvalidRequest("The document contradicts itself.", errors=faults)


def _with_text_times(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {name: rfc3339(part) if isinstance(part, datetime) else part for name, part in value.items()}
