"""The search: a projection of the orders that the worker keeps, and the terms by which orders are found.

It is no part of a create or a change, so it has an index for each filter with each sort.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, Index, Integer, String, Text, literal_column
from sqlalchemy.orm import Mapped, mapped_column

from app.db.engine import Base
from app.db.types import UUID, Timestamp
from app.models.fulfillment import NOT_RETURNED
from app.models.order_item import ID_MAX

TERM_MAX = 64  # characters; longer words are cut off, in orders and in queries
NO_TOTAL = -1  # the total of an order without prices, which sorts before all others
SEARCH_HEAD_ID = 1  # the id of the only row

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
# The filters that have an index, and the sorts that are in it. If several are given, and a walk is to use one of them,
# it is the first: new and old orders differ most in their status.
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
# The conditions of partial indexes: the values that most orders have are left out.
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
