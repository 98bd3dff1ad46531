"""Orders in requests: an order to create, a batch, a merge patch, the bodies of actions, and many actions at once."""

import re
from typing import Any

from marshmallow import ValidationError, fields, missing, validate

from app.models.lifecycle import ACTIONS, DELIVERY_EVENTS, EXPECTED, RECEIVED
from app.models.money import DISCOUNT, PAYMENT_TYPES, InvalidPrices, price_lines
from app.models.order import ID_MAX, IDEMPOTENCY_KEY_MAX, TITLE_MAX
from app.models.order_id import is_alias, parse_uuid
from app.schemas.base import (
    BoundedInteger,
    BoundedList,
    Choice,
    FastField,
    HttpUrl,
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
QUANTITY_MAX = 1_000_000
PRICE_MAX = 10**12  # minor units: ten billion euros
ADJUSTMENTS_MAX = 100
ADJUSTMENT_TYPES = (DISCOUNT, "tax", "shipping", "fee", "other")
RELATED_ORDERS_MAX = 50
RELATIONS = ("replacement", "exchange", "split", "reorder", "subscription", "other")
TAGS_MAX, TAG_MAX = 50, 64  # of one order, characters
NOTE_MAX = 2_000  # characters
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

CANCELLATION_REASONS = ("customer", "inventory", "fraud", "declined", "staff", "expired", "other")
HOLD_KINDS = ("fraud", "payment", "address", "inventory", "review", "other")

BATCH_MAX = 1_000  # orders, or actions on orders
_BATCH_BODY_MAX = 8 * 1024 * 1024  # bytes: 8 KiB for each of BATCH_MAX


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
    """Another order, and how it relates to this one."""

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
    """The caller's id for a customer: usable as part of a path, and not the alias of an erased customer."""

    _NO_SLASH, _NO_DOT = any_character_except(r"/\x00-\x1f"), any_character_except(r"./\x00-\x1f")
    _SEGMENT = rf"({_NO_DOT}|\.{_NO_DOT}|\.\.{_NO_SLASH}){_NO_SLASH}*"
    PATTERN = rf"^({_SEGMENT})?(/({_SEGMENT})?)*$"

    _DOT_SEGMENT = re.compile(r"(^|/)\.\.?(/|\Z)")  # proxies and clients remove dot segments (RFC 3986 §5.2.4)

    default_error_messages = {
        "segment": "This must not contain . or .. between slashes, because a URL cannot contain them.",
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
        ID_MAX, allow_none=True, metadata={"description": "Your own reference for the order, unique among your orders."}
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
        metadata={
            "description": "The time by which the last unit is to be shipped; after it, an order with open units is "
            "`late`."
        },
    )
    deliver_by = RFC3339DateTime(
        allow_none=True, metadata={"description": "The time by which the last unit is to be delivered."}
    )
    related_orders = BoundedList(NestedObject(RelatedOrderInSchema), max_length=RELATED_ORDERS_MAX)
    tags = BoundedList(Text(TAG_MAX), max_length=TAGS_MAX)
    shipping_address = NestedObject(AddressInSchema, allow_none=True)
    billing_address = NestedObject(AddressInSchema, allow_none=True)
    note = Text(NOTE_MAX, min_length=0, multiline=True, allow_none=True)
    metadata = Metadata(metadata={"description": "Up to 50 key-value pairs of strings, returned unchanged."})

    def check_partial(self, members: dict[str, Any], original: dict[str, Any]) -> None:
        """Require a currency if there are prices or adjustments."""
        items = members.get("items", [])
        has_prices = members.get("adjustments") or any(item.get("unit_price") is not None for item in items)
        if has_prices and original.get("currency") is None:
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
            errors["tags"] = ["Duplicate tag. List each tag once."]
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


def _batch_entries(component: str) -> BoundedList:
    """The entries of a batch, each validated on its own, so that an invalid entry does not affect the others."""
    entry = fields.Raw(allow_none=True, metadata={"component": component})
    return BoundedList(entry, min_length=1, max_length=BATCH_MAX, required=True)


class BatchInSchema(StrictSchema):
    """Orders to create. Each entry succeeds or fails on its own."""

    MAX_BODY_SIZE = _BATCH_BODY_MAX

    orders = _batch_entries("BatchEntryIn")


class UpdatedOrderSchema(OrderInSchema):
    """The members of an order after a merge patch. Its customer may be the alias of an erased one."""

    customer_id = Text(ID_MAX, required=True)


class AddressPatchSchema(StrictSchema):
    """Changes to an address. Null removes a member."""

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
    """A JSON merge patch (RFC 7396): absent members are unchanged, null removes a member, arrays are replaced as a
    whole.

    `items`, `adjustments` and `currency` can be changed only while the order is pending. Once a payment is recorded,
    the currency can no longer be changed, and the prices cannot all be removed.
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


class EmptySchema(StrictSchema):
    """An empty object; the body may be left out."""


class LineQuantityInSchema(StrictSchema):
    """A number of units of one line."""

    line = BoundedInteger(1, ITEMS_MAX, required=True, metadata={"example": 1})
    quantity = BoundedInteger(1, QUANTITY_MAX, required=True, metadata={"example": 2})


class DistinctLinesSchema(StrictSchema):
    """A base for bodies whose `items` have each line at most once."""

    def check_partial(self, members: dict[str, Any], original: dict[str, Any]) -> None:
        """Refuse duplicate lines: together, their quantities could exceed a limit that each of them meets."""
        lines = [item.get("line") for item in members.get("items", [])]
        duplicates = {
            i: {"line": ["Duplicate line. Add up its quantities in one entry."]}
            for i, line in enumerate(lines)
            if line is not None and line in lines[:i]
        }
        if duplicates:
            raise ValidationError({"items": duplicates})


class CancellationInSchema(DistinctLinesSchema):
    """Why the order is cancelled, and which of its open units; without `items`, all of them.

    `adjustments` replace those of the order, for example to lower the shipping fee.
    """

    reason = Choice(CANCELLATION_REASONS, required=True)
    note = Text(NOTE_MAX, min_length=0, multiline=True, allow_none=True)
    items = BoundedList(NestedObject(LineQuantityInSchema), min_length=1, max_length=ITEMS_MAX)
    adjustments = BoundedList(NestedObject(AdjustmentInSchema), max_length=ADJUSTMENTS_MAX)


_HANDLE_MAX = 64  # characters
_HANDLE_PATTERN = "^[a-z0-9_-]+$"


class Handle(fields.String):
    """The caller's name for a hold."""

    def __init__(self) -> None:
        length = validate.Length(1, _HANDLE_MAX, error=f"This must have 1 to {_HANDLE_MAX} characters.")
        characters = validate.Regexp(rf"{_HANDLE_PATTERN[:-1]}\Z", error="This must contain only a-z, 0-9, _ and -.")
        description = "Your name for the hold: lower-case letters, digits, `_` and `-`."
        metadata = {"description": description, "pattern": _HANDLE_PATTERN, "example": "fraud-check"}
        super().__init__(required=True, validate=[length, characters], metadata=metadata)


class HoldPathSchema(ParametersSchema):
    """A hold of an order in a path."""

    order_id = fields.String(required=True, metadata={"description": "The id of the order.", "format": "uuid"})
    handle = Handle()


class HoldInSchema(StrictSchema):
    """Why the order is held, and until when; without `until`, until the hold is released."""

    kind = Choice(HOLD_KINDS, required=True)
    reason = Text(200, allow_none=True, metadata={"example": "address check"})
    until = RFC3339DateTime(allow_none=True)


class PaymentInSchema(StrictSchema):
    """A movement of money outside the service. `amount` is in minor units; `reference` identifies the payment within
    its type. A reversal has the reference and the amount of the payment that it reverses."""

    type = Choice(PAYMENT_TYPES, required=True)
    amount = BoundedInteger(1, PRICE_MAX, required=True, metadata={"example": 2250})
    reference = Text(128, required=True, metadata={"example": "pi_3Nd81b"})
    method = Text(64, allow_none=True, metadata={"example": "card"})
    occurred_at = RFC3339DateTime(allow_none=True, metadata={"description": "When it happened; now by default."})
    note = Text(NOTE_MAX, min_length=0, multiline=True, allow_none=True)


class TrackingInSchema(StrictSchema):
    """How to track a shipment."""

    carrier = Text(100, metadata={"example": "DHL"})
    number = Text(100, metadata={"example": "00340434161094042557"})
    url = HttpUrl(2_000, metadata={"example": "https://example.com/track/00340434161094042557"})


class FulfillmentInSchema(DistinctLinesSchema):
    """The units that were fulfilled together."""

    items = BoundedList(NestedObject(LineQuantityInSchema), min_length=1, max_length=ITEMS_MAX, required=True)
    tracking = NestedObject(TrackingInSchema, allow_none=True)


class TrackingPatchSchema(StrictSchema):
    """Changes to the tracking of a shipment. Null removes a member."""

    carrier = Text(100, allow_none=True)
    number = Text(100, allow_none=True)
    url = HttpUrl(2_000, allow_none=True)


class FulfillmentPatchSchema(StrictSchema):
    """A JSON merge patch (RFC 7396) of a fulfillment: only its tracking can be changed. Null removes it."""

    tracking = NestedObject(TrackingPatchSchema, required=True, allow_none=True)


class DeliveryEventInSchema(StrictSchema):
    """What happened to a fulfillment. The latest event, by `occurred_at`, determines its status.

    `cancelled` opens its units again; a fulfillment that was delivered cannot be cancelled.
    """

    type = Choice(DELIVERY_EVENTS, required=True)
    occurred_at = RFC3339DateTime(allow_none=True, metadata={"description": "When it happened; now by default."})
    description = Text(500, allow_none=True)


class ReturnInSchema(DistinctLinesSchema):
    """The units that were returned together, or are expected to be."""

    items = BoundedList(NestedObject(LineQuantityInSchema), min_length=1, max_length=ITEMS_MAX, required=True)
    status = Choice((RECEIVED, EXPECTED), load_default=RECEIVED)
    reason = Text(NOTE_MAX, min_length=0, multiline=True, allow_none=True)


class ReopeningInSchema(StrictSchema):
    """Why an order that has ended is reopened."""

    reason = Text(NOTE_MAX, multiline=True, required=True)


class BulkHoldSchema(HoldInSchema):
    """The hold to place."""

    handle = Handle()


class BulkReleaseSchema(StrictSchema):
    """The hold to release."""

    handle = Handle()


class BulkTrackSchema(DeliveryEventInSchema):
    """The fulfillment, and what happened to it."""

    number = BoundedInteger(1, 2**31 - 1, required=True)


class BulkReturnSchema(StrictSchema):
    """The expected return to settle."""

    number = BoundedInteger(1, 2**31 - 1, required=True)


class BulkUpdateSchema(StrictSchema):
    """The merge patch to apply."""

    patch = NestedObject(OrderPatchSchema, required=True)


class BulkActionInSchema(StrictSchema):
    """An action on an order. Its other members are those of the body and the path of its route."""

    order_id = fields.String(required=True, metadata={"format": "uuid"})
    action: fields.Field[Any] = Choice(tuple(sorted(ACTIONS)), required=True)
    idempotency_key = IdempotencyKey(allow_none=True)
    if_match = BoundedInteger(
        1, 2**31 - 1, allow_none=True, metadata={"description": "The version that the order must have."}
    )


class BulkActionsInSchema(StrictSchema):
    """Actions on orders. Each succeeds or fails on its own."""

    MAX_BODY_SIZE = _BATCH_BODY_MAX

    actions = _batch_entries("BulkActionIn")
