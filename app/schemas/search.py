"""The query of a search."""

from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError, fields, missing

from app.models.fulfillment import FULFILLMENT_STATUSES, RETURN_STATUSES
from app.models.lifecycle import STATUSES
from app.models.order_item import ID_MAX
from app.models.payment import PAYMENT_STATUSES
from app.models.search import SORTS, query_words
from app.schemas.fields import (
    BoundedInteger,
    Choice,
    Choices,
    FastField,
    Metadata,
    ParametersSchema,
    RFC3339DateTime,
    Text,
)
from app.schemas.order import CURRENCIES, CURRENCY_ERROR, PAGE_DEFAULT, PAGE_MAX, TAG_MAX

QUERY_MAX = 200  # characters
WORDS_MAX = 10  # each may be a scan of an index
METADATA_MAX = 10
TOTAL_MAX = 2**53 - 1  # minor units; larger totals are refused when an order is created
FACETS = ("status", "fulfillment_status", "payment_status", "return_status", "channel", "currency", "held", "late")
_PREFIX = "metadata."
_TOTAL = "in minor units. Without `currency`, the amounts of all currencies are compared as numbers."


class Flag(FastField, fields.Boolean):
    """`true` or `false`."""

    def load_valid(self, value: Any) -> Any:
        return {"true": True, "false": False}.get(value, missing) if type(value) is str else missing

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        raise self.make_error("invalid")


class MetadataFilter(fields.Dict):
    """Pairs that the metadata of an order must have: the parameters whose names begin with `metadata.`."""

    _key, _value = Text(Metadata.KEY_LENGTH), Text(Metadata.VALUE_LENGTH, min_length=0)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> dict[str, str]:
        if not isinstance(value, Mapping):
            raise ValidationError("Write metadata.<key>=<value>.")
        if len(value) > METADATA_MAX:
            raise ValidationError(f"At most {METADATA_MAX} pairs of metadata can be searched at once.")
        if not all(self._key.is_valid(key) and self._value.is_valid(text) for key, text in value.items()):
            limits = f"1 to {Metadata.KEY_LENGTH} characters, and a value at most {Metadata.VALUE_LENGTH}"
            raise ValidationError(f"A key must have {limits}; neither may contain control characters.")
        return dict(value)


def _statuses(choices: tuple[str, ...], name: str) -> Choices:
    return Choices(choices, metadata={"description": f"Only orders with one of these {name}."})


def _time(description: str) -> RFC3339DateTime:
    return RFC3339DateTime(clamp=True, metadata={"description": f"Only orders {description} this time."})


class SearchQuerySchema(ParametersSchema):
    """The query of a search of orders."""

    q = Text(
        QUERY_MAX,
        min_length=0,
        metadata={
            "description": "Words, all of which an order must have: in its number, `external_ref` or `customer_id`, in "
            "the name, company, e-mail address, phone number or postal code of an address, or in the `item_id` or "
            "title of an item. The beginning of a word suffices. Case, accents and punctuation do not matter. At most "
            f"{WORDS_MAX} words.",
            "example": "lovelace berlin",
        },
    )
    customer_id = Text(ID_MAX, metadata={"description": "Only orders of this customer."})
    channel = Text(ID_MAX, metadata={"description": "Only orders of this channel."})
    status = _statuses(STATUSES, "statuses")
    fulfillment_status = _statuses(FULFILLMENT_STATUSES, "fulfillment statuses")
    payment_status = _statuses(PAYMENT_STATUSES, "payment statuses")
    return_status = _statuses(RETURN_STATUSES, "return statuses")
    tag = Text(TAG_MAX, metadata={"description": "Only orders with this tag."})
    metadata = MetadataFilter(
        metadata={"description": "`metadata.<key>=<value>`: only orders with this pair in their metadata."}
    )
    held = Flag(metadata={"description": "`true`: only orders with a hold; `false`: only orders without one."})
    late = Flag(metadata={"description": "`true`: only orders that are late; `false`: only others."})
    currency = Choice(CURRENCIES, error=CURRENCY_ERROR, metadata={"description": "Only orders in this currency."})
    created_from = _time("created at or after")
    created_to = _time("created before")
    updated_from = _time("created or changed last at or after")
    updated_to = _time("created or changed last before")
    total_from = BoundedInteger(
        0, TOTAL_MAX, strict=False, metadata={"description": f"Only orders with at least this total, {_TOTAL}"}
    )
    total_to = BoundedInteger(
        0, TOTAL_MAX, strict=False, metadata={"description": f"Only orders with at most this total, {_TOTAL}"}
    )
    sort = Choice(
        tuple(direction + name for name in SORTS for direction in ("-", "")),
        load_default="-created_at",
        metadata={
            "description": "`-` sorts the newest or largest first. Totals of different currencies are compared as "
            "numbers, and orders without prices count as less than 0."
        },
    )
    facets = Choices(
        FACETS,
        metadata={
            "description": "How many of the orders that match `q` and all filters have each value of these members. "
            "The cursor does not matter: ask for them with the first page."
        },
    )
    limit = BoundedInteger(
        1,
        PAGE_MAX,
        strict=False,
        load_default=PAGE_DEFAULT,
        metadata={
            "description": "Maximum number of orders on the page. A page has fewer orders, or none, although "
            "`next_cursor` is set, if more would exceed 1 MiB, or if few of 10,000 orders match: where each condition "
            "matches many orders, but hardly any order matches all of them."
        },
    )
    cursor = Text(
        200,
        metadata={
            "description": "`next_cursor` of the previous page. `q`, the filters and the sort must be the same as for "
            "that page."
        },
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.error_messages["unknown"] = self.error_messages["unknown"].replace(" metadata,", f" {_PREFIX}<key>,")

    def load(self, data: Any, **options: Any) -> Any:
        """Load the parameters, those that begin with `metadata.` as one. Raises ValidationError."""
        metadata = {name.removeprefix(_PREFIX): value for name, value in data.items() if name.startswith(_PREFIX)}
        if metadata:
            data = {name: value for name, value in data.items() if not name.startswith(_PREFIX)}
            data["metadata"] = metadata
        return super().load(data, **options)

    def check(self, members: dict[str, Any]) -> None:
        """Refuse too many words."""
        if len(query_words(members.get("q", ""))) > WORDS_MAX:
            raise ValidationError({"q": [f"This must have at most {WORDS_MAX} words."]})
