"""Conditional changes (RFC 9110 §13.1.1): an order's entity tag is its version."""

from flask import current_app, request

from app.errors import PreconditionRequired


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
    return frozenset(int(tag) for tag in tags.as_set() if tag and tag.isascii() and tag.isdigit() and len(tag) < 10)
