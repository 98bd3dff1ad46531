"""Pages of documents that are bounded by bytes as well as by their number."""

from typing import Any

from sqlalchemy import BigInteger, Integer, Select, Text, cast, func, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction


class octet_length(GenericFunction[int]):  # noqa: N801 (SQL's name)
    """The number of bytes of a text in UTF-8. PostgreSQL tells it without reading a text that is stored apart."""

    type = Integer()
    inherit_cache = True


@compiles(octet_length, "sqlite")  # which has a function of this name from 3.43 on
def _octet_length_on_sqlite(function: octet_length, compiler: SQLCompiler, **options: Any) -> str:
    return f"length(CAST({compiler.process(function.clauses, **options)} AS BLOB))"


def rows_within(query: Select[*tuple[Any, ...]], *, position: str, document: str, size: int, descending: bool) -> Any:
    """The first rows of a query with a LIMIT, as many as have documents that begin within `size` bytes.

    `position` and `document` name its columns: the one that it is sorted by, and the one whose bytes count. Its own
    columns are followed by `bytes_so_far`, the size of all documents up to the row. There is a row at least, if the
    query has one.
    """
    listed = query.subquery("listed")
    sort = listed.c[position].desc() if descending else listed.c[position]
    length = octet_length(cast(listed.c[document], Text))
    bytes_so_far = func.sum(length).over(order_by=sort, rows=(None, 0)).cast(BigInteger).label("bytes_so_far")
    sized = select(*listed.c, bytes_so_far, length.label("length")).subquery("sized")
    columns = [column for column in sized.c if column.name != "length"]
    place = sized.c[position].desc() if descending else sized.c[position]
    return select(*columns).where(sized.c.bytes_so_far - sized.c.length < size).order_by(place)
