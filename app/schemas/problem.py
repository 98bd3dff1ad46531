"""The problem document (RFC 9457) as the API description tells it."""

from marshmallow import fields

from app.schemas.fields import ResponseSchema


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
