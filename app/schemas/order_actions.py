"""What changes an order takes."""

from typing import Any

from marshmallow import ValidationError

from app.models.order_item import ID_MAX
from app.schemas.fields import Choice, ListOf, MetadataPatch, ObjectOf, StrictSchema, Text, WebAddress, WholeNumber
from app.schemas.order import (
    ADJUSTMENTS_MAX,
    CURRENCIES,
    ITEMS_MAX,
    NOTE_MAX,
    QUANTITY_MAX,
    AdjustmentInSchema,
    ItemInSchema,
)

CANCELLATION_REASONS = ("customer", "inventory", "fraud", "declined", "staff", "expired", "other")


class NothingInSchema(StrictSchema):
    """An empty object, or no body at all."""


class CancellationInSchema(StrictSchema):
    """Why the order ends."""

    reason = Choice(CANCELLATION_REASONS, required=True)
    note = Text(NOTE_MAX, low=0, prose=True, allow_none=True)


class HoldInSchema(StrictSchema):
    """Why the order must wait."""

    reason = Text(200, required=True, metadata={"example": "address check"})


class QuantityInSchema(StrictSchema):
    """Some units of a line."""

    line = WholeNumber(1, ITEMS_MAX, required=True, metadata={"example": 1})
    quantity = WholeNumber(1, QUANTITY_MAX, required=True, metadata={"example": 2})


class QuantitiesInSchema(StrictSchema):
    items = ListOf(ObjectOf(QuantityInSchema), low=1, high=ITEMS_MAX, required=True)

    def check_partial(self, members: dict[str, Any], original: dict[str, Any]) -> None:
        """Every line is named once: two entries for it would each fit, and not together."""
        lines = [item.get("line") for item in members.get("items", [])]
        duplicates = {
            i: {"line": ["Duplicate line."]} for i, line in enumerate(lines) if line is not None and line in lines[:i]
        }
        if duplicates:
            raise ValidationError({"items": duplicates})


class TrackingInSchema(StrictSchema):
    """How to follow a parcel."""

    carrier = Text(100, metadata={"example": "DHL"})
    number = Text(100, metadata={"example": "00340434161094042557"})
    url = WebAddress(2_000, metadata={"example": "https://example.com/track/00340434161094042557"})


class FulfillmentInSchema(QuantitiesInSchema):
    """What was sent."""

    tracking = ObjectOf(TrackingInSchema, allow_none=True)


class ReturnInSchema(QuantitiesInSchema):
    """What came back."""

    reason = Text(NOTE_MAX, low=0, prose=True, allow_none=True)


class AddressPatchSchema(StrictSchema):
    """Members of an address; null removes one."""

    name = Text(200, allow_none=True)
    company = Text(200, allow_none=True)
    line1 = Text(200, allow_none=True)
    line2 = Text(200, allow_none=True)
    city = Text(100, allow_none=True)
    region = Text(100, allow_none=True)
    postal_code = Text(20, allow_none=True)
    country = Text(2, low=2, allow_none=True)
    phone = Text(40, allow_none=True)
    email = Text(254, allow_none=True)


class OrderPatchSchema(StrictSchema):
    """A JSON merge patch (RFC 7396): what is absent stays, null removes, a list is replaced whole.

    `items`, `adjustments` and `currency` can change only while the order is pending.
    """

    external_ref = Text(ID_MAX, allow_none=True)
    note = Text(NOTE_MAX, low=0, prose=True, allow_none=True)
    metadata = MetadataPatch(allow_none=True)
    shipping_address = ObjectOf(AddressPatchSchema, allow_none=True)
    billing_address = ObjectOf(AddressPatchSchema, allow_none=True)
    items = ListOf(ObjectOf(ItemInSchema), low=1, high=ITEMS_MAX)
    adjustments = ListOf(ObjectOf(AdjustmentInSchema), high=ADJUSTMENTS_MAX, allow_none=True)
    currency = Choice(CURRENCIES, error="This must be an ISO 4217 code, such as EUR.", allow_none=True)
