"""Parameters of orders, searches and events, in the query or the path."""

from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError, fields, missing

from app.models.lifecycle import EVENT_TYPES, FULFILLMENT_STATUSES, RETURN_STATUSES, STATUSES
from app.models.money import PAYMENT_STATUSES
from app.models.order import ID_MAX
from app.models.search import SORTS, query_words
from app.schemas.base import (
    BoundedInteger,
    Choice,
    Choices,
    FastField,
    Metadata,
    ParametersSchema,
    RFC3339DateTime,
    Text,
)
from app.schemas.order import CURRENCIES, CURRENCY_ERROR, TAG_MAX, IdempotencyKey, OrderUUID

PAGE_DEFAULT, PAGE_MAX = 20, 100
EXPORT_MAX = 10**9  # orders
QUERY_MAX = 200  # characters
WORDS_MAX = 10  # each may be a scan of an index
METADATA_MAX = 10
TOTAL_MAX = 2**53 - 1  # minor units; larger totals are refused when an order is created
FACETS = ("status", "fulfillment_status", "payment_status", "return_status", "channel", "currency", "held", "late")
_METADATA_PREFIX = "metadata."
EVENTS_DEFAULT, EVENTS_MAX = 100, 1_000
WAIT_MAX = 20  # seconds; proxies give up after 30
LATEST = "latest"  # the end of the feed

_CREATED_FROM = (
    "Only orders created at or after this time. To poll for new orders, pass the `Complete-Until` header of the "
    "previous response and skip the orders that you already have. Do not pass the newest `created_at` that you have "
    "seen: an order can be stored after another one with a later `created_at`, such as the orders of a large batch."
)
_TOTAL = "in minor units. Without `currency`, the amounts of all currencies are compared as numbers."
_PAGE_LIMIT = "Maximum number of entries on the page. A page has fewer entries if more would exceed 1 MiB."


class DryRunQuerySchema(ParametersSchema):
    """The query of a request that creates or changes orders."""

    dry_run = Choice(
        ("true", "false"),
        load_default="false",
        metadata={
            "description": "`true`: store nothing, and return the response that the request would get, with the header "
            "`Dry-Run: true`. Ids, numbers and times differ from those of the real request."
        },
    )


class CustomerPathSchema(ParametersSchema):
    """The customer in a path."""

    customer_id = Text(ID_MAX, required=True, metadata={"description": "Your id for the customer.", "example": "c-123"})


class ReferencePathSchema(ParametersSchema):
    """The external reference in a path."""

    external_ref = Text(
        ID_MAX,
        required=True,
        metadata={
            "description": "Your own reference for the order, percent-encoded: `/` is `%2F`.",
            "example": "shop-1",
        },
    )


def _statuses(choices: tuple[str, ...], name: str) -> Choices:
    return Choices(choices, metadata={"description": f"Only orders with one of these {name}."})


def _time(description: str) -> RFC3339DateTime:
    return RFC3339DateTime(clamp=True, metadata={"description": f"Only orders {description} this time."})


class OrderFiltersSchema(ParametersSchema):
    """Filters and sort order of lists and exports."""

    customer_id = Text(ID_MAX, metadata={"description": "Only orders of this customer."})
    status = _statuses(STATUSES, "statuses")
    fulfillment_status = _statuses(FULFILLMENT_STATUSES, "fulfillment statuses")
    channel = Text(ID_MAX, metadata={"description": "Only orders of this channel."})
    payment_status = _statuses(PAYMENT_STATUSES, "payment statuses")
    return_status = _statuses(RETURN_STATUSES, "return statuses")
    number = Text(
        32,
        metadata={
            "description": "Only the order with this number. Lower case is accepted, and so are O for 0, I and L for 1."
        },
    )
    external_ref = Text(ID_MAX, metadata={"description": "Only orders with this external reference."})
    item_id = Text(ID_MAX, metadata={"description": "Only orders that contain this item."})
    created_from = RFC3339DateTime(clamp=True, metadata={"description": _CREATED_FROM})
    created_to = _time("created before")
    sort = Choice(
        ("-created_at", "created_at"),
        load_default="-created_at",
        metadata={"description": "`-created_at`: newest first; `created_at`: oldest first."},
    )


