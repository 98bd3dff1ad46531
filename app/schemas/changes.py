"""What changes an order takes."""

from typing import Any

from marshmallow import ValidationError, fields, validate, validates

from app.models.order_item import ID_MAX
from app.schemas.currencies import CURRENCIES
from app.schemas.fields import StrictSchema, Text, WholeNumber
from app.schemas.order import ADJUSTMENTS_MAX, ITEMS_MAX, NOTE_MAX, QUANTITY_MAX, AdjustmentIn, ItemIn

CANCELLATION_REASONS = ("customer", "inventory", "fraud", "declined", "staff", "expired", "other")


class NothingIn(StrictSchema):
    """An empty object, or no body at all."""


class CancellationIn(StrictSchema):
    """Why the order ends."""

    reason = fields.String(required=True, validate=validate.OneOf(CANCELLATION_REASONS))
    note = Text(NOTE_MAX, low=0, prose=True, allow_none=True)


class HoldIn(StrictSchema):
    """Why the order must wait."""

    reason = Text(200, required=True, metadata={"example": "address check"})


class QuantityIn(StrictSchema):
    """Some units of a line."""

    line = WholeNumber(1, ITEMS_MAX, required=True, metadata={"example": 1})
    quantity = WholeNumber(1, QUANTITY_MAX, required=True, metadata={"example": 2})


class QuantitiesIn(StrictSchema):
    items = fields.List(fields.Nested(QuantityIn), required=True, validate=validate.Length(1, ITEMS_MAX))

    @validates("items")
    def check_lines(self, items: list[dict[str, int]], **_: Any) -> None:
        """A line stands once: two entries for it would each fit, and not together."""
        seen: set[int] = set()
        twice = {
            i: {"line": ["This line stands twice."]}
            for i, item in enumerate(items)
            if item["line"] in seen or seen.add(item["line"])  # type: ignore[func-returns-value]
        }
        if twice:
            raise ValidationError(twice)


class TrackingIn(StrictSchema):
    """How to follow a parcel."""

    carrier = Text(100, metadata={"example": "DHL"})
    number = Text(100, metadata={"example": "00340434161094042557"})
    url = fields.Url(
        schemes={"http", "https"},
        validate=validate.Length(1, 2_000),
        metadata={"pattern": "^https?://", "example": "https://example.com/track/00340434161094042557"},
    )


class FulfillmentIn(QuantitiesIn):
    """What was sent."""

    tracking = fields.Nested(TrackingIn, allow_none=True)


class ReturnIn(QuantitiesIn):
    """What came back."""

    reason = Text(NOTE_MAX, low=0, prose=True, allow_none=True)


class AddressPatch(StrictSchema):
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


class OrderPatch(StrictSchema):
    """A JSON merge patch (RFC 7396): what is absent stays, null removes, a list is replaced whole.

    `items`, `adjustments` and `currency` can change only while the order is pending.
    """

    external_ref = Text(ID_MAX, allow_none=True)
    note = Text(NOTE_MAX, low=0, prose=True, allow_none=True)
    metadata = fields.Dict(
        keys=fields.String(), values=fields.String(allow_none=True), allow_none=True, metadata={"maxProperties": 100}
    )
    shipping_address = fields.Nested(AddressPatch, allow_none=True)
    billing_address = fields.Nested(AddressPatch, allow_none=True)
    items = fields.List(fields.Nested(ItemIn), validate=validate.Length(1, ITEMS_MAX))
    adjustments = fields.List(
        fields.Nested(AdjustmentIn), allow_none=True, validate=validate.Length(0, ADJUSTMENTS_MAX)
    )
    currency = fields.String(allow_none=True, validate=validate.OneOf(CURRENCIES))
