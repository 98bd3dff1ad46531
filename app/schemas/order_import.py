"""Order documents as `flask orders export` writes and `flask orders import` reads them."""

from typing import Any

from marshmallow import fields, validate

from app.models.fulfillment import (
    DELIVERY_EVENTS,
    DELIVERY_EVENTS_MAX,
    FULFILLMENT_STATUSES,
    RETURN_RECORD_STATUSES,
    RETURN_STATUSES,
)
from app.models.lifecycle import ACTIONS, STATUSES
from app.models.money import PAYMENT_STATUSES, PAYMENT_TYPES, PAYMENTS_MAX
from app.models.order import CONTENT, RECORDS
from app.models.order_aggregate import HOLDS_MAX, VERSIONS_MAX
from app.models.order_id import NUMBER_PATTERN
from app.models.principal import PRINCIPAL_MAX
from app.schemas.fields import BoundedInteger, BoundedList, Choice, RFC3339DateTime, StrictSchema, Text
from app.schemas.order import (
    ADJUSTMENTS_MAX,
    ITEMS_MAX,
    NOTE_MAX,
    PRICE_MAX,
    QUANTITY_MAX,
    AdjustmentInSchema,
    ItemInSchema,
    UpdatedOrderSchema,
)
from app.schemas.order_actions import (
    CANCELLATION_REASONS,
    HOLD_KINDS,
    DistinctLinesSchema,
    Handle,
    LineQuantityInSchema,
    TrackingInSchema,
)

_NUMBER = validate.Regexp(NUMBER_PATTERN, error="This must be an order number, such as 261122-7QK4MZ8D.")
_NOT_EMPTY = validate.Length(min=1, error="This must have a member, or be null.")

# The members of records are declared in the order of the document.


class _CompleteSchema(StrictSchema):
    """A schema that requires all members: a document has each of them, even if it is null."""

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        super().on_bind_field(field_name, field_obj)
        field_obj.required = True


def _number() -> BoundedInteger:
    return BoundedInteger(1, 2**31 - 1, required=True)


def _lines() -> fields.Field[Any]:
    return BoundedList(fields.Nested(LineQuantityInSchema), min_length=1, max_length=ITEMS_MAX, required=True)


def _free_text() -> Text:
    return Text(NOTE_MAX, min_length=0, multiline=True, required=True, allow_none=True)


class ExportedItemSchema(_CompleteSchema, ItemInSchema):
    """A line with its units; the import computes the prices again."""

    line = BoundedInteger(1, ITEMS_MAX, required=True)
    subtotal = fields.Raw(allow_none=True)
    discount = fields.Raw()
    total = fields.Raw(allow_none=True)
    cancelled = BoundedInteger(0, QUANTITY_MAX, required=True)
    fulfilled = BoundedInteger(0, QUANTITY_MAX, required=True)
    returned = BoundedInteger(0, QUANTITY_MAX, required=True)


class ExportedAdjustmentSchema(_CompleteSchema, AdjustmentInSchema):
    """An adjustment of the order."""


class ExportedHoldSchema(StrictSchema):
    """A hold of the order."""

    handle = Handle()
    kind = Choice(HOLD_KINDS, required=True)
    reason = Text(200, required=True, allow_none=True)
    until = RFC3339DateTime(required=True, allow_none=True)
    placed_by = Text(PRINCIPAL_MAX, required=True)
    placed_at = RFC3339DateTime(required=True)


class ExportedPaymentSchema(StrictSchema):
    """A payment of the order."""

    type = Choice(PAYMENT_TYPES, required=True)
    amount = BoundedInteger(1, PRICE_MAX, required=True)
    waived = BoundedInteger(0, PRICE_MAX, required=True)
    reference = Text(128, required=True)
    method = Text(64, required=True, allow_none=True)
    occurred_at = RFC3339DateTime(required=True)
    note = _free_text()
    created_at = RFC3339DateTime(required=True)


class ExportedDeliveryEventSchema(StrictSchema):
    """What happened to a fulfillment."""

    type = Choice(DELIVERY_EVENTS, required=True)
    occurred_at = RFC3339DateTime(required=True)
    description = Text(500, required=True, allow_none=True)


class ExportedFulfillmentSchema(DistinctLinesSchema):
    """A fulfillment of the order."""

    number = _number()
    items = _lines()
    status = Choice(DELIVERY_EVENTS, required=True)
    tracking = fields.Nested(TrackingInSchema, required=True, allow_none=True, validate=_NOT_EMPTY)
    events = BoundedList(fields.Nested(ExportedDeliveryEventSchema), max_length=DELIVERY_EVENTS_MAX, required=True)
    created_at = RFC3339DateTime(required=True)


class ExportedReturnSchema(DistinctLinesSchema):
    """A return of the order."""

    number = _number()
    items = _lines()
    status = Choice(RETURN_RECORD_STATUSES, required=True)
    reason = _free_text()
    created_at = RFC3339DateTime(required=True)


class ExportedCancellationSchema(DistinctLinesSchema):
    """A cancellation of units of the order."""

    number = _number()
    items = _lines()
    reason = Choice(CANCELLATION_REASONS, required=True)
    note = _free_text()
    created_at = RFC3339DateTime(required=True)
    reopened_at = RFC3339DateTime(required=True, allow_none=True)


class ExportedReopeningSchema(StrictSchema):
    """Why and when the order was reopened, and its status before."""

    from_status = Choice(ACTIONS["reopen"].from_statuses, required=True)
    reason = Text(NOTE_MAX, multiline=True, required=True, allow_none=True)
    at = RFC3339DateTime(required=True)


class ExportedOrderSchema(_CompleteSchema, UpdatedOrderSchema):
    """A complete order document. The import recomputes the derived members; they must equal those of the document.

    The members of CONTENT and RECORDS may be absent: an earlier release has exported an order without those added
    since.
    """

    items = BoundedList(fields.Nested(ExportedItemSchema), min_length=1, max_length=ITEMS_MAX, required=True)
    adjustments = BoundedList(fields.Nested(ExportedAdjustmentSchema), max_length=ADJUSTMENTS_MAX, required=True)
    id = fields.UUID(required=True)
    number = fields.String(required=True, validate=_NUMBER)
    status = Choice(STATUSES, required=True)
    fulfillment_status = Choice(FULFILLMENT_STATUSES, required=True)
    payment_status = Choice(PAYMENT_STATUSES, required=True)
    return_status = Choice(RETURN_STATUSES, required=True)
    holds = BoundedList(fields.Nested(ExportedHoldSchema), max_length=HOLDS_MAX, required=True)
    payments = BoundedList(fields.Nested(ExportedPaymentSchema), max_length=PAYMENTS_MAX, required=True)
    fulfillments = fields.List(fields.Nested(ExportedFulfillmentSchema), required=True)
    returns = fields.List(fields.Nested(ExportedReturnSchema), required=True)
    cancellations = fields.List(fields.Nested(ExportedCancellationSchema), required=True)
    reopening = fields.Nested(ExportedReopeningSchema, required=True, allow_none=True)
    late = fields.Boolean(required=True)
    # Actions that end an order are allowed beyond VERSIONS_MAX.
    version = BoundedInteger(1, 2 * VERSIONS_MAX, required=True)
    created_at = RFC3339DateTime(required=True)
    updated_at = RFC3339DateTime(required=True)
    totals = fields.Raw(allow_none=True)
    allowed_actions = fields.Raw()

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        super().on_bind_field(field_name, field_obj)
        field_obj.required = field_name not in CONTENT | RECORDS
