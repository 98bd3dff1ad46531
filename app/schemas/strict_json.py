"""JSON read strictly: what two readers could understand differently is refused (RFC 8259 §4, §8; I-JSON, RFC 7493)."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn
from urllib.parse import quote

from marshmallow import Schema, ValidationError

from app.errors import InvalidRequest, MalformedJSON
from app.schemas.fields import FAULTS_MAX

MAX_DEPTH = 32
_MAX_DIGITS = 40  # longer numbers are beyond anything that is stored, and slow to convert
_MAX_NUMBER = 100  # characters of one that is written with a fraction or an exponent
_EXACT_DIGITS = sys.float_info.dig  # decimal digits that a float holds
_DECIMAL = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")
# A batch of 1,000 orders with 100 priced lines each has 300,000 commas and 102,000 objects. Nothing else runs in the
# worker while a body is parsed, which takes up to a microsecond a value, and a value takes up to 250 bytes of memory.
_MAX_COMMAS = 320_000
_MAX_OBJECTS = 250_000
_MAX_COMMAS_IN_ALL = 1_000_000  # within strings too
_MAX_QUOTES = 2_000_000
_MAX_MEMBERS = 10_000  # of one object; every schema knows far fewer, and says so
_COMMA, _END_OF_OBJECT = b",}"
_NEITHER_STRUCTURE_NOR_QUOTE = bytes(set(range(256)) - set(b'[]{},"'))


def parse_json(body: bytes) -> Any:
    """The value of one JSON text in UTF-8.

    A number without a fraction is an int however it is written: 2.0, 1e0 and 20e-1 are 2, 1 and 2, as in JSON Schema.

    Raises MalformedJSON for anything else, also for a byte order mark, a member that stands twice in an object,
    NaN and Infinity, a number of more than 40 digits (100 characters with a fraction or an exponent), and nesting
    deeper than MAX_DEPTH.
    """
    if not body:
        raise MalformedJSON("The body is empty.")
    if body.startswith(b"\xef\xbb\xbf"):
        raise MalformedJSON("The body starts with a byte order mark; leave it out.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedJSON(f"Byte {error.start} of the body is not UTF-8.") from None
    # Counting brackets is cheap and settles it for nearly every body; only large ones are looked at closely.
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH or body.count(b",") > _MAX_MEMBERS:
        if body.count(b",") > _MAX_COMMAS_IN_ALL or body.count(b'"') > _MAX_QUOTES:
            raise MalformedJSON("The body has too many members or too many commas in strings; send less at once.")
        _check_structure(_structure(body))
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        detail = f"{error.msg} at line {error.lineno}, column {error.colno}."
        raise MalformedJSON(detail) from None


def _structure(body: bytes) -> bytes:
    """The brackets and commas outside of strings, at a few nanoseconds a byte.

    Without escapes every quote begins or ends a string. In what is no JSON, where a backslash stands outside of a
    string, it may be wrong from there on; the parser does not get further either.
    """
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    structure_and_quotes = body.translate(None, _NEITHER_STRUCTURE_NOR_QUOTE).replace(b'""', b"")
    return b"".join(structure_and_quotes.split(b'"')[::2])


def _check_structure(structure: bytes) -> None:
    if structure.count(b",") > _MAX_COMMAS or structure.count(b"[") + structure.count(b"{") > _MAX_OBJECTS:
        raise MalformedJSON(f"The body has more than {_MAX_COMMAS:,} members or {_MAX_OBJECTS:,} objects and lists.")
    commas: list[int] = []  # of each object and list that is open
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
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        shown = json.dumps(twice[:64])
        raise MalformedJSON(f"The member {shown} stands twice in one object.")
    return members


def _constant(name: str) -> NoReturn:
    raise MalformedJSON(f"{name} is not JSON.")


def _number(text: str) -> int:
    if len(text.removeprefix("-")) > _MAX_DIGITS:
        raise MalformedJSON(f"A number has more than {_MAX_DIGITS} digits.")
    return int(text)


def _decimal(text: str) -> int | float:
    """The exact integer that a number with a fraction or an exponent stands for; a float where it stands for none."""
    if len(text) <= _EXACT_DIGITS:
        value = float(text)
        if 1e-9 < value < 1e9:  # what is too small for a float would become 0
            return int(value) if value.is_integer() else value
    if len(text) > _MAX_NUMBER:
        raise MalformedJSON(f"A number has more than {_MAX_NUMBER} characters.")
    match = _DECIMAL.fullmatch(text)
    assert match is not None  # the decoder gives nothing else
    sign, whole, fraction = match[1], match[2], (match[3] or "").rstrip("0")
    digits = (whole + fraction).lstrip("0")
    significant = digits.rstrip("0")
    zeros = len(digits) - len(significant) - len(fraction) + int(match[4] or 0)  # behind the last significant digit
    if not significant:
        return 0
    if zeros < 0:
        return float(text)
    # 1e999999999 is a gigabyte of digits. No member takes a number of more than 40, so that any such number is refused
    # where it stands, with the limits of its member.
    return int(sign + significant + "0" * min(zeros, _MAX_DIGITS))


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_int=_number, parse_float=_decimal
)


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


def load_parameters(schema: Schema, parameters: Mapping[str, Any]) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = schema.load(parameters)
        return loaded
    except ValidationError as error:
        faults = list(_parameter_faults(error.messages))
        raise InvalidRequest("The parameters are not valid; errors lists what is wrong.", errors=faults) from None


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


def _parameter_faults(messages: Any) -> Iterator[dict[str, str]]:
    """The faults of single parameters, or those of the query as a whole, which name no parameter."""
    if not isinstance(messages, Mapping):
        yield from ({"detail": str(message)} for message in messages)
        return
    for name, below in messages.items():
        for fault in _faults(below, ""):
            yield {"parameter": name, "detail": fault["detail"]}
