"""Request schemas of orders: the order to create, the batch, and the queries of lists, exports and history."""

import re
from typing import Any

from marshmallow import ValidationError, fields, missing, validate

from app.models.fulfillment import FULFILLMENT_STATUSES, RETURN_STATUSES
from app.models.lifecycle import STATUSES
from app.models.order import IDEMPOTENCY_KEY_MAX
from app.models.order_id import is_alias, parse_uuid
from app.models.order_item import ID_MAX, TITLE_MAX
from app.models.payment import PAYMENT_STATUSES
from app.models.pricing import DISCOUNT, InvalidPrices, price_lines
from app.schemas.fields import (
    BoundedInteger,
    BoundedList,
    Choice,
    Choices,
    FastField,
    Metadata,
    MetadataPatch,
    NestedObject,
    ParametersSchema,
    RFC3339DateTime,
    StrictSchema,
    Text,
    any_character_except,
)

ITEMS_MAX = 100
ADJUSTMENTS_MAX = 100
QUANTITY_MAX = 1_000_000
PRICE_MAX = 10**12  # minor units: ten billion euros
NOTE_MAX = 2_000
PAGE_DEFAULT, PAGE_MAX = 20, 100
EXPORT_MAX = 10**9  # orders
ADJUSTMENT_TYPES = (DISCOUNT, "tax", "shipping", "fee", "other")
TAGS_MAX, TAG_MAX = 50, 64  # of one order, characters
RELATED_ORDERS_MAX = 50
RELATIONS = ("replacement", "exchange", "split", "reorder", "subscription", "other")
BATCH_MAX = 1_000  # orders
# The active currencies of ISO 4217 (list one), without funds, metals and test codes.
CURRENCIES = tuple(
    """
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CLP CNY COP
    CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR
    IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU
    MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG
    SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VED VES VND VUV
    WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG
    """.split()
)
CURRENCY_ERROR = "This must be an active ISO 4217 currency code, such as EUR."

_CREATED_FROM = (
    "Only orders created at or after this time. To poll for new orders, pass the `Complete-Until` header of the "
    "previous response and skip the orders that you already have. Do not pass the newest `created_at` that you have "
    "seen: an order can be stored after another one with a later `created_at`, such as the orders of a large batch."
)
_PAGE_LIMIT = "Maximum number of entries on the page. A page has fewer entries if more would exceed 1 MiB."


class ItemInSchema(StrictSchema):
    """An item to order. `unit_price` is in minor units of the order's currency; the service stores it as sent."""

    item_id = Text(ID_MAX, required=True, metadata={"example": "sku-1"})
    title = Text(TITLE_MAX, allow_none=True, metadata={"example": "Mug"})
    quantity = BoundedInteger(1, QUANTITY_MAX, required=True, metadata={"example": 2})
    unit_price = BoundedInteger(0, PRICE_MAX, allow_none=True, metadata={"example": 1250})


class AdjustmentInSchema(StrictSchema):
    """An amount in minor units that is added to the total of the items; a discount is negative.

    A discount with a `line`, a number from 1, lowers the price of that line; the others are shared over all lines in
    proportion to their prices.
    """

    type = Choice(ADJUSTMENT_TYPES, required=True)
    label = Text(100, allow_none=True, metadata={"example": "WELCOME10"})
    amount = BoundedInteger(-PRICE_MAX, PRICE_MAX, required=True, metadata={"example": -250})
    line = BoundedInteger(1, ITEMS_MAX, allow_none=True)

    def check(self, members: dict[str, Any]) -> None:
        """Require that a discount is not positive."""
        if members["type"] == DISCOUNT and members["amount"] > 0:
            raise ValidationError({"amount": ["A discount must be 0 or negative."]})


class OrderUUID(FastField, fields.String):
    """The id of an order, a UUID; loaded in lower case with dashes."""

    def load_valid(self, value: Any) -> Any:
        return (parse_uuid(value) if type(value) is str else None) or missing

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        raise ValidationError("This must be the id of an order, a UUID.")


class RelatedOrderInSchema(StrictSchema):
    """Another order, and what it is to this one."""

    order_id = OrderUUID(required=True, metadata={"format": "uuid"})
    relation = Choice(RELATIONS, required=True)


class AddressInSchema(StrictSchema):
    """A postal address. Only `country`, an ISO 3166-1 alpha-2 code, is required."""

    name = Text(200)
    company = Text(200)
    line1 = Text(200)
    line2 = Text(200)
    city = Text(100)
    region = Text(100)
    postal_code = Text(20)
    country = fields.String(
        required=True,
        validate=validate.Regexp(r"^[A-Z]{2}\Z", error="This must be two capital letters, such as DE."),
        metadata={"pattern": "^[A-Z]{2}$", "example": "DE"},
    )
    phone = Text(40)
    email = Text(254)


