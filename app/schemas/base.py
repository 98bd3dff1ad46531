"""Base schemas, fields, strict JSON, and loading with a schema, in this order.

The fields accept only values that the database can store and JSON can return. A body is parsed and loaded, and every
error is reported in one problem document. JSON that two parsers could read differently is refused (RFC 8259 §4 and §8;
I-JSON, RFC 7493).
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NoReturn
from urllib.parse import quote

from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, fields, missing, validate, validates_schema

from app.errors import InvalidRequest, MalformedJSON
from app.models.order_id import EPOCH

ERRORS_MAX = 100  # errors reported for one request; more would only take time
_UNKNOWN_MAX = 20  # unknown members reported one by one
_MAX_DIGITS = 40  # of an integer: no field has a limit that long, and long numbers are slow to convert

_EXPECTED_TYPES: dict[type[fields.Field[Any]], str] = {
    fields.UUID: "a UUID",
    fields.DateTime: "an RFC 3339 timestamp",
    fields.String: "a string",
    fields.Integer: "an integer",
    fields.Boolean: "true or false",
    fields.List: "an array",
    fields.Nested: "an object",
    fields.Mapping: "an object",
}


class StrictSchema(Schema):
    """A JSON object, or a set of parameters, with the declared members only."""

    MAX_BODY_SIZE = 64 * 1024  # bytes; more than the largest order in ASCII
    member = "member"  # what error messages call a member
    unknown_member = ""  # the error for a member that is not declared, in place of the default

    class Meta:
        unknown = RAISE

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._required = {name for name, field in self.load_fields.items() if field.required}
        self._defaults = {n: f.load_default for n, f in self.load_fields.items() if f.load_default is not missing}
        allowed = f"Allowed: {', '.join(self.load_fields)}." if self.load_fields else "None is allowed here."
        self.error_messages = {
            **self.error_messages,
            "unknown": f"{self.unknown_member or f'Unknown {self.member}.'} {allowed}",
            "type": "This must be an object.",
        }

    def load(self, data: Any, **options: Any) -> Any:
        """Deserialize the object. Raises ValidationError with all errors, at most about ERRORS_MAX for each list.

        Valid data, the common case, takes a third of the instructions of `Schema.load`, which collects the errors.
        """
        if not any(options.values()):
            members = self.load_valid(data)
            if members is not missing:
                try:
                    self.check_partial(members, data)
                    self.check(members)
                except ValidationError:
                    pass  # raised again below, with the errors of the other check
                else:
                    return members
        if isinstance(data, dict) and len(data) > len(self.load_fields) + _UNKNOWN_MAX:
            raise ValidationError(f"Too many {self.member}s: {len(data):,}. Allowed: {', '.join(self.load_fields)}.")
        return super().load(data, **options)

    def check(self, members: dict[str, Any]) -> None:
        """Validate members against each other. Called only if each of them is valid. Raises ValidationError."""

    def check_partial(self, members: dict[str, Any], original: dict[str, Any]) -> None:
        """Like `check`, but also called if some members of the `original` object are invalid and therefore missing."""

    @validates_schema
    def _check(self, data: dict[str, Any], **_: Any) -> None:
        self.check(data)

    @validates_schema(skip_on_field_errors=False, pass_original=True)
    def _check_partial(self, data: dict[str, Any], original: Any, **_: Any) -> None:
        self.check_partial(data, original)

    def load_valid(self, data: Any) -> Any:
        """Return the deserialized members, or `missing` if one of them is invalid.

        Does not call `check` and `check_partial`.
        """
        if type(data) is not dict or not self._required <= data.keys() <= self.load_fields.keys():
            return missing
        loaded = self._defaults.copy()
        try:
            for name, value in data.items():
                loaded[name] = self.load_fields[name].deserialize(value, name, data)
        except ValidationError:
            return missing
        return loaded

    def has_valid_members(self, data: Any) -> bool:
        """Whether each member is valid by itself."""
        return self.load_valid(data) is not missing

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        """Replace the field's error messages by ones that say what is expected."""
        for field in (field_obj, getattr(field_obj, "inner", None)):
            if field is not None:
                expected = next(
                    (text for field_class, text in _EXPECTED_TYPES.items() if isinstance(field, field_class)), "a value"
                )
                wrong_type = dict.fromkeys(("invalid", "type", "null"), f"This must be {expected}.")
                field.error_messages = {**field.error_messages, **wrong_type, "required": "This is required."}


