"""Entity tags of orders, and changes on the condition of one (RFC 9110 §13.1.1).

An order's tag is its version, `"3"`. An erasure rewrites the versions there are: those have the tag `"3-erased"`, so
that no cache is told that what it holds from before is still current.
"""

import re

from flask import current_app, request

from app.errors import PreconditionRequired, VersionMismatch
from app.models.erasure import is_erased
from app.services.order_document import StoredOrder

_ERASED = "-erased"
_VERSION = re.compile(f"([1-9][0-9]{{0,8}})({_ERASED})?")  # tags are equal symbol by symbol (§8.8.3.2): "01" is not "1"


def entity_tag(order: StoredOrder) -> str:
    """The order's strong entity tag, without its quotes."""
    return f"{order.version}{_ERASED}" if is_erased(order.document) else str(order.version)


def expected_versions() -> frozenset[int] | None:
    """The versions that If-Match names, None for any. A weak tag, or one that is no version, never matches.

    Raises PreconditionRequired where the service demands the header.
    """
    if "If-Match" not in request.headers:
        if current_app.config["REQUIRE_IF_MATCH"]:
            raise PreconditionRequired("Send If-Match with the ETag of the order as you have read it.")
        return None
    tags = request.if_match
    if tags.star_tag:
        return None
    versions = (_VERSION.fullmatch(tag) for tag in tags.as_set() if tag)
    return frozenset(int(version[1]) for version in versions if version)


def explain_weak_tags(mismatch: VersionMismatch) -> None:
    """Say in the error that a tag of If-Match is weak, if one is: the order may well be as the client knows it."""
    weak = sorted(set(request.if_match.as_set(include_weak=True)) - set(request.if_match.as_set()))
    if weak:
        mismatch.detail += (
            f' If-Match has W/"{weak[0][:32]}": a weak entity tag never matches there (RFC 9110 §13.1.1). The service '
            "sends strong ones; a proxy that compresses responses makes them weak. Switch that off for orders."
        )
