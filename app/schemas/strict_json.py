"""Strict JSON: parse a body, load it with a schema, and report every error in one problem document.

Anything that two parsers could read differently is refused (RFC 8259 §4 and §8; I-JSON, RFC 7493).
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn
from urllib.parse import quote

from marshmallow import Schema, ValidationError

from app.errors import InvalidRequest, MalformedJSON
from app.schemas.fields import ERRORS_MAX

INVALID_PARAMETERS = "The parameters are not valid. Correct what `errors` lists."
MAX_DEPTH = 32
_MAX_DIGITS = 40  # no member has a limit that long, and long numbers are slow to convert
_MAX_NUMBER = 100  # characters of a number with a fraction or an exponent
_EXACT_DIGITS = sys.float_info.dig  # decimal digits that a float holds
_DECIMAL = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")
# A batch of 1,000 orders with 100 priced lines each has 300,000 commas and 102,000 objects. Parsing blocks the worker
# for up to a microsecond per value, and a value takes up to 250 bytes of memory.
_MAX_COMMAS = 320_000
_MAX_OBJECTS = 250_000
_MAX_COMMAS_WITH_STRINGS = 1_000_000  # including those within strings
_MAX_QUOTES = 2_000_000
_MAX_MEMBERS = 10_000  # of one object; every schema has far fewer
_COMMA, _END_OF_OBJECT = b",}"
_NEITHER_STRUCTURE_NOR_QUOTE = bytes(set(range(256)) - set(b'[]{},"'))


def parse_json(body: bytes) -> Any:
    """Parse a JSON text in UTF-8.

    As in JSON Schema, a number without a fraction is an int in any notation: 2.0, 1e0 and 20e-1 are 2, 1 and 2.

    Raises MalformedJSON for anything else, and for a byte order mark, a duplicate member, NaN and Infinity, a number of
    more than 40 digits (100 characters with a fraction or an exponent), and nesting deeper than MAX_DEPTH.
    """
    if not body:
        raise MalformedJSON("The body is empty. Send a JSON object.")
    if body.startswith(b"\xef\xbb\xbf"):
        raise MalformedJSON("The body starts with a byte order mark. Send UTF-8 without one.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedJSON(f"Byte {error.start} of the body is not valid UTF-8.") from None
    # Counting brackets and commas is cheap and enough for nearly every body.
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH or body.count(b",") > _MAX_MEMBERS:
        if body.count(b",") > _MAX_COMMAS_WITH_STRINGS or body.count(b'"') > _MAX_QUOTES:
            raise MalformedJSON(
                "The body has too many values or too many quotes and commas. Split it into several requests."
            )
        _check_structure(_structure(body))
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        detail = f"{error.msg} at line {error.lineno}, column {error.colno}."
        raise MalformedJSON(detail) from None


def _structure(body: bytes) -> bytes:
    """Return the brackets and commas outside of strings, at a few nanoseconds per byte.

    Once escape sequences are removed, every quote begins or ends a string. After a backslash outside of a string the
    result may be wrong, but that is not JSON, and the parser stops there too.
    """
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    structure_and_quotes = body.translate(None, _NEITHER_STRUCTURE_NOR_QUOTE).replace(b'""', b"")
    return b"".join(structure_and_quotes.split(b'"')[::2])


def _check_structure(structure: bytes) -> None:
    if structure.count(b",") > _MAX_COMMAS or structure.count(b"[") + structure.count(b"{") > _MAX_OBJECTS:
        detail = f"The body has more than {_MAX_COMMAS:,} values or {_MAX_OBJECTS:,} objects and arrays."
        raise MalformedJSON(f"{detail} Split it into several requests.")
    commas: list[int] = []  # of each open object and array
    for symbol in structure:
        if symbol == _COMMA:
            if commas:
                commas[-1] += 1
        elif symbol in b"[{":
            commas.append(0)
            if len(commas) > MAX_DEPTH:
                raise MalformedJSON(f"The body is nested deeper than {MAX_DEPTH} levels.")
        elif commas and commas.pop() >= _MAX_MEMBERS and symbol == _END_OF_OBJECT:
            raise MalformedJSON(f"An object has more than {_MAX_MEMBERS:,} members.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        duplicate = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise MalformedJSON(f"Duplicate member {json.dumps(duplicate[:64])} in one object.")
    return members


def _constant(name: str) -> NoReturn:
    raise MalformedJSON(f"{name} is not a JSON value. Send a number or null.")


def _number(text: str) -> int:
    if len(text.removeprefix("-")) > _MAX_DIGITS:
        raise MalformedJSON(f"A number has more than {_MAX_DIGITS} digits.")
    return int(text)


def _decimal(text: str) -> int | float:
    """Convert a number with a fraction or an exponent: an exact int if its value is an integer, else a float."""
    if len(text) <= _EXACT_DIGITS:
        value = float(text)
        if 1e-9 < value < 1e9:  # a float underflows to 0
            return int(value) if value.is_integer() else value
    if len(text) > _MAX_NUMBER:
        raise MalformedJSON(f"A number has more than {_MAX_NUMBER} characters.")
    match = _DECIMAL.fullmatch(text)
    assert match is not None  # the decoder passes nothing else
    sign, whole, fraction = match[1], match[2], (match[3] or "").rstrip("0")
    digits = (whole + fraction).lstrip("0")
    significant = digits.rstrip("0")
    zeros = len(digits) - len(significant) - len(fraction) + int(match[4] or 0)  # after the last significant digit
    if not significant:
        return 0
    if zeros < 0:
        return float(text)
    # 1e999999999 would be a gigabyte of digits. No field accepts a number of more than 40 digits, so the field refuses
    # the shortened number as well and reports its limits.
    return int(sign + significant + "0" * min(zeros, _MAX_DIGITS))


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_int=_number, parse_float=_decimal
)


def load_body(schema: Schema, data: Any, *, pointer: str = "#") -> Any:
    """Deserialize the data, which is at `pointer` in the body.

    Raises InvalidRequest with at most ERRORS_MAX errors.
    """
    try:
        return schema.load(data)
    except ValidationError as error:
        errors = list(islice(body_errors(error.messages, pointer), ERRORS_MAX + 1))
        more = f" Only the first {ERRORS_MAX} errors are listed." if len(errors) > ERRORS_MAX else ""
        error.with_traceback(None)  # whose frames refer to the error, and keep the data until a garbage collection
        detail = f"The body is not valid. Correct what `errors` lists.{more}"
        raise InvalidRequest(detail, errors=errors[:ERRORS_MAX]) from None


def load_parameters(schema: Schema, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Deserialize the parameters of a query or a path. Raises InvalidRequest with all errors."""
    try:
        loaded: dict[str, Any] = schema.load(parameters)
        return loaded
    except ValidationError as error:
        errors = list(_parameter_errors(error.messages))
        raise InvalidRequest(INVALID_PARAMETERS, errors=errors) from None


def body_errors(messages: Any, pointer: str = "#") -> Iterator[dict[str, str]]:
    """Flatten marshmallow's messages to errors with a JSON pointer in URI fragment representation (RFC 6901 §6)."""
    if isinstance(messages, Mapping):
        for name, nested in messages.items():
            yield from body_errors(nested, pointer if name == "_schema" else f"{pointer}/{_reference_token(name)}")
    else:
        for message in messages if isinstance(messages, list) else [messages]:
            yield {"pointer": pointer, "detail": str(message)}


def _reference_token(name: Any) -> str:
    return quote(str(name).replace("~", "~0").replace("/", "~1"), safe="~!$&'()*+,;=:@", errors="replace")


def _parameter_errors(messages: Any) -> Iterator[dict[str, str]]:
    """Flatten marshmallow's messages to errors with a parameter; an error of the query as a whole has none."""
    if not isinstance(messages, Mapping):
        yield from ({"detail": str(message)} for message in messages)
        return
    for name, texts in messages.items():
        yield from ({"parameter": name, "detail": str(text)} for text in texts)
