"""Fields that accept exactly what can be stored and shown again."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from marshmallow import INCLUDE, RAISE, Schema, ValidationError, fields, missing, validate, validates_schema

# C0 and C1 controls, DEL, and halves of surrogate pairs: PostgreSQL refuses some, terminals obey others.
_REFUSED = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_REFUSED_IN_PROSE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")  # line breaks and tabs may stand


# À to ß: in UTF-8 their second bytes are all those from 80 to 9F.
_LATIN_CAPITALS = "".join(map(chr, range(0xC0, 0xE0)))


def any_character_but(excluded: str) -> str:
    """A pattern of the API description for one character: no DEL, no C1 control, and none of the ASCII characters that
    are excluded, given as the inside of a character class.

    ECMA 262 (with the u flag), Python, PCRE2 and RE2 read it the same: none of them knows all ways to write a code
    point above FF. Generated PHP clients match bytes, not characters; the capitals let every byte of UTF-8 through.
    """
    return rf"(?:[^{excluded}\x7f-\xff]|[\xa0-\xff{_LATIN_CAPITALS}])"


TEXT_PATTERN = "^" + any_character_but(r"\x00-\x1f") + "*$"
PROSE_PATTERN = "^" + any_character_but(r"\x00-\x08\x0b\x0c\x0e-\x1f") + "*$"


FAULTS_MAX = 100  # faults that are reported of one object or list; looking for more would only cost time
_UNKNOWN_MAX = 20  # unknown members that are reported one by one


class StrictSchema(Schema):
    """A JSON object in which only the declared members may stand."""

    BODY_MAX = 64 * 1024  # bytes; the largest order that the limits allow in plain text is smaller

    class Meta:
        unknown = RAISE

    error_messages = {"unknown": "This name is not known here.", "type": "This must be an object."}

    def load(self, data: Any, **options: Any) -> Any:
        """The members of the object. Raises ValidationError with its faults, at most about FAULTS_MAX of them.

        Where nothing is wrong it takes a third of the library's way, which finds every fault.
        """
        if not any(options.values()):
            members = self.valid_members(data)
            if members is not None:
                self.check_partial(members, data)
                self.check(members)
                return members
        if isinstance(data, dict) and len(data) > len(self.load_fields) + _UNKNOWN_MAX:
            raise ValidationError(f"Too many members: {len(data):,}. Allowed are {', '.join(self.load_fields)}.")
        return super().load(data, **options)

    def check(self, members: dict[str, Any]) -> None:
        """Raise ValidationError where members that are valid by themselves contradict each other."""

    def check_partial(self, members: dict[str, Any], original: dict[str, Any]) -> None:
        """As `check`, also where some members of the original object are faulty and missing here."""

    @validates_schema
    def _check(self, data: dict[str, Any], **_: Any) -> None:
        self.check(data)

    @validates_schema(skip_on_field_errors=False, pass_original=True)
    def _check_partial(self, data: dict[str, Any], original: Any, **_: Any) -> None:
        self.check_partial(data, original)

    def valid_members(self, data: Any) -> dict[str, Any] | None:
        """The members of the object, or None where anything is not as it should be. What the schema's own validators
        ask is not asked here."""
        if type(data) is not dict or not data.keys() <= self.load_fields.keys():
            return None
        loaded = {}
        for name, field in self.load_fields.items():
            try:
                value = field.deserialize(data[name], name, data) if name in data else field.load_default
            except ValidationError:
                return None
            if value is not missing:
                loaded[name] = value
            elif field.required:
                return None
        return loaded

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        """Give every field words for people: marshmallow tells what a value is not, we tell what is expected."""
        for field in (field_obj, getattr(field_obj, "inner", None)):
            if field is not None:
                expected = next((text for kind, text in _EXPECTED.items() if isinstance(field, kind)), "a value")
                wrong = dict.fromkeys(("invalid", "type", "null"), f"This must be {expected}.")
                field.error_messages = {**field.error_messages, **wrong, "required": "This is required."}


_EXPECTED: dict[type[fields.Field[Any]], str] = {
    fields.String: "a string",
    fields.Integer: "a whole number",
    fields.Boolean: "true or false",
    fields.List: "a list",
    fields.Nested: "an object",
    fields.Mapping: "an object",
}


class ResponseSchema(Schema):
    """An object that the service answers with; later versions may add members."""

    class Meta:
        unknown = INCLUDE


class Text(fields.String):
    """A string of `low` to `high` characters without control characters; in prose, line breaks and tabs may stand."""

    def __init__(self, high: int, *, low: int = 1, prose: bool = False, **kwargs: Any) -> None:
        pattern = {"pattern": PROSE_PATTERN if prose else TEXT_PATTERN}
        length = validate.Length(low, high, error=f"This must have {_range(low, high)} characters.")
        super().__init__(validate=length, metadata=pattern | kwargs.pop("metadata", {}), **kwargs)
        self._low, self._high = low, high
        self._refused = _REFUSED_IN_PROSE if prose else _REFUSED

    default_error_messages = {
        "type": "This must be a string.",
        "null": "This must be a string.",
        "characters": "This must be without control characters and unpaired surrogates.",
    }

    def deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        """The value; at once where it is as it should be: the library's way to an error takes ten times as long."""
        return value if self.is_valid(value) else super().deserialize(value, *args, **kwargs)

    def is_valid(self, value: Any) -> bool:
        return type(value) is str and self._low <= len(value) <= self._high and not self._refused.search(value)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise self.make_error("type")
        if self._refused.search(value):
            raise self.make_error("characters")
        return value


