"""Conditional changes (RFC 9110 §13.1.1): an order's entity tag is its version."""

import re

from flask import current_app, request

from app.errors import PreconditionRequired

_VERSION = re.compile("[1-9][0-9]{0,8}")  # tags are equal symbol by symbol (§8.8.3.2): "01" is not "1"


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
    return frozenset(int(tag) for tag in tags.as_set() if tag and _VERSION.fullmatch(tag))
