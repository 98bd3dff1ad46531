# Generated from the API description by make client-types.

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict


class RequestError(TypedDict):
    pointer: NotRequired[str]
    parameter: NotRequired[str]
    detail: str


class ItemIn(TypedDict):
    item_id: str
    title: NotRequired[str | None]
    quantity: int
    unit_price: NotRequired[int | None]


class AddressIn(TypedDict):
    name: NotRequired[str]
    company: NotRequired[str]
    line1: NotRequired[str]
    line2: NotRequired[str]
    city: NotRequired[str]
    region: NotRequired[str]
    postal_code: NotRequired[str]
    country: str
    phone: NotRequired[str]
    email: NotRequired[str]


Tag: TypeAlias = str


class Item(TypedDict):
    line: int
    item_id: str
    title: str | None
    quantity: int
    unit_price: int | None
    subtotal: int | None
    discount: int
    total: int | None
    cancelled: int
    fulfilled: int
    returned: int


class Totals(TypedDict):
    items: int
    adjustments: int
    cancelled: int
    total: int
    paid: int
    refunded: int
    due: int


class LineQuantity(TypedDict):
    line: int
    quantity: int


class Tracking(TypedDict):
    carrier: NotRequired[str]
    number: NotRequired[str]
    url: NotRequired[str]


class Address(TypedDict):
    name: NotRequired[str]
    company: NotRequired[str]
    line1: NotRequired[str]
    line2: NotRequired[str]
    city: NotRequired[str]
    region: NotRequired[str]
    postal_code: NotRequired[str]
    country: str
    phone: NotRequired[str]
    email: NotRequired[str]


class EndpointPayloadData(TypedDict):
    endpoint_id: str


class AddressPatch(TypedDict):
    name: NotRequired[str | None]
    company: NotRequired[str | None]
    line1: NotRequired[str | None]
    line2: NotRequired[str | None]
    city: NotRequired[str | None]
    region: NotRequired[str | None]
    postal_code: NotRequired[str | None]
    country: NotRequired[str | None]
    phone: NotRequired[str | None]
    email: NotRequired[str | None]


class LineQuantityIn(TypedDict):
    line: int
    quantity: int


class ConfirmAction(TypedDict):
    order_id: str
    action: Literal["confirm"]
    idempotency_key: NotRequired[str | None]
    if_match: NotRequired[int | None]


class CompleteAction(TypedDict):
    order_id: str
    action: Literal["complete"]
    idempotency_key: NotRequired[str | None]
    if_match: NotRequired[int | None]


class ReopenAction(TypedDict):
    reason: str
    order_id: str
    action: Literal["reopen"]
    idempotency_key: NotRequired[str | None]
    if_match: NotRequired[int | None]


class ReleaseAction(TypedDict):
    handle: str
    order_id: str
    action: Literal["release"]
    idempotency_key: NotRequired[str | None]
    if_match: NotRequired[int | None]


class TrackingIn(TypedDict):
    carrier: NotRequired[str]
    number: NotRequired[str]
    url: NotRequired[str]


class FulfillAction(TypedDict):
    items: list[LineQuantityIn]
    tracking: NotRequired[TrackingIn | None]
    order_id: str
    action: Literal["fulfill"]
    idempotency_key: NotRequired[str | None]
    if_match: NotRequired[int | None]


class ReturnAction(TypedDict):
    items: list[LineQuantityIn]
    status: NotRequired[Literal["received", "expected"]]
    reason: NotRequired[str | None]
    order_id: str
    action: Literal["return"]
    idempotency_key: NotRequired[str | None]
    if_match: NotRequired[int | None]


class ReceiveAction(TypedDict):
    number: int
    order_id: str
    action: Literal["receive"]
    idempotency_key: NotRequired[str | None]
    if_match: NotRequired[int | None]


class RejectAction(TypedDict):
    number: int
    order_id: str
    action: Literal["reject"]
    idempotency_key: NotRequired[str | None]
    if_match: NotRequired[int | None]


class FacetValue(TypedDict):
    value: Any
    count: int


class PatchOperation(TypedDict):
    op: Literal["add", "remove", "replace"]
    path: str
    value: NotRequired[Any]


class Empty(TypedDict):
    pass


class ReopeningIn(TypedDict):
    reason: str


class FulfillmentIn(TypedDict):
    items: list[LineQuantityIn]
    tracking: NotRequired[TrackingIn | None]


class TrackingPatch(TypedDict):
    carrier: NotRequired[str | None]
    number: NotRequired[str | None]
    url: NotRequired[str | None]


