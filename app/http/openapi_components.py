"""What the operations of the API description share: security, parameters, headers, enumerations, webhook requests; and
their examples, which `make examples` has recorded in app/http/examples.json."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from app.errors import Forbidden, ServiceError, TooManyRequests, Unauthenticated, UnsupportedMediaType
from app.http.requests import JSON, KEY_PATTERN, public_path
from app.models.fulfillment import (
    DELIVERY_EVENTS,
    FULFILLMENT_STATUSES,
    RETURN_RECORD_STATUSES,
    RETURN_STATUSES,
)
from app.models.lifecycle import ACTIONS, EVENT_TYPES, STATUSES
from app.models.money import PAYMENT_STATUSES, PAYMENT_TYPES
from app.models.webhook import DELIVERY_STATUSES, ENDPOINT_EVENT_TYPES, PAYLOADS, TEST
from app.schemas.order import ADJUSTMENT_TYPES, CURRENCIES, RELATIONS
from app.schemas.order_actions import CANCELLATION_REASONS, HOLD_KINDS
from app.schemas.webhook import SUBSCRIBABLE

EXAMPLES = Path(__file__).with_name("examples.json")
BEARER = "bearer"  # name of the security scheme
SECURITY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key of this service, `osk_<id>.<secret><checksum>`, or a JWT of the configured issuer. "
    "Without the scope `orders:manage`, the subject of a token is a customer, who has access to the orders of that "
    "customer only. The names after each operation's security requirement are the scopes it requires.",
}

# Enumerations that are components of their own: the name and the description by the values.
ENUMERATIONS: dict[tuple[str, ...], tuple[str, str]] = {
    STATUSES: ("OrderStatus", "The status of an order."),
    FULFILLMENT_STATUSES: ("FulfillmentStatus", "How much of an order is fulfilled."),
    PAYMENT_STATUSES: ("PaymentStatus", "How much of an order is paid."),
    RETURN_STATUSES: ("ReturnStatus", "How much of an order has been returned."),
    tuple(sorted(ACTIONS)): ("Action", "A change of an order."),
    CURRENCIES: ("Currency", "An active ISO 4217 currency code. Amounts are in its minor units."),
    EVENT_TYPES: ("EventType", "What happened to an order."),
    SUBSCRIBABLE: ("WebhookEventType", "A type of event that a webhook can subscribe to."),
    (*SUBSCRIBABLE, TEST): ("DeliveredEventType", "A type of event that webhooks receive."),
    (TEST, *ENDPOINT_EVENT_TYPES): ("EndpointEventType", "An event of a webhook, not of an order."),
    ADJUSTMENT_TYPES: ("AdjustmentType", "The type of an adjustment."),
    RELATIONS: ("Relation", "How another order relates to this one."),
    HOLD_KINDS: ("HoldKind", "Why an order is on hold."),
    CANCELLATION_REASONS: ("CancellationReason", "Why units are cancelled."),
    PAYMENT_TYPES: (
        "PaymentType",
        "The type of a payment. A reversal means that the payment was recorded by mistake, or failed: neither of them "
        "counts.",
    ),
    DELIVERY_EVENTS: ("DeliveryEventType", "What happened to a fulfillment; the latest event determines its status."),
    RETURN_RECORD_STATUSES: ("ReturnRecordStatus", "The status of a return."),
    DELIVERY_STATUSES: ("DeliveryStatus", "The status of the delivery of an event to a webhook."),
    PAYLOADS: ("WebhookPayload", "How much of an order a webhook receives."),
}

_UUID = {"type": "string", "format": "uuid"}
_NUMBER = {"type": "integer", "format": "int32", "minimum": 1, "maximum": 2**31 - 1}
PATH_PARAMETERS: dict[str, dict[str, Any]] = {
    "order_id": {"schema": _UUID, "description": "The id of the order."},
    "erasure_id": {"schema": _UUID, "description": "The id of the erasure."},
    "webhook_id": {"schema": _UUID, "description": "The id of the webhook."},
    "number": {"schema": _NUMBER, "description": "The number of the fulfillment or return in its order, from 1."},
    "slug": {
        "schema": {"type": "string", "maxLength": 64, "pattern": "^[a-z-]+$"},
        "description": "The last part of the problem's `type`.",
        "example": "order-not-found",
    },
    "guide": {
        "schema": {"type": "string", "maxLength": 64, "pattern": "^[a-z-]+$"},
        "description": "The name of the guide.",
        "example": "idempotency",
    },
    "name": {
        "schema": {"type": "string", "maxLength": 255},
        "description": "The name of the file.",
        "example": "swagger-ui.css",
    },
}

_TEXT = {"type": "string"}

# None has an example, which documentation would send with every request.
REQUEST_HEADERS: dict[str, dict[str, Any]] = {
    "Idempotency-Key": {
        "description": "Makes a retry safe: a request with the same key and body returns the first response, at any "
        "later time. The same key with a different body returns 422. After an erasure any body returns the erased "
        "order. The key may be bare or a quoted string; a UUID is a good key.",
        "schema": _TEXT | {"pattern": KEY_PATTERN},
    },
    "If-Match": {
        "description": 'The `ETag` of the order as you read it, such as `"1"`. If the order has changed since, the '
        "response is 412.",
        "schema": _TEXT,
    },
    "If-None-Match": {
        "description": "The `ETag` of your copy. If it is still current, the response is 304, without a body.",
        "schema": _TEXT,
    },
    "Last-Event-ID": {
        "description": "The `id` of the last event that was received, as browsers send it when they connect again. It "
        "takes precedence over `after`.",
        "schema": _TEXT,
    },
}
RESPONSE_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {
        "description": "The id of the request in the logs; the `X-Request-Id` of the request if it has one.",
        "schema": _TEXT,
    },
    "ETag": {
        "description": "The entity tag of the response, for `If-Match` and `If-None-Match`. The tag of an order is its "
        "version; an erasure appends `-erased`, and a customer's view that omits something `-customer`.",
        "schema": _TEXT,
        "example": '"1"',
    },
    "Location": {
        "description": "The address of the created resource, or of the documentation.",
        "schema": _TEXT | {"format": "uri-reference"},
    },
    "Idempotent-Replayed": {
        "description": "`true` if this is the response to an earlier request with the same Idempotency-Key.",
        "schema": _TEXT | {"enum": ["true"]},
    },
    "Dry-Run": {"description": "The request has stored nothing.", "schema": _TEXT | {"enum": ["true"]}},
    "Complete-Until": {
        "description": "All orders created before this time are readable now. Orders with a later `created_at` may "
        "still be missing: `created_at` is set before an order is stored.",
        "schema": _TEXT | {"format": "date-time"},
        "example": "2026-11-22T09:40:07Z",
    },
    "Link": {"description": 'The address of the next page, with `rel="next"` (RFC 8288).', "schema": _TEXT},
    "Accept": {"description": "The media types that the body may have, except for PATCH.", "schema": _TEXT},
    "Accept-Patch": {"description": "The media types that the body of a PATCH may have.", "schema": _TEXT},
    "Accept-Encoding": {"description": "The content codings that the body may have.", "schema": _TEXT},
    "Retry-After": {
        "description": "Seconds to wait before the next attempt.",
        "schema": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 2**31 - 1},
    },
    "WWW-Authenticate": {
        "description": "The required credentials or scope (RFC 6750 §3).",
        "schema": _TEXT,
        "example": 'Bearer realm="orders", error="insufficient_scope", scope="orders:write"',
    },
    "RateLimit-Policy": {
        "description": "The rate limit, if there is one: `q` requests per `w` seconds "
        "(draft-ietf-httpapi-ratelimit-headers).",
        "schema": _TEXT,
        "example": '"customers";q=600;w=60',
    },
    "RateLimit": {
        "description": "`r` requests remain; the next one is added in `t` seconds.",
        "schema": _TEXT,
        "example": '"customers";r=599;t=1',
    },
}
PROBLEM_HEADERS: dict[type[ServiceError], tuple[str, ...]] = {
    Unauthenticated: ("WWW-Authenticate",),
    Forbidden: ("WWW-Authenticate",),
    TooManyRequests: ("RateLimit-Policy", "RateLimit"),
    UnsupportedMediaType: ("Accept", "Accept-Patch", "Accept-Encoding"),
}

_WEBHOOK_HEADERS: dict[str, dict[str, Any]] = {
    "webhook-id": {
        "description": "The id of the event, the same at each attempt: store it, and ignore an event whose id you have "
        "already stored.",
        "schema": _TEXT | {"maxLength": 64},
    },
    "webhook-timestamp": {
        "description": "When this attempt was made, in seconds since 1970. Refuse a request that is older than five "
        "minutes.",
        "schema": _TEXT | {"maxLength": 20, "pattern": "^[0-9]+$"},
    },
    "webhook-signature": {
        "description": "One or more signatures, separated by spaces: `v1,` and the HMAC-SHA256 of "
        "`{webhook-id}.{webhook-timestamp}.{body}` in base64, with the secret's bytes (Standard Webhooks).",
        "schema": _TEXT | {"maxLength": 200, "pattern": "^v1,"},
    },
}
_WEBHOOK_RESPONSES = {
    "2XX": {"description": "The event is delivered."},
    "410": {"description": "The webhook is disabled."},
    "429": {"description": "The event is sent again, not before `Retry-After`."},
    "default": {"description": "The event is sent again, for up to 72 hours."},
}


def reference(kind: str, name: str) -> dict[str, str]:
    """Return a reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def camel_case(name: str) -> str:
    """Return a name such as `order_id`, `order.created` or `If-Match` as `OrderId`, `OrderCreated`, `IfMatch`."""
    return "".join(word[:1].upper() + word[1:] for word in re.split(r"\W|_", name))


