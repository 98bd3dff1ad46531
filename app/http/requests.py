"""The request: its id and path, pauses for other requests, and its validated input.

The input in this order: the body, the path, the query, Idempotency-Key, If-Match and If-None-Match, and cursors.

A cursor is opaque and bound to its list. It contains only a position; which orders a principal may see is decided by
the SQL of the list. The binding is no signature and need not be one: a forged cursor only changes where the client's
own list starts. At the ends of a list, both the cursor and the position are None.
"""

import re
import threading
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import cache
from hashlib import blake2b
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote
from uuid import UUID

import orjson
from flask import Request, current_app, g, request
from marshmallow import Schema
from werkzeug.exceptions import ClientDisconnected

from app.config import normalize_origin
from app.db.engine import read_timestamp, rfc3339
from app.errors import (
    BadRequest,
    ContentTooLarge,
    InvalidCursor,
    InvalidIdempotencyKey,
    InvalidRequest,
    PreconditionFailed,
    PreconditionRequired,
    RequestTimeout,
    UnsupportedMediaType,
    VersionMismatch,
)
from app.models.order import IDEMPOTENCY_KEY_MAX
from app.models.order_id import fingerprint
from app.models.principal import Principal
from app.schemas.base import INVALID_PARAMETERS, StrictSchema, load_body, load_parameters, parse_json
from app.schemas.parameters import DryRunQuerySchema
from app.services.order_actions import ChangeRequest
from app.services.order_search import SearchPosition
from app.services.order_service import CreateRequest

Item = TypeVar("Item")

JSON, PROBLEM_JSON = "application/json", "application/problem+json"
MERGE_PATCH = "application/merge-patch+json"
ACCEPT_PATCH = f"{MERGE_PATCH}, {JSON}"  # media types of a PATCH (RFC 5789 §2.2)

# Seconds. sleep(0) runs only the greenlets that are ready: the event loop polls sockets once in a thousand such
# switches, and with eight clients sending batches, other requests waited for seconds.
_PAUSE = 1e-6
_MAX_RUN = 0.002  # seconds of work between two pauses

_LARGE_BODY = 256 * 1024  # bytes; it takes some 20 ms to parse
_LARGE_BODIES = threading.Lock()
_LARGE_BODY_PAUSE = 0.02  # seconds between two of them: enough to answer a small request

_NOT_AN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_DRY_RUN_QUERY = DryRunQuerySchema()
_DRY_RUN = "order_service.dry_run"  # in the WSGI environment of a dry run

_SYMBOL = r'(?:[ !#-\[\]-~]|\\["\\])'  # of a string (RFC 8941 §3.3.3)
_BARE_SYMBOL = r"[!#-+\--~]"  # what most clients send: no space, quote or comma (two headers, joined)
_QUOTED_KEY = re.compile(f'"({_SYMBOL}*)"')
_BARE_KEY = re.compile(f"{_BARE_SYMBOL}+")
KEY_PATTERN = f'^({_BARE_SYMBOL}{{1,{IDEMPOTENCY_KEY_MAX}}}|"{_SYMBOL}{{1,{IDEMPOTENCY_KEY_MAX}}}")$'
_KEY_ESCAPE = re.compile(r"\\(.)")

# Suffixes of the entity tag of a version: an erasure has rewritten it; something is left out of a customer's view.
ERASED_SUFFIX, CUSTOMER_SUFFIX = "-erased", "-customer"
# The tag of an order: equal character by character (RFC 9110 §8.8.3.2), so "01" is not "1".
_VERSION_TAG = re.compile(f"([1-9][0-9]{{0,8}})(?:{ERASED_SUFFIX})?(?:{CUSTOMER_SUFFIX})?")
_ALL_VERSIONS = range(1, 10**9)

_CURSOR_BINDING_BYTES = 8
_INT32_MAX, _INT64_MAX = 2**31 - 1, 2**63 - 1  # the largest integers of the columns
_FEED_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)  # a number of the feed, as text; cursors are longer
_INVALID_CURSOR = "The cursor is damaged, or belongs to another list. Start again without a cursor."


