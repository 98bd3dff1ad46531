"""`/orders`."""

import threading
from contextlib import nullcontext
from typing import Any

from flask import Response

from app import errors
from app.http import rate_limit
from app.http.application import Blueprint, Content
from app.http.auth import current_principal
from app.http.requests import (
    check_conditions,
    create_request,
    current_request_id,
    is_dry_run,
    make_cursor,
    make_search_cursor,
    make_version_cursor,
    read_cursor,
    read_search_cursor,
    read_version_cursor,
    refuse_header,
    with_pauses,
)
from app.http.responses import batch_response, list_response, order_response
from app.http.streams import EXPORT_MEDIA_TYPES, Export
from app.schemas.documents import BatchResultsSchema, EventListSchema, OrderListSchema, OrderSchema, SearchResultSchema
from app.schemas.order import BatchInSchema, OrderInSchema
from app.schemas.parameters import (
    ExportQuerySchema,
    HistoryQuerySchema,
    OrderQuerySchema,
    ReferencePathSchema,
    SearchQuerySchema,
    VersionQuerySchema,
)
from app.services import batches, order_queries, order_search, order_service
from app.services.order_queries import list_history, stream_orders

COMPLETE_UNTIL = "Complete-Until"
EXPORT = {
    "type": "string",
    "description": "All matching orders that existed at the start of the export, each exactly once. An export that is "
    "aborted, by an error or a time limit, ends without the last chunk of its body (RFC 9112 §8), which clients report "
    "as an error. Resume it with `after`, the id of the last order that was received completely.",
}

# Comparing two versions of a large order takes up to 10 ms. Large histories are compared in one request at a time, so
# that all others wait for no more than one comparison.
_LARGE_HISTORY = 256 * 1024  # bytes
_LARGE_HISTORIES = threading.Lock()

blueprint = Blueprint("orders", __name__, description="Create, read, list and export orders.")


