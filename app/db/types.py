"""Column types that hold the same values on SQLite and PostgreSQL."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, ColumnElement, DateTime, Dialect, String, Text, cast
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

# Ids travel as lower-case text with dashes everywhere in Python; PostgreSQL keeps 16 bytes, SQLite the text.
UUID = String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")

# None is SQL's NULL, never JSON's.
JSON_VALUE = JSON(none_as_null=True)


def rfc3339(moment: datetime) -> str:
    """An aware UTC time with exactly six fractional digits and Z, so that text order is time order."""
    return moment.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def read_timestamp(stored: datetime | str) -> datetime:
    """A moment as it is stored: RFC 3339 text in SQLite and in documents, PostgreSQL's time in the session's zone."""
    moment = datetime.fromisoformat(stored) if isinstance(stored, str) else stored
    return moment.astimezone(UTC)


class Timestamp(TypeDecorator[datetime]):
    """A moment in UTC, to the microsecond. SQLite has no such type: RFC 3339 text there, which sorts the same."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(String(27) if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        return rfc3339(value) if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return None if value is None else read_timestamp(value)


class Document(UserDefinedType[str]):
    """A finished JSON document, kept byte for byte and read as text: it is handed out again, never parsed.

    PostgreSQL's `json` keeps the text as it came (`jsonb` does not) and can still be queried.
    """

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "JSON"

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return cast(column, Text)
