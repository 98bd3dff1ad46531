"""Orders at the door: what `POST /orders` takes, what every answer holds, how a list is asked for."""

import re
from typing import Any

from marshmallow import ValidationError, fields, validate

from app.models.erasure import is_alias
from app.models.lifecycle import FULFILLMENT_STATUSES, STATUSES
from app.models.order import IDEMPOTENCY_KEY_MAX
from app.models.order_id import parse_uuid
from app.models.order_item import ID_MAX, LARGEST_TOTAL, order_totals
from app.schemas.fields import (
    Choice,
    ListOf,
    Metadata,
    Moment,
    ObjectOf,
    StrictSchema,
    Text,
    WholeNumber,
    any_character_but,
)

ITEMS_MAX = 100
ADJUSTMENTS_MAX = 100
QUANTITY_MAX = 1_000_000
PRICE_MAX = 10**12  # minor units: ten thousand million euros
NOTE_MAX = 2_000
PAGE_DEFAULT, PAGE_MAX = 20, 100
CREATED_FROM = (
    "Made at this time or later. To follow new orders, go on from the `Complete-Until` of the response before and drop "
    "those you have seen. From the newest `created_at` seen you would miss orders that were made before it and stored "
    "after it, such as those of a large batch."
)
PAGE_LIMIT = "The most entries of a page. There are fewer where they would come to more than 1 MiB."
EXPORT_MAX = 10**9  # orders
ADJUSTMENT_TYPES = ("discount", "tax", "shipping", "fee", "other")
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


class ItemInSchema(StrictSchema):
    """A line to order. `unit_price`, in minor units of the order's currency, is the caller's snapshot of the price."""

    item_id = Text(ID_MAX, required=True, metadata={"example": "sku-1"})
    quantity = WholeNumber(1, QUANTITY_MAX, required=True, metadata={"example": 2})
    unit_price = WholeNumber(0, PRICE_MAX, allow_none=True, metadata={"example": 1250})


class AdjustmentInSchema(StrictSchema):
    """An amount on top of the items, in minor units; negative for what is taken off."""

    type = Choice(ADJUSTMENT_TYPES, required=True)
    label = Text(100, allow_none=True, metadata={"example": "WELCOME10"})
    amount = WholeNumber(-PRICE_MAX, PRICE_MAX, required=True, metadata={"example": -250})


