"""The terms of an order and of a query: words in lower case, without accents.

A term of a text is a part of it up to the next space, without punctuation, from its beginning or from any punctuation
on: `ada@example.com` has the terms `adaexamplecom`, `examplecom` and `com`. So a word of a query, from which the
punctuation is removed too, is always the beginning of a term, whichever part of a number or an address a person types.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any
from unicodedata import combining, normalize

from app.models.search import TERM_MAX

_PARTS_MAX = 8  # of a text without spaces; after them, no further term begins
_PART = re.compile(r"[^\W_]+")
# Letters that Unicode does not decompose into a letter and an accent.
_LETTERS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i"})
# How letters are written where the keyboard lacks them.
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe"})
_PHONE = re.compile(r"\s*(\+|0)[\d\s()./-]{6,}")
_COUNTRY_CODE_MAX = 3  # digits (ITU-T E.164)
_ADDRESSES = ("shipping_address", "billing_address")
_HASH_BYTES = 12


def order_terms(document: Mapping[str, Any]) -> set[str]:
    """All terms of an order, given as its document."""
    terms = {term for text in _texts(document) for chunk in text.split() for term in _terms(chunk)}
    for address in filter(None, map(document.get, _ADDRESSES)):
        terms.update(_terms(address.get("postal_code", "")))
        terms.update(_phone_terms(address.get("phone", "")))
    terms.update(map(tag_term, document["tags"]))
    terms.update(metadata_term(*pair) for pair in document["metadata"].items())
    return terms


def query_words(text: str) -> list[list[str]]:
    """The words of a query. Each has one or more spellings, and an order must have a term that begins with one."""
    if _PHONE.fullmatch(text):
        return [sorted(_phone_terms(text, suffixes=False))]
    words = (sorted({"".join(parts)[:TERM_MAX] for parts in _spellings(chunk)} - {""}) for chunk in text.split())
    return [word for word in words if word]


def tag_term(tag: str) -> str:
    """The term of a tag. No word of a query can be the same, since it has no `#`."""
    return _hash("tag", tag)


def metadata_term(key: str, value: str) -> str:
    """The term of a pair of an order's metadata."""
    return _hash("metadata", key, value)


def _texts(document: Mapping[str, Any]) -> Iterator[str]:
    yield document["number"]
    yield document["customer_id"]
    yield document["external_ref"] or ""
    for item in document["items"]:
        yield item["item_id"]
        yield item["title"] or ""
    for address in filter(None, map(document.get, _ADDRESSES)):
        yield from (address.get(name, "") for name in ("name", "company", "email"))


def _terms(text: str) -> Iterator[str]:
    for parts in _spellings(text):
        yield from _endings(parts)


def _endings(parts: list[str]) -> Iterator[str]:
    for first in range(min(len(parts), _PARTS_MAX)):
        yield "".join(parts[first:])[:TERM_MAX]


def _spellings(text: str) -> Iterable[list[str]]:
    """The parts of the text between punctuation: without accents, and with ae, oe, ue for umlauts if there are any."""
    if text.isascii():
        return [_PART.findall(text.lower())]
    lower = normalize("NFC", text).casefold()
    return [_PART.findall(_without_accents(spelling)) for spelling in {lower, lower.translate(_UMLAUTS)}]


def _without_accents(text: str) -> str:
    decomposed = normalize("NFKD", text.translate(_LETTERS)).casefold()
    return "".join(character for character in decomposed if not combining(character))


def _phone_terms(text: str, *, suffixes: bool = True) -> set[str]:
    """A phone number as digits, with and without its country code, and without the zeros that precede it.

    With `suffixes`, also from each of its parts on.
    """
    parts = _PART.findall(_without_accents(text.replace("(0)", "")))
    digits = "".join(parts)
    terms = set(_endings(parts)) if suffixes else set()
    terms.add(digits.lstrip("0")[:TERM_MAX])
    if text.lstrip().startswith(("+", "00")):
        terms.update(digits.lstrip("0")[code:][:TERM_MAX] for code in range(1, _COUNTRY_CODE_MAX + 1))
    return terms - {""}


def _hash(*values: str) -> str:
    """A term that is a hash: values may be long, have spaces, and be told apart by case."""
    return "#" + blake2b("\0".join(values).encode(), digest_size=_HASH_BYTES).hexdigest()
