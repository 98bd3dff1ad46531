"""What a customer's token reads of an order: everything but what is internal to the shop.

Left out are the reason of a hold, and who of the staff or which service acted. Versions, and with them entity tags, are
the same for everybody.
"""

import orjson

from app.models.principal import Principal

STAFF, SERVICE = "staff", "service"  # who acted, where a customer may not know more
_WITHOUT_HOLD = '"hold":null'  # within a text of the document its quotes would be escaped


def visible_document(document: str, principal: Principal) -> str:
    """The order document as the principal may see it: the same text, unless it is a customer's and there is a hold."""
    if principal.customer_id is None or _WITHOUT_HOLD in document:
        return document
    order = orjson.loads(document)
    if order.get("hold"):
        order["hold"].pop("reason", None)
    return orjson.dumps(order).decode()


def visible_actor(actor: str, principal: Principal) -> str:
    """Who acted, as the principal may know: a customer is told of themselves, and else only that it was not they."""
    if principal.customer_id is None or actor == principal.id:
        return actor
    return STAFF if actor.startswith("token:") else SERVICE
