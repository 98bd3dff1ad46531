"""Order documents as `flask orders export` writes and `flask orders import` reads them."""

from marshmallow import fields

from app.models.lifecycle import FULFILLMENT_STATUSES, STATUSES
from app.models.order import NUMBER_LENGTH
from app.schemas.fields import BoundedInteger, BoundedList, Choice, RFC3339DateTime, StrictSchema, Text
from app.schemas.order import ITEMS_MAX, NOTE_MAX, QUANTITY_MAX, ItemInSchema, UpdatedOrderSchema
from app.schemas.order_actions import CANCELLATION_REASONS, LineQuantityInSchema, TrackingInSchema


class ExportedItemSchema(ItemInSchema):
    """A line with its fulfilled and returned units."""

    line = BoundedInteger(1, ITEMS_MAX, required=True)
    fulfilled = BoundedInteger(0, QUANTITY_MAX, required=True)
    returned = BoundedInteger(0, QUANTITY_MAX, required=True)


class ExportedCancellationSchema(StrictSchema):
    """Why and when the order was cancelled."""

    reason = Choice(CANCELLATION_REASONS, required=True)
    note = Text(NOTE_MAX, min_length=0, multiline=True, required=True, allow_none=True)
    at = RFC3339DateTime(required=True)


class ExportedHoldSchema(StrictSchema):
    """Why the order is on hold, and since when."""

    reason = Text(200, required=True)
    at = RFC3339DateTime(required=True)


class ExportedFulfillmentSchema(StrictSchema):
    """A fulfillment of the order. The members of stored objects are in the order of the document."""

    number = BoundedInteger(1, 2**31 - 1, required=True)
    items = fields.List(fields.Nested(LineQuantityInSchema), required=True)
    tracking = fields.Nested(TrackingInSchema, required=True, allow_none=True)
    created_at = RFC3339DateTime(required=True)


class ExportedReturnSchema(StrictSchema):
    """A return of the order."""

    number = BoundedInteger(1, 2**31 - 1, required=True)
    items = fields.List(fields.Nested(LineQuantityInSchema), required=True)
    reason = Text(NOTE_MAX, min_length=0, multiline=True, required=True, allow_none=True)
    created_at = RFC3339DateTime(required=True)


class ExportedOrderSchema(UpdatedOrderSchema):
    """A complete order document. The import recomputes the derived members; they must equal those of the document."""

    items = BoundedList(fields.Nested(ExportedItemSchema), min_length=1, max_length=ITEMS_MAX, required=True)
    id = fields.UUID(required=True)
    number = Text(NUMBER_LENGTH, min_length=NUMBER_LENGTH, required=True)
    status = Choice(STATUSES, required=True)
    fulfillment_status = Choice(FULFILLMENT_STATUSES, required=True)
    hold = fields.Nested(ExportedHoldSchema, required=True, allow_none=True)
    cancellation = fields.Nested(ExportedCancellationSchema, required=True, allow_none=True)
    fulfillments = fields.List(fields.Nested(ExportedFulfillmentSchema), required=True)
    returns = fields.List(fields.Nested(ExportedReturnSchema), required=True)
    version = BoundedInteger(1, 2**31 - 1, required=True)
    created_at = RFC3339DateTime(required=True)
    updated_at = RFC3339DateTime(required=True)
    totals = fields.Raw(allow_none=True)
    allowed_actions = fields.Raw()