class FulfillmentPatch(TypedDict):
    tracking: TrackingPatch | None


class ReturnIn(TypedDict):
    items: list[LineQuantityIn]
    status: NotRequired[Literal["received", "expected"]]
    reason: NotRequired[str | None]


Channel: TypeAlias = str


class Health(TypedDict):
    consecutive_failures: int
    failing_since: str | None
    retry_at: str | None
    last_success_at: str | None
    last_failure_at: str | None


class DeliveryCount(TypedDict):
    deliveries: int


class Attempt(TypedDict):
    at: str
    status: int | None
    milliseconds: int
    error: str | None
    response: str | None


class ReplayIn(TypedDict):
    event_id: NotRequired[str]
    from_seq: NotRequired[int]
    to_seq: NotRequired[int]
    failed_since: NotRequired[str]


class Erasure(TypedDict):
    id: str
    status: Literal["running", "done"]
    orders: int
    created_at: str
    finished_at: str | None


OrderStatus: TypeAlias = Literal["pending", "confirmed", "completed", "cancelled"]


FulfillmentStatus: TypeAlias = Literal["unfulfilled", "partial", "fulfilled", "delivered"]


PaymentStatus: TypeAlias = Literal["unpaid", "authorized", "partially_paid", "paid", "partially_refunded", "refunded"]


ReturnStatus: TypeAlias = Literal["none", "partial", "returned"]


Action: TypeAlias = Literal[
    "cancel",
    "complete",
    "confirm",
    "fulfill",
    "hold",
    "pay",
    "receive",
    "reject",
    "release",
    "reopen",
    "return",
    "track",
    "update",
]


Currency: TypeAlias = Literal[
    "AED",
    "AFN",
    "ALL",
    "AMD",
    "AOA",
    "ARS",
    "AUD",
    "AWG",
    "AZN",
    "BAM",
    "BBD",
    "BDT",
    "BHD",
    "BIF",
    "BMD",
    "BND",
    "BOB",
    "BRL",
    "BSD",
    "BTN",
    "BWP",
    "BYN",
    "BZD",
    "CAD",
    "CDF",
    "CHF",
    "CLP",
    "CNY",
    "COP",
    "CRC",
    "CUP",
    "CVE",
    "CZK",
    "DJF",
    "DKK",
    "DOP",
    "DZD",
    "EGP",
    "ERN",
    "ETB",
    "EUR",
    "FJD",
    "FKP",
    "GBP",
    "GEL",
    "GHS",
    "GIP",
    "GMD",
    "GNF",
    "GTQ",
    "GYD",
    "HKD",
    "HNL",
    "HTG",
    "HUF",
    "IDR",
    "ILS",
    "INR",
    "IQD",
    "IRR",
    "ISK",
    "JMD",
    "JOD",
    "JPY",
    "KES",
    "KGS",
    "KHR",
    "KMF",
    "KPW",
    "KRW",
    "KWD",
    "KYD",
    "KZT",
    "LAK",
    "LBP",
    "LKR",
    "LRD",
    "LSL",
    "LYD",
    "MAD",
    "MDL",
    "MGA",
    "MKD",
    "MMK",
    "MNT",
    "MOP",
    "MRU",
    "MUR",
    "MVR",
    "MWK",
    "MXN",
    "MYR",
    "MZN",
    "NAD",
    "NGN",
    "NIO",
    "NOK",
    "NPR",
    "NZD",
    "OMR",
    "PAB",
    "PEN",
    "PGK",
    "PHP",
    "PKR",
    "PLN",
    "PYG",
    "QAR",
    "RON",
    "RSD",
    "RUB",
    "RWF",
    "SAR",
    "SBD",
    "SCR",
    "SDG",
    "SEK",
    "SGD",
    "SHP",
    "SLE",
    "SOS",
    "SRD",
    "SSP",
    "STN",
    "SVC",
    "SYP",
    "SZL",
    "THB",
    "TJS",
    "TMT",
    "TND",
    "TOP",
    "TRY",
    "TTD",
    "TWD",
    "TZS",
    "UAH",
    "UGX",
    "USD",
    "UYU",
    "UZS",
    "VED",
    "VES",
    "VND",
    "VUV",
    "WST",
    "XAF",
    "XCD",
    "XCG",
    "XOF",
    "XPF",
    "YER",
    "ZAR",
    "ZMW",
    "ZWG",
]