@blueprint.operation(
    "POST",
    "/orders",
    scope="orders:write",
    body=OrderInSchema(),
    dry_run=True,
    responses={201: OrderSchema()},
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
    """Create an order.

    With an `Idempotency-Key`, a retry of the same request never creates a second order: it gets the first response
    again.
    """
    order = order_service.create_order(create_request(current_principal(), body))
    return order_response(order, 201, created=True)


@blueprint.operation(
    "POST",
    "/orders/batch",
    scope="orders:write",
    body=BatchInSchema(),
    dry_run=True,
    responses={200: BatchResultsSchema()},
)
def create_orders(body: dict[str, Any]) -> Response:
    """Create up to 1,000 orders.

    Each entry succeeds or fails on its own; the results are in the order of the entries. An `Idempotency-Key` header is
    refused: each entry has its own `idempotency_key`.
    """
    refuse_header("Idempotency-Key", member="idempotency_key")
    check_conditions(exists=False)
    entries = rate_limit.counted_entries(current_principal(), body["orders"])
    outcomes = batches.create_batch(
        entries, principal=current_principal(), request_id=current_request_id(), dry_run=is_dry_run()
    )
    return batch_response(outcomes, success=201)


@blueprint.operation(
    "GET",
    "/orders/<order_id>",
    scope="orders:read",
    query=VersionQuerySchema(),
    responses={200: OrderSchema(), 304: None},
    problems=(errors.OrderNotFound, errors.VersionMismatch),
    request_headers=("If-Match", "If-None-Match"),
    response_headers=("ETag",),
)
def get_order(query: dict[str, Any], order_id: str) -> Response:
    """Read an order, or an earlier version of it.

    `ETag` is the version of the order; send it in `If-Match` when you change the order.
    """
    order = order_queries.get_order(order_id, principal=current_principal(), version=query.get("version"))
    return order_response(order)


@blueprint.operation(
    "GET",
    "/orders/by-ref/<characters:external_ref>",
    scope="orders:read",
    path_schema=ReferencePathSchema(),
    responses={200: OrderSchema(), 304: None},
    problems=(errors.OrderNotFound, errors.VersionMismatch),
    request_headers=("If-Match", "If-None-Match"),
    response_headers=("ETag",),
)
def get_order_by_reference(external_ref: str) -> Response:
    """Read an order by its external reference.

    The reference must be your own: an order that another caller created with the same reference is not found.
    """
    return order_response(order_queries.get_order_by_reference(external_ref, principal=current_principal()))


@blueprint.operation(
    "GET",
    "/orders",
    scope="orders:read",
    query=OrderQuerySchema(),
    responses={200: OrderListSchema()},
    problems=(errors.InvalidCursor,),
    response_headers=("Link", COMPLETE_UNTIL),
)
def list_orders(query: dict[str, Any]) -> Response:
    """List orders by time of creation.

    The `Link` header has the address of the next page; or send `next_cursor` as the parameter `cursor`.
    """
    limit, cursor = query.pop("limit"), query.pop("cursor", None)
    after = read_cursor(cursor, query=query)
    page = order_queries.list_orders(query, principal=current_principal(), limit=limit, after=after)
    next_cursor = make_cursor(page.next_after, query=query)
    return list_response("orders", page.documents, next_cursor, headers={COMPLETE_UNTIL: page.complete_until})


@blueprint.operation(
    "GET",
    "/orders/search",
    scope="orders:read",
    query=SearchQuerySchema(),
    responses={200: SearchResultSchema()},
    problems=(errors.InvalidCursor,),
    response_headers=("Link",),
)
def search_orders(query: dict[str, Any]) -> Response:
    """Search orders by words and filters.

    A worker keeps the search up to date, usually within a second. `as_of_seq` is the number of the last event that it
    reflects.
    """
    limit, cursor, facets = query.pop("limit"), query.pop("cursor", None), query.pop("facets", ())
    after = read_search_cursor(cursor, query=query)
    page = order_search.search_orders(query, principal=current_principal(), limit=limit, facets=facets, after=after)
    next_cursor = make_search_cursor(page.next_after, query=query)
    return list_response("orders", page.documents, next_cursor, members=page.members)


@blueprint.operation(
    "GET",
    "/orders/export",
    scope="orders:read",
    query=ExportQuerySchema(),
    responses={200: Content(EXPORT_MEDIA_TYPES, EXPORT)},
    problems=(errors.NotAcceptable,),
    response_headers=(COMPLETE_UNTIL,),
)
def export_orders(query: dict[str, Any]) -> Response:
    """Export all matching orders as NDJSON or CSV.

    NDJSON has one order document per line, CSV one row per line of an order.
    """
    export = Export.requested(query.pop("format", None), byte_order_mark=query.pop("bom") == "1")
    limit, after = query.pop("limit", None), query.pop("after", None)
    principal, headers = current_principal(), {COMPLETE_UNTIL: order_queries.complete_until()}
    documents = stream_orders(query, principal=principal, limit=limit, after=after)
    return export.response(documents, principal=principal, headers=headers)


@blueprint.operation(
    "GET",
    "/orders/<order_id>/history",
    scope="orders:read",
    query=HistoryQuerySchema(),
    responses={200: EventListSchema()},
    problems=(errors.OrderNotFound, errors.InvalidCursor),
    response_headers=("Link",),
)
def list_order_history(query: dict[str, Any], order_id: str) -> Response:
    """List the events of an order, oldest first.

    Each event has the order as it was after the change, and the changes from the previous version as a JSON Patch.
    """
    after = read_version_cursor(query.get("cursor"), order_id=order_id) or 0
    page = list_history(order_id, principal=current_principal(), after=after, limit=query["limit"])
    next_cursor = make_version_cursor(page.next_after, order_id=order_id)
    with _LARGE_HISTORIES if page.size > _LARGE_HISTORY else nullcontext():
        events = list(with_pauses(page.events))
    return list_response("events", events, next_cursor)
