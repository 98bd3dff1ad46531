"""Response schemas: everything the service returns, for the API description.

No response passes through them: documents are rendered by `app.models.order_aggregate` and stored as text.
"""

from collections.abc import Sequence
from typing import Any

from marshmallow import fields, validate

from app.models.lifecycle import (
    ACTIONS,
    DELIVERY_EVENTS,
    EVENT_TYPES,
    FULFILLMENT_STATUSES,
    RETURN_RECORD_STATUSES,
    RETURN_STATUSES,
    STATUSES,
)
from app.models.money import PAYMENT_STATUSES, PAYMENT_TYPES
from app.models.order import DONE, NUMBER_LENGTH, RUNNING
from app.schemas.base import ResponseSchema
from app.schemas.order import ADJUSTMENT_TYPES, CANCELLATION_REASONS, CURRENCIES, HOLD_KINDS, RELATIONS

ORDER_ID = "019dab70-c2b3-7c51-b9f8-1d6f2a6c3e11"
TIMESTAMP = {"format": "date-time", "example": "2026-11-22T09:41:07.123456Z"}
NEXT_CURSOR = {"description": "The `cursor` parameter of the next page; null on the last page."}


def _integer(description: str = "", **options: Any) -> fields.Integer:
    metadata = {"description": description, "example": 0} | options.pop("metadata", {})
    return fields.Integer(required=True, metadata={k: v for k, v in metadata.items() if v != ""}, **options)


def _amount(description: str = "", **options: Any) -> fields.Integer:
    """An integer of minor units, which may need 53 bits."""
    return _integer(description, metadata={"format": "int64"} | options.pop("metadata", {}), **options)


def _text(description: str = "", *, example: Any = None, **options: Any) -> fields.String:
    metadata = {"description": description} if description else {}
    return fields.String(required=True, metadata=metadata | {"example": example}, **options)


def _choice(choices: Sequence[str], **options: Any) -> fields.String:
    return fields.String(required=True, validate=validate.OneOf(choices), **options)


def _time(description: str = "", **options: Any) -> fields.String:
    metadata = {"description": description} if description else {}
    return fields.String(required=True, metadata=metadata | TIMESTAMP, **options)


def _objects(schema: type[ResponseSchema], description: str) -> fields.Field[Any]:
    return fields.List(fields.Nested(schema), required=True, metadata={"description": description})


class ItemSchema(ResponseSchema):
    """A line of an order. A unit is open, cancelled or fulfilled."""

    line = _integer("Number of the line, from 1; it never changes.", metadata={"example": 1})
    item_id = _text(example="sku-1")
    title = _text(example="Mug", allow_none=True)
    quantity = _integer("Units ordered.", metadata={"example": 2})
    unit_price = _amount("Price of a unit in minor units.", allow_none=True, metadata={"example": 1250})
    subtotal = _amount("`unit_price` times `quantity`.", allow_none=True, metadata={"example": 2500})
    discount = _amount(
        "The part of the discounts that is allocated to this line, 0 or negative.", metadata={"example": -250}
    )
    total = _amount("`subtotal` plus `discount`.", allow_none=True, metadata={"example": 2250})
    cancelled = _integer("Units cancelled so far.")
    fulfilled = _integer("Units fulfilled so far.")
    returned = _integer("Units returned so far.")


class AdjustmentSchema(ResponseSchema):
    """An amount in minor units that is added to the total of the items; a discount is negative."""

    type = _choice(ADJUSTMENT_TYPES)
    label = _text(example="WELCOME10", allow_none=True)
    amount = _amount(metadata={"example": -250})
    line = _integer(
        "The line that a discount applies to; null for all lines.", allow_none=True, metadata={"example": None}
    )


class TotalsSchema(ResponseSchema):
    """Totals in minor units of the order's currency. Items without a price count as 0."""

    items = _amount(metadata={"example": 2500})
    adjustments = _amount(metadata={"example": -250})
    cancelled = _amount("Minus the price of the cancelled units, after discounts.")
    total = _amount("`items` plus `adjustments` plus `cancelled`.", metadata={"example": 2250})
    paid = _amount("The amount captured.")
    refunded = _amount("The amount refunded or charged back.")
    due = _amount(
        "The amount still to be paid; negative if an overpayment has not been refunded yet.", metadata={"example": 2250}
    )


class LineQuantitySchema(ResponseSchema):
    """A number of units of one line."""

    line = _integer(metadata={"example": 1})
    quantity = _integer(metadata={"example": 2})


