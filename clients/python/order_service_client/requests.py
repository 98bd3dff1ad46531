# Generated from the API description by make client-types.
"""The requests of the API, named as in its description. A request is an object that a client sends."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from order_service_client import documents as d
from order_service_client.core import EventStream, Export, Listing, OrderRef, Request, query_of, segment


def create_order(
    body: d.OrderIn, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Create an order."""
    return Request(
        "POST",
        "/orders",
        body=body,
        query=query_of(dry_run=dry_run),
        idempotency_key=idempotency_key or secrets.token_hex(16),
        repeatable=True,
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
        "/orders",
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
        repeatable=True,
        member="orders",
        cursor="cursor",
    )


def create_orders(body: d.BatchIn, *, dry_run: bool | None = None) -> Request[d.BatchResults]:
    """Create up to 1,000 orders."""
    return Request(
        "POST",
        "/orders/batch",
        body={
            "orders": [
                {**each, "idempotency_key": each.get("idempotency_key") or secrets.token_hex(16)}
                for each in body["orders"]
            ]
        },
        query=query_of(dry_run=dry_run),
        repeatable=True,
    )


def get_order(order: OrderRef, *, version: int | None = None) -> Request[d.Order]:
    """Read an order, or an earlier version of it."""
    return Request("GET", f"/orders/{segment(order)}", query=query_of(version=version), repeatable=True)