class AddressInSchema(StrictSchema):
    """A postal address; only the country is required, as an ISO 3166-1 alpha-2 code."""

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
    """The caller's id of a customer. It must be possible to name it in a path, and it must not be an alias."""

    _NO_SLASH, _NO_DOT = any_character_but(r"/\x00-\x1f"), any_character_but(r"./\x00-\x1f")
    _SEGMENT = rf"({_NO_DOT}|\.{_NO_DOT}|\.\.{_NO_SLASH}){_NO_SLASH}*"
    PATTERN = rf"^({_SEGMENT})?(/({_SEGMENT})?)*$"

    _DOT_SEGMENT = re.compile(r"(^|/)\.\.?(/|\Z)")  # proxies and clients resolve them (RFC 3986 §5.2.4)

    default_error_messages = {
        "segment": "No part between slashes may be . or .. alone: paths cannot name such an id.",
        "alias": "Ids that begin with erased- are the service's own, for customers whose data was erased.",
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
    """An order to create. Only the customer and the items are required."""

    customer_id: fields.Field[Any] = CustomerId()
    items = ListOf(ObjectOf(ItemInSchema), low=1, high=ITEMS_MAX, required=True)
    external_ref = Text(ID_MAX, allow_none=True, metadata={"description": "Your own reference; unique among yours."})
    currency = Choice(
        CURRENCIES,
        error="This must be an ISO 4217 code, such as EUR.",
        allow_none=True,
        metadata={"description": "ISO 4217; required where anything is priced.", "example": "EUR"},
    )
    adjustments = ListOf(ObjectOf(AdjustmentInSchema), high=ADJUSTMENTS_MAX)
    shipping_address = ObjectOf(AddressInSchema, allow_none=True)
    billing_address = ObjectOf(AddressInSchema, allow_none=True)
    note = Text(NOTE_MAX, low=0, prose=True, allow_none=True)
    metadata = Metadata(metadata={"description": "Up to 50 pairs of strings, kept for you and never looked into."})

    def check_partial(self, members: dict[str, Any], original: dict[str, Any]) -> None:
        """Prices need a currency."""
        items = members.get("items", [])
        priced = members.get("adjustments") or any(item.get("unit_price") is not None for item in items)
        if priced and original.get("currency") is None:
            raise ValidationError({"currency": ["This is required where there are prices or adjustments."]})

    def check(self, members: dict[str, Any]) -> None:
        """The sum must be a number that can be stored, and not below 0."""
        items_total, adjustments_total = order_totals(members["items"], members.get("adjustments", []))
        if items_total is None or adjustments_total is None:
            return
        if items_total > LARGEST_TOTAL:
            raise ValidationError({"items": [f"The items come to more than {LARGEST_TOTAL} minor units."]})
        if items_total + adjustments_total < 0:
            raise ValidationError({"adjustments": ["The adjustments take off more than the items come to."]})


class BatchEntryInSchema(OrderInSchema):
    """An order to create, and the idempotency key it is created under; without one, its external_ref is its key."""

    idempotency_key = fields.String(
        allow_none=True,
        validate=[
            validate.Length(1, IDEMPOTENCY_KEY_MAX),
            validate.Regexp(r"^[ -~]*\Z", error="Only printable ASCII characters may stand here."),
        ],
        metadata={"pattern": "^[ -~]*$"},
    )


class BatchInSchema(StrictSchema):
    """Orders to create, each judged alone."""

    BODY_MAX = 8 * 1024 * 1024  # bytes: a thousand orders of eight KiB

    # Each entry is validated by itself, so that a faulty one does not take the others with it.
    orders = ListOf(
        fields.Raw(allow_none=True, metadata={"anyOf": [{"$ref": "#/components/schemas/BatchEntryIn"}, {}]}),
        low=1,
        high=BATCH_MAX,
        required=True,
    )


class RevisedOrderInSchema(OrderInSchema):
    """An order as a change of its content leaves it. Its customer may be an alias."""

    customer_id = Text(ID_MAX, required=True)


class CustomerPathSchema(StrictSchema):
    """Whose data it is about."""

    customer_id = Text(ID_MAX, required=True, metadata={"example": "c-123"})


class OrderFiltersSchema(StrictSchema):
    """Which orders to answer with, and in which order."""

    customer_id = Text(ID_MAX)
    status = Choice(STATUSES)
    fulfillment_status = Choice(FULFILLMENT_STATUSES)
    number = Text(32, metadata={"description": "Case does not matter, nor do O for 0, I or L for 1."})
    external_ref = Text(ID_MAX)
    item_id = Text(ID_MAX, metadata={"description": "Orders with a line of this item."})
    created_from = Moment(metadata={"description": CREATED_FROM})
    created_to = Moment(metadata={"description": "Made before this time."})
    sort = Choice(
        ("-created_at", "created_at"),
        load_default="-created_at",
        metadata={"description": "By time of creation: newest first, or oldest first."},
    )


class OrderQuerySchema(OrderFiltersSchema):
    """Which page of which orders to list."""

    limit = WholeNumber(1, PAGE_MAX, strict=False, load_default=PAGE_DEFAULT, metadata={"description": PAGE_LIMIT})
    cursor = Text(
        200,
        metadata={"description": "`next_cursor` of the page before; goes with its filters and sort."},
    )


def _check_order_id(value: str) -> None:
    if parse_uuid(value) is None:
        raise ValidationError("This must be the id of an order.")


class ExportQuerySchema(OrderFiltersSchema):
    """Which orders to export, and as what."""

    format = Choice(
        ("ndjson", "csv"), metadata={"description": "Goes before `Accept`, for whoever cannot send that header."}
    )
    bom = Choice(
        ("0", "1"),
        load_default="0",
        metadata={"description": "1: begin CSV with a byte order mark, by which Excel knows UTF-8."},
    )
    after = fields.String(
        validate=_check_order_id,
        metadata={
            "format": "uuid",
            "description": "Go on behind the order of this id: the last whole one of an export that broke off, under "
            "the same filters and sort.",
        },
    )
    limit = WholeNumber(
        1,
        EXPORT_MAX,
        strict=False,
        metadata={"description": "At most so many orders; without it, all that match."},
    )


class VersionQuerySchema(StrictSchema):
    """Which version of an order to answer."""

    version = WholeNumber(1, 2**31 - 1, strict=False, metadata={"description": "The order as it was at this version."})


class HistoryQuerySchema(StrictSchema):
    """Which part of a history to list."""

    limit = WholeNumber(1, PAGE_MAX, strict=False, load_default=PAGE_DEFAULT, metadata={"description": PAGE_LIMIT})
    cursor = Text(200, load_default=None, metadata={"description": "`next_cursor` of the page before."})
