"""Changes of an order: `PATCH /orders/{id}` and the actions below it."""

from typing import Any

from flask import Response, current_app

from app import errors
from app.http import rate_limit
from app.http.application import Blueprint
from app.http.auth import current_principal
from app.http.requests import MERGE_PATCH, change_request, current_request_id, is_dry_run, refuse_header
from app.http.responses import batch_response, order_response
from app.models.lifecycle import RECEIVED, REJECTED
from app.schemas.documents import ActionResultsSchema, OrderSchema
from app.schemas.order import (
    BulkActionsInSchema,
    CancellationInSchema,
    DeliveryEventInSchema,
    EmptySchema,
    FulfillmentInSchema,
    FulfillmentPatchSchema,
    HoldInSchema,
    HoldPathSchema,
    OrderPatchSchema,
    PaymentInSchema,
    ReopeningInSchema,
    ReturnInSchema,
)
from app.services import batches, order_actions
from app.services.order_actions import ChangeRequest

blueprint = Blueprint("changes", __name__, description="Change orders. Every change adds a version and an event.")

PROBLEMS = (
    errors.OrderNotFound,
    errors.IllegalAction,
    errors.TooManyVersions,
    errors.OrderTooLarge,
    errors.TooManyIdempotencyKeys,
    errors.VersionMismatch,
    errors.PreconditionRequired,
    errors.InvalidIdempotencyKey,
    errors.IdempotencyKeyReused,
)
CHANGE: dict[str, Any] = {
    "dry_run": True,
    "problems": PROBLEMS,
    "request_headers": ("If-Match", "Idempotency-Key"),
    "response_headers": ("ETag", "Idempotent-Replayed"),
}
CHANGE_OF_QUANTITIES = CHANGE | {"problems": (*PROBLEMS, errors.QuantityExceeded)}
CHANGE_OF_FULFILLMENT = CHANGE | {"problems": (*PROBLEMS, errors.FulfillmentNotFound)}
CHANGE_OF_RETURN = CHANGE | {"problems": (*PROBLEMS, errors.ReturnNotFound)}


@blueprint.operation(
    "PATCH",
    "/orders/<order_id>",
    scope="orders:write",
    body=OrderPatchSchema(),
    body_media_type=MERGE_PATCH,
    responses={200: OrderSchema()},
    **CHANGE | {"problems": (*PROBLEMS, errors.DuplicateExternalRef)},
)
def update_order(body: dict[str, Any], order_id: str) -> Response:
    """Update an order by a JSON merge patch.

    Absent members are unchanged, null removes a member, and arrays are replaced as a whole.
    """
    order = order_actions.update_order(order_id, patch=body, request=change_request(current_principal(), body))
    return order_response(order)


@blueprint.operation(
    "POST",
    "/orders/<order_id>/confirm",
    scope="orders:manage",
    body=EmptySchema(),
    body_required=False,
    responses={200: OrderSchema()},
    **CHANGE,
)
def confirm_order(body: dict[str, Any], order_id: str) -> Response:
    """Confirm a pending order.

    A confirmed order can be fulfilled. An order on hold cannot be confirmed.
    """
    order = order_actions.confirm_order(order_id, request=change_request(current_principal(), body))
    return order_response(order)


@blueprint.operation(
    "POST",
    "/orders/<order_id>/cancel",
    scope="orders:write",
    body=CancellationInSchema(),
    responses={200: OrderSchema()},
    **CHANGE_OF_QUANTITIES,
)
def cancel_order(body: dict[str, Any], order_id: str) -> Response:
    """Cancel an order, or some of its units.

    Without `items`, all open units are cancelled. Units that have been fulfilled cannot be cancelled; an order with
    fulfilled units is completed when no unit is open any more. Cancelled units reduce the total by their share of the
    line's price after discounts.
    """
    order = order_actions.cancel_order(order_id, **body, request=change_request(current_principal(), body))
    return order_response(order)


@blueprint.operation(
    "POST",
    "/orders/<order_id>/complete",
    scope="orders:manage",
    body=EmptySchema(),
    body_required=False,
    responses={200: OrderSchema()},
    **CHANGE,
)
def complete_order(body: dict[str, Any], order_id: str) -> Response:
    """Complete a confirmed order, even if units are not fulfilled.

    The fulfillment of the last open unit completes an order by itself.
    """
    order = order_actions.complete_order(order_id, request=change_request(current_principal(), body))
    return order_response(order)


@blueprint.operation(
    "POST",
    "/orders/<order_id>/reopen",
    scope="orders:manage",
    body=ReopeningInSchema(),
    responses={200: OrderSchema()},
    **CHANGE,
)
def reopen_order(body: dict[str, Any], order_id: str) -> Response:
    """Reopen an order that has ended.

    A completed order is confirmed again; a cancelled one is pending again, with its cancelled units open.
    """
    order = order_actions.reopen_order(order_id, **body, request=change_request(current_principal(), body))
    return order_response(order)


@blueprint.operation(
    "PUT",
    "/orders/<order_id>/holds/<handle>",
    scope="orders:manage",
    path_schema=HoldPathSchema(),
    body=HoldInSchema(),
    responses={200: OrderSchema()},
    **CHANGE,
)
def place_hold(body: dict[str, Any], order_id: str, handle: str) -> Response:
    """Place a hold on an order, or replace the hold with the same handle.

    An order on hold cannot be confirmed, fulfilled or completed. It can have up to 20 holds, each with a handle of its
    own; a hold with `until` is released at that time.
    """
    order = order_actions.place_hold(order_id, handle, **body, request=change_request(current_principal(), body))
    return order_response(order)


