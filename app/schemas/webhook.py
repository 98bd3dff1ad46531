"""Webhooks: schemas of requests, of responses, and of the payloads that endpoints receive."""

import re
from typing import Any

from marshmallow import ValidationError, fields, validate

from app.models.lifecycle import EVENT_TYPES, FULFILLMENT_STATUSES, RETURN_STATUSES, STATUSES
from app.models.money import PAYMENT_STATUSES
from app.models.order import ID_MAX
from app.models.webhook import (
    DELIVERY_STATUSES,
    DESCRIPTION_MAX,
    DISABLED,
    ENABLED,
    ENDPOINT_EVENT_TYPES,
    FAILING,
    GONE,
    PAUSED,
    PAYLOADS,
    REPLAY_MAX,
    TEST,
    THIN,
    URL_MAX,
)
from app.schemas.base import (
    BoundedInteger,
    BoundedList,
    Choice,
    HttpUrl,
    ParametersSchema,
    ResponseSchema,
    RFC3339DateTime,
    StrictSchema,
    Text,
)
from app.schemas.documents import NEXT_CURSOR, ORDER_ID, TIMESTAMP, OrderSchema
from app.schemas.parameters import PAGE_DEFAULT, PAGE_MAX

SUBSCRIBABLE = (*EVENT_TYPES, *ENDPOINT_EVENT_TYPES)
SEQ_MAX = 2**53 - 1
_EVENT_ID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}:[1-9][0-9]{0,8}"
_ENDPOINT_URL = {
    "description": "An https URL with a public host name or address, on port 443 or 1024 to 65535, without user name "
    "and fragment. Redirects are not followed.",
    "example": "https://hooks.example.com/orders",
}
_EVENTS = {
    "description": "Only events of these types. Default: all events of orders. `endpoint.failing` and "
    "`endpoint.disabled` report other webhooks, and are sent only if they are named here.",
    "example": ["order.created", "order.cancelled"],
}
_CHANNELS = {"description": "Only events of orders of these channels. Default: all orders.", "example": ["web"]}
_PAYLOAD = {
    "description": "`thin`: the order's id, version and statuses. `order`: the whole order too, with personal data."
}


def _event_types(**options: Any) -> BoundedList:
    return BoundedList(Choice(SUBSCRIBABLE), min_length=1, max_length=len(SUBSCRIBABLE), metadata=_EVENTS, **options)


def _channels() -> BoundedList:
    return BoundedList(Text(ID_MAX), min_length=1, max_length=100, allow_none=True, metadata=_CHANNELS)


class WebhookInSchema(StrictSchema):
    """A webhook to create. Only `url` is required."""

    url = HttpUrl(URL_MAX, required=True, metadata=_ENDPOINT_URL)
    description = Text(DESCRIPTION_MAX, allow_none=True)
    events = _event_types(allow_none=True)
    channels = _channels()
    payload = Choice(PAYLOADS, load_default=THIN, metadata=_PAYLOAD)


class WebhookPatchSchema(StrictSchema):
    """A JSON merge patch (RFC 7396) of a webhook. Null removes an optional member."""

    url = HttpUrl(URL_MAX, metadata=_ENDPOINT_URL)
    description = Text(DESCRIPTION_MAX, allow_none=True)
    events = _event_types(allow_none=True)
    channels = _channels()
    payload = Choice(PAYLOADS, metadata=_PAYLOAD)
    status = Choice(
        (ENABLED, DISABLED),
        metadata={"description": "A webhook that is enabled again receives the events since it was disabled."},
    )


class ReplayInSchema(StrictSchema):
    """What to send again: one event, a range of the feed, or the deliveries that have failed since a time."""

    event_id = Text(
        64,
        metadata={
            "description": "The id of one event, of any type.",
            "pattern": f"^{_EVENT_ID}$",
            "example": f"{ORDER_ID}:1",
        },
    )
    from_seq = BoundedInteger(1, SEQ_MAX, metadata={"description": "The first event's number in the feed."})
    to_seq = BoundedInteger(
        1,
        SEQ_MAX,
        metadata={"description": f"The last event's number in the feed; the range has at most {REPLAY_MAX:,} events."},
    )
    failed_since = RFC3339DateTime(
        clamp=True, metadata={"description": f"Up to {REPLAY_MAX:,} deliveries that have failed for good since then."}
    )

    def check(self, members: dict[str, Any]) -> None:
        """Require one of the three forms."""
        if members.keys() not in ({"event_id"}, {"from_seq", "to_seq"}, {"failed_since"}):
            raise ValidationError("Send event_id, or from_seq and to_seq, or failed_since.")
        if "event_id" in members and not re.fullmatch(_EVENT_ID, members["event_id"]):
            raise ValidationError({"event_id": ["This must be an order's id, a colon and a version."]})
        if "from_seq" in members and not 0 <= members["to_seq"] - members["from_seq"] < REPLAY_MAX:
            raise ValidationError({"to_seq": [f"This must be from_seq to from_seq + {REPLAY_MAX - 1:,}."]})


class DeliveryQuerySchema(ParametersSchema):
    """The query of a list of deliveries."""

    status = Choice(DELIVERY_STATUSES, metadata={"description": "Only deliveries with this status."})
    limit = BoundedInteger(1, PAGE_MAX, strict=False, load_default=PAGE_DEFAULT)
    cursor = Text(200, metadata={"description": "`next_cursor` of the previous page."})


class HealthSchema(ResponseSchema):
    """How the endpoint has responded recently."""

    consecutive_failures = fields.Integer(required=True, metadata={"example": 0})
    failing_since = fields.String(
        required=True, allow_none=True, metadata={"description": "The first failure since the last success."}
    )
    retry_at = fields.String(
        required=True, allow_none=True, metadata={"description": "No request is sent before this time."}
    )
    last_success_at = fields.String(
        required=True, allow_none=True, metadata={"description": "The last success, to the minute."}
    )
    last_failure_at = fields.String(required=True, allow_none=True)