EventType: TypeAlias = Literal[
    "order.created",
    "order.imported",
    "order.updated",
    "order.confirmed",
    "order.cancelled",
    "order.held",
    "order.released",
    "order.fulfilled",
    "order.fulfillment_updated",
    "order.completed",
    "order.returned",
    "order.return_received",
    "order.return_rejected",
    "order.payment_recorded",
    "order.reopened",
    "order.partially_cancelled",
    "order.return_expected",
    "order.late",
    "order.erased",
]


WebhookEventType: TypeAlias = Literal[
    "order.created",
    "order.imported",
    "order.updated",
    "order.confirmed",
    "order.cancelled",
    "order.held",
    "order.released",
    "order.fulfilled",
    "order.fulfillment_updated",
    "order.completed",
    "order.returned",
    "order.return_received",
    "order.return_rejected",
    "order.payment_recorded",
    "order.reopened",
    "order.partially_cancelled",
    "order.return_expected",
    "order.late",
    "order.erased",
    "endpoint.failing",
    "endpoint.disabled",
]


DeliveredEventType: TypeAlias = Literal[
    "order.created",
    "order.imported",
    "order.updated",
    "order.confirmed",
    "order.cancelled",
    "order.held",
    "order.released",
    "order.fulfilled",
    "order.fulfillment_updated",
    "order.completed",
    "order.returned",
    "order.return_received",
    "order.return_rejected",
    "order.payment_recorded",
    "order.reopened",
    "order.partially_cancelled",
    "order.return_expected",
    "order.late",
    "order.erased",
    "endpoint.failing",
    "endpoint.disabled",
    "webhook.test",
]


EndpointEventType: TypeAlias = Literal["webhook.test", "endpoint.failing", "endpoint.disabled"]


AdjustmentType: TypeAlias = Literal["discount", "tax", "shipping", "fee", "other"]


Relation: TypeAlias = Literal["replacement", "exchange", "split", "reorder", "subscription", "other"]


HoldKind: TypeAlias = Literal["fraud", "payment", "address", "inventory", "review", "other"]


CancellationReason: TypeAlias = Literal["customer", "inventory", "fraud", "declined", "staff", "expired", "other"]


PaymentType: TypeAlias = Literal[
    "authorization",
    "void",
    "capture",
    "refund",
    "chargeback",
    "capture_reversal",
    "refund_reversal",
    "chargeback_reversal",
]


DeliveryEventType: TypeAlias = Literal[
    "shipped",
    "in_transit",
    "out_for_delivery",
    "ready_for_pickup",
    "delivered",
    "failed_attempt",
    "returned_to_sender",
    "cancelled",
]


ReturnRecordStatus: TypeAlias = Literal["expected", "received", "rejected"]


DeliveryStatus: TypeAlias = Literal["pending", "succeeded", "failed"]


WebhookPayload: TypeAlias = Literal["thin", "order"]


class Problem(TypedDict):
    type: str
    title: str
    status: int
    detail: str
    instance: NotRequired[str]
    request_id: str | None
    errors: NotRequired[list[RequestError]]
    order_id: NotRequired[str]
    order_status: NotRequired[OrderStatus]
    allowed_actions: NotRequired[list[Action]]
    current_version: NotRequired[int]
    oldest_after: NotRequired[int]


class AdjustmentIn(TypedDict):
    type: AdjustmentType
    label: NotRequired[str | None]
    amount: int
    line: NotRequired[int | None]


class RelatedOrderIn(TypedDict):
    order_id: str
    relation: Relation


class BatchEntryIn(TypedDict):
    customer_id: str
    items: list[ItemIn]
    external_ref: NotRequired[str | None]
    channel: NotRequired[str | None]
    currency: NotRequired[Currency | None]
    adjustments: NotRequired[list[AdjustmentIn]]
    ship_by: NotRequired[str | None]
    deliver_by: NotRequired[str | None]
    related_orders: NotRequired[list[RelatedOrderIn]]
    tags: NotRequired[list[Tag]]
    shipping_address: NotRequired[AddressIn | None]
    billing_address: NotRequired[AddressIn | None]
    note: NotRequired[str | None]
    metadata: NotRequired[dict[str, str]]
    idempotency_key: NotRequired[str | None]


class Adjustment(TypedDict):
    type: AdjustmentType
    label: str | None
    amount: int
    line: int | None


class Hold(TypedDict):
    handle: str
    kind: HoldKind
    reason: NotRequired[str | None]
    until: str | None
    placed_by: str
    placed_at: str


class Payment(TypedDict):
    type: PaymentType
    amount: int
    waived: int
    reference: NotRequired[str]
    method: str | None
    occurred_at: str
    note: NotRequired[str | None]
    created_at: str


