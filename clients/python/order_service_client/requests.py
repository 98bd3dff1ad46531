# Generated from the API description by make client-types.
"""The requests of the API, by the names of its description. A request is a value; a client sends it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from order_service_client import documents as d
from order_service_client.core import (
    EventStream,
    Export,
    Listing,
    OrderRef,
    Request,
    change_headers,
    path_of,
    query_of,
    with_keys,
)


def create_order(
    body: d.OrderIn, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Create an order."""
    return Request(
        "POST",
        path_of("/orders"),
        body=body,
        query=query_of(dry_run=dry_run),
        headers=change_headers(None, idempotency_key),
    )


def list_orders(
    *,
    customer_id: str | None = None,
    status: Sequence[d.OrderStatus] | None = None,
    fulfillment_status: Sequence[d.FulfillmentStatus] | None = None,
    channel: str | None = None,
    payment_status: Sequence[d.PaymentStatus] | None = None,
    return_status: Sequence[d.ReturnStatus] | None = None,
    number: str | None = None,
    external_ref: str | None = None,
    item_id: str | None = None,
    created_from: str | None = None,
    created_to: str | None = None,
    sort: Literal["-created_at", "created_at"] | None = None,
    idempotency_key: str | None = None,
    limit: int | None = None,
    cursor: str | None = None,
) -> Listing[d.OrderList, d.Order]:
    """List orders by time of creation."""
    return Listing(
        "GET",
        path_of("/orders"),
        query=query_of(
            customer_id=customer_id,
            status=status,
            fulfillment_status=fulfillment_status,
            channel=channel,
            payment_status=payment_status,
            return_status=return_status,
            number=number,
            external_ref=external_ref,
            item_id=item_id,
            created_from=created_from,
            created_to=created_to,
            sort=sort,
            idempotency_key=idempotency_key,
            limit=limit,
            cursor=cursor,
        ),
        member="orders",
        cursor="cursor",
    )


def create_orders(body: d.BatchIn, *, dry_run: bool | None = None) -> Request[d.BatchResults]:
    """Create up to 1,000 orders."""
    return Request(
        "POST", path_of("/orders/batch"), body=with_keys(body), query=query_of(dry_run=dry_run), repeatable=True
    )


def get_order(order: OrderRef, *, version: int | None = None) -> Request[d.Order]:
    """Read an order, or an earlier version of it."""
    return Request("GET", path_of("/orders/{}", order), query=query_of(version=version))