class ParametersSchema(StrictSchema):
    """The parameters of a query or a path."""

    member = "parameter"


class ResponseSchema(Schema):
    """An object in a response. Clients must ignore unknown members: later versions may add some."""

    class Meta:
        unknown = EXCLUDE  # for the description: without `additionalProperties`, which clients take for real members


class FastField(fields.Field[Any]):
    """Mixin: deserializes a valid value directly, at a tenth of the instructions of `Field.deserialize`."""

    def deserialize(self, value: Any, attr: str | None = None, data: Any = None, **kwargs: Any) -> Any:
        """Deserialize the value. Raises ValidationError."""
        loaded = self.load_valid(value)
        return super().deserialize(value, attr, data, **kwargs) if loaded is missing else loaded

    def load_valid(self, value: Any) -> Any:
        """Return the deserialized value, or `missing` to leave it, and its errors, to marshmallow."""
        return missing


# C0 and C1 controls, DEL and surrogates: PostgreSQL refuses some of them, terminals execute others.
_FORBIDDEN_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_FORBIDDEN_IN_MULTILINE_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")

# À to ß; their second bytes in UTF-8 are all those from 80 to 9F.
_LATIN_CAPITALS = "".join(map(chr, range(0xC0, 0xE0)))


def any_character_except(excluded: str) -> str:
    """A pattern for one character of a string, for the API description.

    It excludes DEL, the C1 controls, and the ASCII characters given as the inside of a character class. ECMA 262 (with
    the u flag), Python, PCRE2 and RE2 read it the same; they share no notation for code points above FF. Generated PHP
    clients match bytes instead of characters; the Latin capitals let every byte of UTF-8 through.
    """
    return rf"(?:[^{excluded}\x7f-\xff]|[\xa0-\xff{_LATIN_CAPITALS}])"


TEXT_PATTERN = "^" + any_character_except(r"\x00-\x1f") + "*$"
_MULTILINE_PATTERN = "^" + any_character_except(r"\x00-\x08\x0b\x0c\x0e-\x1f") + "*$"


class Text(FastField, fields.String):
    """A string of `min_length` to `max_length` characters, without control characters.

    Only a `multiline` string may contain line breaks and tabs. `subject` begins its error messages.
    """

    def __init__(
        self, max_length: int, *, min_length: int = 1, multiline: bool = False, subject: str = "This", **kwargs: Any
    ) -> None:
        pattern = {"pattern": _MULTILINE_PATTERN if multiline else TEXT_PATTERN}
        error = f"{subject} must have {_limits_text(min_length, max_length)} characters."
        length = validate.Length(min_length, max_length, error=error)
        super().__init__(validate=length, metadata=pattern | kwargs.pop("metadata", {}), **kwargs)
        self._min_length, self._max_length = min_length, max_length
        self._forbidden = _FORBIDDEN_IN_MULTILINE_TEXT if multiline else _FORBIDDEN_CHARACTERS
        self._subject = subject

    def load_valid(self, value: Any) -> Any:
        return value if self.is_valid(value) else missing

    def is_valid(self, value: Any) -> bool:
        """Whether the value is a string that the field accepts."""
        return (
            type(value) is str
            and self._min_length <= len(value) <= self._max_length
            and not self._forbidden.search(value)
        )

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise ValidationError(f"{self._subject} must be a string.")
        if self._forbidden.search(value):
            raise ValidationError(f"{self._subject} must not contain control characters or unpaired surrogates.")
        return value


