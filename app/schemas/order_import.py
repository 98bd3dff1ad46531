"""Order documents on their way back in, as `flask orders export` wrote them."""

from marshmallow import fields, validate

from app.models.lifecycle import FULFILLMENT_STATUSES, STATUSES
from app.models.order import NUMBER_LENGTH
from app.schemas.fields import ListOf, Moment, StrictSchema, Text, WholeNumber
from app.schemas.order import ITEMS_MAX, NOTE_MAX, QUANTITY_MAX, ItemInSchema, RevisedOrderInSchema
from app.schemas.order_actions import CANCELLATION_REASONS, QuantityInSchema, TrackingInSchema


class ExportedItemSchema(ItemInSchema):
    """A line with what was sent and came back."""

    line = WholeNumber(1, ITEMS_MAX, required=True)
    fulfilled = WholeNumber(0, QUANTITY_MAX, required=True)
    returned = WholeNumber(0, QUANTITY_MAX, required=True)


class ExportedCancellationSchema(StrictSchema):
    """Why and when the order ended."""

    reason = fields.String(required=True, validate=validate.OneOf(CANCELLATION_REASONS))
    note = Text(NOTE_MAX, low=0, prose=True, required=True, allow_none=True)
    at = Moment(required=True)


class ExportedHoldSchema(StrictSchema):
    """Why and since when the order waits."""

    reason = Text(200, required=True)
    at = Moment(required=True)


class ExportedRecordSchema(StrictSchema):
    """Units that moved together."""

    number = WholeNumber(1, 2**31 - 1, required=True)
    items = fields.List(fields.Nested(QuantityInSchema), required=True)
    created_at = Moment(required=True)


class ExportedFulfillmentSchema(ExportedRecordSchema):
    """What was sent."""

    tracking = fields.Nested(TrackingInSchema, required=True, allow_none=True)


class ExportedReturnSchema(ExportedRecordSchema):
    """What came back."""

    reason = Text(NOTE_MAX, low=0, prose=True, required=True, allow_none=True)


class ExportedOrderSchema(RevisedOrderInSchema):
    """A whole order document. What follows from other members is recomputed, and must come out the same."""

    items = ListOf(fields.Nested(ExportedItemSchema), low=1, high=ITEMS_MAX, required=True)
    id = fields.UUID(required=True)
    number = Text(NUMBER_LENGTH, low=NUMBER_LENGTH, required=True)
    status = fields.String(required=True, validate=validate.OneOf(STATUSES))
    fulfillment_status = fields.String(required=True, validate=validate.OneOf(FULFILLMENT_STATUSES))
    hold = fields.Nested(ExportedHoldSchema, required=True, allow_none=True)
    cancellation = fields.Nested(ExportedCancellationSchema, required=True, allow_none=True)
    fulfillments = fields.List(fields.Nested(ExportedFulfillmentSchema), required=True)
    returns = fields.List(fields.Nested(ExportedReturnSchema), required=True)
    version = WholeNumber(1, 2**31 - 1, required=True)
    created_at = Moment(required=True)
    updated_at = Moment(required=True)
    totals = fields.Raw(allow_none=True)
    allowed_actions = fields.Raw()
