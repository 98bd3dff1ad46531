"""`/orders`."""

from typing import Any

from flask import Response

from app import errors
from app.http.arguments import JSON
from app.http.batches import create_batch
from app.http.blueprint import Blueprint
from app.http.cursors import make_cursor, read_cursor
from app.http.idempotency import idempotency_key
from app.http.principal import current_principal, require_own_customer
from app.http.responses import created_response, list_response, order_response
from app.http.streams import preferred_stream, stream_response
from app.schemas.batch import BatchIn, BatchResults
from app.schemas.order import OrderIn, OrderQuery, VersionQuery
from app.schemas.order_document import Order, OrderList
from app.services import order_reads, order_service
from app.services.new_order import OrderRequest
from app.services.order_exports import stream_orders

blueprint = Blueprint("orders", __name__, description="Create orders, read them, list them.")


@blueprint.operation(
    "POST",
    "/orders",
    scope="orders:write",
    body=OrderIn(),
    responses={201: Order()},
    problems=(
        errors.InvalidIdempotencyKey,
        errors.DuplicateExternalRef,
        errors.RequestInFlight,
        errors.IdempotencyKeyReused,
    ),
    request_headers=("Idempotency-Key",),
    response_headers=("ETag", "Location", "Idempotent-Replayed"),
)
def create_order(body: dict[str, Any]) -> Response:
    """Create an order"""
    principal = current_principal()
    require_own_customer(body["customer_id"], principal)
    request = OrderRequest(body, principal=principal, idempotency_key=idempotency_key())
    return created_response(order_service.create_order(request))


@blueprint.operation(
    "POST",
    "/orders/batch",
    scope="orders:write",
    body=BatchIn(),
    responses={200: BatchResults()},
)
def create_orders(body: dict[str, Any]) -> Response:
    """Create up to 1,000 orders, each judged alone"""
    return Response(create_batch(body["orders"]), mimetype=JSON)


@blueprint.operation(
    "GET",
    "/orders/<order_id>",
    scope="orders:read",
    query=VersionQuery(),
    responses={200: Order(), 304: None},
    problems=(errors.OrderNotFound,),
    request_headers=("If-None-Match",),
    response_headers=("ETag",),
)
def get_order(query: dict[str, Any], order_id: str) -> Response:
    """Read an order, as it is or as it was at a version"""
    order = order_reads.get_order(order_id, principal=current_principal(), version=query.get("version"))
    return order_response(order)


@blueprint.operation(
    "GET",
    "/orders",
    scope="orders:read",
    query=OrderQuery(),
    responses={200: OrderList()},
    problems=(errors.InvalidCursor,),
    response_headers=("Link",),
)
def list_orders(query: dict[str, Any]) -> Response:
    """List orders by time of creation, or stream all that match as NDJSON or CSV"""
    limit, cursor = query.pop("limit"), query.pop("cursor", None)
    after = read_cursor(cursor, query=query) if cursor else None
    descending = query["sort"].startswith("-")
    filters = {name: value for name, value in query.items() if name != "sort"}
    chosen: dict[str, Any] = {"principal": current_principal(), "descending": descending, "after": after}
    streamed = preferred_stream()
    if streamed:
        return stream_response(stream_orders(filters, **chosen), streamed)
    page = order_reads.list_orders(filters, limit=limit, **chosen)
    response = list_response("orders", page.documents, page.next_after and make_cursor(page.next_after, query=query))
    response.headers["Vary"] = "Accept"  # the streams have the same address
    return response
