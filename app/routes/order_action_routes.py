"""The changes of an order: everything below `/orders/{id}` but reading it."""

from typing import Any

from flask import Response

from app import errors
from app.http.auth import current_principal
from app.http.blueprint import Blueprint
from app.http.changes import carry_out
from app.http.request_input import MERGE_PATCH
from app.http.responses import changed_response
from app.models.order_item import Quantities
from app.schemas.documents import OrderSchema
from app.schemas.order import UpdatedOrderSchema
from app.schemas.order_actions import (
    CancellationInSchema,
    EmptySchema,
    FulfillmentInSchema,
    HoldInSchema,
    OrderPatchSchema,
    ReturnInSchema,
)
from app.schemas.strict_json import load_body
from app.services.order_actions import merge_patch, revision

blueprint = Blueprint("changes", __name__, description="Change orders. Every change is one version and one event.")

PROBLEMS = (
    errors.OrderNotFound,
    errors.IllegalAction,
    errors.TooManyVersions,
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
UPDATED_ORDER = UpdatedOrderSchema()


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
    """Change an order's content, by a JSON merge patch"""
    revised = revision(
        lambda content: load_body(UPDATED_ORDER, merge_patch(content, body)), principal=current_principal()
    )
    return changed_response(carry_out("update", order_id, revised, body=body))


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
    """Accept a pending order"""
    return changed_response(carry_out("confirm", order_id, lambda order, at: order.confirm(at=at)))


@blueprint.operation(
    "POST",
    "/orders/<order_id>/cancel",
    scope="orders:write",
    body=CancellationInSchema(),
    responses={200: OrderSchema()},
    **CHANGE,
)
def cancel_order(body: dict[str, Any], order_id: str) -> Response:
    """End an order of which nothing has been sent"""
    reason, note = body["reason"], body.get("note")
    stored = carry_out("cancel", order_id, lambda order, at: order.cancel(reason=reason, note=note, at=at), body=body)
    return changed_response(stored)


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
    """End a confirmed order as it is, whatever has been sent"""
    return changed_response(carry_out("complete", order_id, lambda order, at: order.complete(at=at)))


@blueprint.operation(
    "PUT",
    "/orders/<order_id>/hold",
    scope="orders:manage",
    body=HoldInSchema(),
    responses={200: OrderSchema()},
    **CHANGE,
)
def hold_order(body: dict[str, Any], order_id: str) -> Response:
    """Stop an open order until the hold is released"""
    reason = body["reason"]
    stored = carry_out("hold", order_id, lambda order, at: order.place_hold(reason=reason, at=at), body=body)
    return changed_response(stored)


@blueprint.operation(
    "DELETE",
    "/orders/<order_id>/hold",
    scope="orders:manage",
    responses={200: OrderSchema()},
    **CHANGE,
)
def release_order(order_id: str) -> Response:
    """Release the hold, if there is one"""
    return changed_response(carry_out("release", order_id, lambda order, at: order.release(at=at)))


@blueprint.operation(
    "POST",
    "/orders/<order_id>/fulfillments",
    scope="orders:manage",
    body=FulfillmentInSchema(),
    responses={201: OrderSchema()},
    **CHANGE_OF_QUANTITIES,
)
def fulfill_order(body: dict[str, Any], order_id: str) -> Response:
    """Record what was sent; the last unit completes the order"""
    sent, tracking = Quantities(body["items"]), body.get("tracking")
    stored = carry_out("fulfill", order_id, lambda order, at: order.fulfill(sent, tracking=tracking, at=at), body=body)
    return changed_response(stored, 201)


@blueprint.operation(
    "POST",
    "/orders/<order_id>/returns",
    scope="orders:manage",
    body=ReturnInSchema(),
    responses={201: OrderSchema()},
    **CHANGE_OF_QUANTITIES,
)
def return_items(body: dict[str, Any], order_id: str) -> Response:
    """Record what came back"""
    back, reason = Quantities(body["items"]), body.get("reason")
    stored = carry_out("return", order_id, lambda order, at: order.take_back(back, reason=reason, at=at), body=body)
    return changed_response(stored, 201)