class HoldSchema(ResponseSchema):
    """A hold: the order cannot be confirmed, fulfilled or completed."""

    handle = _text(example="fraud-check")
    kind = _choice(HOLD_KINDS)
    reason = fields.String(allow_none=True, metadata={"description": "Customers do not see it.", "example": "velocity"})
    until = _time("When the hold is released, unless it is released earlier.", allow_none=True)
    placed_by = _text("The principal. Customers see `staff` or `service`.", example="service:fraud")
    placed_at = _time()


class PaymentSchema(ResponseSchema):
    """A payment, or its reversal: neither of them counts then."""

    type = _choice(PAYMENT_TYPES)
    amount = _amount("In minor units.", metadata={"example": 2250})
    waived = _amount("The part of a refund or chargeback that is not due again.", metadata={"example": 0})
    reference = fields.String(metadata={"description": "Customers do not see it.", "example": "pi_3Nd81b"})
    method = _text(example="card", allow_none=True)
    occurred_at = _time()
    note = fields.String(allow_none=True, metadata={"description": "Customers do not see it.", "example": None})
    created_at = _time()


class TrackingSchema(ResponseSchema):
    """How to track a shipment."""

    carrier = fields.String(metadata={"example": "DHL"})
    number = fields.String(metadata={"example": "00340434161094042557"})
    url = fields.String(metadata={"example": "https://example.com/track/00340434161094042557"})


class DeliveryEventSchema(ResponseSchema):
    """What happened to a fulfillment."""

    type = _choice(DELIVERY_EVENTS)
    occurred_at = _time()
    description = _text(allow_none=True)


class FulfillmentSchema(ResponseSchema):
    """Units that were fulfilled together. A new fulfillment is `shipped`; its latest event sets its status."""

    number = _integer("Number of the fulfillment, from 1.", metadata={"example": 1})
    items = _objects(LineQuantitySchema, "The units by line.")
    status = _choice(DELIVERY_EVENTS)
    tracking = fields.Nested(TrackingSchema, required=True, allow_none=True)
    events = _objects(DeliveryEventSchema, "In the order in which they were recorded.")
    created_at = _time()


class ReturnSchema(ResponseSchema):
    """Units that were returned together, or are expected to be."""

    number = _integer("Number of the return, from 1.", metadata={"example": 1})
    items = _objects(LineQuantitySchema, "The units by line.")
    status = _choice(RETURN_RECORD_STATUSES)
    reason = _text(allow_none=True)
    created_at = _time()


class CancellationSchema(ResponseSchema):
    """Units that were cancelled together."""

    number = _integer("Number of the cancellation, from 1.", metadata={"example": 1})
    items = _objects(LineQuantitySchema, "The units by line.")
    reason = _choice(CANCELLATION_REASONS)
    note = _text(allow_none=True)
    created_at = _time()
    reopened_at = _time("When reopening the order opened the units again; null if it did not.", allow_none=True)


class ReopeningSchema(ResponseSchema):
    """The last reopening of the order."""

    from_status = _choice(STATUSES)
    reason = fields.String(allow_none=True, metadata={"description": "Customers do not see it.", "example": None})
    at = _time()


class AddressSchema(ResponseSchema):
    """A postal address."""

    name = fields.String(metadata={"example": "Ada Lovelace"})
    company = fields.String()
    line1 = fields.String(metadata={"example": "12 St James's Square"})
    line2 = fields.String()
    city = fields.String(metadata={"example": "London"})
    region = fields.String()
    postal_code = fields.String(metadata={"example": "SW1Y 4JH"})
    country = _text("ISO 3166-1 alpha-2 code.", example="GB")
    phone = fields.String()
    email = fields.String(metadata={"example": "ada@example.com"})