def current_request() -> Request:
    """Return the request object itself. Flask's proxy throughout would cost 23/29 %."""
    current: Request = request._get_current_object()  # type: ignore[attr-defined]  # documented by Flask
    return current


def current_globals() -> Any:
    """Return the object behind `g`, for the same reason."""
    return g._get_current_object()  # documented by Flask


def current_request_id() -> str:
    """Return the id of the request, as in the logs and in X-Request-Id."""
    request_id: str = current_globals().request_id
    return request_id


def public_path(path: str) -> str:
    """Return a path of the service with the URL prefix, as clients see it."""
    return current_request().root_path + path


def requested_path() -> str:
    """Return the path of the request as clients see it, percent-encoded (RFC 3986)."""
    return quote(public_path(current_request().path), safe="/:@!$&'()*+,;=")


def is_origin_allowed() -> bool:
    """Return whether the request's origin is in CORS_ORIGINS. Browsers send it normalized, other clients may not."""
    origin, allowed = current_request().headers.get("Origin", ""), current_app.config["CORS_ORIGINS"]
    if origin in allowed:
        return True
    try:
        return normalize_origin(origin) in allowed
    except ValueError:
        return False


def yield_to_other_requests() -> None:
    """Yield to the worker's other requests, including those that have just arrived."""
    time.sleep(_PAUSE)


def with_pauses(items: Iterable[Item]) -> Iterator[Item]:
    """Iterate over the items, and yield to the worker's other requests after every 2 ms of work."""
    pause_at = 0.0
    for item in items:
        if time.monotonic() >= pause_at:
            yield_to_other_requests()
            pause_at = time.monotonic() + _MAX_RUN
        yield item


def read_body(schema: StrictSchema, req: Request) -> Any:
    """Read the JSON body and load it with the schema.

    Raises InvalidRequest with all errors, UnsupportedMediaType, ContentTooLarge, MalformedJSON, RequestTimeout and
    BadRequest.
    """
    return load_body(schema, _read_json(req, schema))


def _read_json(req: Request, schema: StrictSchema) -> Any:
    """Read and parse the JSON body."""
    limit, body = schema.MAX_BODY_SIZE, b""
    if not schema.fields and not req.content_length:  # an action without members needs no body
        if "Transfer-Encoding" in req.headers:  # chunked: the length is unknown until it is read
            body = _read_bytes(req, limit=limit)
        if not body:
            return {}
    _check_media_type(req)
    return _parse_body(body or _read_bytes(req, limit=limit))


def _read_bytes(req: Request, *, limit: int) -> bytes:
    """Read the body. Raises ContentTooLarge, RequestTimeout and BadRequest."""
    try:
        return _receive_bytes(req, limit)
    except (OSError, ClientDisconnected) as error:
        if isinstance(error, TimeoutError) or isinstance(error.__context__, TimeoutError):
            raise RequestTimeout("The body did not arrive in time.") from error
        raise BadRequest("The body is incomplete, or its chunked coding is malformed.") from error


def _receive_bytes(req: Request, limit: int) -> bytes:
    length = req.content_length
    if length is None:
        # One byte more than allowed: a chunked body that is longer is cut off there, without an error.
        req.max_content_length = limit + 1
        body: bytes = req.get_data(cache=False)
        length = len(body)
    elif length <= limit:
        body = req.environ["wsgi.input"].read(length)  # saves 3.5 % of a create: Werkzeug fills 64 KiB buffers
        if len(body) < length:
            raise BadRequest("The body is shorter than its Content-Length.")
    if length > limit:
        raise ContentTooLarge(f"The body is larger than {limit:,} bytes. Split it into several requests.")
    return body