class Choice(FastField, fields.String):
    """One of several strings."""

    def __init__(self, choices: Sequence[str], *, error: str | None = None, **kwargs: Any) -> None:
        error = error or f"This must be one of: {', '.join(choices)}."
        super().__init__(validate=validate.OneOf(choices, error=error), **kwargs)
        self._choices = frozenset(choices)

    def load_valid(self, value: Any) -> Any:
        return value if type(value) is str and value in self._choices else missing


class Choices(FastField, fields.List[Any]):
    """A query parameter with one or more of several strings, separated by commas.

    Its value is a sorted tuple without duplicates, so that the same choice always has the same value.
    """

    _VALUES_MAX = 20  # more than any parameter has choices

    def __init__(self, choices: Sequence[str], **kwargs: Any) -> None:
        length = validate.Length(1, self._VALUES_MAX)
        super().__init__(fields.String(validate=validate.OneOf(choices)), validate=length, **kwargs)
        self._choices = frozenset(choices)
        self._error = f"This must be 1 to {self._VALUES_MAX} of: {', '.join(choices)}; separated by commas."

    def load_valid(self, value: Any) -> Any:
        values = value.split(",") if type(value) is str else []
        valid = 1 <= len(values) <= self._VALUES_MAX and self._choices.issuperset(values)
        return tuple(sorted(set(values))) if valid else missing

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> list[Any]:
        raise ValidationError(self._error)


_INTEGER = re.compile(f"-?[0-9]{{1,{_MAX_DIGITS}}}")


class BoundedInteger(FastField, fields.Integer):
    """An integer from `low` to `high`. Without `strict`, its decimal digits as a string, for a query parameter."""

    def __init__(self, low: int, high: int, *, strict: bool = True, **kwargs: Any) -> None:
        limits = validate.Range(low, high, error=f"This must be from {low:,} to {high:,}.")
        super().__init__(strict=strict, validate=limits, **kwargs)
        self._low, self._high = low, high

    def load_valid(self, value: Any) -> Any:
        return value if type(value) is int and self._low <= value <= self._high else missing

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        if not self.strict and not _INTEGER.fullmatch(value):  # int() also accepts "+1", " 1", "1_0" and "１"
            raise self.make_error("invalid")
        return super()._deserialize(value, attr, data, **kwargs)


class BoundedList(FastField, fields.List[Any]):
    """An array of `min_length` to `max_length` values. The values of a longer one are not validated at all."""

    def __init__(self, inner: fields.Field[Any], *, min_length: int = 0, max_length: int, **kwargs: Any) -> None:
        error = f"This must have {_limits_text(min_length, max_length)} entries."
        self._length = validate.Length(min_length, max_length, error=error)
        super().__init__(inner, validate=self._length, **kwargs)
        self._min_length, self._max_length = min_length, max_length

    def load_valid(self, value: Any) -> Any:
        if type(value) is not list or not self._min_length <= len(value) <= self._max_length:
            return missing
        try:
            return [self.inner.deserialize(entry) for entry in value]
        except ValidationError:
            return missing

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self.make_error("invalid")
        self._length(value)
        entries, errors, count = [], {}, 0
        for i, entry in enumerate(value):
            try:
                entries.append(self.inner.deserialize(entry, **kwargs))
            except ValidationError as error:
                errors[i] = error.messages
                if error.valid_data is not None:
                    entries.append(error.valid_data)
                count += _count_messages(error.messages)
                if count >= ERRORS_MAX:
                    break
        raise ValidationError(errors, valid_data=entries)


def _count_messages(messages: Any) -> int:
    """Count the messages in marshmallow's nested dicts and lists."""
    if isinstance(messages, Mapping):
        return sum(map(_count_messages, messages.values()))
    return len(messages) if isinstance(messages, list) else 1


def _limits_text(low: int, high: int) -> str:
    return f"{low:,} to {high:,}" if low else f"at most {high:,}"


class NestedObject(FastField, fields.Nested):
    """An object described by a StrictSchema."""

    schema: StrictSchema

    def load_valid(self, value: Any) -> Any:
        return self.schema.load(value) if type(value) is dict else missing


