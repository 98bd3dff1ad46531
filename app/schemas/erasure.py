"""Erasures, as they are answered."""

from marshmallow import fields, validate

from app.models.erasure import DONE, RUNNING
from app.schemas.documents import MOMENT
from app.schemas.fields import ResponseSchema


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
