"""The Idempotency-Key header (draft-ietf-httpapi-idempotency-key-header-07)."""

import re

from app.errors import InvalidIdempotencyKey
from app.http.application import current_request
from app.models.order import IDEMPOTENCY_KEY_MAX

_SYMBOL = r'(?:[ !#-\[\]-~]|\\["\\])'  # of a string of RFC 8941 §3.3.3
_BARE_SYMBOL = r"[!#-+\--~]"  # what most clients send: no space, quote or comma (two headers, joined)
_QUOTED = re.compile(f'"({_SYMBOL}*)"')
_BARE = re.compile(f"{_BARE_SYMBOL}+")
KEY_PATTERN = f'^({_BARE_SYMBOL}{{1,{IDEMPOTENCY_KEY_MAX}}}|"{_SYMBOL}{{1,{IDEMPOTENCY_KEY_MAX}}}")$'
_ESCAPE = re.compile(r"\\(.)")


def idempotency_key() -> str | None:
    """The request's key, or None. A quoted key and the same one bare are equal. Raises InvalidIdempotencyKey."""
    header = current_request().environ.get("HTTP_IDEMPOTENCY_KEY")
    if header is None:
        return None
    text = header.strip(" \t")
    quoted = _QUOTED.fullmatch(text)
    if quoted:
        key = _ESCAPE.sub(r"\1", quoted[1])
    elif _BARE.fullmatch(text):
        key = text
    else:
        raise InvalidIdempotencyKey("Send one key of printable ASCII characters, bare or as a quoted string.")
    if not 1 <= len(key) <= IDEMPOTENCY_KEY_MAX:
        raise InvalidIdempotencyKey(f"The key has {len(key)} characters; 1 to {IDEMPOTENCY_KEY_MAX} are allowed.")
    return key
