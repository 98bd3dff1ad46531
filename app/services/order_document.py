"""The order document: how it is rendered and parsed, and what of it a customer sees.

A document is rendered once for each version and stored with its event. Every reader gets the stored text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import orjson
from sqlalchemy import inspect

from app.db.engine import Base
from app.db.types import read_timestamp, rfc3339
from app.models import ORDERS, Order, OrderItem
from app.models.order_id import ALIAS_PREFIX
from app.models.principal import Principal

Values = Mapping[str, Any]
Model = TypeVar("Model", bound=Base)

# Columns that the document leaves out, and columns that it shows in another form. All others are members.
_NOT_IN_DOCUMENT = {"principal", "external_ref_hash", "idempotency_key_hash", "fingerprint"}
_CONVERTED = {"items_total", "adjustments_total", "metadata", "created_at", "updated_at"}
_HEAD_LENGTH = 100  # characters of a document that contain its id, number and customer_id
_UNCHANGED = tuple(name for name in ORDERS.c.keys() if name not in _NOT_IN_DOCUMENT | _CONVERTED)


@dataclass(frozen=True, slots=True)
class StoredOrder:
    """A version of an order, with its document as it is stored."""

    id: str
    version: int
    document: str
    replayed: bool = False
    partial: bool = False  # a customer's view, from which something is left out


def render_order(
    order: Values,
    *,
    items: Sequence[Values],
    allowed_actions: Sequence[str],
) -> str:
    """Render the document of an order from its columns and those of its items."""
    created_at, updated_at = order["created_at"], order["updated_at"]
    created = rfc3339(created_at)
    return orjson.dumps(
        {
            "id": order["id"],
            "number": order["number"],
            "customer_id": order["customer_id"],
            "external_ref": order["external_ref"],
            "channel": order["channel"],
            "status": order["status"],
            "fulfillment_status": order["fulfillment_status"],
            "hold": order["hold"],
            "currency": order["currency"],
            "items": [_render_item(item) for item in items],
            "adjustments": order["adjustments"],
            "totals": _render_totals(order),
            "shipping_address": order["shipping_address"],
            "billing_address": order["billing_address"],
            "note": order["note"],
            "metadata": order["metadata"],
            "cancellation": order["cancellation"],
            "fulfillments": order["fulfillments"],
            "returns": order["returns"],
            "version": order["version"],
            "allowed_actions": allowed_actions,
            "created_at": created,
            "updated_at": created if updated_at is created_at else rfc3339(updated_at),
        }
    ).decode()


def render_stored_order(order: Order) -> str:
    """Render the document of an order whose items are loaded."""
    items = [item.columns() for item in order.items]
    return render_order(order.columns(), items=items, allowed_actions=order.allowed_actions)


def parse_order(document: Values, *, principal: str, external_ref_hash: str | None) -> Order:
    """The order that a parsed document was rendered from. `principal` and `external_ref_hash` are not in the document.

    The order belongs to no session. The key and the fingerprint of its create are None, since no change stores them.
    """
    totals = document["totals"] or {"items": None, "adjustments": None}
    order_id = document["id"]
    return _loaded(
        Order,
        {name: document[name] for name in _UNCHANGED}
        | {
            "principal": principal,
            "external_ref_hash": external_ref_hash,
            "idempotency_key_hash": None,
            "fingerprint": None,
            "items_total": totals["items"],
            "adjustments_total": totals["adjustments"],
            "metadata_": document["metadata"],
            "created_at": read_timestamp(document["created_at"]),
            "updated_at": read_timestamp(document["updated_at"]),
            "items": [_loaded(OrderItem, {**item, "order_id": order_id}) for item in document["items"]],
        },
    )


def is_erased(document: str) -> bool:
    """Whether the personal data of a stored order document was erased. The document is not parsed."""
    return f'"customer_id":"{ALIAS_PREFIX}' in document[:_HEAD_LENGTH]


def _loaded(model: type[Model], attributes: Values) -> Model:
    """A transient instance whose attributes have no change history.

    `InstanceState.dict` is the instance's dictionary. `set_committed_value`, which takes one attribute at a time, would
    add 115 µs to a change of an order with three lines.
    """
    instance = model()
    inspect(instance).dict.update(attributes)
    return instance


def _render_item(item: Values) -> dict[str, Any]:
    return {
        "line": item["line"],
        "item_id": item["item_id"],
        "quantity": item["quantity"],
        "unit_price": item["unit_price"],
        "fulfilled": item["fulfilled"],
        "returned": item["returned"],
    }


def _render_totals(order: Values) -> dict[str, int] | None:
    if order["items_total"] is None:
        return None
    items, adjustments = order["items_total"], order["adjustments_total"]
    return {"items": items, "adjustments": adjustments, "total": items + adjustments}


STAFF, SERVICE = "staff", "service"  # the actors that a customer sees in place of ids
_WITHOUT_HOLD = '"hold":null'  # cannot occur inside a string of the document: quotes are escaped there


def visible_order(order: StoredOrder, principal: Principal) -> StoredOrder:
    """The order as the principal may see it."""
    document = visible_document(order.document, principal)
    return order if document == order.document else replace(order, document=document, partial=True)


def visible_document(document: str, principal: Principal) -> str:
    """The order document as the principal may see it: a customer does not see the reason of a hold."""
    if principal.customer_id is None or _WITHOUT_HOLD in document:
        return document
    order = orjson.loads(document)
    if order.get("hold"):
        order["hold"].pop("reason", None)
    return orjson.dumps(order).decode()


def visible_actor(actor: str, principal: Principal) -> str:
    """The actor of an event as the principal may see it: a customer sees only themselves by id."""
    if principal.customer_id is None or actor == principal.id:
        return actor
    return STAFF if actor.startswith("token:") else SERVICE