class CustomerId(Text):
    """The caller's id of a customer: usable as a part of a path, and not an alias of an erased customer."""

    _NO_SLASH, _NO_DOT = any_character_except(r"/\x00-\x1f"), any_character_except(r"./\x00-\x1f")
    _SEGMENT = rf"({_NO_DOT}|\.{_NO_DOT}|\.\.{_NO_SLASH}){_NO_SLASH}*"
    PATTERN = rf"^({_SEGMENT})?(/({_SEGMENT})?)*$"

    _DOT_SEGMENT = re.compile(r"(^|/)\.\.?(/|\Z)")  # proxies and clients remove dot segments (RFC 3986 §5.2.4)

    default_error_messages = {
        "segment": "This must not have a part between slashes that is . or ..; a URL cannot contain it.",
        "alias": "This must not begin with erased-; such ids are reserved for customers whose data was erased.",
    }

    def __init__(self) -> None:
        super().__init__(ID_MAX, required=True, metadata={"example": "c-123", "pattern": self.PATTERN})

    def is_valid(self, value: Any) -> bool:
        return super().is_valid(value) and not is_alias(value) and not self._DOT_SEGMENT.search(value)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        if is_alias(text):
            raise self.make_error("alias")
        if self._DOT_SEGMENT.search(text):
            raise self.make_error("segment")
        return text


class OrderInSchema(StrictSchema):
    """An order to create. Only `customer_id` and `items` are required."""

    customer_id: fields.Field[Any] = CustomerId()
    items = BoundedList(NestedObject(ItemInSchema), min_length=1, max_length=ITEMS_MAX, required=True)
    external_ref = Text(
        ID_MAX, allow_none=True, metadata={"description": "Your own reference of the order, unique among your orders."}
    )
    channel = Text(
        ID_MAX,
        allow_none=True,
        metadata={
            "description": "Where the order was placed. It cannot be changed later. Default: the channel of an API key "
            "that is bound to one channel.",
            "example": "web",
        },
    )
    currency = Choice(
        CURRENCIES,
        error=CURRENCY_ERROR,
        allow_none=True,
        metadata={
            "description": "ISO 4217 code; required if an item has a price or there are adjustments.",
            "example": "EUR",
        },
    )
    adjustments = BoundedList(NestedObject(AdjustmentInSchema), max_length=ADJUSTMENTS_MAX)
    ship_by = RFC3339DateTime(
        allow_none=True,
        metadata={"description": "When the last unit is to be sent; an order with open units is `late` from then on."},
    )
    deliver_by = RFC3339DateTime(allow_none=True, metadata={"description": "When the last unit is to arrive."})
    related_orders = BoundedList(NestedObject(RelatedOrderInSchema), max_length=RELATED_ORDERS_MAX)
    tags = BoundedList(Text(TAG_MAX), max_length=TAGS_MAX)
    shipping_address = NestedObject(AddressInSchema, allow_none=True)
    billing_address = NestedObject(AddressInSchema, allow_none=True)
    note = Text(NOTE_MAX, min_length=0, multiline=True, allow_none=True)
    metadata = Metadata(metadata={"description": "Up to 50 key-value pairs of strings, returned unchanged."})

    def check_partial(self, members: dict[str, Any], original: dict[str, Any]) -> None:
        """Require a currency if there are prices or adjustments."""
        items = members.get("items", [])
        priced = members.get("adjustments") or any(item.get("unit_price") is not None for item in items)
        if priced and original.get("currency") is None:
            raise ValidationError({"currency": ["This is required if there are prices or adjustments."]})

    def check(self, members: dict[str, Any]) -> None:
        """Price the order and add the result as `prices`, so that it is computed once. Refuse duplicate tags."""
        errors: dict[str, Any] = {}
        try:
            members["prices"] = price_lines(members["items"], members.get("adjustments", []))
        except InvalidPrices as error:
            errors |= error.messages
        tags = members.get("tags", ())
        if len(set(tags)) < len(tags):
            errors["tags"] = ["Each tag must be listed once."]
        if errors:
            raise ValidationError(errors)


class IdempotencyKey(fields.String):
    """An idempotency key: printable ASCII characters."""

    def __init__(self, **kwargs: Any) -> None:
        length = f"This must have 1 to {IDEMPOTENCY_KEY_MAX} characters."
        characters = validate.Regexp(r"^[ -~]*\Z", error="This must contain only printable ASCII characters.")
        metadata = {"pattern": "^[ -~]*$"} | kwargs.pop("metadata", {})
        super().__init__(
            validate=[validate.Length(1, IDEMPOTENCY_KEY_MAX, error=length), characters], metadata=metadata, **kwargs
        )


class BatchEntryInSchema(OrderInSchema):
    """An order to create, with its idempotency key. Without a key, `external_ref` identifies a retry."""

    idempotency_key = IdempotencyKey(allow_none=True)


