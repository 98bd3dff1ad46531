"""Answers: stored documents, handed out as they are."""

from collections.abc import Sequence
from urllib.parse import urlencode

import orjson
from flask import Response, request

from app.http.arguments import JSON
from app.services.order_service import StoredOrder

# An order is one party's business and changes: a cache may keep it for its owner, and must ask before it is used again.
_CACHING = "private, no-cache"


def order_response(order: StoredOrder, status: int = 200) -> Response:
    """An order with its entity tag; 304 where the request's If-None-Match names it (RFC 9110 §13.1.2)."""
    etag = str(order.version)
    headers = {"ETag": f'"{etag}"', "Cache-Control": _CACHING}
    if request.method in ("GET", "HEAD") and request.if_none_match.contains_weak(etag):
        return Response(status=304, headers=headers)
    return Response(order.document, status, headers, mimetype=JSON)


def created_response(order: StoredOrder) -> Response:
    """201 with the new order, or the same again for a replay."""
    response = changed_response(order, 201)
    response.headers["Location"] = f"/orders/{order.id}"
    return response


def changed_response(order: StoredOrder, status: int = 200) -> Response:
    """The order as a change left it; for a replay, as the first answer showed it."""
    response = order_response(order, status)
    if order.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return response


def list_response(member: str, documents: Sequence[str], next_cursor: str | None) -> Response:
    """A page of documents with the way to the next one, in the body and as a Link header (RFC 8288)."""
    body = f'{{"{member}":[{",".join(documents)}],"next_cursor":{orjson.dumps(next_cursor).decode()}}}'
    response = Response(body, mimetype=JSON, headers={"Cache-Control": _CACHING})
    if next_cursor is not None:
        query = urlencode(request.args.to_dict() | {"cursor": next_cursor})
        response.headers["Link"] = f'<{request.path}?{query}>; rel="next"'
    return response