class RelatedOrderSchema(ResponseSchema):
    """Another order, and how it relates to this one."""

    order_id = fields.UUID(required=True, metadata={"example": ORDER_ID})
    relation = _choice(RELATIONS)


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
    customer_id = _text(example="c-123")
    external_ref = _text(allow_none=True)
    channel = _text(example="web", allow_none=True)
    status = _choice(STATUSES)
    fulfillment_status = _choice(FULFILLMENT_STATUSES)
    payment_status = _choice(PAYMENT_STATUSES)
    return_status = _choice(RETURN_STATUSES)
    currency = _choice(CURRENCIES, allow_none=True)
    items = fields.List(fields.Nested(ItemSchema), required=True)
    adjustments = fields.List(fields.Nested(AdjustmentSchema), required=True)
    totals = fields.Nested(
        TotalsSchema,
        required=True,
        allow_none=True,
        metadata={"description": "Null if no item has a price and there are no adjustments."},
    )
    holds = _objects(HoldSchema, "The holds that are not released.")
    payments = _objects(PaymentSchema, "Payments, oldest first.")
    fulfillments = _objects(FulfillmentSchema, "Fulfillments, oldest first.")
    returns = _objects(ReturnSchema, "Returns, oldest first.")
    cancellations = _objects(CancellationSchema, "Cancellations, oldest first.")
    reopening = fields.Nested(ReopeningSchema, required=True, allow_none=True)
    ship_by = _time("The time by which the last unit is to be shipped.", allow_none=True)
    deliver_by = _time("The time by which the last unit is to be delivered.", allow_none=True)
    late = fields.Boolean(
        required=True, metadata={"description": "Whether units are open after `ship_by`.", "example": False}
    )
    related_orders = _objects(RelatedOrderSchema, "Other orders, such as a replacement.")
    tags = fields.List(fields.String(), required=True, metadata={"example": []})
    metadata = fields.Dict(keys=fields.String(), values=fields.String(), required=True, metadata={"example": {}})
    shipping_address = fields.Nested(AddressSchema, required=True, allow_none=True)
    billing_address = fields.Nested(AddressSchema, required=True, allow_none=True)
    note = _text(allow_none=True)
    version = _integer("Starts at 1 and is incremented by every change.", metadata={"example": 1})
    allowed_actions = fields.List(
        fields.String(validate=validate.OneOf(sorted(ACTIONS))),
        required=True,
        metadata={"description": "The actions that the order allows now.", "example": ["cancel", "confirm"]},
    )
    created_at = _time()
    updated_at = _time()


class OrderListSchema(ResponseSchema):
    """A page of orders."""

    orders = fields.List(fields.Nested(OrderSchema), required=True)
    next_cursor = fields.String(required=True, allow_none=True, metadata=NEXT_CURSOR)


class FacetValueSchema(ResponseSchema):
    """A value, and how many orders have it."""

    value = fields.Raw(required=True, allow_none=True, metadata={"example": "pending"})
    count = _integer(metadata={"example": 17})


class SearchResultSchema(ResponseSchema):
    """A page of the orders that match. They are in their current state, even if the search is behind the feed."""

    orders = fields.List(fields.Nested(OrderSchema), required=True)
    next_cursor = fields.String(required=True, allow_none=True, metadata=NEXT_CURSOR)
    as_of_seq = _integer(
        "The search reflects all events of the feed up to this `seq`; null for a customer.",
        allow_none=True,
        metadata={"example": 17},
    )
    behind = _integer("The number of events of the feed that the search does not reflect yet.", metadata={"example": 0})
    facets = fields.Dict(
        keys=fields.String(),
        values=fields.List(fields.Nested(FacetValueSchema)),
        metadata={"description": "For each facet, its most frequent values, at most 100. Only if requested."},
    )
    facets_complete = fields.Boolean(
        metadata={
            "description": "`false` if many orders match: then the facets count only those among the first 50,000 "
            "orders by the sort. Only if facets were requested."
        }
    )


class RequestErrorSchema(ResponseSchema):
    """One error of a request. It names the location in the body, or the parameter; neither for the query as a whole."""

    pointer = fields.String(
        metadata={
            "description": "The location in the body, a JSON pointer (RFC 6901).",
            "example": "#/items/0/quantity",
        }
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
    instance = fields.String(metadata={"description": "The path of the request, unless it was refused unread."})
    request_id = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "The id of the request in the logs. Give it to the operators of the service."},
    )
    errors = fields.List(
        fields.Nested(RequestErrorSchema), metadata={"description": "All errors of an invalid request."}
    )
    order_id = fields.String(metadata={"description": "The order that conflicts with the request.", "format": "uuid"})
    order_status = fields.String(
        validate=validate.OneOf(STATUSES), metadata={"description": "The status that does not allow the action."}
    )
    allowed_actions = fields.List(
        fields.String(validate=validate.OneOf(sorted(ACTIONS))),
        metadata={"description": "The actions that the order allows instead."},
    )
    current_version = fields.Integer(metadata={"description": "The order's current version."})
    oldest_after = fields.Integer(
        metadata={"description": "The lowest `after` with which the feed can be read.", "format": "int64"}
    )


