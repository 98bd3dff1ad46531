"""The changes of an order: everything below `/orders/{id}` but reading it."""

from typing import Any

from flask import Response

from app import errors
from app.http.arguments import MERGE_PATCH, load_body
from app.http.blueprint import Blueprint
from app.http.changes import carry_out
from app.http.merge_patch import merge_patch
from app.http.principal import current_principal
from app.http.responses import changed_response
from app.models.order_item import Quantities
from app.schemas.changes import CancellationIn, FulfillmentIn, HoldIn, NothingIn, OrderPatch, ReturnIn
from app.schemas.order import OrderIn
from app.schemas.order_document import Order
from app.services.order_revision import revision

blueprint = Blueprint("changes", __name__, description="Change orders. Every change is one version and one event.")

PROBLEMS = (
    errors.OrderNotFound,
    errors.IllegalAction,
    errors.VersionMismatch,
    errors.PreconditionRequired,
    errors.InvalidIdempotencyKey,
    errors.IdempotencyKeyReused,
)
REQUEST_HEADERS = ("If-Match", "Idempotency-Key")
RESPONSE_HEADERS = ("ETag", "Idempotent-Replayed")
change = blueprint.describe(problems=PROBLEMS, request_headers=REQUEST_HEADERS, response_headers=RESPONSE_HEADERS)
change_of_quantities = blueprint.describe(
    problems=(*PROBLEMS, errors.QuantityExceeded),
    request_headers=REQUEST_HEADERS,
    response_headers=RESPONSE_HEADERS,
)
ORDER_IN = OrderIn()


@blueprint.route("/orders/<order_id>", methods=["PATCH"])
@blueprint.requires("orders:write")
@blueprint.arguments(OrderPatch(), content_type=MERGE_PATCH)
@blueprint.response(200, Order)
@blueprint.describe(
    problems=(*PROBLEMS, errors.DuplicateExternalRef),
    request_headers=REQUEST_HEADERS,
    response_headers=RESPONSE_HEADERS,
)
def update_order(patch: dict[str, Any], order_id: str) -> Response:
    """Change an order's content, by a JSON merge patch"""
    revised = revision(
        lambda body: load_body(ORDER_IN, merge_patch(body, patch)), principal=current_principal()
    )
    return changed_response(carry_out("update", order_id, revised, body=patch))


@blueprint.route("/orders/<order_id>/confirm", methods=["POST"])
@blueprint.requires("orders:manage")
@blueprint.arguments(NothingIn(), required=False)
@blueprint.response(200, Order)
@change
def confirm_order(data: dict[str, Any], order_id: str) -> Response:
    """Accept a pending order"""
    return changed_response(carry_out("confirm", order_id, lambda order, at: order.confirm(at=at)))


@blueprint.route("/orders/<order_id>/cancel", methods=["POST"])
@blueprint.requires("orders:write")
@blueprint.arguments(CancellationIn())
@blueprint.response(200, Order)
@change
def cancel_order(data: dict[str, Any], order_id: str) -> Response:
    """End an order of which nothing has been sent"""
    reason, note = data["reason"], data.get("note")
    stored = carry_out(
        "cancel", order_id, lambda order, at: order.cancel(reason=reason, note=note, at=at), body=data
    )
    return changed_response(stored)


@blueprint.route("/orders/<order_id>/complete", methods=["POST"])
@blueprint.requires("orders:manage")
@blueprint.arguments(NothingIn(), required=False)
@blueprint.response(200, Order)
@change
def complete_order(data: dict[str, Any], order_id: str) -> Response:
    """End a confirmed order as it is, whatever has been sent"""
    return changed_response(carry_out("complete", order_id, lambda order, at: order.complete(at=at)))


@blueprint.route("/orders/<order_id>/hold", methods=["PUT"])
@blueprint.requires("orders:manage")
@blueprint.arguments(HoldIn())
@blueprint.response(200, Order)
@change
def hold_order(data: dict[str, Any], order_id: str) -> Response:
    """Stop an open order until the hold is released"""
    reason = data["reason"]
    stored = carry_out("hold", order_id, lambda order, at: order.place_hold(reason=reason, at=at), body=data)
    return changed_response(stored)


@blueprint.route("/orders/<order_id>/hold", methods=["DELETE"])
@blueprint.requires("orders:manage")
@blueprint.response(200, Order)
@change
def release_order(order_id: str) -> Response:
    """Release the hold, if there is one"""
    return changed_response(carry_out("release", order_id, lambda order, at: order.release(at=at)))


@blueprint.route("/orders/<order_id>/fulfillments", methods=["POST"])
@blueprint.requires("orders:manage")
@blueprint.arguments(FulfillmentIn())
@blueprint.response(201, Order)
@change_of_quantities
def fulfill_order(data: dict[str, Any], order_id: str) -> Response:
    """Record what was sent; the last unit completes the order"""
    sent, tracking = Quantities(data["items"]), data.get("tracking")
    stored = carry_out(
        "fulfill", order_id, lambda order, at: order.fulfill(sent, tracking=tracking, at=at), body=data
    )
    return changed_response(stored, 201)


@blueprint.route("/orders/<order_id>/returns", methods=["POST"])
@blueprint.requires("orders:manage")
@blueprint.arguments(ReturnIn())
@blueprint.response(201, Order)
@change_of_quantities
def return_items(data: dict[str, Any], order_id: str) -> Response:
    """Record what came back"""
    back, reason = Quantities(data["items"]), data.get("reason")
    stored = carry_out("return", order_id, lambda order, at: order.take_back(back, reason=reason, at=at), body=data)
    return changed_response(stored, 201)
