"""Many orders in one request."""

from marshmallow import fields, validate

from app.models.order import IDEMPOTENCY_KEY_MAX
from app.schemas.documents import OrderSchema
from app.schemas.fields import ListOf, ResponseSchema, StrictSchema
from app.schemas.order import OrderInSchema
from app.schemas.problem import ProblemSchema

BATCH_MAX = 1_000


class BatchEntryInSchema(OrderInSchema):
    """An order to create, and the idempotency key it is created under; without one, its external_ref is its key."""

    idempotency_key = fields.String(
        allow_none=True,
        validate=[
            validate.Length(1, IDEMPOTENCY_KEY_MAX),
            validate.Regexp(r"^[ -~]*\Z", error="Only printable ASCII characters may stand here."),
        ],
        metadata={"pattern": "^[ -~]*$"},
    )


class BatchInSchema(StrictSchema):
    """Orders to create, each judged alone."""

    BODY_MAX = 8 * 1024 * 1024  # bytes: a thousand orders of eight KiB

    # Each entry is validated by itself, so that a faulty one does not take the others with it.
    orders = ListOf(
        fields.Raw(allow_none=True, metadata={"anyOf": [{"$ref": "#/components/schemas/BatchEntryIn"}, {}]}),
        low=1,
        high=BATCH_MAX,
        required=True,
    )


class BatchResultSchema(ResponseSchema):
    """What became of one entry: an order, or a problem."""

    status = fields.Integer(required=True, metadata={"description": "As a request of its own would be answered."})
    replayed = fields.Boolean(metadata={"description": "Whether the order was there already, under the same key."})
    order = fields.Nested(OrderSchema)
    problem = fields.Nested(ProblemSchema)


class BatchResultsSchema(ResponseSchema):
    """One result for each entry, in the order of the entries."""

    results = fields.List(fields.Nested(BatchResultSchema), required=True)