def header_parameters() -> dict[str, dict[str, Any]]:
    """Return the request headers, and those of the service's own requests to webhooks, as parameters."""
    sent = {name: {"required": False} | header for name, header in REQUEST_HEADERS.items()}
    received = {name: {"required": True} | header for name, header in _WEBHOOK_HEADERS.items()}
    return {name: {"in": "header", "name": name} | header for name, header in (sent | received).items()}


def webhooks() -> dict[str, Any]:
    """Return the requests that the service sends: a path item for each type of event."""
    items = {event_type: _webhook(event_type, "Payload") for event_type in EVENT_TYPES}
    return items | {event_type: _webhook(event_type, "EndpointPayload") for event_type in (*ENDPOINT_EVENT_TYPES, TEST)}


def _webhook(event_type: str, schema: str) -> dict[str, Any]:
    body = {"schema": reference("schemas", schema), "examples": {"request": reference("examples", schema)}}
    return {
        "post": {
            "operationId": f"on{camel_case(event_type)}",
            "summary": f"The event {event_type}",
            "description": "Sent to the `url` of each webhook that has subscribed to it, until that answers with 2xx.",
            "tags": ["webhooks"],
            "security": [],
            "parameters": [reference("parameters", camel_case(name)) for name in _WEBHOOK_HEADERS],
            "requestBody": {"required": True, "content": {JSON: body}},
            "responses": _WEBHOOK_RESPONSES,
        }
    }


