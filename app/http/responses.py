"""Answers: stored documents, handed out as they are."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlencode

import orjson
from flask import Flask, Response, current_app, request
from werkzeug.datastructures import Headers

from app.config import normalize_origin
from app.db.types import rfc3339
from app.errors import ServiceError
from app.http.application import current_request, in_stretches, public_path
from app.http.content_negotiation import CODING, MIN_SIZE, compress, gzip, gzip_accepted, gzip_of_page
from app.http.problems import problem_occurrence
from app.http.request_input import ERASED, JSON
from app.models.erasure import RUNNING, is_erased
from app.services.erasure import ErasureState
from app.services.order_document import StoredOrder
from app.services.order_service import Outcome

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# An order is one party's business and changes: a cache may keep it for its owner, and must ask before it is used again.
_CACHING = "private, no-cache"
_STATUS_LINES = {200: "200 OK", 201: "201 CREATED", 202: "202 ACCEPTED"}  # as the library spells them


# What the answers must not be used for; browsers need to be told.
FOR_ALL = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
FOR_DATA = FOR_ALL | {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}


class _ReadyHeaders(Headers):
    """Headers that are made here, of values that cannot end a line: the library would look through each of them."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._list = list(pairs)


class DocumentResponse(Response):
    """A JSON document that is ready, with headers that are complete.

    The library would copy the headers and look for what to correct in them, which takes longer than all else here.
    """

    def __init__(self, body: bytes, status: int, headers: dict[str, str]) -> None:
        complete = {"Content-Type": JSON, "Content-Length": str(len(body))} | headers | FOR_DATA
        super().__init__([body], _STATUS_LINES[status], _ReadyHeaders(complete.items()))

    def get_wsgi_headers(self, environ: "WSGIEnvironment") -> Headers:
        """The headers as they are."""
        return self.headers

    def get_app_iter(self, environ: "WSGIEnvironment") -> Iterable[bytes]:
        """The document; nothing where only its headers are asked for."""
        return () if environ["REQUEST_METHOD"] == "HEAD" else cast(list[bytes], self.response)


def entity_tag(order: StoredOrder) -> str:
    """The order's strong entity tag, without its quotes."""
    return f"{order.version}{ERASED}" if is_erased(order.document) else str(order.version)


def order_response(order: StoredOrder, status: int = 200, **headers: str) -> Response:
    """An order with its entity tag; 304 where the request's If-None-Match names it (RFC 9110 §13.1.2)."""
    etag = entity_tag(order)
    headers |= {"ETag": f'"{etag}"', "Cache-Control": _CACHING}
    asked = current_request()
    if "HTTP_IF_NONE_MATCH" in asked.environ and asked.method in ("GET", "HEAD"):
        if asked.if_none_match.contains_weak(etag):
            return Response(status=304, headers=headers, mimetype=JSON)
    return DocumentResponse(order.document.encode(), status, headers)


def created_response(order: StoredOrder) -> Response:
    """201 with the new order, or the same again for a replay."""
    return changed_response(order, 201, Location=public_path(f"/orders/{order.id}"))


def batch_response(outcomes: Sequence[Outcome]) -> Response:
    """200 with the status of each entry, and its order or its problem."""
    body = orjson.dumps({"results": [_batch_result(outcome) for outcome in in_stretches(outcomes)]})
    return compress(Response(body, mimetype=JSON))


def _batch_result(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, ServiceError):
        return {"status": outcome.status, "problem": problem_occurrence(outcome)}
    replayed = {"replayed": True} if outcome.replayed else {}
    return {"status": 201, **replayed, "order": orjson.Fragment(outcome.document)}


def changed_response(order: StoredOrder, status: int = 200, **headers: str) -> Response:
    """The order as a change left it; for a replay, as the first answer showed it."""
    if order.replayed:
        headers["Idempotent-Replayed"] = "true"
    return order_response(order, status, **headers)


