"""JSON read strictly: what two readers could understand differently is refused (RFC 8259 §4, §8; I-JSON, RFC 7493)."""

import json
import re
from typing import Any, NoReturn

from app.errors import MalformedJSON

MAX_DEPTH = 32
_MAX_DIGITS = 40  # longer numbers are beyond anything that is stored, and slow to convert
# Strings, and what is not a bracket. A string may lack its end: were it then looked for from every quote on, 64 KiB
# would take 20 seconds.
_NO_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[^"\[\]{}]+', re.DOTALL)
_NEITHER_BRACKET_NOR_QUOTE = bytes(set(range(256)) - set(b'[]{}"'))


def parse_json(body: bytes) -> Any:
    """The value of one JSON text in UTF-8.

    Raises MalformedJSON for anything else, also for a byte order mark, a member that stands twice in an object,
    NaN and Infinity, and nesting deeper than MAX_DEPTH.
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
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _depth(body) > MAX_DEPTH:
        raise MalformedJSON(f"The body is nested deeper than {MAX_DEPTH} levels.")
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        detail = f"{error.msg} at line {error.lineno}, column {error.colno}."
        raise MalformedJSON(detail) from None


def _depth(body: bytes) -> int:
    if b"\\" in body:
        brackets = _NO_BRACKETS.sub(b"", body)
    else:  # every quote begins or ends a string: a tenth of the time
        brackets = b"".join(body.translate(None, _NEITHER_BRACKET_NOR_QUOTE).split(b'"')[::2])
    depth = deepest = 0
    for bracket in brackets:
        if bracket in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


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


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_int=_number)
