"""Column types that hold the same values on SQLite and PostgreSQL."""

from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import JSON, ColumnElement, DateTime, Dialect, String, Text, cast
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

# In Python, ids are lower-case text with dashes. PostgreSQL stores 16 bytes, SQLite the text.
UUID = String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")

# None is SQL's NULL, never JSON's null.
JSON_VALUE = JSON(none_as_null=True)


def rfc3339(moment: datetime) -> str:
    """RFC 3339 text of an aware UTC time, with six fractional digits and Z, so that it sorts by time."""
    # isoformat takes five times as many instructions.
    text = orjson.dumps(moment, option=orjson.OPT_UTC_Z).decode()[1:-1]
    return text if moment.microsecond else text.replace("Z", ".000000Z")


def read_timestamp(stored: datetime | str) -> datetime:
    """A stored time in UTC: RFC 3339 text in SQLite and in order documents, otherwise timestamptz."""
    moment = datetime.fromisoformat(stored) if isinstance(stored, str) else stored
    return moment.astimezone(UTC)


class Timestamp(TypeDecorator[datetime]):
    """An aware UTC time with microseconds: timestamptz on PostgreSQL, RFC 3339 text on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(String(27) if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        return rfc3339(value) if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return None if value is None else read_timestamp(value)


class JSONText(UserDefinedType[str]):
    """A JSON document that is stored and read as text, byte for byte.

    PostgreSQL's `json` preserves the text, which `jsonb` does not, and can be queried.
    """

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "JSON"

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return cast(column, Text)