def _check_media_type(req: Request) -> None:
    """Raise UnsupportedMediaType unless the body is JSON, or for PATCH a merge patch, in UTF-8, without a coding.

    The error's headers state what is accepted (RFC 9110 §12.5, RFC 5789 §2.2).
    """
    codings = req.environ.get("HTTP_CONTENT_ENCODING")
    if codings and not {coding.strip(" \t").lower() for coding in codings.split(",")} <= {"", "identity"}:
        unsupported = UnsupportedMediaType("The body must be sent without a Content-Encoding.")
        raise unsupported.with_headers(Accept_Encoding="identity")
    accepted = (JSON, MERGE_PATCH) if req.method == "PATCH" else (JSON,)
    if req.environ.get("CONTENT_TYPE") in accepted:
        return
    charset = req.mimetype_params.get("charset", "utf-8").lower()
    if req.mimetype not in accepted or charset not in ("utf-8", "utf8"):
        unsupported = UnsupportedMediaType(f"Send the body as Content-Type: {' or '.join(accepted)}, in UTF-8.")
        if req.method == "PATCH":
            raise unsupported.with_headers(Accept_Patch=ACCEPT_PATCH)
        raise unsupported.with_headers(Accept=", ".join(accepted))


def _parse_body(body: bytes) -> Any:
    if len(body) < _LARGE_BODY:
        return parse_json(body)
    # Nothing else runs in the worker while a body is parsed, so large bodies are parsed one at a time.
    if _LARGE_BODIES.acquire(blocking=False):
        yield_to_other_requests()
    else:
        _LARGE_BODIES.acquire()
        time.sleep(_LARGE_BODY_PAUSE)
    try:
        return parse_json(body)
    finally:
        _LARGE_BODIES.release()


def check_path(schema: Schema, req: Request) -> None:
    """Raise InvalidRequest if a path variable is invalid."""
    load_parameters(schema, req.view_args or {})


def read_query(schema: Schema, req: Request) -> dict[str, Any]:
    """Load the query parameters with the schema. Raises InvalidRequest with all errors, and BadRequest."""
    if not req.query_string:
        return _query_defaults(schema).copy()
    return load_parameters(schema, _query_parameters(req))


@cache  # one entry a route
def _query_defaults(schema: Schema) -> dict[str, Any]:
    """Return the result of an empty query."""
    loaded: dict[str, Any] = schema.load({})
    return loaded


