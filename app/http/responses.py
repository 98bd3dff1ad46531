"""Responses: stored documents as they are, pages, problem documents, and the headers for caches and browsers.

First the responses of views; then what every response has: security headers, CORS (WHATWG Fetch §3.3) for the origins
of the setting CORS_ORIGINS, and problem documents (RFC 9457) for all errors: the service's, the framework's and the
database's.

Content negotiation (RFC 9110 §12.5), at the end, selects the media type of exports, and gzip for everything but single
orders. A single order is never compressed: its strong entity tag, which `If-Match` needs, stands for one sequence of
bytes, and a proxy that compresses must weaken it. Therefore nginx leaves compression to the service. No response
contains a secret that a browser adds by itself (a cookie, a token), so its length reveals nothing (BREACH).
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote_plus

import orjson
import structlog
from flask import Flask, Response, current_app, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.http import parse_list_header, parse_options_header

from app import errors
from app.db.engine import DATABASE_ERRORS, DatabaseError, is_unavailable, loggable_message, rfc3339
from app.errors import ServiceError
from app.http.auth import loggable_id
from app.http.openapi import RESPONSE_HEADERS
from app.http.requests import (
    CUSTOMER_SUFFIX,
    ERASED_SUFFIX,
    JSON,
    PROBLEM_JSON,
    current_request,
    explain_weak_tags,
    is_dry_run,
    is_origin_allowed,
    public_path,
    requested_path,
    with_pauses,
    yield_to_other_requests,
)
from app.models.order import RUNNING
from app.models.order_aggregate import StoredOrder, is_erased
from app.models.principal import Principal
from app.schemas.base import INVALID_PARAMETERS
from app.services.order_service import Outcome
from app.services.personal_data import ErasureState

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

log = structlog.get_logger()

_CACHE_PRIVATELY = "private, no-cache"  # only in the caller's own cache, which must revalidate before each use
_QUERY_CHARACTERS = "%!$&'()*+,;=:@/?"  # beside letters, digits and -._~ (RFC 3986 §3.4); % begins an escape
_ADDRESS_MAX = 8_000  # characters; nginx and gunicorn take request lines of 8 KiB (gunicorn.conf.py)

_SECURITY_HEADERS = (("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer"))
_DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
_DATA_HEADERS = (*_SECURITY_HEADERS, ("Content-Security-Policy", _DATA_POLICY))
# Swagger UI uses data: URLs for its icons; scripts and styles are loaded from files only.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS = (*_SECURITY_HEADERS, ("Content-Security-Policy", _PAGE_POLICY))

# The response headers that a frontend may read, and the request headers and methods that it may send.
_EXPOSED_HEADERS = ", ".join(sorted({*RESPONSE_HEADERS, "Allow"}))
_ALLOWED_HEADERS = (
    *("Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-ID", "X-Request-Id"),
    *("traceparent", "tracestate", "baggage", "sentry-trace"),  # W3C Trace Context, Baggage; Sentry's older name
)
_ALLOWED_METHODS = "DELETE, GET, HEAD, PATCH, POST, PUT"
_PREFLIGHT_SECONDS = "7200"  # the longest that Chromium caches a preflight response

# The problem type and detail of an HTTPException, by its status. Flask raises no others.
_PROBLEM_BY_STATUS: dict[int | None, tuple[type[ServiceError], str]] = {
    404: (errors.NotFound, "No resource has this path."),
    405: (errors.MethodNotAllowed, "The resource does not support this method. Use one of those in the Allow header."),
    500: (errors.InternalError, "The service failed unexpectedly. The error is logged under the request id."),
}
_NOT_FOUND = (errors.OrderNotFound, errors.ErasureNotFound)
_DENIALS = (errors.Unauthenticated, errors.Forbidden, errors.TooManyRequests)

_CODING = "gzip"
MIN_SIZE = 1_400  # bytes: less fits into one packet, so compression would not make it faster
_FAST_LEVEL, _SMALL_LEVEL = 1, 6  # zlib levels: 64 KiB of orders shrink to a ninth in 0.2 ms, or to a tenth in 0.5 ms
_COMPRESSED_AT_ONCE = 64 * 1024  # bytes compressed between two pauses for other requests


class DocumentResponse(Response):
    """A JSON document, sent as it is with headers that need no correction.

    Werkzeug's copies, checks and corrections of them take 24/29 % more instructions for a create/read. `headers` has
    only Content-Type and fields that are changed or added later, such as Vary.
    """

    def __init__(self, body: bytes, status: int, headers: dict[str, str], *, vary: str | None = None) -> None:
        super().__init__(status=status, content_type=JSON)
        if vary is not None:
            self.headers["Vary"] = vary
        self._body = body
        length = ("Content-Length", str(len(body)))
        self._complete_headers = [*headers.items(), length, *_DATA_HEADERS]

    def get_wsgi_response(self, environ: "WSGIEnvironment") -> tuple[list[bytes], str, list[tuple[str, str]]]:
        """Return the body (none for HEAD), the status line and all headers."""
        body = [] if environ["REQUEST_METHOD"] == "HEAD" else [self._body]
        return body, self.status, [*self.headers, *self._complete_headers]


def order_response(order: StoredOrder, status: int = 200, *, created: bool = False) -> Response:
    """Return an order with its entity tag, or 304 if the If-None-Match of a read names it (RFC 9110 §13.1.2).

    One that was `created` has a `Location`. A dry run has none, unless it replays a stored order. Raises
    VersionMismatch if the request reads the order and its If-Match does not name the entity tag.
    """
    etag, dry_run, request = _entity_tag(order), is_dry_run(), current_request()
    headers = {"ETag": f'"{etag}"', "Cache-Control": _CACHE_PRIVATELY}
    if created and (order.replayed or not dry_run):
        headers["Location"] = f"{request.root_path}/orders/{order.id}"
    if order.replayed:
        headers["Idempotent-Replayed"] = "true"
    if dry_run:
        headers["Dry-Run"] = "true"
    if request.method in ("GET", "HEAD"):
        if not _is_expected(etag):
            raise errors.VersionMismatch(f'The entity tag of the order is "{etag}".', current_version=order.version)
        if _is_unchanged(etag):
            return Response(status=304, headers=headers | {"Vary": "Authorization"}, mimetype=JSON)
    return DocumentResponse(order.document.encode(), status, headers, vary="Authorization")


def _is_expected(etag: str) -> bool:
    """Return whether the request has no If-Match, or one that names the entity tag of what it reads (RFC 9110 §13.1.1).

    It is evaluated before If-None-Match (RFC 9110 §13.2.2).
    """
    request = current_request()
    return "HTTP_IF_MATCH" not in request.environ or etag in request.if_match


def _is_unchanged(etag: str) -> bool:
    """Return whether the request's If-None-Match names the entity tag of what it reads."""
    request = current_request()
    return "HTTP_IF_NONE_MATCH" in request.environ and request.if_none_match.contains_weak(etag)


