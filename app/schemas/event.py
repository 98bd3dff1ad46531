"""Events: how a history is asked for, and what is answered."""

from marshmallow import fields, validate

from app.models.lifecycle import EVENT_TYPES
from app.schemas.documents import MOMENT, OrderSchema
from app.schemas.fields import ResponseSchema, StrictSchema, Text, WholeNumber
from app.schemas.order import PAGE_DEFAULT, PAGE_LIMIT, PAGE_MAX


class HistoryQuerySchema(StrictSchema):
    """Which part of a history to list."""

    limit = WholeNumber(1, PAGE_MAX, strict=False, load_default=PAGE_DEFAULT, metadata={"description": PAGE_LIMIT})
    cursor = Text(200, load_default=None, metadata={"description": "`next_cursor` of the page before."})


ACTOR = {
    "description": "Who did it. A customer's token reads `staff` or `service` for everybody but the customer.",
    "example": "anonymous",
}


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