class Metadata(fields.Dict):
    """Up to `KEYS` pairs of strings, stored and returned unchanged."""

    KEYS, KEY_LENGTH, VALUE_LENGTH = 50, 40, 500
    _key = Text(KEY_LENGTH, subject="The key")
    _value = Text(VALUE_LENGTH, min_length=0)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> dict[str, str]:
        if not isinstance(value, Mapping):
            raise self.make_error("invalid")
        if len(value) > self.KEYS:
            raise ValidationError(f"This must have at most {self.KEYS} keys.")
        errors: dict[str, list[Any]] = {}
        for key, text in value.items():
            for field, part in ((self._key, key), (self._value, text)):
                try:
                    field.deserialize(part)
                except ValidationError as error:
                    errors.setdefault(key, []).extend(error.messages)
        if errors:
            raise ValidationError(errors)
        return dict(value)


class MetadataPatch(Metadata):
    """Pairs to set, and keys to remove by null. All 50 keys can be replaced at once, so it takes 100."""

    KEYS = 2 * Metadata.KEYS
    _value = Text(Metadata.VALUE_LENGTH, min_length=0, allow_none=True)


class HttpUrl(Text):
    """An http or https URL. Before a request is sent to it, `app.models.webhook` must check it."""

    PATTERN = "^https?://" + any_character_except(r"\x00-\x20") + "+$"

    def __init__(self, max_length: int, **kwargs: Any) -> None:
        super().__init__(max_length, metadata={"pattern": self.PATTERN} | kwargs.pop("metadata", {}), **kwargs)

    def is_valid(self, value: Any) -> bool:
        return super().is_valid(value) and re.match(self.PATTERN, value) is not None

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        if not re.match(self.PATTERN, text):
            raise ValidationError("This must be a URL that begins with http:// or https://, without spaces.")
        return text


_LATEST_TIMESTAMP = datetime.max.replace(tzinfo=UTC)
_NOT_A_TIMESTAMP = "This must be an RFC 3339 timestamp with its UTC offset, such as 2026-11-22T09:41:07Z."
_DATE, _TIME, _OFFSET = r"(\d{4}-\d\d-\d\d)", r"(\d\d:\d\d:\d\d(?:\.\d+)?)", r"([Zz]|[+-]\d\d:\d\d)"
_RFC3339 = re.compile(f"{_DATE}[Tt]{_TIME}{_OFFSET}", re.ASCII)

# Common mistakes, each with the message that corrects it.
_TIMESTAMP_MISTAKES = (
    (f"{_DATE}[Tt ]{_TIME} (\\d\\d:\\d\\d)", r"In a query, + is read as a space. Write it as %2B: \1T\2%2B\3."),
    (_DATE, r"The time of day and the UTC offset are missing. Write \1T00:00:00Z."),
    (f"{_DATE}[Tt ]{_TIME}", r"The UTC offset is missing. Write \1T\2Z."),
    (f"{_DATE} {_TIME}{_OFFSET}", r"The date and the time must be separated by T. Write \1T\2\3."),
)