class OrderQuerySchema(OrderFiltersSchema):
    """The query of a list of orders."""

    idempotency_key = IdempotencyKey(
        metadata={
            "description": "Only the order that you created with this idempotency key, written without the quotes of "
            "the header. An empty list means that no order has been created with it."
        }
    )
    limit = BoundedInteger(1, PAGE_MAX, strict=False, load_default=PAGE_DEFAULT, metadata={"description": _PAGE_LIMIT})
    cursor = Text(
        200,
        metadata={
            "description": "`next_cursor` of the previous page. The filters and the sort order must be the same as for "
            "that page."
        },
    )


class ExportQuerySchema(OrderFiltersSchema):
    """The query of an export of orders."""

    format = Choice(
        ("ndjson", "csv"),
        metadata={
            "description": "The format of the export, for clients that cannot set `Accept`. It takes precedence over "
            "that header."
        },
    )
    bom = Choice(
        ("0", "1"),
        load_default="0",
        metadata={"description": "`1`: start the CSV with a byte order mark, so that Excel reads it as UTF-8."},
    )
    after = OrderUUID(
        metadata={
            "format": "uuid",
            "description": "Resume an interrupted export after the order with this id: the last one that was received "
            "completely. The filters and the sort order must be the same.",
        },
    )
    limit = BoundedInteger(
        1,
        EXPORT_MAX,
        strict=False,
        metadata={"description": "Maximum number of orders. Default: all orders that match the filters."},
    )


class PersonalDataQuerySchema(ParametersSchema):
    """The query of an export of personal data."""

    after = OrderUUID(
        metadata={
            "format": "uuid",
            "description": "Resume an interrupted export after the order with this id: the last one whose events were "
            "received completely.",
        },
    )


class VersionQuerySchema(ParametersSchema):
    """The query of a single order."""

    version = BoundedInteger(
        1,
        2**31 - 1,
        strict=False,
        metadata={"description": "Return the order as it was at this version. Default: the current version."},
    )


class HistoryQuerySchema(ParametersSchema):
    """The query of an order's history."""

    limit = BoundedInteger(1, PAGE_MAX, strict=False, load_default=PAGE_DEFAULT, metadata={"description": _PAGE_LIMIT})
    cursor = Text(200, metadata={"description": "`next_cursor` of the previous page."})


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
    late = Flag(metadata={"description": "`true`: only orders that are late; `false`: only orders that are not."})
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
            "They do not depend on the cursor: request them with the first page only."
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
        self.error_messages["unknown"] = self.error_messages["unknown"].replace(
            " metadata,", f" {_METADATA_PREFIX}<key>,"
        )

    def load(self, data: Any, **options: Any) -> Any:
        """Load the parameters, those that begin with `metadata.` as one. Raises ValidationError."""
        metadata = {
            name.removeprefix(_METADATA_PREFIX): value
            for name, value in data.items()
            if name.startswith(_METADATA_PREFIX)
        }
        if metadata:
            data = {name: value for name, value in data.items() if not name.startswith(_METADATA_PREFIX)}
            data["metadata"] = metadata
        return super().load(data, **options)

    def check(self, members: dict[str, Any]) -> None:
        """Refuse too many words."""
        if len(query_words(members.get("q", ""))) > WORDS_MAX:
            raise ValidationError({"q": [f"This must have at most {WORDS_MAX} words."]})


class EventQuerySchema(ParametersSchema):
    """The query of the feed."""

    after = Text(
        200,
        metadata={
            "description": "`next_cursor` of the previous page, with the same filters; or the `seq` of an event; or "
            f"`{LATEST}`, to read only events that follow. Without it the feed is read from its beginning."
        },
    )
    types = Choices(EVENT_TYPES, metadata={"description": "Only events of one of these types."})
    order_id = Text(64, metadata={"description": "Only events of this order."})
    channel = Text(ID_MAX, metadata={"description": "Only events of orders of this channel."})
    limit = BoundedInteger(
        1,
        EVENTS_MAX,
        strict=False,
        load_default=EVENTS_DEFAULT,
        metadata={
            "description": "Maximum number of events on the page. A page has fewer events if more would exceed 1 MiB, "
            "or if few of the next 5,000 events match the filters."
        },
    )
    wait = BoundedInteger(
        0,
        WAIT_MAX,
        strict=False,
        load_default=0,
        metadata={
            "description": "Seconds to wait for an event if there is none yet. The response is sent as soon as there "
            "is one."
        },
    )


class OrderEventQuerySchema(ParametersSchema):
    """The query of the events of an order."""

    after = BoundedInteger(
        0,
        2**31 - 1,
        strict=False,
        load_default=0,
        metadata={"description": "Only events after this version of the order."},
    )
