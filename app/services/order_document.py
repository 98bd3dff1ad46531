"""The order document: how it is rendered and parsed, and what of it a customer sees.

A document is rendered once for each version and stored with its event. Every reader gets the stored text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from app.db.types import read_timestamp, rfc3339
from app.models.order_aggregate import OrderAggregate
from app.models.order_id import ALIAS_PREFIX
from app.models.principal import Principal

Values = Mapping[str, Any]

_TIMES = ("created_at", "updated_at", "ship_by", "deliver_by")
_HEAD_LENGTH = 100  # characters of a document that contain its id, number and customer_id


@dataclass(frozen=True, slots=True)
class StoredOrder:
    """A version of an order, with its document as it is stored."""

    id: str
    version: int
    document: str
    replayed: bool = False
    unchanged: bool = False  # the request had nothing to change
    partial: bool = False  # a customer's view, from which something is left out


def render_order(
    order: Values,
    *,
    items: Sequence[Values],
    totals: Values | None,
    allowed_actions: Sequence[str],
) -> str:
    """Render the document of an order from its columns, its `priced_lines`, and what was derived from them."""
    created_at, updated_at, ship_by, deliver_by = (order[name] for name in _TIMES)
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
            "payment_status": order["payment_status"],
            "return_status": order["return_status"],
            "currency": order["currency"],
            "items": items,
            "adjustments": order["adjustments"],
            "totals": totals,
            "holds": order["holds"],
            "payments": order["payments"],
            "fulfillments": order["fulfillments"],
            "returns": order["returns"],
            "cancellations": order["cancellations"],
            "reopening": order["reopening"],
            "ship_by": ship_by and rfc3339(ship_by),
            "deliver_by": deliver_by and rfc3339(deliver_by),
            "late": order["late"],
            "related_orders": order["related_orders"],
            "tags": order["tags"],
            "metadata": order["metadata"],
            "shipping_address": order["shipping_address"],
            "billing_address": order["billing_address"],
            "note": order["note"],
            "version": order["version"],
            "allowed_actions": allowed_actions,
            "created_at": created,
            "updated_at": created if updated_at is created_at else rfc3339(updated_at),
        }
    ).decode()


def render_stored_order(order: OrderAggregate) -> str:
    """Render the document of an order."""
    return render_order(vars(order), items=order.items, totals=order.totals, allowed_actions=order.allowed_actions)


def parse_order(document: Values, *, principal: str, external_ref_hash: str | None) -> OrderAggregate:
    """The order that a parsed document was rendered from, with the two columns that a change uses beside it."""
    members = {**document, "principal": principal, "external_ref_hash": external_ref_hash}
    for name in _TIMES:
        members[name] = document[name] and read_timestamp(document[name])
    del members["allowed_actions"]  # they follow from the others
    return OrderAggregate(**members)


def is_erased(document: str) -> bool:
    """Whether the personal data of a stored order document was erased. The document is not parsed."""
    return f'"customer_id":"{ALIAS_PREFIX}' in document[:_HEAD_LENGTH]


STAFF, SERVICE = "staff", "service"  # the actors that a customer sees in place of ids
# What documents without internal members contain. It cannot occur inside a string, where quotes are escaped.
_NOTHING_INTERNAL = ('"holds":[],"payments":[],', '"reopening":null,')


def visible_order(order: StoredOrder, principal: Principal) -> StoredOrder:
    """The order as the principal may see it."""
    document = visible_document(order.document, principal)
    return order if document == order.document else replace(order, document=document, partial=True)


def visible_document(document: str, principal: Principal) -> str:
    """The order document as the principal may see it.

    A customer does not see why an order is held or was reopened, who placed a hold, and the references and notes of
    payments.
    """
    if principal.customer_id is None or all(text in document for text in _NOTHING_INTERNAL):
        return document
    order = orjson.loads(document)
    for hold in order["holds"]:
        hold.pop("reason", None)
        hold["placed_by"] = visible_actor(hold["placed_by"], principal)
    for payment in order["payments"]:
        del payment["reference"], payment["note"]
    if order["reopening"]:
        del order["reopening"]["reason"]
    return orjson.dumps(order).decode()


def visible_actor(actor: str, principal: Principal) -> str:
    """The actor of an event as the principal may see it: a customer sees only themselves by id."""
    if principal.customer_id is None or actor == principal.id:
        return actor
    return STAFF if actor.startswith("token:") else SERVICE