@blueprint.operation(
    "DELETE",
    "/orders/<order_id>/holds/<handle>",
    scope="orders:manage",
    path_schema=HoldPathSchema(),
    responses={200: OrderSchema()},
    **CHANGE,
)
def release_hold(order_id: str, handle: str) -> Response:
    """Release a hold.

    If there is no hold with this handle, the response is the unchanged order.
    """
    order = order_actions.release_hold(order_id, handle, request=change_request(current_principal()))
    return order_response(order)


@blueprint.operation(
    "POST",
    "/orders/<order_id>/payments",
    scope="payments:write",
    body=PaymentInSchema(),
    responses={201: OrderSchema(), 200: OrderSchema()},
    **CHANGE | {"problems": (*PROBLEMS, errors.AmountExceeded, errors.DuplicatePayment)},
)
def record_payment(body: dict[str, Any], order_id: str) -> Response:
    """Record a payment.

    The service moves no money. The type and the reference identify the payment: the same payment again is answered with
    200 and changes nothing.

    A recorded payment cannot be removed. If it was recorded by mistake, or a refund has failed, record the reversal of
    its type, with the same reference and amount; then neither of them counts.
    """
    order = order_actions.record_payment(order_id, **body, request=change_request(current_principal(), body))
    return order_response(order, 200 if order.unchanged else 201)


@blueprint.operation(
    "POST",
    "/orders/<order_id>/fulfillments",
    scope="orders:manage",
    body=FulfillmentInSchema(),
    responses={201: OrderSchema()},
    **CHANGE_OF_QUANTITIES,
)
def fulfill_order(body: dict[str, Any], order_id: str) -> Response:
    """Record a fulfillment.

    The fulfillment of the last open unit completes the order.
    """
    order = order_actions.fulfill_order(order_id, **body, request=change_request(current_principal(), body))
    return order_response(order, 201)


@blueprint.operation(
    "PATCH",
    "/orders/<order_id>/fulfillments/<int:number>",
    scope="orders:manage",
    body=FulfillmentPatchSchema(),
    responses={200: OrderSchema()},
    body_media_type=MERGE_PATCH,
    **CHANGE_OF_FULFILLMENT,
)
def update_tracking(body: dict[str, Any], order_id: str, number: int) -> Response:
    """Update the tracking of a fulfillment by a JSON merge patch.

    A `tracking` of null removes the tracking.
    """
    order = order_actions.update_tracking(order_id, number, **body, request=change_request(current_principal(), body))
    return order_response(order)


@blueprint.operation(
    "POST",
    "/orders/<order_id>/fulfillments/<int:number>/events",
    scope="orders:manage",
    body=DeliveryEventInSchema(),
    responses={201: OrderSchema()},
    **CHANGE_OF_FULFILLMENT,
)
def record_delivery_event(body: dict[str, Any], order_id: str, number: int) -> Response:
    """Record what happened to a fulfillment.

    The latest event by `occurred_at` determines the status of the fulfillment. `cancelled` opens its units again; an
    order that the fulfillment had completed is confirmed again.
    """
    order = order_actions.record_delivery_event(
        order_id, number, **body, request=change_request(current_principal(), body)
    )
    return order_response(order, 201)


@blueprint.operation(
    "POST",
    "/orders/<order_id>/returns",
    scope="orders:manage",
    body=ReturnInSchema(),
    responses={201: OrderSchema()},
    **CHANGE_OF_QUANTITIES,
)
def return_items(body: dict[str, Any], order_id: str) -> Response:
    """Record a return.

    An expected return counts once it is received.
    """
    order = order_actions.return_items(order_id, **body, request=change_request(current_principal(), body))
    return order_response(order, 201)


@blueprint.operation(
    "POST",
    "/orders/<order_id>/returns/<int:number>/receive",
    scope="orders:manage",
    body=EmptySchema(),
    body_required=False,
    responses={200: OrderSchema()},
    **CHANGE_OF_RETURN,
)
def receive_return(body: dict[str, Any], order_id: str, number: int) -> Response:
    """Receive an expected return.

    Its units count as returned from now on.
    """
    order = order_actions.settle_return(
        order_id, number, status=RECEIVED, request=change_request(current_principal(), body)
    )
    return order_response(order)


@blueprint.operation(
    "POST",
    "/orders/<order_id>/returns/<int:number>/reject",
    scope="orders:manage",
    body=EmptySchema(),
    body_required=False,
    responses={200: OrderSchema()},
    **CHANGE_OF_RETURN,
)
def reject_return(body: dict[str, Any], order_id: str, number: int) -> Response:
    """Reject an expected return.

    Its units can be returned again.
    """
    order = order_actions.settle_return(
        order_id, number, status=REJECTED, request=change_request(current_principal(), body)
    )
    return order_response(order)


@blueprint.operation(
    "POST",
    "/orders/actions",
    scope="orders:write",
    body=BulkActionsInSchema(),
    dry_run=True,
    responses={200: ActionResultsSchema()},
)
def act_on_orders(body: dict[str, Any]) -> Response:
    """Execute up to 1,000 actions on orders.

    Each action succeeds or fails on its own; the results are in the order of the actions. Actions on the same order are
    executed one after the other. Each requires the scope of its own route. The headers `Idempotency-Key` and `If-Match`
    are refused: each action has its own `idempotency_key` and `if_match`. Actions that would begin after 8 seconds, or
    after 8 MiB of orders in the response, are not executed and have the status 503: send them again.
    """
    refuse_header("Idempotency-Key", member="idempotency_key")
    refuse_header("If-Match", member="if_match")
    entries = rate_limit.counted_entries(current_principal(), body["actions"])
    outcomes = batches.act_on_orders(
        entries,
        request=ChangeRequest(current_principal(), request_id=current_request_id(), dry_run=is_dry_run()),
        version_required=current_app.config["REQUIRE_IF_MATCH"],
    )
    return batch_response(outcomes, success=200)