class DeliveryEvent(TypedDict):
    type: DeliveryEventType
    occurred_at: str
    description: str | None


class Fulfillment(TypedDict):
    number: int
    items: list[LineQuantity]
    status: DeliveryEventType
    tracking: Tracking | None
    events: list[DeliveryEvent]
    created_at: str


class Return(TypedDict):
    number: int
    items: list[LineQuantity]
    status: ReturnRecordStatus
    reason: str | None
    created_at: str


class Cancellation(TypedDict):
    number: int
    items: list[LineQuantity]
    reason: CancellationReason
    note: str | None
    created_at: str
    reopened_at: str | None


class Reopening(TypedDict):
    from_status: OrderStatus
    reason: NotRequired[str | None]
    at: str


class RelatedOrder(TypedDict):
    order_id: str
    relation: Relation


class Order(TypedDict):
    id: str
    number: str
    customer_id: str
    external_ref: str | None
    channel: str | None
    status: OrderStatus
    fulfillment_status: FulfillmentStatus
    payment_status: PaymentStatus
    return_status: ReturnStatus
    currency: Currency | None
    items: list[Item]
    adjustments: list[Adjustment]
    totals: Totals | None
    holds: list[Hold]
    payments: list[Payment]
    fulfillments: list[Fulfillment]
    returns: list[Return]
    cancellations: list[Cancellation]
    reopening: Reopening | None
    ship_by: str | None
    deliver_by: str | None
    late: bool
    related_orders: list[RelatedOrder]
    tags: list[str]
    metadata: dict[str, str]
    shipping_address: Address | None
    billing_address: Address | None
    note: str | None
    version: int
    allowed_actions: list[Action]
    created_at: str
    updated_at: str


class PayloadData(TypedDict):
    order_id: str
    version: int
    seq: int | None
    status: OrderStatus
    fulfillment_status: FulfillmentStatus
    payment_status: PaymentStatus
    return_status: ReturnStatus
    order: NotRequired[Order]


class Payload(TypedDict):
    type: EventType
    timestamp: str
    data: PayloadData


class EndpointPayload(TypedDict):
    type: EndpointEventType
    timestamp: str
    data: EndpointPayloadData


class OrderPatch(TypedDict):
    external_ref: NotRequired[str | None]
    note: NotRequired[str | None]
    metadata: NotRequired[dict[str, str | None]]
    shipping_address: NotRequired[AddressPatch | None]
    billing_address: NotRequired[AddressPatch | None]
    ship_by: NotRequired[str | None]
    deliver_by: NotRequired[str | None]
    related_orders: NotRequired[list[RelatedOrderIn] | None]
    tags: NotRequired[list[Tag] | None]
    items: NotRequired[list[ItemIn]]
    adjustments: NotRequired[list[AdjustmentIn] | None]
    currency: NotRequired[Currency | None]


class UpdateAction(TypedDict):
    patch: OrderPatch
    order_id: str
    action: Literal["update"]
    idempotency_key: NotRequired[str | None]
    if_match: NotRequired[int | None]


class CancelAction(TypedDict):
    reason: CancellationReason
    note: NotRequired[str | None]
    items: NotRequired[list[LineQuantityIn]]
    adjustments: NotRequired[list[AdjustmentIn]]
    order_id: str
    action: Literal["cancel"]
    idempotency_key: NotRequired[str | None]
    if_match: NotRequired[int | None]


class HoldAction(TypedDict):
    kind: HoldKind
    reason: NotRequired[str | None]
    until: NotRequired[str | None]
    handle: str
    order_id: str
    action: Literal["hold"]
    idempotency_key: NotRequired[str | None]
    if_match: NotRequired[int | None]


class TrackAction(TypedDict):
    type: DeliveryEventType
    occurred_at: NotRequired[str | None]
    description: NotRequired[str | None]
    number: int
    order_id: str
    action: Literal["track"]
    idempotency_key: NotRequired[str | None]
    if_match: NotRequired[int | None]


class PayAction(TypedDict):
    type: PaymentType
    amount: int
    reference: str
    method: NotRequired[str | None]
    occurred_at: NotRequired[str | None]
    note: NotRequired[str | None]
    order_id: str
    action: Literal["pay"]
    idempotency_key: NotRequired[str | None]
    if_match: NotRequired[int | None]


BulkActionIn: TypeAlias = (
    UpdateAction
    | CancelAction
    | ConfirmAction
    | CompleteAction
    | ReopenAction
    | HoldAction
    | ReleaseAction
    | FulfillAction
    | TrackAction
    | ReturnAction
    | ReceiveAction
    | RejectAction
    | PayAction
)