def _entity_tag(order: StoredOrder) -> str:
    """Return the order's strong entity tag, without quotes: the version, and what sets its document apart."""
    erased = ERASED_SUFFIX if is_erased(order.document) else ""
    return f"{order.version}{erased}{CUSTOMER_SUFFIX if order.partial else ''}"


def batch_response(outcomes: Sequence[Outcome], *, success: int) -> Response:
    """Return 200 with each entry's status, `success` or its problem's, and its order or its problem."""
    body = orjson.dumps({"results": [_batch_result(outcome, success) for outcome in with_pauses(outcomes)]})
    headers = {"Dry-Run": "true"} if is_dry_run() else None
    return compress(Response(body, headers=headers, mimetype=JSON))


def _batch_result(outcome: Outcome, success: int) -> dict[str, Any]:
    if isinstance(outcome, ServiceError):
        return {"status": outcome.status, "problem": _problem_occurrence(outcome)}
    replayed = {"replayed": True} if outcome.replayed else {}
    return {"status": success, **replayed, "order": orjson.Fragment(outcome.document)}


def list_response(
    member: str,
    documents: Sequence[str],
    next_cursor: str | None,
    *,
    parameter: str | None = "cursor",
    members: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a page of documents, and its next cursor in the body and in a Link header (RFC 8288).

    `parameter` is the query parameter for the cursor; None omits the Link header: the next page has no entries yet.
    `members` are further members of the body.
    """
    more = f",{orjson.dumps(members).decode()[1:-1]}" if members else ""  # without the braces
    body = f'{{"{member}":[{",".join(documents)}],"next_cursor":{orjson.dumps(next_cursor).decode()}{more}}}'.encode()
    all_headers = {"Cache-Control": _CACHE_PRIVATELY, **(headers or {})}
    if next_cursor is not None and parameter is not None:
        all_headers["Link"] = f'<{_next_address(parameter, next_cursor)}>; rel="next"'
    if len(body) >= MIN_SIZE and _is_gzip_accepted():
        body = _gzip(body)
        all_headers["Content-Encoding"] = _CODING
    return DocumentResponse(body, 200, all_headers, vary="Accept-Encoding, Authorization")


def _next_address(parameter: str, cursor: str) -> str:
    """Return the address of the request with the cursor. Raises InvalidRequest if it is too long for a request.

    The query stays as the client has encoded it: encoding it again could make it three times as long.
    """
    pairs = current_request().query_string.split(b"&")
    kept = [pair for pair in pairs if pair and unquote_plus(pair.partition(b"=")[0].decode()) != parameter]
    query = quote(b"&".join([*kept, f"{parameter}={cursor}".encode()]), safe=_QUERY_CHARACTERS)
    address = f"{requested_path()}?{query}"
    if len(address) > _ADDRESS_MAX:
        error = {
            "parameter": parameter,
            "detail": "The query leaves no room for the next cursor. Send a shorter query.",
        }
        raise errors.InvalidRequest(INVALID_PARAMETERS, errors=[error])
    return address


def json_response(document: dict[str, Any], status: int = 200, *, location: str | None = None) -> Response:
    """Return a document that no cache may store; `location` is a path of the service."""
    headers = {"Cache-Control": "no-store"}
    if location is not None:
        headers["Location"] = public_path(location)
    return DocumentResponse(orjson.dumps(document), status, headers)


def erasure_response(erasure: ErasureState, *, started: bool = False) -> Response:
    """Return the state of an erasure; 202 with its Location if this request started it and it is still running."""
    document = {
        "id": erasure.id,
        "status": erasure.status,
        "orders": erasure.orders,
        "created_at": rfc3339(erasure.created_at),
        "finished_at": rfc3339(erasure.finished_at) if erasure.finished_at else None,
    }
    status = 202 if started and erasure.status == RUNNING else 200
    return json_response(document, status, location=f"/erasures/{erasure.id}" if started else None)


def page_response(body: bytes, media_type: str, *, cache_control: str = "no-cache") -> Response:
    """Return a public page or file, or 304 if the request's If-None-Match names its entity tag.

    Each content coding has its own tag (RFC 9110 §8.8.3.3). Raises PreconditionFailed if If-Match does not name it.
    """
    tag, headers = _page_tag(body), {"Cache-Control": cache_control, "Vary": "Accept-Encoding"}
    is_compressed = len(body) >= MIN_SIZE and _is_gzip_accepted()
    if is_compressed:
        tag = f"{tag}-{_CODING}"
    headers["ETag"] = f'"{tag}"'
    if not _is_expected(tag):
        raise errors.PreconditionFailed(f'The entity tag of the page is "{tag}", which If-Match does not name.')
    if _is_unchanged(tag):
        return Response(status=304, headers=headers, mimetype=media_type)
    if is_compressed:
        body = _gzip_page(body)
        headers["Content-Encoding"] = _CODING
    return Response(body, headers=headers, mimetype=media_type)


@lru_cache(maxsize=128)  # more than there are pages and files
def _page_tag(body: bytes) -> str:
    return blake2b(body, digest_size=12).hexdigest()


def init_app(app: Flask) -> None:
    """Add the security headers to every response, and render every error as a problem document. Answer preflight
    requests for the origins of CORS_ORIGINS."""
    _register_error_handlers(app)
    if app.config["CORS_ORIGINS"]:
        app.before_request(_answer_preflight)
        app.after_request(_allow_origin)
    app.after_request(_add_security_headers)


def _add_security_headers(response: Response) -> Response:
    if not isinstance(response, DocumentResponse):  # it adds its own
        if response.status_code == 204:
            response.headers.remove("Content-Type")  # Werkzeug's default, though there is no content
        is_page = response.headers.get("Content-Type", "").startswith("text/html")
        policy = response.headers.get("Content-Security-Policy")  # a page's own
        response.headers.extend(_SECURITY_HEADERS if policy else _PAGE_HEADERS if is_page else _DATA_HEADERS)
    return response


def _answer_preflight() -> Response | None:
    if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers or not is_origin_allowed():
        return None
    return Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": _ALLOWED_METHODS,
            "Access-Control-Allow-Headers": ", ".join((*_ALLOWED_HEADERS, *current_app.config["CORS_HEADERS"])),
            "Access-Control-Max-Age": _PREFLIGHT_SECONDS,
        },
    )


def _allow_origin(response: Response) -> Response:
    """Allow the origin itself, never *, and no credentials: scripts send tokens, and there are no cookies."""
    response.vary.add("Origin")
    if is_origin_allowed():
        response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
    return response


def _register_error_handlers(app: Flask) -> None:
    app.register_error_handler(ServiceError, _render_service_error)
    app.register_error_handler(HTTPException, _render_http_error)
    for error_type in DATABASE_ERRORS:
        app.register_error_handler(error_type, _render_database_error)


def _render_service_error(error: ServiceError) -> Response:
    if isinstance(error, errors.VersionMismatch):
        explain_weak_tags(error)
    response = Response(orjson.dumps(_problem_occurrence(error)), error.status, mimetype=PROBLEM_JSON)
    response.headers["Cache-Control"] = "no-store"
    if is_dry_run():
        response.headers["Dry-Run"] = "true"
    response.headers.update(error.headers)
    return response


def _render_http_error(error: HTTPException) -> Response:
    problem_type, detail = _PROBLEM_BY_STATUS[error.code]
    problem = problem_type(detail)
    if isinstance(error, MethodNotAllowed):
        problem.with_headers(Allow=", ".join(sorted(error.valid_methods or ())))
    return _render_service_error(problem)


def _render_database_error(error: DatabaseError) -> Response:
    problem: ServiceError
    if is_unavailable(error):
        problem = errors.ServiceUnavailable("The database is temporarily unavailable. Send the request again.")
    else:
        problem = errors.InternalError(_PROBLEM_BY_STATUS[500][1])
    problem.__cause__ = error
    return _render_service_error(problem)


def _problem_occurrence(error: ServiceError) -> dict[str, Any]:
    """Return the document of an error of this request, and log denials and the causes of server errors."""
    if error.status >= 500 and error.__cause__ is not None:
        _log_cause(error.__cause__)
    _log_denial(error)
    return {
        "type": public_path(f"/problems/{error.slug}"),
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        **error.members,
        "instance": requested_path(),
        "request_id": g.get("request_id"),
    }


def _log_cause(cause: BaseException) -> None:
    if is_unavailable(cause):
        log.warning("database unavailable", error=type(cause).__name__, reason=loggable_message(cause))
    else:
        log.error("request failed", exc_info=cause)


def _log_denial(error: ServiceError) -> None:
    principal: Principal | None = g.get("principal")
    if isinstance(error, _DENIALS):
        log.warning("denied", principal=principal and loggable_id(principal), reason=error.reason or error.detail)
    elif isinstance(error, _NOT_FOUND) and principal and (principal.customer_id or principal.channels):
        # The resource may belong to another owner or not exist. Many such lines suggest that a client guesses ids.
        resource = "order" if isinstance(error, errors.OrderNotFound) else "erasure"
        owner = "the key's channels" if principal.customer_id is None else "this customer"
        log.warning("denied", principal=loggable_id(principal), reason=f"no such {resource} of {owner}")


def preferred_media_type(offered: Sequence[str]) -> str:
    """Return the offered media type preferred by `Accept`, the first of equally preferred ones.

    Parameters other than `q`, such as a charset, are ignored. Raises NotAcceptable if none is accepted.
    """
    header: str = current_request().environ.get("HTTP_ACCEPT", "")
    if not header.strip():
        return offered[0]
    qualities = _qualities(header)
    best = max(offered, key=lambda media_type: _media_type_quality(media_type, qualities))
    if not _media_type_quality(best, qualities):
        raise errors.NotAcceptable(
            f"This resource is available as {' or '.join(offered)}. Send one of them in Accept."
        ).with_headers(Vary="Accept")
    return best


def _media_type_quality(media_type: str, qualities: dict[str, float]) -> float:
    """Return the quality of the most specific range that matches, or 0."""
    ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((qualities[name] for name in ranges if name in qualities), 0)


def _qualities(header: str) -> dict[str, float]:
    """Return the quality of each media range or coding, in lower case. Malformed qualities are ignored."""
    qualities: dict[str, float] = {}
    for item in parse_list_header(header):
        name, parameters = parse_options_header(item)
        try:
            quality = float(parameters.get("q", "1"))  # including ".2", which Java sends
        except ValueError:
            continue
        if 0 <= quality <= 1:
            qualities[name.lower()] = max(quality, qualities.get(name.lower(), 0))
    return qualities


def compress(response: Response) -> Response:
    """Compress the response, which has no entity tag, if gzip is accepted and worthwhile."""
    response.vary.add("Accept-Encoding")
    if not _is_gzip_accepted():
        return response
    if response.is_streamed:
        response.response = _gzip_stream(response.response)
        response.headers["Content-Encoding"] = _CODING
    elif len(body := response.get_data()) >= MIN_SIZE:
        response.set_data(_gzip(body))
        response.headers["Content-Encoding"] = _CODING
    return response


def _is_gzip_accepted() -> bool:
    """Return whether the request prefers gzip to no coding (RFC 9110 §12.5.3)."""
    header: str | None = current_request().environ.get("HTTP_ACCEPT_ENCODING")
    return header is not None and _prefers_gzip(header)


@lru_cache(maxsize=256)  # clients send few different values
def _prefers_gzip(header: str) -> bool:
    qualities = _qualities(header)
    named = [qualities[coding] for coding in ("gzip", "x-gzip") if coding in qualities]
    quality = max(named, default=qualities.get("*", 0))
    return quality > 0 and quality >= qualities.get("identity", 0)


def _gzip(body: bytes, *, level: int = _FAST_LEVEL) -> bytes:
    """Compress a body, to the same bytes each time."""
    compressor = zlib.compressobj(level, wbits=31)  # 31: gzip format, with no time in the header
    parts = [compressor.compress(body[:_COMPRESSED_AT_ONCE])]
    for start in range(_COMPRESSED_AT_ONCE, len(body), _COMPRESSED_AT_ONCE):
        yield_to_other_requests()
        parts.append(compressor.compress(body[start : start + _COMPRESSED_AT_ONCE]))
    return b"".join((*parts, compressor.flush()))


@lru_cache(maxsize=128)  # more than there are pages and files
def _gzip_page(body: bytes) -> bytes:
    """Compress the body of a page once for all requests."""
    return _gzip(body, level=_SMALL_LEVEL)


def _gzip_stream(parts: Iterable[str] | Iterable[bytes]) -> Iterator[bytes]:
    """Compress a stream and flush after each part, so that the client can read it at once."""
    compressor = zlib.compressobj(_FAST_LEVEL, wbits=31)
    try:
        for part in parts:
            data = compressor.compress(part.encode() if isinstance(part, str) else part)
            yield data + compressor.flush(zlib.Z_SYNC_FLUSH)
        yield compressor.flush()
    finally:
        if hasattr(parts, "close"):
            parts.close()