class BatchInSchema(StrictSchema):
    """Orders to create. Each entry succeeds or fails on its own."""

    MAX_BODY_SIZE = 8 * 1024 * 1024  # bytes: 1,000 orders of 8 KiB

    # Each entry is validated on its own, so that an invalid entry does not affect the others.
    orders = BoundedList(
        fields.Raw(allow_none=True, metadata={"component": "BatchEntryIn"}),
        min_length=1,
        max_length=BATCH_MAX,
        required=True,
    )


class UpdatedOrderSchema(OrderInSchema):
    """The members of an order after a merge patch. Its customer may be the alias of an erased one."""

    customer_id = Text(ID_MAX, required=True)


class AddressPatchSchema(StrictSchema):
    """Changes of an address. Null removes a member."""

    name = Text(200, allow_none=True)
    company = Text(200, allow_none=True)
    line1 = Text(200, allow_none=True)
    line2 = Text(200, allow_none=True)
    city = Text(100, allow_none=True)
    region = Text(100, allow_none=True)
    postal_code = Text(20, allow_none=True)
    country = Text(2, min_length=2, allow_none=True)
    phone = Text(40, allow_none=True)
    email = Text(254, allow_none=True)


class OrderPatchSchema(StrictSchema):
    """A JSON merge patch (RFC 7396): absent members stay as they are, null removes a member, arrays are replaced whole.

    `items`, `adjustments` and `currency` can be changed only while the order is pending. Once a payment is recorded,
    the currency stays, and the prices cannot all be removed.
    """

    unknown_member = "A patch cannot change this."

    external_ref = Text(ID_MAX, allow_none=True)
    note = Text(NOTE_MAX, min_length=0, multiline=True, allow_none=True)
    metadata = MetadataPatch(allow_none=True)
    shipping_address = NestedObject(AddressPatchSchema, allow_none=True)
    billing_address = NestedObject(AddressPatchSchema, allow_none=True)
    ship_by = RFC3339DateTime(allow_none=True)
    deliver_by = RFC3339DateTime(allow_none=True)
    related_orders = BoundedList(NestedObject(RelatedOrderInSchema), max_length=RELATED_ORDERS_MAX, allow_none=True)
    tags = BoundedList(Text(TAG_MAX), max_length=TAGS_MAX, allow_none=True)
    items = BoundedList(NestedObject(ItemInSchema), min_length=1, max_length=ITEMS_MAX)
    adjustments = BoundedList(NestedObject(AdjustmentInSchema), max_length=ADJUSTMENTS_MAX, allow_none=True)
    currency = Choice(CURRENCIES, error=CURRENCY_ERROR, allow_none=True)


class DryRunQuerySchema(ParametersSchema):
    """The query of a request that creates or changes orders."""

    dry_run = Choice(
        ("true", "false"),
        load_default="false",
        metadata={
            "description": "`true`: store nothing, and answer with `Dry-Run: true` what the request would be answered. "
            "Ids, numbers and times differ from those of the real request."
        },
    )


class CustomerPathSchema(ParametersSchema):
    """The customer in a path."""

    customer_id = Text(ID_MAX, required=True, metadata={"description": "Your id of the customer.", "example": "c-123"})


class ReferencePathSchema(ParametersSchema):
    """The external reference in a path."""

    external_ref = Text(
        ID_MAX,
        required=True,
        metadata={
            "description": "Your own reference of the order, percent-encoded: `/` is `%2F`.",
            "example": "shop-1",
        },
    )


class OrderFiltersSchema(ParametersSchema):
    """Filters and sort order of lists and exports."""

    customer_id = Text(ID_MAX, metadata={"description": "Only orders of this customer."})
    status = Choices(STATUSES, metadata={"description": "Only orders with one of these statuses."})
    fulfillment_status = Choices(
        FULFILLMENT_STATUSES, metadata={"description": "Only orders with one of these fulfillment statuses."}
    )
    channel = Text(ID_MAX, metadata={"description": "Only orders of this channel."})
    payment_status = Choices(
        PAYMENT_STATUSES, metadata={"description": "Only orders with one of these payment statuses."}
    )
    return_status = Choices(RETURN_STATUSES, metadata={"description": "Only orders with one of these return statuses."})
    number = Text(
        32,
        metadata={
            "description": "Only the order with this number. Lower case is accepted, and so are O for 0, I and L for 1."
        },
    )
    external_ref = Text(ID_MAX, metadata={"description": "Only orders with this external reference."})
    item_id = Text(ID_MAX, metadata={"description": "Only orders that contain this item."})
    created_from = RFC3339DateTime(clamp=True, metadata={"description": _CREATED_FROM})
    created_to = RFC3339DateTime(clamp=True, metadata={"description": "Only orders created before this time."})
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
            "description": "The media type of the export, for clients that cannot set `Accept`; it wins over it."
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
