"""Which parts of an order tell of a person, and what stays when they are erased."""

from collections.abc import Mapping
from typing import Any

ERASED_TEXT = "erased"


def scrub(document: Mapping[str, Any], *, alias: str) -> dict[str, Any]:
    """An order document, or an order's columns, without what tells of a person.

    What was sold, for how much and to which country stays: the books need it, and it names nobody.
    """
    scrubbed = dict(document) | {"customer_id": alias, "note": None, "metadata": {}}
    for name in ("shipping_address", "billing_address"):
        address = document[name]
        scrubbed[name] = address and {"country": address["country"]}
    scrubbed["hold"] = document["hold"] and {**document["hold"], "reason": ERASED_TEXT}
    scrubbed["cancellation"] = document["cancellation"] and {**document["cancellation"], "note": None}
    scrubbed["fulfillments"] = [{**one, "tracking": None} for one in document.get("fulfillments", [])]
    scrubbed["returns"] = [{**one, "reason": None} for one in document.get("returns", [])]
    return scrubbed
