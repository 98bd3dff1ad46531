"""The order document as the API description tells it. Documents are rendered by `app.services.order_document`."""

from marshmallow import fields, validate

from app.models.erasure import DONE, RUNNING
from app.models.lifecycle import EVENT_TYPES, FULFILLMENT_STATUSES, STATUSES
from app.models.order import NUMBER_LENGTH
from app.schemas.fields import ResponseSchema
from app.schemas.order import ADJUSTMENT_TYPES, AddressInSchema

MOMENT = {"format": "date-time", "example": "2026-11-22T09:41:07.123456Z"}
ACTOR = {
    "description": "Who did it. A customer's token reads `staff` or `service` for everybody but the customer.",
    "example": "anonymous",
}


class ItemSchema(ResponseSchema):
    """A line of an order."""

    line = fields.Integer(required=True, metadata={"description": "Counts from 1; never changes.", "example": 1})
    item_id = fields.String(required=True, metadata={"example": "sku-1"})
    quantity = fields.Integer(required=True, metadata={"example": 2})
    unit_price = fields.Integer(required=True, allow_none=True, metadata={"example": 1250})
    fulfilled = fields.Integer(required=True, metadata={"description": "Units sent so far.", "example": 0})
    returned = fields.Integer(required=True, metadata={"description": "Units that came back.", "example": 0})


class AdjustmentSchema(ResponseSchema):
    """An amount on top of the items, in minor units."""

    type = fields.String(required=True, validate=validate.OneOf(ADJUSTMENT_TYPES))
    label = fields.String(required=True, allow_none=True, metadata={"example": "WELCOME10"})
    amount = fields.Integer(required=True, metadata={"example": -250})


class TotalsSchema(ResponseSchema):
    """Sums in minor units; null where nothing is priced."""

    items = fields.Integer(required=True, metadata={"example": 2500})
    adjustments = fields.Integer(required=True, metadata={"example": -250})
    total = fields.Integer(required=True, metadata={"example": 2250})


class OrderSchema(ResponseSchema):
    """An order. Later versions of the service may add members, and never take one away."""

    id = fields.UUID(required=True, metadata={"example": "019dab70-c2b3-7c51-b9f8-1d6f2a6c3e11"})
    number = fields.String(
        required=True,
        validate=validate.Length(NUMBER_LENGTH, NUMBER_LENGTH),
        metadata={"description": "For people: the UTC date and eight symbols.", "example": "261122-7QK4MZ8D"},
    )
    customer_id = fields.String(required=True, metadata={"example": "c-123"})
    external_ref = fields.String(required=True, allow_none=True, metadata={"example": None})
    status = fields.String(required=True, validate=validate.OneOf(STATUSES))
    fulfillment_status = fields.String(required=True, validate=validate.OneOf(FULFILLMENT_STATUSES))
    hold = fields.Dict(
        required=True,
        allow_none=True,
        metadata={
            "description": "Since when (`at`) and why (`reason`) the order waits. What a customer's token reads has no "
            "`reason`.",
            "example": None,
        },
    )
    currency = fields.String(required=True, allow_none=True, metadata={"example": "EUR"})
    items = fields.List(fields.Nested(ItemSchema), required=True)
    adjustments = fields.List(fields.Nested(AdjustmentSchema), required=True)
    totals = fields.Nested(TotalsSchema, required=True, allow_none=True)
    shipping_address = fields.Nested(AddressInSchema, required=True, allow_none=True)
    billing_address = fields.Nested(AddressInSchema, required=True, allow_none=True)
    note = fields.String(required=True, allow_none=True, metadata={"example": None})
    metadata = fields.Dict(keys=fields.String(), values=fields.String(), required=True, metadata={"example": {}})
    cancellation = fields.Dict(required=True, allow_none=True, metadata={"example": None})
    fulfillments = fields.List(fields.Dict(), required=True, metadata={"example": []})
    returns = fields.List(fields.Dict(), required=True, metadata={"example": []})
    version = fields.Integer(required=True, metadata={"description": "Goes up by one with each change.", "example": 1})
    allowed_actions = fields.List(fields.String(), required=True, metadata={"example": ["cancel", "confirm"]})
    created_at = fields.String(required=True, metadata=MOMENT)
    updated_at = fields.String(required=True, metadata=MOMENT)


class OrderListSchema(ResponseSchema):
    """A page of orders."""

    orders = fields.List(fields.Nested(OrderSchema), required=True)
    next_cursor = fields.String(
        required=True, allow_none=True, metadata={"description": "Goes on after this page; null on the last."}
    )


class FaultSchema(ResponseSchema):
    """One fault of a request."""

    pointer = fields.String(metadata={"description": "Where in the body, as a JSON pointer.", "example": "#/items/0"})
    parameter = fields.String(metadata={"description": "Or which query parameter.", "example": "limit"})
    detail = fields.String(required=True)


class ProblemSchema(ResponseSchema):
    """What went wrong, and what to do."""

    type = fields.String(required=True, metadata={"format": "uri-reference", "example": "/problems/order-not-found"})
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True)
    instance = fields.String(required=True, metadata={"description": "The path that was asked for."})
    request_id = fields.String(required=True, allow_none=True, metadata={"description": "What to tell the operators."})
    errors = fields.List(fields.Nested(FaultSchema), metadata={"description": "Every fault of an invalid request."})
    order_id = fields.String(metadata={"description": "The order that is in the way."})


class BatchResultSchema(ResponseSchema):
    """What became of one entry: an order, or a problem."""

    status = fields.Integer(required=True, metadata={"description": "As a request of its own would be answered."})
    replayed = fields.Boolean(metadata={"description": "Whether the order was there already, under the same key."})
    order = fields.Nested(OrderSchema)
    problem = fields.Nested(ProblemSchema)


class BatchResultsSchema(ResponseSchema):
    """One result for each entry, in the order of the entries."""

    results = fields.List(fields.Nested(BatchResultSchema), required=True)


class EventSchema(ResponseSchema):
    """One change of an order."""

    id = fields.String(required=True, metadata={"example": "019dab70-c2b3-7c51-b9f8-1d6f2a6c3e11:1"})
    type = fields.String(required=True, validate=validate.OneOf(EVENT_TYPES))
    order_id = fields.UUID(required=True)
    version = fields.Integer(required=True, metadata={"example": 1})
    actor = fields.String(required=True, metadata=ACTOR)
    at = fields.String(required=True, metadata=MOMENT)
    data = fields.Nested(OrderSchema, required=True, metadata={"description": "The order as it was after the change."})


class EventListSchema(ResponseSchema):
    """A page of events."""

    events = fields.List(fields.Nested(EventSchema), required=True)
    next_cursor = fields.String(
        required=True, allow_none=True, metadata={"description": "Goes on after this page; null on the last."}
    )


class ErasureSchema(ResponseSchema):
    """The erasure of a customer's personal data, and how far it has come."""

    id = fields.UUID(required=True, metadata={"example": "019dab70-c2b3-7c51-b9f8-1d6f2a6c3e11"})
    status = fields.String(
        required=True,
        validate=validate.OneOf((RUNNING, DONE)),
        metadata={"description": "`done` when nothing is left.", "example": DONE},
    )
    orders = fields.Integer(required=True, metadata={"description": "Orders erased so far.", "example": 3})
    created_at = fields.String(required=True, metadata=MOMENT)
    finished_at = fields.String(required=True, allow_none=True, metadata=MOMENT)
