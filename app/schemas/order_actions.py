"""Request schemas of the changes of an order."""

from typing import Any

from marshmallow import ValidationError

from app.schemas.fields import (
    BoundedInteger,
    BoundedList,
    Choice,
    HttpUrl,
    NestedObject,
    StrictSchema,
    Text,
)
from app.schemas.order import (
    ITEMS_MAX,
    NOTE_MAX,
    QUANTITY_MAX,
)

CANCELLATION_REASONS = ("customer", "inventory", "fraud", "declined", "staff", "expired", "other")


class EmptySchema(StrictSchema):
    """An empty object; the body may be left out."""


class CancellationInSchema(StrictSchema):
    """Why the order is cancelled."""

    reason = Choice(CANCELLATION_REASONS, required=True)
    note = Text(NOTE_MAX, min_length=0, multiline=True, allow_none=True)


class HoldInSchema(StrictSchema):
    """Why the order is put on hold."""

    reason = Text(200, required=True, metadata={"example": "address check"})


class LineQuantityInSchema(StrictSchema):
    """A number of units of one line."""

    line = BoundedInteger(1, ITEMS_MAX, required=True, metadata={"example": 1})
    quantity = BoundedInteger(1, QUANTITY_MAX, required=True, metadata={"example": 2})


class LineQuantitiesInSchema(StrictSchema):
    """Numbers of units of several lines, each line at most once."""

    items = BoundedList(NestedObject(LineQuantityInSchema), min_length=1, max_length=ITEMS_MAX, required=True)

    def check_partial(self, members: dict[str, Any], original: dict[str, Any]) -> None:
        """Refuse duplicate lines: their quantities could exceed together what each may have alone."""
        lines = [item.get("line") for item in members.get("items", [])]
        duplicates = {
            i: {"line": ["Duplicate line. Add up its quantities in one entry."]}
            for i, line in enumerate(lines)
            if line is not None and line in lines[:i]
        }
        if duplicates:
            raise ValidationError({"items": duplicates})


class TrackingInSchema(StrictSchema):
    """How to track a shipment."""

    carrier = Text(100, metadata={"example": "DHL"})
    number = Text(100, metadata={"example": "00340434161094042557"})
    url = HttpUrl(2_000, metadata={"example": "https://example.com/track/00340434161094042557"})


class FulfillmentInSchema(LineQuantitiesInSchema):
    """The units that were fulfilled together."""

    tracking = NestedObject(TrackingInSchema, allow_none=True)


class ReturnInSchema(LineQuantitiesInSchema):
    """The units that were returned together."""

    reason = Text(NOTE_MAX, min_length=0, multiline=True, allow_none=True)