def update_order(
    order: OrderRef, body: d.OrderPatch, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Update an order by a JSON merge patch."""
    return Request(
        "PATCH",
        f"/orders/{segment(order)}",
        body=body,
        query=query_of(dry_run=dry_run),
        order=order,
        idempotency_key=idempotency_key or secrets.token_hex(16),
        repeatable=True,
    )


def get_order_by_reference(external_ref: str) -> Request[d.Order]:
    """Read an order by its external reference."""
    return Request("GET", f"/orders/by-ref/{segment(external_ref)}", repeatable=True)


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
        "/orders/search",
        query=query_of(
            q=q,
            customer_id=customer_id,
            channel=channel,
            status=status,
            fulfillment_status=fulfillment_status,
            payment_status=payment_status,
            return_status=return_status,
            tag=tag,
            **{f"metadata.{key}": value for key, value in (metadata or {}).items()},
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
        repeatable=True,
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
        "/orders/export",
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
        repeatable=True,
    )


def list_order_history(
    order: OrderRef, *, limit: int | None = None, cursor: str | None = None
) -> Listing[d.EventList, d.Event]:
    """List the events of an order, oldest first."""
    return Listing(
        "GET",
        f"/orders/{segment(order)}/history",
        query=query_of(limit=limit, cursor=cursor),
        repeatable=True,
        member="events",
        cursor="cursor",
    )


def confirm_order(
    order: OrderRef, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Confirm a pending order."""
    return Request(
        "POST",
        f"/orders/{segment(order)}/confirm",
        query=query_of(dry_run=dry_run),
        order=order,
        idempotency_key=idempotency_key or secrets.token_hex(16),
        repeatable=True,
    )


def cancel_order(
    order: OrderRef, body: d.CancellationIn, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Cancel an order, or some of its units."""
    return Request(
        "POST",
        f"/orders/{segment(order)}/cancel",
        body=body,
        query=query_of(dry_run=dry_run),
        order=order,
        idempotency_key=idempotency_key or secrets.token_hex(16),
        repeatable=True,
    )


def complete_order(
    order: OrderRef, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Complete a confirmed order, even if units are not fulfilled."""
    return Request(
        "POST",
        f"/orders/{segment(order)}/complete",
        query=query_of(dry_run=dry_run),
        order=order,
        idempotency_key=idempotency_key or secrets.token_hex(16),
        repeatable=True,
    )


def reopen_order(
    order: OrderRef, body: d.ReopeningIn, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Reopen an order that has ended."""
    return Request(
        "POST",
        f"/orders/{segment(order)}/reopen",
        body=body,
        query=query_of(dry_run=dry_run),
        order=order,
        idempotency_key=idempotency_key or secrets.token_hex(16),
        repeatable=True,
    )


def place_hold(
    order: OrderRef, handle: str, body: d.HoldIn, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Place a hold on an order, or replace the hold with the same handle."""
    return Request(
        "PUT",
        f"/orders/{segment(order)}/holds/{segment(handle)}",
        body=body,
        query=query_of(dry_run=dry_run),
        order=order,
        idempotency_key=idempotency_key or secrets.token_hex(16),
        repeatable=True,
    )


def release_hold(
    order: OrderRef, handle: str, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Release a hold."""
    return Request(
        "DELETE",
        f"/orders/{segment(order)}/holds/{segment(handle)}",
        query=query_of(dry_run=dry_run),
        order=order,
        idempotency_key=idempotency_key or secrets.token_hex(16),
        repeatable=True,
    )


def record_payment(
    order: OrderRef, body: d.PaymentIn, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Record a payment."""
    return Request(
        "POST",
        f"/orders/{segment(order)}/payments",
        body=body,
        query=query_of(dry_run=dry_run),
        order=order,
        idempotency_key=idempotency_key or secrets.token_hex(16),
        repeatable=True,
    )


def fulfill_order(
    order: OrderRef, body: d.FulfillmentIn, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Record a fulfillment."""
    return Request(
        "POST",
        f"/orders/{segment(order)}/fulfillments",
        body=body,
        query=query_of(dry_run=dry_run),
        order=order,
        idempotency_key=idempotency_key or secrets.token_hex(16),
        repeatable=True,
    )


def update_tracking(
    order: OrderRef,
    number: int,
    body: d.FulfillmentPatch,
    *,
    dry_run: bool | None = None,
    idempotency_key: str | None = None,
) -> Request[d.Order]:
    """Update the tracking of a fulfillment by a JSON merge patch."""
    return Request(
        "PATCH",
        f"/orders/{segment(order)}/fulfillments/{segment(number)}",
        body=body,
        query=query_of(dry_run=dry_run),
        order=order,
        idempotency_key=idempotency_key or secrets.token_hex(16),
        repeatable=True,
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
        f"/orders/{segment(order)}/fulfillments/{segment(number)}/events",
        body=body,
        query=query_of(dry_run=dry_run),
        order=order,
        idempotency_key=idempotency_key or secrets.token_hex(16),
        repeatable=True,
    )


def return_items(
    order: OrderRef, body: d.ReturnIn, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Record a return."""
    return Request(
        "POST",
        f"/orders/{segment(order)}/returns",
        body=body,
        query=query_of(dry_run=dry_run),
        order=order,
        idempotency_key=idempotency_key or secrets.token_hex(16),
        repeatable=True,
    )


def receive_return(
    order: OrderRef, number: int, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Receive an expected return."""
    return Request(
        "POST",
        f"/orders/{segment(order)}/returns/{segment(number)}/receive",
        query=query_of(dry_run=dry_run),
        order=order,
        idempotency_key=idempotency_key or secrets.token_hex(16),
        repeatable=True,
    )


def reject_return(
    order: OrderRef, number: int, *, dry_run: bool | None = None, idempotency_key: str | None = None
) -> Request[d.Order]:
    """Reject an expected return."""
    return Request(
        "POST",
        f"/orders/{segment(order)}/returns/{segment(number)}/reject",
        query=query_of(dry_run=dry_run),
        order=order,
        idempotency_key=idempotency_key or secrets.token_hex(16),
        repeatable=True,
    )


def act_on_orders(body: d.BulkActionsIn, *, dry_run: bool | None = None) -> Request[d.ActionResults]:
    """Execute up to 1,000 actions on orders."""
    return Request(
        "POST",
        "/orders/actions",
        body={
            "actions": [
                {**each, "idempotency_key": each.get("idempotency_key") or secrets.token_hex(16)}
                for each in body["actions"]
            ]
        },
        query=query_of(dry_run=dry_run),
        repeatable=True,
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
        "/events",
        query=query_of(after=after, types=types, order_id=order_id, channel=channel, limit=limit, wait=wait),
        repeatable=True,
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
        "GET", "/events", query=query_of(after=after, types=types, order_id=order_id, channel=channel), repeatable=True
    )


def stream_order_events(order: OrderRef, *, after: int | None = None) -> EventStream[d.Event]:
    """Stream the events of an order."""
    return EventStream("GET", f"/orders/{segment(order)}/events", query=query_of(after=after), repeatable=True)


def create_webhook(body: d.WebhookIn) -> Request[d.Webhook]:
    """Create a webhook."""
    return Request("POST", "/webhooks", body=body)


def list_webhooks() -> Request[d.WebhookList]:
    """List all webhooks with their health."""
    return Request("GET", "/webhooks", repeatable=True)


def get_webhook(webhook_id: str) -> Request[d.Webhook]:
    """Read a webhook and its health."""
    return Request("GET", f"/webhooks/{segment(webhook_id)}", repeatable=True)


def update_webhook(webhook_id: str, body: d.WebhookPatch) -> Request[d.Webhook]:
    """Update a webhook by a JSON merge patch, disable or enable it."""
    return Request("PATCH", f"/webhooks/{segment(webhook_id)}", body=body)


def delete_webhook(webhook_id: str) -> Request[None]:
    """Delete a webhook with its deliveries."""
    return Request("DELETE", f"/webhooks/{segment(webhook_id)}", repeatable=True)


def rotate_secret(webhook_id: str) -> Request[d.Webhook]:
    """Rotate the secret of a webhook."""
    return Request("POST", f"/webhooks/{segment(webhook_id)}/rotate-secret")


def test_webhook(webhook_id: str) -> Request[d.DeliveryCount]:
    """Send an event of the type `webhook.test`."""
    return Request("POST", f"/webhooks/{segment(webhook_id)}/test")


def list_deliveries(
    webhook_id: str, *, status: d.DeliveryStatus | None = None, limit: int | None = None, cursor: str | None = None
) -> Listing[d.DeliveryList, d.Delivery]:
    """List the deliveries of a webhook with their attempts, newest first."""
    return Listing(
        "GET",
        f"/webhooks/{segment(webhook_id)}/deliveries",
        query=query_of(status=status, limit=limit, cursor=cursor),
        repeatable=True,
        member="deliveries",
        cursor="cursor",
    )


def replay_deliveries(webhook_id: str, body: d.ReplayIn) -> Request[d.DeliveryCount]:
    """Send events again, with the same `webhook-id`."""
    return Request("POST", f"/webhooks/{segment(webhook_id)}/replay", body=body)


def export_customer(customer_id: str, *, after: str | None = None) -> Export[dict[str, Any]]:
    """Export all that is stored about a customer as NDJSON."""
    return Export(
        "GET", f"/customers/{segment(customer_id)}/personal-data", query=query_of(after=after), repeatable=True
    )


def erase_customer(customer_id: str) -> Request[d.Erasure]:
    """Erase a customer's personal data."""
    return Request("DELETE", f"/customers/{segment(customer_id)}/personal-data", repeatable=True)


def read_erasure(erasure_id: str) -> Request[d.Erasure]:
    """Read the progress of an erasure."""
    return Request("GET", f"/erasures/{segment(erasure_id)}", repeatable=True)
