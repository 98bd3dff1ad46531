"""Response schemas: everything the service returns, for the API description.

No response passes through them: documents are rendered by `app.services.order_document` and stored as text.
"""

from marshmallow import fields, validate

from app.models.erasure import DONE, RUNNING
from app.models.lifecycle import EVENT_TYPES, FULFILLMENT_STATUSES, STATUSES
from app.models.order import NUMBER_LENGTH
from app.schemas.fields import ResponseSchema
from app.schemas.order import ADJUSTMENT_TYPES, AddressInSchema

ORDER_ID = "019dab70-c2b3-7c51-b9f8-1d6f2a6c3e11"
TIMESTAMP = {"format": "date-time", "example": "2026-11-22T09:41:07.123456Z"}
NEXT_CURSOR = {"description": "The `cursor` parameter of the next page; null on the last page."}


class ItemSchema(ResponseSchema):
    """A line of an order."""

    line = fields.Integer(
        required=True, metadata={"description": "Number of the line, from 1; it never changes.", "example": 1}
    )
    item_id = fields.String(required=True, metadata={"example": "sku-1"})
    quantity = fields.Integer(required=True, metadata={"description": "Units ordered.", "example": 2})
    unit_price = fields.Integer(
        required=True, allow_none=True, metadata={"description": "Price of a unit in minor units.", "example": 1250}
    )
    fulfilled = fields.Integer(required=True, metadata={"description": "Units fulfilled so far.", "example": 0})
    returned = fields.Integer(required=True, metadata={"description": "Units returned so far.", "example": 0})


class AdjustmentSchema(ResponseSchema):
    """An amount in minor units that is added to the total of the items; a discount is negative."""

    type = fields.String(required=True, validate=validate.OneOf(ADJUSTMENT_TYPES))
    label = fields.String(required=True, allow_none=True, metadata={"example": "WELCOME10"})
    amount = fields.Integer(required=True, metadata={"example": -250})


class TotalsSchema(ResponseSchema):
    """Totals in minor units of the order's currency. Items without a price count as 0."""

    items = fields.Integer(required=True, metadata={"example": 2500})
    adjustments = fields.Integer(required=True, metadata={"example": -250})
    total = fields.Integer(required=True, metadata={"description": "`items` plus `adjustments`.", "example": 2250})


class OrderSchema(ResponseSchema):
    """An order. Later versions of the service may add members; they remove none."""

    id = fields.UUID(required=True, metadata={"example": ORDER_ID})
    number = fields.String(
        required=True,
        validate=validate.Length(NUMBER_LENGTH, NUMBER_LENGTH),
        metadata={
            "description": "The order number for people: the UTC date and eight random characters.",
            "example": "261122-7QK4MZ8D",
        },
    )
    customer_id = fields.String(required=True, metadata={"example": "c-123"})
    external_ref = fields.String(required=True, allow_none=True, metadata={"example": None})
    channel = fields.String(required=True, allow_none=True, metadata={"example": "web"})
    status = fields.String(required=True, validate=validate.OneOf(STATUSES))
    fulfillment_status = fields.String(required=True, validate=validate.OneOf(FULFILLMENT_STATUSES))
    hold = fields.Dict(
        required=True,
        allow_none=True,
        metadata={
            "description": "Since when (`at`) and why (`reason`) the order is on hold; null if it is not. Customers do "
            "not see the `reason`.",
            "example": None,
        },
    )
    currency = fields.String(required=True, allow_none=True, metadata={"example": "EUR"})
    items = fields.List(fields.Nested(ItemSchema), required=True)
    adjustments = fields.List(fields.Nested(AdjustmentSchema), required=True)
    totals = fields.Nested(
        TotalsSchema,
        required=True,
        allow_none=True,
        metadata={"description": "Null if no item has a price and there are no adjustments."},
    )
    shipping_address = fields.Nested(AddressInSchema, required=True, allow_none=True)
    billing_address = fields.Nested(AddressInSchema, required=True, allow_none=True)
    note = fields.String(required=True, allow_none=True, metadata={"example": None})
    metadata = fields.Dict(keys=fields.String(), values=fields.String(), required=True, metadata={"example": {}})
    cancellation = fields.Dict(
        required=True,
        allow_none=True,
        metadata={"description": "Why and when the order was cancelled; null if it was not.", "example": None},
    )
    fulfillments = fields.List(
        fields.Dict(),
        required=True,
        metadata={"description": "Fulfillments of the order, oldest first.", "example": []},
    )
    returns = fields.List(
        fields.Dict(), required=True, metadata={"description": "Returns of the order, oldest first.", "example": []}
    )
    version = fields.Integer(
        required=True, metadata={"description": "Starts at 1 and is incremented by every change.", "example": 1}
    )
    allowed_actions = fields.List(
        fields.String(),
        required=True,
        metadata={"description": "What can be done with the order now.", "example": ["cancel", "confirm"]},
    )
    created_at = fields.String(required=True, metadata=TIMESTAMP)
    updated_at = fields.String(required=True, metadata=TIMESTAMP)