def _query_parameters(req: Request) -> dict[str, str]:
    """Return the query parameters. Raises InvalidRequest for a duplicate parameter, which would be ambiguous.

    Raises BadRequest if the query is not percent-encoded UTF-8; Werkzeug would replace what it cannot decode.
    """
    try:
        pairs = parse_qsl(req.query_string.decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise BadRequest("The query is not percent-encoded UTF-8.") from None
    if _NOT_AN_ESCAPE.search(req.query_string):
        raise BadRequest("A % in the query must be followed by two hexadecimal digits. Encode % itself as %25.")
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        errors = [{"parameter": name, "detail": "Duplicate parameter. Send it once."} for name in repeated]
        raise InvalidRequest(INVALID_PARAMETERS, errors=errors)
    return parameters


def read_dry_run(req: Request) -> None:
    """Read the query parameter `dry_run`. Raises InvalidRequest for another value, or another parameter."""
    if req.query_string and read_query(_DRY_RUN_QUERY, req)["dry_run"] == "true":
        req.environ[_DRY_RUN] = True


def is_dry_run() -> bool:
    """Return whether the request is a dry run, which stores nothing."""
    return _DRY_RUN in current_request().environ


def idempotency_key() -> str | None:
    """Return the Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07), or None if there is none.

    A key means the same bare and as a quoted string. Raises InvalidIdempotencyKey.
    """
    header = current_request().environ.get("HTTP_IDEMPOTENCY_KEY")
    if header is None:
        return None
    text = header.strip(" \t")
    quoted = _QUOTED_KEY.fullmatch(text)
    if quoted:
        key = _KEY_ESCAPE.sub(r"\1", quoted[1])
    elif _BARE_KEY.fullmatch(text):
        key = text
    else:
        raise InvalidIdempotencyKey(
            "Send one key of printable ASCII characters, bare (without spaces, commas, quotes) or as a quoted string."
        )
    if not 1 <= len(key) <= IDEMPOTENCY_KEY_MAX:
        raise InvalidIdempotencyKey(f"The key has {len(key)} characters; 1 to {IDEMPOTENCY_KEY_MAX} are allowed.")
    return key


def refuse_header(name: str, *, member: str) -> None:
    """Raise BadRequest if a request with several entries has a header that belongs in a member of each: it would be
    ignored, and a retry would repeat every entry."""
    if name in current_request().headers:
        raise BadRequest(f"This request takes no {name} header. Send `{member}` in each entry.")


def create_request(principal: Principal, body: dict[str, Any]) -> CreateRequest:
    """Return the creation of an order from its validated body. Raises InvalidIdempotencyKey."""
    return CreateRequest(
        body,
        principal,
        idempotency_key=idempotency_key(),
        request_id=current_request_id(),
        dry_run=is_dry_run(),
    )


def change_request(principal: Principal, body: Any = None) -> ChangeRequest:
    """Return the conditions of a change: the principal, If-Match, and Idempotency-Key with the body's fingerprint.

    Raises InvalidIdempotencyKey and PreconditionRequired.
    """
    key = idempotency_key()
    return ChangeRequest(
        principal,
        expected_versions=_expected_versions(),
        excluded_versions=_excluded_versions(),
        idempotency_key=key,
        fingerprint=None if key is None else fingerprint(body),
        request_id=current_request_id(),
        dry_run=is_dry_run(),
    )


def _expected_versions() -> frozenset[int] | None:
    """Return the versions in If-Match, or None for any version (RFC 9110 §13.1.1).

    Weak tags and tags that are not of a version never match. Raises PreconditionRequired if the header is missing and
    the setting REQUIRE_IF_MATCH is on.
    """
    request = current_request()
    if "HTTP_IF_MATCH" not in request.environ:
        if current_app.config["REQUIRE_IF_MATCH"]:
            raise PreconditionRequired("If-Match is missing. Send the ETag of the order in it.")
        return None
    tags = request.if_match
    return None if tags.star_tag else _versions_of(tags.as_set())


def _excluded_versions() -> Container[int]:
    """Return the versions in If-None-Match, weak tags included: all for `*` (RFC 9110 §13.1.2)."""
    request = current_request()
    if "HTTP_IF_NONE_MATCH" not in request.environ:
        return ()
    tags = request.if_none_match
    return _ALL_VERSIONS if tags.star_tag else _versions_of(tags.as_set(include_weak=True))


def _versions_of(tags: Iterable[str]) -> frozenset[int]:
    versions = (_VERSION_TAG.fullmatch(tag) for tag in tags if tag)
    return frozenset(int(version[1]) for version in versions if version)


def explain_weak_tags(mismatch: VersionMismatch) -> None:
    """Add to the error that a tag in If-Match is weak, if so: the order may be unchanged since the client read it."""
    tags = request.if_match
    weak = sorted(tag or "" for tag in tags.as_set(include_weak=True) - tags.as_set())  # Werkzeug reads "" as None
    if weak:
        mismatch.detail += (
            f' If-Match has W/"{weak[0][:32]}": a weak entity tag never matches there (RFC 9110 §13.1.1). The service '
            "sends strong ones; a proxy that compresses responses weakens them. Switch compression off for orders."
        )


def has_conditions(req: Request) -> bool:
    """Return whether the request has If-Match or If-None-Match."""
    return "HTTP_IF_MATCH" in req.environ or "HTTP_IF_NONE_MATCH" in req.environ


def check_conditions(*, exists: bool = True) -> None:
    """Raise PreconditionFailed if the conditions of a change do not hold for a resource without an entity tag."""
    environ = current_request().environ
    if "HTTP_IF_MATCH" in environ and not (exists and request.if_match.star_tag):
        raise PreconditionFailed(
            "The resource has no entity tag, so If-Match cannot match. Send the request without it."
        )
    if "HTTP_IF_NONE_MATCH" in environ and exists and request.if_none_match.star_tag:
        raise PreconditionFailed("The resource exists, but If-None-Match requires that it does not.")


def make_cursor(after: str | None, *, query: Mapping[str, Any]) -> str | None:
    """Return the cursor for the position after the order `after` in the list with these filters and this sort."""
    return None if after is None else _encode_cursor(UUID(after).bytes, query)


def read_cursor(text: str | None, *, query: Mapping[str, Any]) -> str | None:
    """Return the order id in a cursor. Raises InvalidCursor if the cursor belongs to another query."""
    return None if text is None else str(UUID(bytes=_decode_cursor(text, 16, query)))


def make_version_cursor(after: int | None, *, order_id: str) -> str | None:
    """Return the cursor for the position after a version in an order's history."""
    return None if after is None else _encode_cursor(after.to_bytes(4), {"order_id": order_id})


def read_version_cursor(text: str | None, *, order_id: str) -> int | None:
    """Return the version in a cursor. Raises InvalidCursor if the cursor belongs to another order."""
    if text is None:
        return None
    version = int.from_bytes(_decode_cursor(text, 4, {"order_id": order_id}))
    if version > _INT32_MAX:
        raise InvalidCursor(_INVALID_CURSOR)
    return version


def make_feed_cursor(after: int, *, query: Mapping[str, Any]) -> str:
    """Return the cursor for the position after a number of the feed, read with these filters."""
    return _encode_cursor(after.to_bytes(8), query)


def read_feed_cursor(text: str, *, query: Mapping[str, Any]) -> int:
    """Return the number in a cursor, or the text itself as a number. Raises InvalidCursor."""
    number = int(text) if _FEED_NUMBER.fullmatch(text) else int.from_bytes(_decode_cursor(text, 8, query))
    if number > _INT64_MAX:
        raise InvalidCursor(_INVALID_CURSOR)
    return number


def make_search_cursor(after: SearchPosition | None, *, query: Mapping[str, Any]) -> str | None:
    """Return the cursor for a position in a search with these filters and this sort."""
    if after is None:
        return None
    return _encode_cursor(UUID(after.order_id).bytes + orjson.dumps(after.value), query)


def read_search_cursor(text: str | None, *, query: Mapping[str, Any]) -> SearchPosition | None:
    """Return the position in a cursor. Raises InvalidCursor if the cursor belongs to another query."""
    if text is None:
        return None
    position = _decode_cursor(text, None, query)
    try:
        value: Any = orjson.loads(position[16:])
        order_id = str(UUID(bytes=position[:16]))
    except ValueError:
        raise InvalidCursor(_INVALID_CURSOR) from None
    if not _IS_SORT_VALUE[str(query["sort"]).removeprefix("-")](value):
        raise InvalidCursor(_INVALID_CURSOR)
    return SearchPosition(value, order_id)


def _is_timestamp(value: Any) -> bool:
    """Whether a value is a time as the database compares it."""
    try:
        return isinstance(value, str) and rfc3339(read_timestamp(value)) == value
    except (ValueError, OverflowError):
        return False


# Whether a value is possible in the sort. A forged cursor may contain any value.
_IS_SORT_VALUE: dict[str, Callable[[Any], bool]] = {
    "created_at": lambda value: value is None,
    "updated_at": _is_timestamp,
    "total": lambda value: type(value) is int and -1 <= value <= _INT64_MAX,
}


def _encode_cursor(position: bytes, query: Mapping[str, Any]) -> str:
    return urlsafe_b64encode(position + _cursor_binding(query)).decode()


def _decode_cursor(text: str, length: int | None, query: Mapping[str, Any]) -> bytes:
    try:
        raw = urlsafe_b64decode(text)
    except (Base64Error, ValueError):
        raw = b""
    position, binding = raw[:-_CURSOR_BINDING_BYTES], raw[-_CURSOR_BINDING_BYTES:]
    if binding != _cursor_binding(query) or (length is not None and len(position) != length):
        raise InvalidCursor(_INVALID_CURSOR)
    return position


def _cursor_binding(query: Mapping[str, Any]) -> bytes:
    return blake2b(orjson.dumps(dict(query), option=orjson.OPT_SORT_KEYS), digest_size=_CURSOR_BINDING_BYTES).digest()