def list_response(member: str, documents: Sequence[str], next_cursor: str | None) -> Response:
    """A page of documents with the way to the next one, in the body and as a Link header (RFC 8288)."""
    body = f'{{"{member}":[{",".join(documents)}],"next_cursor":{orjson.dumps(next_cursor).decode()}}}'.encode()
    headers = {"Cache-Control": _CACHING, "Vary": "Accept-Encoding"}
    if next_cursor is not None:
        query = urlencode(request.args.to_dict() | {"cursor": next_cursor})
        headers["Link"] = f'<{public_path(request.path)}?{query}>; rel="next"'
    if len(body) >= MIN_SIZE and gzip_accepted():
        body = gzip(body)
        headers["Content-Encoding"] = CODING
    return DocumentResponse(body, 200, headers)


def page_response(body: bytes, media_type: str) -> Response:
    """A page or file of the service's own, which is the same for everybody; 304 where the request's If-None-Match names
    its entity tag. Each content coding has a tag of its own (RFC 9110 §8.8.3.3)."""
    tag, headers = _page_tag(body), {"Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if len(body) >= MIN_SIZE and gzip_accepted():
        body, tag = gzip_of_page(body), f"{tag}-{CODING}"
        headers["Content-Encoding"] = CODING
    response = Response(body, headers=headers, mimetype=media_type)
    response.set_etag(tag)
    response.make_conditional(request)
    del response.headers["Date"]  # which is the server's to send
    return response


@lru_cache(maxsize=128)  # more than the service has pages and assets
def _page_tag(body: bytes) -> str:
    return blake2b(body, digest_size=12).hexdigest()


def erasure_response(erasure: ErasureState, *, started: bool = False) -> Response:
    """How far an erasure has come; 202 and where to follow it, if it was started by this request and is not done."""
    document = {
        "id": erasure.id,
        "status": erasure.status,
        "orders": erasure.orders,
        "created_at": rfc3339(erasure.created_at),
        "finished_at": rfc3339(erasure.finished_at) if erasure.finished_at else None,
    }
    headers = {"Cache-Control": "no-store"}
    if started:
        headers["Location"] = public_path(f"/erasures/{erasure.id}")
    status = 202 if started and erasure.status == RUNNING else 200
    return DocumentResponse(orjson.dumps(document), status, headers)


# What a frontend may read of an answer, besides the few headers any script may.
_EXPOSED = (
    "Complete-Until, ETag, Idempotent-Replayed, Link, Location, RateLimit, RateLimit-Policy, Retry-After, X-Request-Id"
)
_ALLOWED = (
    *("Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "X-Request-Id"),
    *("traceparent", "tracestate", "baggage", "sentry-trace"),  # W3C Trace Context, Baggage; Sentry's older name
)
_METHODS = "DELETE, GET, HEAD, PATCH, POST, PUT"
_PREFLIGHT_SECONDS = "7200"  # the longest that the large browsers keep one

# Swagger UI styles its elements in place and draws its icons from data: URLs; scripts come from files only.
_PAGES = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FOR_PAGES = FOR_ALL | {"Content-Security-Policy": _PAGES}


def init_app(app: Flask) -> None:
    """Answer preflight requests, and add the headers to every answer."""
    if app.config["CORS_ORIGINS"]:
        app.before_request(_answer_preflight)
        app.after_request(_allow_origin)
    app.after_request(_restrict)


def _origin_allowed() -> bool:
    """Whether the request's origin is one of the frontends'; browsers send it normalised, other clients may not."""
    origin, allowed = request.headers.get("Origin", ""), current_app.config["CORS_ORIGINS"]
    if origin in allowed:
        return True
    try:
        return normalize_origin(origin) in allowed
    except ValueError:
        return False


def _answer_preflight() -> Response | None:
    if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers or not _origin_allowed():
        return None
    return Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": ", ".join((*_ALLOWED, *current_app.config["CORS_HEADERS"])),
            "Access-Control-Max-Age": _PREFLIGHT_SECONDS,
        },
    )


def _allow_origin(response: Response) -> Response:
    """The origin itself and never *, and no credentials: tokens are sent by the script, cookies do not exist."""
    response.vary.add("Origin")
    if _origin_allowed():
        response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED
    return response


def _restrict(response: Response) -> Response:
    if not isinstance(response, DocumentResponse):  # those bring them along
        if response.status_code == 204:
            response.headers.remove("Content-Type")  # the library's, of nothing; a 304 keeps it until it is sent
        is_page = response.headers.get("Content-Type", "").startswith("text/html")
        response.headers.extend(_FOR_PAGES if is_page else FOR_DATA)
    return response
