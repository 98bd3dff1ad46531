"""Which parts of an order tell of a person, and what stays when they are erased."""

import secrets
from collections.abc import Mapping
from typing import Any

ERASED_TEXT = "erased"
_ALIAS_PREFIX = "erased-"  # callers cannot choose a customer id that begins with it
_HEAD = 100  # characters of a stored document in which its id, number and customer_id stand


def new_alias() -> str:
    """A random customer id that stands for a person whose data was erased."""
    return f"{_ALIAS_PREFIX}{secrets.token_hex(8)}"


def is_alias(customer_id: str) -> bool:
    """Whether the customer id stands for a person whose data was erased."""
    return customer_id.startswith(_ALIAS_PREFIX)


def is_erased(document: str) -> bool:
    """Whether a stored order document is one of which the personal data was erased; the document is not parsed."""
    return f'"customer_id":"{_ALIAS_PREFIX}' in document[:_HEAD]


def scrub(document: Mapping[str, Any], *, alias: str) -> dict[str, Any]:
    """An order document, or an order's columns, without what tells of a person: the customer's id, addresses, metadata,
    tracking, and every free text. Scrubbed again, it stays as it is.

    What was sold, for how much and to which country stays: the books need it, and it names nobody.
    """
    scrubbed = dict(document) | {"customer_id": alias, "note": None, "metadata": {}}
    for name in ("shipping_address", "billing_address"):
        address = document[name]
        scrubbed[name] = address and {"country": address["country"]}
    scrubbed["adjustments"] = [{**adjustment, "label": None} for adjustment in document["adjustments"]]
    scrubbed["hold"] = document["hold"] and {**document["hold"], "reason": ERASED_TEXT}
    scrubbed["cancellation"] = document["cancellation"] and {**document["cancellation"], "note": None}
    scrubbed["fulfillments"] = [{**one, "tracking": None} for one in document.get("fulfillments", [])]
    scrubbed["returns"] = [{**one, "reason": None} for one in document.get("returns", [])]
    return scrubbed