class BatchProblem(TypedDict):
    status: Literal[400, 401, 403, 404, 405, 406, 408, 409, 410, 412, 413, 415, 422, 428, 429, 500, 503]
    problem: Problem


class BatchOrder(TypedDict):
    status: Literal[201]
    replayed: NotRequired[bool]
    order: Order


BatchResult: TypeAlias = BatchOrder | BatchProblem


class ChangedOrder(TypedDict):
    status: Literal[200]
    replayed: NotRequired[bool]
    order: Order


ActionResult: TypeAlias = ChangedOrder | BatchProblem


class OrderIn(TypedDict):
    customer_id: str
    items: list[ItemIn]
    external_ref: NotRequired[str | None]
    channel: NotRequired[str | None]
    currency: NotRequired[Currency | None]
    adjustments: NotRequired[list[AdjustmentIn]]
    ship_by: NotRequired[str | None]
    deliver_by: NotRequired[str | None]
    related_orders: NotRequired[list[RelatedOrderIn]]
    tags: NotRequired[list[Tag]]
    shipping_address: NotRequired[AddressIn | None]
    billing_address: NotRequired[AddressIn | None]
    note: NotRequired[str | None]
    metadata: NotRequired[dict[str, str]]


class BatchIn(TypedDict):
    orders: list[BatchEntryIn]


class BatchResults(TypedDict):
    results: list[BatchResult]


class OrderList(TypedDict):
    orders: list[Order]
    next_cursor: str | None


class SearchResult(TypedDict):
    orders: list[Order]
    next_cursor: str | None
    as_of_seq: int | None
    behind: int
    facets: NotRequired[dict[str, list[FacetValue]]]
    facets_complete: NotRequired[bool]


class Event(TypedDict):
    id: str
    type: EventType
    order_id: str
    version: int
    actor: str
    request_id: str | None
    at: str
    changes: list[PatchOperation] | None
    data: Order


class EventList(TypedDict):
    events: list[Event]
    next_cursor: str | None


class CancellationIn(TypedDict):
    reason: CancellationReason
    note: NotRequired[str | None]
    items: NotRequired[list[LineQuantityIn]]
    adjustments: NotRequired[list[AdjustmentIn]]


class HoldIn(TypedDict):
    kind: HoldKind
    reason: NotRequired[str | None]
    until: NotRequired[str | None]


class PaymentIn(TypedDict):
    type: PaymentType
    amount: int
    reference: str
    method: NotRequired[str | None]
    occurred_at: NotRequired[str | None]
    note: NotRequired[str | None]


class DeliveryEventIn(TypedDict):
    type: DeliveryEventType
    occurred_at: NotRequired[str | None]
    description: NotRequired[str | None]


class BulkActionsIn(TypedDict):
    actions: list[BulkActionIn]


class ActionResults(TypedDict):
    results: list[ActionResult]


class FeedEvent(TypedDict):
    id: str
    seq: int
    type: EventType
    order_id: str
    version: int
    actor: str
    request_id: str | None
    at: str
    data: Order


class FeedPage(TypedDict):
    events: list[FeedEvent]
    next_cursor: str


class WebhookIn(TypedDict):
    url: str
    description: NotRequired[str | None]
    events: NotRequired[list[WebhookEventType] | None]
    channels: NotRequired[list[Channel] | None]
    payload: NotRequired[WebhookPayload]


class Webhook(TypedDict):
    id: str
    url: str
    description: str | None
    events: list[str] | None
    channels: list[str] | None
    payload: WebhookPayload
    status: Literal["enabled", "disabled"]
    disabled_reason: Literal["paused", "gone", "failing"] | None
    health: Health
    previous_secret_until: str | None
    secret: NotRequired[str]
    created_at: str
    updated_at: str


class WebhookList(TypedDict):
    webhooks: list[Webhook]


class WebhookPatch(TypedDict):
    url: NotRequired[str]
    description: NotRequired[str | None]
    events: NotRequired[list[WebhookEventType] | None]
    channels: NotRequired[list[Channel] | None]
    payload: NotRequired[WebhookPayload]
    status: NotRequired[Literal["enabled", "disabled"]]


class Delivery(TypedDict):
    id: str
    event_id: str
    type: DeliveredEventType
    order_id: str | None
    version: int | None
    seq: int | None
    status: DeliveryStatus
    attempt_count: int
    attempts: list[Attempt]
    next_attempt_at: str | None
    created_at: str
    finished_at: str | None


class DeliveryList(TypedDict):
    deliveries: list[Delivery]
    next_cursor: str | None