class Choice(fields.String):
    """One of some strings."""

    def __init__(self, choices: Sequence[str], *, error: str | None = None, **kwargs: Any) -> None:
        super().__init__(validate=validate.OneOf(choices, error=error), **kwargs)
        self._choices = frozenset(choices)

    def deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        """The value; at once where it is one of them."""
        is_fine = type(value) is str and value in self._choices
        return value if is_fine else super().deserialize(value, *args, **kwargs)


def _range(low: int, high: int) -> str:
    return f"{low:,} to {high:,}" if low else f"at most {high:,}"


class WholeNumber(fields.Integer):
    """A JSON number without fraction, from `low` to `high`; without `strict` its digits as text, for a query."""

    def __init__(self, low: int, high: int, *, strict: bool = True, **kwargs: Any) -> None:
        limits = validate.Range(low, high, error=f"This must be from {low:,} to {high:,}.")
        super().__init__(strict=strict, validate=limits, **kwargs)
        self._low, self._high = low, high

    def deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        """The value; at once where it is as it should be."""
        is_fine = type(value) is int and self._low <= value <= self._high
        return value if is_fine else super().deserialize(value, *args, **kwargs)

    def _validated(self, value: Any) -> int:
        if not self.strict and not _DIGITS.fullmatch(value):  # int() would take "+1", " 1", "1_0" and "１" too
            raise self.make_error("invalid")
        return super()._validated(value)


_DIGITS = re.compile(r"-?[0-9]{1,40}")


