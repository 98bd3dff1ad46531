"""Changes of an order: `PATCH /orders/{id}` and the actions below it."""

from typing import Any

from flask import Response

from app import errors
from app.http.auth import current_principal
from app.http.blueprint import Blueprint
from app.http.request_input import MERGE_PATCH, change_request
from app.http.responses import order_response
from app.schemas.documents import OrderSchema
from app.schemas.order import OrderPatchSchema
from app.schemas.order_actions import (
    CancellationInSchema,
    EmptySchema,
    FulfillmentInSchema,
    HoldInSchema,
    ReturnInSchema,
)
from app.services import order_actions

blueprint = Blueprint("changes", __name__, description="Change orders. Every change adds a version and an event.")

PROBLEMS = (
    errors.OrderNotFound,
    errors.IllegalAction,
    errors.TooManyVersions,
    errors.TooManyIdempotencyKeys,
    errors.VersionMismatch,
    errors.PreconditionRequired,
    errors.InvalidIdempotencyKey,
    errors.IdempotencyKeyReused,
)
REQUEST_HEADERS = ("If-Match", "Idempotency-Key")
RESPONSE_HEADERS = ("ETag", "Idempotent-Replayed")
CHANGE: dict[str, Any] = {
    "problems": PROBLEMS,
    "request_headers": REQUEST_HEADERS,
    "response_headers": RESPONSE_HEADERS,
}
CHANGE_OF_QUANTITIES = CHANGE | {"problems": (*PROBLEMS, errors.QuantityExceeded)}


@blueprint.operation(
    "PATCH",
    "/orders/<order_id>",
    scope="orders:write",
    body=OrderPatchSchema(),
    body_media_type=MERGE_PATCH,
    responses={200: OrderSchema()},
    problems=(*PROBLEMS, errors.DuplicateExternalRef),
    request_headers=REQUEST_HEADERS,
    response_headers=RESPONSE_HEADERS,
)
def update_order(body: dict[str, Any], order_id: str) -> Response:
    """Update an order by a JSON merge patch."""
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
    """Confirm a pending order."""
    order = order_actions.confirm_order(order_id, request=change_request(current_principal(), body))
    return order_response(order)


@blueprint.operation(
    "POST",
    "/orders/<order_id>/cancel",
    scope="orders:write",
    body=CancellationInSchema(),
    responses={200: OrderSchema()},
    **CHANGE,
)
def cancel_order(body: dict[str, Any], order_id: str) -> Response:
    """Cancel an order of which no unit has been fulfilled."""
    order = order_actions.cancel_order(
        order_id, reason=body["reason"], note=body.get("note"), request=change_request(current_principal(), body)
    )
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
    """Complete a confirmed order, even if units are not fulfilled."""
    order = order_actions.complete_order(order_id, request=change_request(current_principal(), body))
    return order_response(order)


@blueprint.operation(
    "PUT",
    "/orders/<order_id>/hold",
    scope="orders:manage",
    body=HoldInSchema(),
    responses={200: OrderSchema()},
    **CHANGE,
)
def hold_order(body: dict[str, Any], order_id: str) -> Response:
    """Put an order on hold.

    Until the hold is released, the order cannot be confirmed, fulfilled or completed.
    """
    order = order_actions.hold_order(order_id, reason=body["reason"], request=change_request(current_principal(), body))
    return order_response(order)


@blueprint.operation(
    "DELETE",
    "/orders/<order_id>/hold",
    scope="orders:manage",
    responses={200: OrderSchema()},
    **CHANGE,
)
def release_hold(order_id: str) -> Response:
    """Release an order from its hold."""
    order = order_actions.release_hold(order_id, request=change_request(current_principal()))
    return order_response(order)


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

    The fulfillment of the last unit completes the order.
    """
    order = order_actions.fulfill_order(
        order_id, items=body["items"], tracking=body.get("tracking"), request=change_request(current_principal(), body)
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
    """Record a return."""
    order = order_actions.return_items(
        order_id, items=body["items"], reason=body.get("reason"), request=change_request(current_principal(), body)
    )
    return order_response(order, 201)
