"""The search: a projection of the orders that the worker keeps, and the terms by which orders are found.

Creates and changes do not write it, so it can have an index for each filter with each sort.

A text is split at spaces, in lower case and without accents. The terms of each part are the part without its
punctuation, and what remains of it after each punctuation mark: `ada@example.com` has the terms `adaexamplecom`,
`examplecom` and `com`. So a word of a query, from which the punctuation is removed too, is always the beginning of a
term, whichever part of a number or an address a person types.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from hashlib import blake2b
from typing import Any
from unicodedata import combining, normalize

from sqlalchemy import BigInteger, Boolean, Index, Integer, String, Text, literal_column
from sqlalchemy.orm import Mapped, mapped_column

from app.db.engine import UUID, Base, Timestamp
from app.models.lifecycle import NOT_RETURNED
from app.models.order import ID_MAX

TERM_MAX = 64  # characters; longer words are cut off, in orders and in queries
NO_TOTAL = -1  # the total of an order without prices, which sorts before all others
SEARCH_HEAD_ID = 1  # the id of the only row

_PARTS_MAX = 8  # parts of a text without spaces at which a term begins
_PART = re.compile(r"[^\W_]+")
# Letters that Unicode does not decompose into a letter and an accent.
_LETTERS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i"})
# How letters are written where the keyboard lacks them.
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe"})
_PHONE = re.compile(r"\s*(\+|0)[\d\s()./-]{6,}")
_COUNTRY_CODE_MAX = 3  # digits (ITU-T E.164)
_ADDRESSES = ("shipping_address", "billing_address")
_HASH_BYTES = 12

# Ranges of terms are ranges of bytes, whatever the database's collation is.
_TERM = String(TERM_MAX).with_variant(String(TERM_MAX, collation="C"), "postgresql")


class OrderSearch(Base):
    """What an order is found by, as of one of its versions.

    `terms` are all terms of the order, each with a space before and after it. The same terms are rows of SearchTerm.
    """

    __tablename__ = "order_search"

    order_id: Mapped[str] = mapped_column(UUID, primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    customer_id: Mapped[str] = mapped_column(String(ID_MAX))
    channel: Mapped[str | None] = mapped_column(String(ID_MAX))
    status: Mapped[str] = mapped_column(String(16))
    fulfillment_status: Mapped[str] = mapped_column(String(16))
    payment_status: Mapped[str] = mapped_column(String(20))
    return_status: Mapped[str] = mapped_column(String(16))
    currency: Mapped[str | None] = mapped_column(String(3))
    total: Mapped[int] = mapped_column(BigInteger)
    held: Mapped[bool] = mapped_column(Boolean)
    late: Mapped[bool] = mapped_column(Boolean)
    updated_at: Mapped[datetime] = mapped_column(Timestamp)
    terms: Mapped[str] = mapped_column(Text)


class SearchTerm(Base):
    """A term of an order: a word, or the hash of a tag or of a pair of its metadata.

    An inverted index as a B-tree: a range of it is an exact word or a prefix, and can be counted up to a limit. A GIN
    or FTS5 index would be smaller, but reads all orders with a word before the first one is known, which takes seconds
    for a common prefix; and FTS5 keeps the words of deleted rows.
    """

    __tablename__ = "order_search_terms"
    __table_args__ = {"sqlite_with_rowid": False}

    term: Mapped[str] = mapped_column(_TERM, primary_key=True)
    order_id: Mapped[str] = mapped_column(UUID, primary_key=True)


class SearchHead(Base):
    """The one row whose lock makes workers take turns. The projection has all events up to `seq` of the feed."""

    __tablename__ = "search_head"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(BigInteger)


# The columns that an order is sorted by. Ids sort by time of creation.
SORTS: dict[str, tuple[str, ...]] = {
    "created_at": ("order_id",),
    "updated_at": ("updated_at", "order_id"),
    "total": ("total", "order_id"),
}
# The filters that have an index, and the sorts that are in it. Of several filters in a query, a walk uses the index of
# the first one here: new and old orders differ most in their status.
SORTED_FILTERS: dict[str, tuple[str, ...]] = {
    "customer_id": ("created_at",),
    "held": tuple(SORTS),
    "late": tuple(SORTS),
    "status": tuple(SORTS),
    "fulfillment_status": tuple(SORTS),
    "return_status": tuple(SORTS),
    "payment_status": tuple(SORTS),
    "channel": tuple(SORTS),
    "currency": ("total",),
}
# The conditions of partial indexes, which leave out the values that most orders have.
INDEXED: dict[str, Any] = {
    "held": literal_column("held"),
    "late": literal_column("late"),
    # A literal: with a parameter, no plan would use the index.
    "return_status": OrderSearch.return_status != literal_column(f"'{NOT_RETURNED}'"),
    "channel": OrderSearch.channel.is_not(None),
}


def _add_indexes() -> None:
    table = OrderSearch.__table__
    for sort in ("updated_at", "total"):
        Index(f"ix_order_search_{sort}", *(table.c[name] for name in SORTS[sort]))
    for name, sorts in SORTED_FILTERS.items():
        condition = INDEXED.get(name)
        for sort in sorts:
            columns = [] if name in ("held", "late") else [table.c[name]]
            columns += [table.c[column] for column in SORTS[sort]]
            where = {} if condition is None else {"postgresql_where": condition, "sqlite_where": condition}
            Index(f"ix_order_search_{name}_{sort}", *columns, **where)


_add_indexes()


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
    """The term of a tag. No word of a query can equal it, since words contain no `#`."""
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
    """A phone number as digits, with and without the zeros that precede it and its country code.

    With `suffixes`, also the digits from the beginning of each part to the end.
    """
    parts = _PART.findall(_without_accents(text.replace("(0)", "")))
    digits = "".join(parts)
    terms = set(_endings(parts)) if suffixes else {digits[:TERM_MAX]}  # which may be another number, such as a GTIN
    terms.add(digits.lstrip("0")[:TERM_MAX])
    if text.lstrip().startswith(("+", "00")):
        terms.update(digits.lstrip("0")[code:][:TERM_MAX] for code in range(1, _COUNTRY_CODE_MAX + 1))
    return terms - {""}


def _hash(*values: str) -> str:
    """A term that is a hash: values may be long, contain spaces, and differ in case only."""
    return "#" + blake2b("\0".join(values).encode(), digest_size=_HASH_BYTES).hexdigest()