class ListOf(fields.List[Any]):
    """A list of `low` to `high` values. One that is too long is not looked into: its faults could fill megabytes."""

    def __init__(self, inner: fields.Field[Any], *, low: int = 0, high: int, **kwargs: Any) -> None:
        self._length = validate.Length(low, high, error=f"This must have {_range(low, high)} entries.")
        super().__init__(inner, validate=self._length, **kwargs)
        self._low, self._high = low, high

    def deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        """The entries; at once where all are as they should be."""
        if type(value) is list and self._low <= len(value) <= self._high:
            with suppress(ValidationError):
                return [self.inner.deserialize(entry) for entry in value]
        return super().deserialize(value, *args, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self.make_error("invalid")
        self._length(value)
        entries, faults, count = [], {}, 0
        for i, entry in enumerate(value):
            try:
                entries.append(self.inner.deserialize(entry, **kwargs))
            except ValidationError as error:
                faults[i] = error.messages
                if error.valid_data is not None:  # what is valid of the entry
                    entries.append(error.valid_data)
                count += count_faults(error.messages)
                if count >= FAULTS_MAX:
                    break
        if faults:
            raise ValidationError(faults, valid_data=entries)
        return entries


def count_faults(messages: Any) -> int:
    """How many faults marshmallow's nested error messages hold."""
    if isinstance(messages, Mapping):
        return sum(map(count_faults, messages.values()))
    return len(messages) if isinstance(messages, list) else 1


class ObjectOf(fields.Nested):
    """An object that a StrictSchema describes."""

    schema: StrictSchema

    def deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        """The members."""
        return self.schema.load(value) if type(value) is dict else super().deserialize(value, *args, **kwargs)


class Metadata(fields.Dict):
    """Up to `KEYS` pairs of strings, kept for the caller and never looked into."""

    KEYS, KEY_LENGTH, VALUE_LENGTH = 50, 40, 500
    _key = Text(KEY_LENGTH)
    _value = Text(VALUE_LENGTH, low=0)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> dict[str, str]:
        if not isinstance(value, Mapping):
            raise ValidationError("This must be an object.")
        if len(value) > self.KEYS:
            raise ValidationError(f"This must have at most {self.KEYS} members.")
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


class MetadataPatch(Metadata):
    """Pairs to set, and with null, pairs to remove: twice as many, for all can be exchanged."""

    KEYS = 2 * Metadata.KEYS
    _value = Text(Metadata.VALUE_LENGTH, low=0, allow_none=True)


class WebAddress(Text):
    """An http or https URL. It is kept to be shown, and never followed."""

    default_error_messages = {"url": "This must be a URL that begins with http:// or https://."}
    PATTERN = "^https?://" + any_character_but(r"\x00-\x20") + "+$"

    def __init__(self, high: int, **kwargs: Any) -> None:
        super().__init__(high, metadata={"pattern": self.PATTERN} | kwargs.pop("metadata", {}), **kwargs)

    def is_valid(self, value: Any) -> bool:
        return False  # there is more to look at

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        if not re.match(self.PATTERN, text):
            raise self.make_error("url")
        return text


class Moment(fields.DateTime):
    """An RFC 3339 time with its offset from UTC, read to the microsecond. None is before 1970: it stands for 1970."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> datetime:
        if not isinstance(value, str):
            raise ValidationError(_NO_MOMENT)
        if not _RFC3339.fullmatch(value):
            raise ValidationError(_moment_fault(value))
        try:
            moment = datetime.fromisoformat(value.upper())
        except ValueError:
            raise ValidationError(_NO_MOMENT) from None
        try:
            return max(_EPOCH, moment.astimezone(UTC))
        except OverflowError:  # an offset leads out of the years 1 to 9999
            return _EPOCH if moment.year == 1 else datetime.max.replace(tzinfo=UTC)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NO_MOMENT = "This must be an RFC 3339 time with its offset from UTC, such as 2026-11-22T09:41:07Z."
_DATE, _TIME, _OFFSET = r"(\d{4}-\d\d-\d\d)", r"(\d\d:\d\d:\d\d(?:\.\d+)?)", r"([Zz]|[+-]\d\d:\d\d)"
_RFC3339 = re.compile(f"{_DATE}[Tt]{_TIME}{_OFFSET}", re.ASCII)
# What is often sent in its place, and what to say then.
_NEARLY_MOMENTS = (
    (f"{_DATE}[Tt ]{_TIME} (\\d\\d:\\d\\d)", r"A + in a query stands for a space: write it as %2B, \1T\2%2B\3."),
    (_DATE, r"The time of day and the offset from UTC are missing: write \1T00:00:00Z."),
    (f"{_DATE}[Tt ]{_TIME}", r"The offset from UTC is missing: write \1T\2Z."),
    (f"{_DATE} {_TIME}{_OFFSET}", r"The date and the time of day must be separated by a T."),
)


def _moment_fault(text: str) -> str:
    """What is wrong with a text that is no time."""
    for pattern, fault in _NEARLY_MOMENTS:
        if nearly := re.fullmatch(pattern, text, re.ASCII):
            return nearly.expand(fault)
    return _NO_MOMENT