class WebhookSchema(ResponseSchema):
    """A webhook: an endpoint that events are sent to."""

    id = fields.UUID(required=True, metadata={"example": ORDER_ID})
    url = fields.String(required=True, metadata={"example": _ENDPOINT_URL["example"]})
    description = fields.String(required=True, allow_none=True)
    events = fields.List(fields.String(), required=True, allow_none=True, metadata=_EVENTS)
    channels = fields.List(fields.String(), required=True, allow_none=True, metadata=_CHANNELS)
    payload = fields.String(required=True, validate=validate.OneOf(PAYLOADS), metadata=_PAYLOAD)
    status = fields.String(required=True, validate=validate.OneOf((ENABLED, DISABLED)))
    disabled_reason = fields.String(
        required=True,
        allow_none=True,
        validate=validate.OneOf((PAUSED, GONE, FAILING, None)),
        metadata={
            "description": "`paused`: a request disabled it; `gone`: the endpoint answered 410; `failing`: it failed "
            "for 72 hours."
        },
    )
    health = fields.Nested(HealthSchema, required=True)
    previous_secret_until = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "Until then, requests are signed with the previous secret too."},
    )
    secret = fields.String(
        metadata={"description": "The secret that verifies the signatures, only in the response that creates it."}
    )
    created_at = fields.String(required=True, metadata=TIMESTAMP)
    updated_at = fields.String(required=True, metadata=TIMESTAMP)


class WebhookListSchema(ResponseSchema):
    """All webhooks, oldest first."""

    webhooks = fields.List(fields.Nested(WebhookSchema), required=True)


class AttemptSchema(ResponseSchema):
    """One request to an endpoint."""

    at = fields.String(required=True, metadata=TIMESTAMP)
    status = fields.Integer(required=True, allow_none=True, metadata={"description": "The status of the response."})
    milliseconds = fields.Integer(required=True)
    error = fields.String(required=True, allow_none=True, metadata={"description": "Why there was no response."})
    response = fields.String(
        required=True, allow_none=True, metadata={"description": "The first 1,024 bytes of the response's body."}
    )


class DeliverySchema(ResponseSchema):
    """The delivery of one event to one endpoint."""

    id = fields.UUID(required=True, metadata={"example": ORDER_ID})
    event_id = fields.String(
        required=True, metadata={"description": "The `webhook-id` of every attempt.", "example": f"{ORDER_ID}:1"}
    )
    type = fields.String(required=True, validate=validate.OneOf((*SUBSCRIBABLE, TEST)))
    order_id = fields.UUID(required=True, allow_none=True)
    version = fields.Integer(required=True, allow_none=True)
    seq = fields.Integer(
        required=True, allow_none=True, metadata={"description": "The event's number in the feed.", "format": "int64"}
    )
    status = fields.String(required=True, validate=validate.OneOf(DELIVERY_STATUSES))
    attempt_count = fields.Integer(
        required=True, metadata={"description": "Attempts since the event was queued, or queued again."}
    )
    attempts = fields.List(
        fields.Nested(AttemptSchema), required=True, metadata={"description": "The latest attempts, oldest first."}
    )
    next_attempt_at = fields.String(required=True, allow_none=True)
    created_at = fields.String(required=True, metadata=TIMESTAMP)
    finished_at = fields.String(required=True, allow_none=True)


class DeliveryListSchema(ResponseSchema):
    """A page of deliveries, newest first."""

    deliveries = fields.List(fields.Nested(DeliverySchema), required=True)
    next_cursor = fields.String(required=True, allow_none=True, metadata=NEXT_CURSOR)


class DeliveryCountSchema(ResponseSchema):
    """How many deliveries were queued."""

    deliveries = fields.Integer(required=True, metadata={"example": 1})


class PayloadDataSchema(ResponseSchema):
    """The order that an event is about, after the event."""

    order_id = fields.UUID(required=True, metadata={"example": ORDER_ID})
    version = fields.Integer(required=True, metadata={"example": 1})
    seq = fields.Integer(
        required=True,
        allow_none=True,
        metadata={
            "description": "The event's number in the feed; null if the feed no longer has it.",
            "format": "int64",
        },
    )
    status = fields.String(required=True, validate=validate.OneOf(STATUSES))
    fulfillment_status = fields.String(required=True, validate=validate.OneOf(FULFILLMENT_STATUSES))
    payment_status = fields.String(required=True, validate=validate.OneOf(PAYMENT_STATUSES))
    return_status = fields.String(required=True, validate=validate.OneOf(RETURN_STATUSES))
    order = fields.Nested(OrderSchema, metadata={"description": "With the payload `order` only."})


class PayloadSchema(ResponseSchema):
    """The body of a request to an endpoint: an event of an order."""

    type = fields.String(required=True, validate=validate.OneOf(EVENT_TYPES))
    timestamp = fields.String(required=True, metadata=TIMESTAMP)
    data = fields.Nested(PayloadDataSchema, required=True)


class EndpointPayloadDataSchema(ResponseSchema):
    """The endpoint that an event is about."""

    endpoint_id = fields.UUID(required=True, metadata={"example": ORDER_ID})


class EndpointPayloadSchema(ResponseSchema):
    """The body of a request to an endpoint: a test, or a report that another endpoint fails."""

    type = fields.String(required=True, validate=validate.OneOf((TEST, *ENDPOINT_EVENT_TYPES)))
    timestamp = fields.String(required=True, metadata=TIMESTAMP)
    data = fields.Nested(EndpointPayloadDataSchema, required=True)