def request_example(operation_id: str) -> dict[str, Any]:
    """Return the member `example` of a request body, or nothing."""
    request = _recorded()["operations"].get(operation_id, {}).get("request")
    return {} if request is None else {"example": request}


def response_example(operation_id: str, status: int, media_type: str) -> dict[str, Any]:
    """Return the member `example` of a response, or nothing."""
    responses = _recorded()["operations"].get(operation_id, {}).get("responses", {})
    response = responses.get(str(status), {}).get(media_type)
    return {} if response is None else {"example": _with_prefix(response)}


def problem_example(slug: str) -> dict[str, Any]:
    """Return a problem document of this type."""
    problem: dict[str, Any] = _with_prefix(_recorded()["problems"][slug]["problem"])
    return problem


def problem_request(slug: str) -> str:
    """Return the request that `problem_example` is the response to, as HTTP text."""
    request: str = _recorded()["problems"][slug]["request"]
    return request


def payload_example(schema: str) -> Any:
    """Return the body of a request to a webhook."""
    return _recorded()["payloads"][schema]


@cache
def _recorded() -> dict[str, Any]:
    recorded: dict[str, Any] = orjson.loads(EXAMPLES.read_bytes())
    return recorded


def _with_prefix(example: Any) -> Any:
    """Put URL_PREFIX before the paths in problem documents."""
    if isinstance(example, list):
        return [_with_prefix(entry) for entry in example]
    if not isinstance(example, dict):
        return example
    is_problem = str(example.get("type")).startswith("/problems/")
    paths = {name: public_path(example[name]) for name in ("type", "instance")} if is_problem else {}
    return {name: _with_prefix(member) for name, member in example.items()} | paths