class OrderListSchema(ResponseSchema):
    """A page of orders."""

    orders = fields.List(fields.Nested(OrderSchema), required=True)
    next_cursor = fields.String(required=True, allow_none=True, metadata=NEXT_CURSOR)


class RequestErrorSchema(ResponseSchema):
    """One error of a request. It names the place in the body, or the parameter, or neither for the query as a whole."""

    pointer = fields.String(
        metadata={"description": "The place in the body, a JSON pointer (RFC 6901).", "example": "#/items/0/quantity"}
    )
    parameter = fields.String(metadata={"description": "The query or path parameter.", "example": "limit"})
    detail = fields.String(required=True, metadata={"description": "What is wrong, and what is allowed."})


class ProblemSchema(ResponseSchema):
    """A problem document (RFC 9457): what is wrong, and what to do."""

    type = fields.String(
        required=True,
        metadata={
            "description": "The address of a page that explains the problem and its solution.",
            "format": "uri-reference",
            "example": "/problems/order-not-found",
        },
    )
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True, metadata={"description": "What is wrong with this request."})
    instance = fields.String(required=True, metadata={"description": "The path of the request."})
    request_id = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "The id of the request in the logs. Give it to the operators of the service."},
    )
    errors = fields.List(
        fields.Nested(RequestErrorSchema), metadata={"description": "All errors of an invalid request."}
    )
    order_id = fields.String(metadata={"description": "The order that conflicts with the request."})


class BatchResultSchema(ResponseSchema):
    """The result of one entry: an order or a problem."""

    status = fields.Integer(
        required=True,
        metadata={"description": "The status that a request for this entry alone would be answered with."},
    )
    replayed = fields.Boolean(
        metadata={"description": "`true` if the order had already been created with the same key."}
    )
    order = fields.Nested(OrderSchema)
    problem = fields.Nested(ProblemSchema)


class BatchResultsSchema(ResponseSchema):
    """One result per entry, in the order of the entries."""

    results = fields.List(fields.Nested(BatchResultSchema), required=True)


class PatchOperationSchema(ResponseSchema):
    """One operation of a JSON Patch (RFC 6902 §4)."""

    op = fields.String(required=True, validate=validate.OneOf(("add", "remove", "replace", "move")))
    path = fields.String(required=True, metadata={"description": "A JSON pointer (RFC 6901).", "example": "/status"})
    from_ = fields.String(data_key="from", metadata={"description": "Where `move` takes the value from."})
    value = fields.Raw(metadata={"description": "The value of `add` and `replace`.", "example": "confirmed"})


class EventSchema(ResponseSchema):
    """A change of an order."""

    id = fields.String(required=True, metadata={"example": f"{ORDER_ID}:1"})
    type = fields.String(required=True, validate=validate.OneOf(EVENT_TYPES))
    order_id = fields.UUID(required=True)
    version = fields.Integer(
        required=True, metadata={"description": "The version of the order that the change created.", "example": 1}
    )
    actor = fields.String(
        required=True,
        metadata={
            "description": "The principal who made the change. Customers see others as `staff` or `service`.",
            "example": "anonymous",
        },
    )
    request_id = fields.String(
        required=True,
        allow_none=True,
        metadata={
            "description": "The `X-Request-Id` of the request that made the change; null for a command, and after an "
            "erasure. Customers see those of their own requests only.",
            "example": "8e03978e40d543e8bc936894a57f9324",
        },
    )
    at = fields.String(required=True, metadata=TIMESTAMP)
    changes = fields.List(
        fields.Nested(PatchOperationSchema),
        required=True,
        allow_none=True,
        metadata={"description": "The JSON Patch (RFC 6902) from the version before; null for the first version."},
    )
    data = fields.Nested(OrderSchema, required=True, metadata={"description": "The order after the change."})


class EventListSchema(ResponseSchema):
    """A page of events."""

    events = fields.List(fields.Nested(EventSchema), required=True)
    next_cursor = fields.String(required=True, allow_none=True, metadata=NEXT_CURSOR)


class ErasureSchema(ResponseSchema):
    """The erasure of a customer's personal data, and its progress."""

    id = fields.UUID(required=True, metadata={"example": ORDER_ID})
    status = fields.String(
        required=True,
        validate=validate.OneOf((RUNNING, DONE)),
        metadata={"description": "`done` once all orders of the customer are erased.", "example": DONE},
    )
    orders = fields.Integer(required=True, metadata={"description": "Orders erased so far.", "example": 3})
    created_at = fields.String(required=True, metadata=TIMESTAMP)
    finished_at = fields.String(required=True, allow_none=True, metadata=TIMESTAMP)
