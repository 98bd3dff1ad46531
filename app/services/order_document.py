"""The order document: how it is rendered and parsed, and which members a customer sees.

A document is rendered once for each version and stored with its event. Every reader receives the stored text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import orjson

from app.db.types import read_timestamp, rfc3339
from app.models.order import CONTENT, CONTENT_TIMES, RECORDS
from app.models.order_aggregate import DOCUMENT_MEMBERS, OrderAggregate
from app.models.order_id import ALIAS_PREFIX
from app.models.principal import Principal

Values = Mapping[str, Any]

_members = itemgetter(*DOCUMENT_MEMBERS)
_TIMES = ("created_at", "updated_at", *CONTENT_TIMES)
_HEAD_LENGTH = 100  # characters of a document that contain its id, number and customer_id


@dataclass(slots=True)
class StoredOrder:
    """A version of an order, with its document as it is stored."""

    id: str
    version: int
    document: str
    replayed: bool = False
    unchanged: bool = False  # the request changed nothing
    partial: bool = False  # a customer's view, from which something is left out


def render_order(order: Values) -> str:
    """Render the document of an order from its members by name; others are left out."""
    document = dict(zip(DOCUMENT_MEMBERS, _members(order), strict=True))
    for name in _TIMES:
        if document[name] is not None:
            document[name] = rfc3339(document[name])
    return orjson.dumps(document).decode()


NOT_A_DOCUMENT = (KeyError, TypeError, AttributeError, ValueError)  # raised by reading what is no order document


def load_document(text: str) -> dict[str, Any]:
    """The members of a stored document, with those of CONTENT and RECORDS that a later release has added."""
    document: dict[str, Any] = orjson.loads(text)
    if len(document) == len(DOCUMENT_MEMBERS):
        return document
    return document | {name: absent for name, absent in (CONTENT | RECORDS).items() if name not in document}


def parse_order(document: Values, *, principal: str, external_ref_hash: str | None) -> OrderAggregate:
    """The order that a document was rendered from, and the two columns that it does not hold."""
    members = dict(document)
    for name in _TIMES:
        if members[name] is not None:
            members[name] = read_timestamp(members[name])
    # By position: Python compares each name of 34 with each of the others, in 120,000 instructions.
    return OrderAggregate(principal, external_ref_hash, *_members(members))


def is_erased(document: str) -> bool:
    """Whether the personal data of a stored order document was erased. The document is not parsed."""
    return f'"customer_id":"{ALIAS_PREFIX}' in document[:_HEAD_LENGTH]


STAFF, SERVICE = "staff", "service"  # the actors that a customer sees in place of ids
# Texts in documents without internal members. They cannot occur inside a string, where quotes are escaped.
_NOTHING_INTERNAL = ('"holds":[],"payments":[],', '"reopening":null,')


def visible_order(order: StoredOrder, principal: Principal) -> StoredOrder:
    """The order as the principal may see it."""
    document = visible_document(order.document, principal)
    return order if document == order.document else replace(order, document=document, partial=True)


def visible_document(document: str, principal: Principal) -> str:
    """The order document as the principal may see it.

    A customer does not see the reasons of holds and reopenings, who placed a hold, or the references and notes of
    payments.
    """
    if principal.customer_id is None or all(text in document for text in _NOTHING_INTERNAL):
        return document
    order = load_document(document)
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