class RFC3339DateTime(fields.DateTime):
    """An RFC 3339 timestamp with its UTC offset, in microseconds, from 1970 on.

    With `clamp`, for filters, any earlier time is read as 1970-01-01.
    """

    def __init__(self, *, clamp: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._clamp = clamp

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> datetime:
        if not isinstance(value, str):
            raise ValidationError(_NOT_A_TIMESTAMP)
        if not _RFC3339.fullmatch(value):
            raise ValidationError(_timestamp_error(value))
        try:
            timestamp = datetime.fromisoformat(value.upper())
        except ValueError:
            raise ValidationError(_NOT_A_TIMESTAMP) from None
        try:
            return self._not_before_1970(timestamp.astimezone(UTC))
        except OverflowError:  # in UTC it is not in the years 1 to 9999
            in_year_one = timestamp.year == 1
            return self._not_before_1970(datetime.min.replace(tzinfo=UTC)) if in_year_one else _LATEST_TIMESTAMP

    def _not_before_1970(self, timestamp: datetime) -> datetime:
        if timestamp >= EPOCH:
            return timestamp
        if not self._clamp:
            raise ValidationError("This must not be before 1970-01-01T00:00:00Z.")
        return EPOCH


def _timestamp_error(text: str) -> str:
    for pattern, message in _TIMESTAMP_MISTAKES:
        if match := re.fullmatch(pattern, text, re.ASCII):
            return match.expand(message)
    return _NOT_A_TIMESTAMP


MAX_DEPTH = 32  # levels of objects and arrays
_MAX_DECIMAL_LENGTH = 100  # characters of a number with a fraction or an exponent
_EXACT_DIGITS = sys.float_info.dig  # decimal digits that a float holds
_DECIMAL_NUMBER = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")

# A batch of 1,000 orders with 100 priced lines each has 300,000 commas and 102,000 objects. Parsing blocks the worker
# for up to a microsecond per value, and a value takes up to 250 bytes of memory.
_MAX_COMMAS = 320_000
_MAX_OBJECTS = 250_000
_MAX_COMMAS_WITH_STRINGS = 1_000_000  # including those within strings
_MAX_QUOTES = 2_000_000
_MAX_MEMBERS = 10_000  # of one object; every schema has far fewer
_COMMA, _END_OF_OBJECT = b",}"
_NEITHER_STRUCTURE_NOR_QUOTE = bytes(set(range(256)) - set(b'[]{},"'))


def parse_json(body: bytes) -> Any:
    """Parse a JSON text in UTF-8.

    As in JSON Schema, a number without a fraction is an int in any notation: 2.0, 1e0 and 20e-1 are 2, 1 and 2.

    Raises MalformedJSON for anything else, and for a byte order mark, a duplicate member, NaN and Infinity, a number of
    more than 40 digits (100 characters with a fraction or an exponent), and nesting deeper than MAX_DEPTH.
    """
    if not body:
        raise MalformedJSON("The body is empty. Send a JSON object.")
    if body.startswith(b"\xef\xbb\xbf"):
        raise MalformedJSON("The body starts with a byte order mark. Send UTF-8 without one.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedJSON(f"Byte {error.start} of the body is not valid UTF-8.") from None
    # Counting brackets and commas is cheap and enough for nearly every body.
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH or body.count(b",") > _MAX_MEMBERS:
        if body.count(b",") > _MAX_COMMAS_WITH_STRINGS or body.count(b'"') > _MAX_QUOTES:
            raise MalformedJSON(
                "The body has too many values or too many quotes and commas. Split it into several requests."
            )
        _check_structure(_brackets_and_commas(body))
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        detail = f"{error.msg} at line {error.lineno}, column {error.colno}."
        raise MalformedJSON(detail) from None


def _brackets_and_commas(body: bytes) -> bytes:
    """Return the brackets and commas outside of strings, at a few nanoseconds per byte.

    Once escape sequences are removed, every quote begins or ends a string. After a backslash outside of a string the
    result may be wrong, but that is not JSON, and the parser stops there too.
    """
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    structure_and_quotes = body.translate(None, _NEITHER_STRUCTURE_NOR_QUOTE).replace(b'""', b"")
    return b"".join(structure_and_quotes.split(b'"')[::2])


def _check_structure(structure: bytes) -> None:
    if structure.count(b",") > _MAX_COMMAS or structure.count(b"[") + structure.count(b"{") > _MAX_OBJECTS:
        detail = f"The body has more than {_MAX_COMMAS:,} values or {_MAX_OBJECTS:,} objects and arrays."
        raise MalformedJSON(f"{detail} Split it into several requests.")
    commas: list[int] = []  # of each open object and array
    for symbol in structure:
        if symbol == _COMMA:
            if commas:
                commas[-1] += 1
        elif symbol in b"[{":
            commas.append(0)
            if len(commas) > MAX_DEPTH:
                raise MalformedJSON(f"The body is nested deeper than {MAX_DEPTH} levels.")
        elif commas and commas.pop() >= _MAX_MEMBERS and symbol == _END_OF_OBJECT:
            raise MalformedJSON(f"An object has more than {_MAX_MEMBERS:,} members.")


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        duplicate = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise MalformedJSON(f"Duplicate member {json.dumps(duplicate[:64])} in one object.")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedJSON(f"{name} is not a JSON value. Send a number or null.")


def _parse_integer(text: str) -> int:
    if len(text.removeprefix("-")) > _MAX_DIGITS:
        raise MalformedJSON(f"A number has more than {_MAX_DIGITS} digits.")
    return int(text)


def _parse_decimal(text: str) -> int | float:
    """Convert a number with a fraction or an exponent: an exact int if its value is an integer, else a float."""
    if len(text) <= _EXACT_DIGITS:
        value = float(text)
        if 1e-9 < value < 1e9:  # a float underflows to 0
            return int(value) if value.is_integer() else value
    if len(text) > _MAX_DECIMAL_LENGTH:
        raise MalformedJSON(f"A number has more than {_MAX_DECIMAL_LENGTH} characters.")
    match = _DECIMAL_NUMBER.fullmatch(text)
    assert match is not None  # the decoder passes nothing else
    sign, whole, fraction = match[1], match[2], (match[3] or "").rstrip("0")
    digits = (whole + fraction).lstrip("0")
    significant = digits.rstrip("0")
    zeros = len(digits) - len(significant) - len(fraction) + int(match[4] or 0)  # after the last significant digit
    if not significant:
        return 0
    if zeros < 0:
        return float(text)
    # 1e999999999 would be a gigabyte of digits. No field accepts a number of more than 40 digits, so the field refuses
    # the shortened number as well and reports its limits.
    return int(sign + significant + "0" * min(zeros, _MAX_DIGITS))


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object_of_pairs,
    parse_constant=_refuse_constant,
    parse_int=_parse_integer,
    parse_float=_parse_decimal,
)
INVALID_PARAMETERS = "The parameters are not valid. Correct what `errors` lists."


def load_body(schema: Schema, data: Any, *, pointer: str = "#") -> Any:
    """Deserialize the data, which is at `pointer` in the body.

    Raises InvalidRequest with at most ERRORS_MAX errors.
    """
    try:
        return schema.load(data)
    except ValidationError as error:
        errors = list(islice(body_errors(error.messages, pointer), ERRORS_MAX + 1))
        more = f" Only the first {ERRORS_MAX} errors are listed." if len(errors) > ERRORS_MAX else ""
        error.with_traceback(None)  # whose frames refer to the error, and keep the data until a garbage collection
        detail = f"The body is not valid. Correct what `errors` lists.{more}"
        raise InvalidRequest(detail, errors=errors[:ERRORS_MAX]) from None


def load_parameters(schema: Schema, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Deserialize the parameters of a query or a path. Raises InvalidRequest with all errors."""
    try:
        loaded: dict[str, Any] = schema.load(parameters)
        return loaded
    except ValidationError as error:
        errors = list(_parameter_errors(error.messages))
        raise InvalidRequest(INVALID_PARAMETERS, errors=errors) from None


def body_errors(messages: Any, pointer: str = "#") -> Iterator[dict[str, str]]:
    """Flatten marshmallow's messages to errors with a JSON pointer in URI fragment representation (RFC 6901 §6)."""
    if isinstance(messages, Mapping):
        for name, nested in messages.items():
            yield from body_errors(nested, pointer if name == "_schema" else f"{pointer}/{_reference_token(name)}")
    else:
        for message in messages if isinstance(messages, list) else [messages]:
            yield {"pointer": pointer, "detail": str(message)}


def _reference_token(name: Any) -> str:
    return quote(str(name).replace("~", "~0").replace("/", "~1"), safe="~!$&'()*+,;=:@", errors="replace")


def _parameter_errors(messages: Any) -> Iterator[dict[str, str]]:
    """Flatten marshmallow's messages to errors with a parameter; an error of the query as a whole has none."""
    if not isinstance(messages, Mapping):
        yield from ({"detail": str(message)} for message in messages)
        return
    for name, texts in messages.items():
        yield from ({"parameter": name, "detail": str(text)} for text in texts)
