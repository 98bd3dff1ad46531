"""How a request's body and query become a schema's input, and its faults a problem."""

import re
import threading
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from flask import Request
from marshmallow import Schema, ValidationError
from werkzeug.exceptions import ClientDisconnected

from app.errors import BadRequest, ContentTooLarge, InvalidRequest, RequestTimeout, UnsupportedMediaType
from app.event_loop import let_others_run
from app.http.application import ACCEPT_PATCH, current_request
from app.schemas.fields import FAULTS_MAX, StrictSchema
from app.schemas.strict_json import parse_json

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"

_LARGE_BODY = 256 * 1024  # bytes; it takes some 20 ms to parse
_LARGE_BODIES = threading.Lock()
_NOT_AN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def read_body(schema: Schema) -> Any:
    """What the schema makes of the request's JSON body.

    Raises InvalidRequest with every fault, UnsupportedMediaType, ContentTooLarge and MalformedJSON.
    """
    return load_body(schema, _read_json(current_request(), schema))


def read_query(schema: Schema) -> dict[str, Any]:
    """What the schema makes of the query parameters. Raises InvalidRequest with every fault, and BadRequest."""
    request = current_request()
    if not request.query_string:
        return _defaults(schema).copy()
    return _load_parameters(schema, _read_query(request))


def check_path(schema: Schema) -> None:
    """Raise InvalidRequest where a variable of the path is not valid."""
    _load_parameters(schema, current_request().view_args or {})


def _load_parameters(schema: Schema, parameters: Mapping[str, Any]) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = schema.load(parameters)
        return loaded
    except ValidationError as error:
        faults = list(_parameter_faults(error.messages_dict))
        raise InvalidRequest("Parameters are not valid.", errors=faults) from None


@lru_cache(maxsize=None)  # as many as there are routes
def _defaults(schema: Schema) -> dict[str, Any]:
    """What comes of an empty query."""
    loaded: dict[str, Any] = schema.load({})
    return loaded


def _read_json(req: Request, schema: Schema) -> Any:
    """The request's JSON body. Raises UnsupportedMediaType, ContentTooLarge and MalformedJSON."""
    limit, body = getattr(schema, "BODY_MAX", StrictSchema.BODY_MAX), b""
    if not schema.fields and not req.content_length:  # an action that takes nothing may come without a body
        if "Transfer-Encoding" in req.headers:  # its length is not known before it has been read
            body = _read_body(req, limit=limit)
        if not body:
            return {}
    check_media_type(req, *((JSON, MERGE_PATCH) if req.method == "PATCH" else (JSON,)))
    return _parse(body or _read_body(req, limit=limit))


def _parse(body: bytes) -> Any:
    if len(body) < _LARGE_BODY:
        return parse_json(body)
    # Nothing else runs in the worker while a body is parsed: of several, one at a time, and others in between.
    with _LARGE_BODIES:
        let_others_run()
        return parse_json(body)


def _read_query(req: Request) -> dict[str, str]:
    """The query parameters. One that stands twice is refused: which of the two is meant?

    Raises BadRequest where the query is not UTF-8, percent-encoded: the framework would guess.
    """
    _check_encoding(req.query_string)
    repeated = [name for name, values in req.args.lists() if len(values) > 1]
    if repeated:
        faults = [{"parameter": name, "detail": "This parameter stands twice."} for name in repeated]
        raise InvalidRequest("A query parameter stands twice.", errors=faults)
    return req.args.to_dict()


def _read_body(req: Request, *, limit: int) -> bytes:
    """The request's body. Raises ContentTooLarge, and RequestTimeout or BadRequest where the server cannot read it."""
    try:
        return _receive_body(req, limit)
    except (OSError, ClientDisconnected) as error:
        if isinstance(error, TimeoutError) or isinstance(error.__context__, TimeoutError):
            raise RequestTimeout("The body came too slowly.") from error
        raise BadRequest("The body ended early, or its chunks are malformed.") from error


def _receive_body(req: Request, limit: int) -> bytes:
    length = req.content_length
    if length is not None and length <= limit:
        body: bytes = req.environ["wsgi.input"].read(length)  # the library would first make room for 64 KiB, twice
        if len(body) < length:
            raise BadRequest("The body ended before its Content-Length.")
        return body
    # One byte more than may come: a body that does not tell its length is cut off there, without a word.
    req.max_content_length = limit + 1
    body = req.get_data(cache=False)
    if len(body) > limit:
        raise ContentTooLarge(f"The body has more than {limit} bytes.")
    return body


def load_body(schema: Schema, data: Any, *, pointer: str = "#") -> Any:
    """The data, which stands at `pointer` in the body, as the schema reads it.

    Raises InvalidRequest with the first FAULTS_MAX faults.
    """
    try:
        return schema.load(data)
    except ValidationError as error:
        faults = list(islice(_faults(error.messages, pointer), FAULTS_MAX + 1))
        more = f" These are the first {FAULTS_MAX} faults." if len(faults) > FAULTS_MAX else ""
        error.with_traceback(None)  # whose frames refer to the error, and keep the data until a garbage collection
        raise InvalidRequest(f"Members of the body are not valid.{more}", errors=faults[:FAULTS_MAX]) from None


def check_media_type(req: Request, *accepted: str) -> None:
    """Raise UnsupportedMediaType unless the body is declared as one of the types, in UTF-8, without a coding.

    The error's headers tell what is accepted (RFC 9110 §12.5, RFC 5789 §2.2).
    """
    if req.environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        unsupported = UnsupportedMediaType("The body must be sent without a Content-Encoding.")
        raise unsupported.with_headers(Accept_Encoding="identity")
    if req.environ.get("CONTENT_TYPE") in accepted:
        return
    charset = req.mimetype_params.get("charset", "utf-8").lower()
    if req.mimetype not in accepted or charset not in ("utf-8", "utf8"):
        unsupported = UnsupportedMediaType(f"Send the body as Content-Type: {' or '.join(accepted)}, in UTF-8.")
        if req.method == "PATCH":
            raise unsupported.with_headers(Accept_Patch=ACCEPT_PATCH)
        raise unsupported.with_headers(Accept=", ".join(accepted))


def _check_encoding(query: bytes) -> None:
    try:
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        raise BadRequest("The query is not UTF-8.") from None
    if _NOT_AN_ESCAPE.search(query):
        raise BadRequest("A % in the query must be followed by two hexadecimal digits; % itself is %25.")


def _faults(messages: Any, pointer: str) -> Iterator[dict[str, str]]:
    """The faults of a body, each with its JSON pointer as a URI fragment (RFC 6901 §6)."""
    if isinstance(messages, Mapping):
        for name, below in messages.items():
            yield from _faults(below, pointer if name == "_schema" else f"{pointer}/{_pointer_token(name)}")
    else:
        for message in messages if isinstance(messages, list) else [messages]:
            yield {"pointer": pointer, "detail": str(message)}


def _pointer_token(name: Any) -> str:
    return quote(str(name).replace("~", "~0").replace("/", "~1"), safe="~!$&'()*+,;=:@", errors="replace")


def _parameter_faults(messages: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for name, below in messages.items():
        for fault in _faults(below, ""):
            yield {"parameter": name, "detail": fault["detail"]}
