"""`/orders/{id}/history`."""

from typing import Any

from flask import Response

from app import errors
from app.http.blueprint import Blueprint
from app.http.cursors import make_version_cursor, read_version_cursor
from app.http.principal import current_principal
from app.http.responses import list_response
from app.schemas.documents import EventListSchema
from app.schemas.order import HistoryQuerySchema
from app.services import order_history
from app.services.event_document import render_event

blueprint = Blueprint("events", __name__, description="What happened.")


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
    """List an order's events, oldest first"""
    after = read_version_cursor(query["cursor"], order_id=order_id) if query["cursor"] else 0
    events, more = order_history.list_history(
        order_id, principal=current_principal(), after=after, limit=query["limit"]
    )
    next_cursor = make_version_cursor(events[-1].version, order_id=order_id) if more else None
    return list_response("events", [render_event(event) for event in events], next_cursor)
