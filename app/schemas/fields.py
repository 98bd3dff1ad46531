"""Fields that accept exactly what can be stored and shown again."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields, validate

# C0 and C1 controls, DEL, and halves of surrogate pairs: PostgreSQL refuses some, terminals obey others.
_REFUSED = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_REFUSED_IN_PROSE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")  # line breaks and tabs may stand

# As a regular expression of the API description (ECMA 262 with the u flag).
TEXT_PATTERN = r"^[^\u0000-\u001f\u007f-\u009f]*$"
PROSE_PATTERN = r"^[^\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]*$"


class StrictSchema(Schema):
    """A JSON object in which only the declared members may stand."""

    class Meta:
        unknown = RAISE

    error_messages = {"unknown": "This member is not known here.", "type": "This must be an object."}


class Text(fields.String):
    """A string of `low` to `high` characters without control characters; in prose, line breaks and tabs may stand."""

    def __init__(self, high: int, *, low: int = 1, prose: bool = False, **kwargs: Any) -> None:
        pattern = {"pattern": PROSE_PATTERN if prose else TEXT_PATTERN}
        super().__init__(validate=validate.Length(low, high), metadata=pattern | kwargs.pop("metadata", {}), **kwargs)
        self._refused = _REFUSED_IN_PROSE if prose else _REFUSED

    default_error_messages = {
        "type": "This must be a string.",
        "characters": "Control characters and unpaired surrogates cannot be stored.",
        "null": "This must be a string.",
        "required": "This member is required.",
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise self.make_error("type")
        if self._refused.search(value):
            raise self.make_error("characters")
        return value


class WholeNumber(fields.Integer):
    """A JSON number without fraction, never a string, from `low` to `high`."""

    default_error_messages = {
        "invalid": "This must be a whole number.",
        "null": "This must be a whole number.",
        "required": "This member is required.",
    }

    def __init__(self, low: int, high: int, *, strict: bool = True, **kwargs: Any) -> None:
        super().__init__(strict=strict, validate=validate.Range(low, high), **kwargs)


class Metadata(fields.Dict):
    """Up to `KEYS` pairs of strings, kept for the caller and never looked into."""

    KEYS, KEY_LENGTH, VALUE_LENGTH = 50, 40, 500
    _key = Text(KEY_LENGTH)
    _value = Text(VALUE_LENGTH, low=0)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> dict[str, str]:
        if not isinstance(value, Mapping):
            raise ValidationError("This must be an object.")
        if len(value) > self.KEYS:
            raise ValidationError(f"At most {self.KEYS} members may stand here.")
        faults: dict[str, list[str]] = {}
        for key, text in value.items():
            for field, part, name in ((self._key, key, "The member's name: "), (self._value, text, "")):
                try:
                    field.deserialize(part)
                except ValidationError as error:
                    faults.setdefault(key, []).extend(name + str(message) for message in error.messages)
        if faults:
            raise ValidationError(faults)
        return dict(value)


class Moment(fields.DateTime):
    """An RFC 3339 time with its offset from UTC, such as 2026-11-22T09:41:07Z."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> datetime:
        try:
            moment = datetime.fromisoformat(value).astimezone(UTC) if _RFC3339.fullmatch(value) else None
        except (ValueError, OverflowError):
            moment = None
        if moment is None or moment.year < 1970:
            raise ValidationError("This must be an RFC 3339 time from 1970 on, such as 2026-11-22T09:41:07Z.")
        return moment


_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