class BatchOrderSchema(ResponseSchema):
    """The result of an order that was created."""

    status = fields.Integer(required=True, validate=validate.Equal(201))
    replayed = fields.Boolean(
        metadata={"description": "`true` if the order had already been created with the same key."}
    )
    order = fields.Nested(OrderSchema, required=True)


class ChangedOrderSchema(ResponseSchema):
    """The result of an action that succeeded."""

    status = fields.Integer(required=True, validate=validate.Equal(200))
    replayed = fields.Boolean(
        metadata={"description": "`true` if the action had already been executed with the same key."}
    )
    order = fields.Nested(OrderSchema, required=True)


class BatchProblemSchema(ResponseSchema):
    """The result of an entry that failed."""

    status = fields.Integer(required=True, metadata={"description": "The status of the problem."})
    problem = fields.Nested(ProblemSchema, required=True)


class BatchResultsSchema(ResponseSchema):
    """One result per entry, in the order of the entries."""

    results = fields.List(fields.Raw(metadata={"component": "BatchResult"}), required=True)


class ActionResultsSchema(ResponseSchema):
    """One result per action, in the order of the actions."""

    results = fields.List(fields.Raw(metadata={"component": "ActionResult"}), required=True)


class PatchOperationSchema(ResponseSchema):
    """One operation of a JSON Patch (RFC 6902 §4)."""

    op = _choice(("add", "remove", "replace"))
    path = fields.String(required=True, metadata={"description": "A JSON pointer (RFC 6901).", "example": "/status"})
    value = fields.Raw(metadata={"description": "The value of `add` and `replace`.", "example": "confirmed"})


class EventSchema(ResponseSchema):
    """A change of an order."""

    id = _text(example=f"{ORDER_ID}:1")
    type = _choice(EVENT_TYPES)
    order_id = fields.UUID(required=True)
    version = _integer("The version of the order that the change created.", metadata={"example": 1})
    actor = _text(
        "The principal who made the change. Customers see others as `staff` or `service`.", example="anonymous"
    )
    request_id = _text(
        "The `X-Request-Id` of the request that made the change; null for a command, and after an erasure. Customers "
        "see those of their own requests only.",
        example="8e03978e40d543e8bc936894a57f9324",
        allow_none=True,
    )
    at = _time()
    changes = fields.List(
        fields.Nested(PatchOperationSchema),
        required=True,
        allow_none=True,
        metadata={"description": "The JSON Patch (RFC 6902) from the previous version; null for the first version."},
    )
    data = fields.Nested(OrderSchema, required=True, metadata={"description": "The order after the change."})


class EventListSchema(ResponseSchema):
    """A page of events."""

    events = fields.List(fields.Nested(EventSchema), required=True)
    next_cursor = fields.String(required=True, allow_none=True, metadata=NEXT_CURSOR)


class FeedEventSchema(ResponseSchema):
    """An event in the feed of all orders."""

    id = _text(example=f"{ORDER_ID}:1")
    seq = _integer(
        "The number of the event in the feed. Numbers have no gaps.", metadata={"format": "int64", "example": 17}
    )
    type = _choice(EVENT_TYPES)
    order_id = fields.UUID(required=True)
    version = _integer("The version of the order that the change created.", metadata={"example": 1})
    actor = _text("The principal who made the change.", example="anonymous")
    request_id = _text(
        "The `X-Request-Id` of the request that made the change; null for a command, and after an erasure.",
        example="8e03978e40d543e8bc936894a57f9324",
        allow_none=True,
    )
    at = _time()
    data = fields.Nested(OrderSchema, required=True, metadata={"description": "The order after the change."})


class FeedPageSchema(ResponseSchema):
    """A page of the feed."""

    events = fields.List(fields.Nested(FeedEventSchema), required=True)
    next_cursor = _text(
        "The `after` of the next request, even if the page is empty.", example="AAAAAAAAABFq2zYPDsqd8g=="
    )


class ErasureSchema(ResponseSchema):
    """The erasure of a customer's personal data, and its progress."""

    id = fields.UUID(required=True, metadata={"example": ORDER_ID})
    status = fields.String(
        required=True,
        validate=validate.OneOf((RUNNING, DONE)),
        metadata={"description": "`done` once all orders of the customer are erased.", "example": DONE},
    )
    orders = _integer("Orders erased so far.", metadata={"example": 3})
    created_at = _time()
    finished_at = _time(allow_none=True)
