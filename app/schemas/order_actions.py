"""Request schemas of the changes of an order."""

from typing import Any

from marshmallow import ValidationError, fields, validate

from app.models.fulfillment import DELIVERY_EVENTS, EXPECTED, RECEIVED
from app.models.lifecycle import ACTIONS
from app.models.money import PAYMENT_TYPES
from app.schemas.fields import (
    BoundedInteger,
    BoundedList,
    Choice,
    HttpUrl,
    NestedObject,
    ParametersSchema,
    RFC3339DateTime,
    StrictSchema,
    Text,
)
from app.schemas.order import (
    ADJUSTMENTS_MAX,
    BATCH_MAX,
    ITEMS_MAX,
    NOTE_MAX,
    PRICE_MAX,
    QUANTITY_MAX,
    AdjustmentInSchema,
    IdempotencyKey,
    OrderPatchSchema,
)

CANCELLATION_REASONS = ("customer", "inventory", "fraud", "declined", "staff", "expired", "other")
HOLD_KINDS = ("fraud", "payment", "address", "inventory", "review", "other")
HANDLE_MAX = 64
HANDLE_PATTERN = "^[a-z0-9_-]+$"


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


class Handle(fields.String):
    """The caller's name for a hold."""

    def __init__(self) -> None:
        length = validate.Length(1, HANDLE_MAX, error=f"This must have 1 to {HANDLE_MAX} characters.")
        characters = validate.Regexp(rf"{HANDLE_PATTERN[:-1]}\Z", error="This must contain only a-z, 0-9, _ and -.")
        description = "Your name for the hold: lower-case letters, digits, `_` and `-`."
        metadata = {"description": description, "pattern": HANDLE_PATTERN, "example": "fraud-check"}
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

    MAX_BODY_SIZE = 8 * 1024 * 1024  # bytes: 1,000 actions of 8 KiB

    # Each entry is validated on its own, so that an invalid entry does not affect the others.
    actions = BoundedList(
        fields.Raw(allow_none=True, metadata={"component": "BulkActionIn"}),
        min_length=1,
        max_length=BATCH_MAX,
        required=True,
    )