def update_order(
    order: OrderRef, body: d.OrderPatch, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Update an order by a JSON merge patch."""
    return Request(
        "PATCH",
        path_of("/orders/{}", order),
        body=body,
        query=query_of(dry_run=dry_run),
        headers=change_headers(order, idempotency_key),
    )


def get_order_by_reference(external_ref: str) -> Request[d.Order]:
    """Read an order by its external reference."""
    return Request("GET", path_of("/orders/by-ref/{}", external_ref))


def search_orders(
    *,
    q: str | None = None,
    customer_id: str | None = None,
    channel: str | None = None,
    status: Sequence[d.OrderStatus] | None = None,
    fulfillment_status: Sequence[d.FulfillmentStatus] | None = None,
    payment_status: Sequence[d.PaymentStatus] | None = None,
    return_status: Sequence[d.ReturnStatus] | None = None,
    tag: str | None = None,
    metadata: Mapping[str, str] | None = None,
    held: bool | None = None,
    late: bool | None = None,
    currency: d.Currency | None = None,
    created_from: str | None = None,
    created_to: str | None = None,
    updated_from: str | None = None,
    updated_to: str | None = None,
    total_from: int | None = None,
    total_to: int | None = None,
    sort: Literal["-created_at", "created_at", "-updated_at", "updated_at", "-total", "total"] | None = None,
    facets: Sequence[
        Literal[
            "status", "fulfillment_status", "payment_status", "return_status", "channel", "currency", "held", "late"
        ]
    ]
    | None = None,
    limit: int | None = None,
    cursor: str | None = None,
) -> Listing[d.SearchResult, d.Order]:
    """Search orders by words and filters."""
    return Listing(
        "GET",
        path_of("/orders/search"),
        query=query_of(
            q=q,
            customer_id=customer_id,
            channel=channel,
            status=status,
            fulfillment_status=fulfillment_status,
            payment_status=payment_status,
            return_status=return_status,
            tag=tag,
            metadata=metadata,
            held=held,
            late=late,
            currency=currency,
            created_from=created_from,
            created_to=created_to,
            updated_from=updated_from,
            updated_to=updated_to,
            total_from=total_from,
            total_to=total_to,
            sort=sort,
            facets=facets,
            limit=limit,
            cursor=cursor,
        ),
        member="orders",
        cursor="cursor",
    )


def export_orders(
    *,
    customer_id: str | None = None,
    status: Sequence[d.OrderStatus] | None = None,
    fulfillment_status: Sequence[d.FulfillmentStatus] | None = None,
    channel: str | None = None,
    payment_status: Sequence[d.PaymentStatus] | None = None,
    return_status: Sequence[d.ReturnStatus] | None = None,
    number: str | None = None,
    external_ref: str | None = None,
    item_id: str | None = None,
    created_from: str | None = None,
    created_to: str | None = None,
    sort: Literal["-created_at", "created_at"] | None = None,
    after: str | None = None,
) -> Export[d.Order]:
    """Export all matching orders as NDJSON or CSV."""
    return Export(
        "GET",
        path_of("/orders/export"),
        query=query_of(
            customer_id=customer_id,
            status=status,
            fulfillment_status=fulfillment_status,
            channel=channel,
            payment_status=payment_status,
            return_status=return_status,
            number=number,
            external_ref=external_ref,
            item_id=item_id,
            created_from=created_from,
            created_to=created_to,
            sort=sort,
            after=after,
        ),
    )


def list_order_history(
    order: OrderRef, *, limit: int | None = None, cursor: str | None = None
) -> Listing[d.EventList, d.Event]:
    """List the events of an order, oldest first."""
    return Listing(
        "GET",
        path_of("/orders/{}/history", order),
        query=query_of(limit=limit, cursor=cursor),
        member="events",
        cursor="cursor",
    )


def confirm_order(
    order: OrderRef, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Confirm a pending order."""
    return Request(
        "POST",
        path_of("/orders/{}/confirm", order),
        query=query_of(dry_run=dry_run),
        headers=change_headers(order, idempotency_key),
    )


def cancel_order(
    order: OrderRef, body: d.CancellationIn, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Cancel an order, or some of its units."""
    return Request(
        "POST",
        path_of("/orders/{}/cancel", order),
        body=body,
        query=query_of(dry_run=dry_run),
        headers=change_headers(order, idempotency_key),
    )


def complete_order(
    order: OrderRef, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Complete a confirmed order, even if units are not fulfilled."""
    return Request(
        "POST",
        path_of("/orders/{}/complete", order),
        query=query_of(dry_run=dry_run),
        headers=change_headers(order, idempotency_key),
    )


def reopen_order(
    order: OrderRef, body: d.ReopeningIn, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Reopen an order that has ended."""
    return Request(
        "POST",
        path_of("/orders/{}/reopen", order),
        body=body,
        query=query_of(dry_run=dry_run),
        headers=change_headers(order, idempotency_key),
    )


def place_hold(
    order: OrderRef, handle: str, body: d.HoldIn, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Place a hold on an order, or replace the hold with the same handle."""
    return Request(
        "PUT",
        path_of("/orders/{}/holds/{}", order, handle),
        body=body,
        query=query_of(dry_run=dry_run),
        headers=change_headers(order, idempotency_key),
    )


def release_hold(
    order: OrderRef, handle: str, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Release a hold."""
    return Request(
        "DELETE",
        path_of("/orders/{}/holds/{}", order, handle),
        query=query_of(dry_run=dry_run),
        headers=change_headers(order, idempotency_key),
    )


def record_payment(
    order: OrderRef, body: d.PaymentIn, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Record a payment."""
    return Request(
        "POST",
        path_of("/orders/{}/payments", order),
        body=body,
        query=query_of(dry_run=dry_run),
        headers=change_headers(order, idempotency_key),
    )


def fulfill_order(
    order: OrderRef, body: d.FulfillmentIn, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Record a fulfillment."""
    return Request(
        "POST",
        path_of("/orders/{}/fulfillments", order),
        body=body,
        query=query_of(dry_run=dry_run),
        headers=change_headers(order, idempotency_key),
    )


def update_tracking(
    order: OrderRef,
    number: int,
    body: d.FulfillmentPatch,
    *,
    dry_run: bool | None = None,
    idempotency_key: str | None = None,
) -> Request[d.Order]:
    """Update how a fulfillment is tracked by a JSON merge patch."""
    return Request(
        "PATCH",
        path_of("/orders/{}/fulfillments/{}", order, number),
        body=body,
        query=query_of(dry_run=dry_run),
        headers=change_headers(order, idempotency_key),
    )


def record_delivery_event(
    order: OrderRef,
    number: int,
    body: d.DeliveryEventIn,
    *,
    dry_run: bool | None = None,
    idempotency_key: str | None = None,
) -> Request[d.Order]:
    """Record what happened to a fulfillment."""
    return Request(
        "POST",
        path_of("/orders/{}/fulfillments/{}/events", order, number),
        body=body,
        query=query_of(dry_run=dry_run),
        headers=change_headers(order, idempotency_key),
    )


def return_items(
    order: OrderRef, body: d.ReturnIn, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Record a return."""
    return Request(
        "POST",
        path_of("/orders/{}/returns", order),
        body=body,
        query=query_of(dry_run=dry_run),
        headers=change_headers(order, idempotency_key),
    )


def receive_return(
    order: OrderRef, number: int, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Receive an expected return."""
    return Request(
        "POST",
        path_of("/orders/{}/returns/{}/receive", order, number),
        query=query_of(dry_run=dry_run),
        headers=change_headers(order, idempotency_key),
    )


def reject_return(
    order: OrderRef, number: int, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Reject an expected return."""
    return Request(
        "POST",
        path_of("/orders/{}/returns/{}/reject", order, number),
        query=query_of(dry_run=dry_run),
        headers=change_headers(order, idempotency_key),
    )


def act_on_orders(body: d.BulkActionsIn, *, dry_run: bool | None = None) -> Request[d.ActionResults]:
    """Execute up to 1,000 actions on orders."""
    return Request(
        "POST", path_of("/orders/actions"), body=with_keys(body), query=query_of(dry_run=dry_run), repeatable=True
    )


def list_feed_events(
    *,
    after: str | None = None,
    types: Sequence[d.EventType] | None = None,
    order_id: str | None = None,
    channel: str | None = None,
    limit: int | None = None,
    wait: int | None = None,
) -> Listing[d.FeedPage, d.FeedEvent]:
    """List or stream the events of all orders."""
    return Listing(
        "GET",
        path_of("/events"),
        query=query_of(after=after, types=types, order_id=order_id, channel=channel, limit=limit, wait=wait),
        member="events",
        cursor="after",
    )


def stream_events(
    *,
    after: str | None = None,
    types: Sequence[d.EventType] | None = None,
    order_id: str | None = None,
    channel: str | None = None,
) -> EventStream[d.FeedEvent]:
    """List or stream the events of all orders."""
    return EventStream(
        "GET", path_of("/events"), query=query_of(after=after, types=types, order_id=order_id, channel=channel)
    )


def stream_order_events(order: OrderRef, *, after: int | None = None) -> EventStream[d.Event]:
    """Stream the events of an order."""
    return EventStream("GET", path_of("/orders/{}/events", order), query=query_of(after=after))


def create_webhook(body: d.WebhookIn) -> Request[d.Webhook]:
    """Create a webhook."""
    return Request("POST", path_of("/webhooks"), body=body)


def list_webhooks() -> Request[d.WebhookList]:
    """List all webhooks with their health."""
    return Request("GET", path_of("/webhooks"))


def get_webhook(webhook_id: str) -> Request[d.Webhook]:
    """Read a webhook and its health."""
    return Request("GET", path_of("/webhooks/{}", webhook_id))


def update_webhook(webhook_id: str, body: d.WebhookPatch) -> Request[d.Webhook]:
    """Update a webhook by a JSON merge patch, disable or enable it."""
    return Request("PATCH", path_of("/webhooks/{}", webhook_id), body=body)


def delete_webhook(webhook_id: str) -> Request[None]:
    """Delete a webhook with its deliveries."""
    return Request("DELETE", path_of("/webhooks/{}", webhook_id))


def rotate_secret(webhook_id: str) -> Request[d.Webhook]:
    """Give a webhook a new secret."""
    return Request("POST", path_of("/webhooks/{}/rotate-secret", webhook_id))


def test_webhook(webhook_id: str) -> Request[d.DeliveryCount]:
    """Send an event of the type `webhook.test`."""
    return Request("POST", path_of("/webhooks/{}/test", webhook_id))


def list_deliveries(
    webhook_id: str, *, status: d.DeliveryStatus | None = None, limit: int | None = None, cursor: str | None = None
) -> Listing[d.DeliveryList, d.Delivery]:
    """List the deliveries of a webhook with their attempts, newest first."""
    return Listing(
        "GET",
        path_of("/webhooks/{}/deliveries", webhook_id),
        query=query_of(status=status, limit=limit, cursor=cursor),
        member="deliveries",
        cursor="cursor",
    )


def replay_deliveries(webhook_id: str, body: d.ReplayIn) -> Request[d.DeliveryCount]:
    """Send events again, with the same `webhook-id`."""
    return Request("POST", path_of("/webhooks/{}/replay", webhook_id), body=body)


def export_customer(customer_id: str, *, after: str | None = None) -> Export[dict[str, Any]]:
    """Export all that is stored about a customer as NDJSON."""
    return Export("GET", path_of("/customers/{}/personal-data", customer_id), query=query_of(after=after))


def erase_customer(customer_id: str) -> Request[d.Erasure]:
    """Erase a customer's personal data."""
    return Request("DELETE", path_of("/customers/{}/personal-data", customer_id))


def read_erasure(erasure_id: str) -> Request[d.Erasure]:
    """Read the progress of an erasure."""
    return Request("GET", path_of("/erasures/{}", erasure_id))
