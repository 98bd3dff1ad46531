"""`/events`, and the events of one order as a stream."""

from typing import Any

import orjson
from flask import Response

from app import errors
from app.http.application import Blueprint, Content
from app.http.auth import current_principal
from app.http.requests import JSON, make_feed_cursor, read_feed_cursor
from app.http.responses import list_response, preferred_media_type
from app.http.streams import (
    EVENT_STREAM,
    STREAM_PAGE,
    EventSource,
    StreamEvent,
    StreamPage,
    last_event_id,
    stream_response,
    wait_for_page,
)
from app.models.order_id import LOWEST_ID, parse_uuid
from app.models.principal import Principal
from app.schemas.documents import FeedPageSchema
from app.schemas.parameters import LATEST, EventQuerySchema, OrderEventQuerySchema
from app.services.event_feed import FeedFilter, list_events, read_ends
from app.services.order_queries import list_history

STREAM = Content(
    (EVENT_STREAM,),
    {
        "type": "string",
        "description": "Server-Sent Events: `event` is the event's type, `data` the event as JSON. A comment every 15 "
        "seconds shows that the stream is alive. It ends when the server stops or the credentials are no longer valid; "
        "clients connect again and send the last `id` as `Last-Event-ID`.",
    },
)

blueprint = Blueprint("events", __name__, description="Read past events in order, and wait for new ones.")


@blueprint.operation(
    "GET",
    "/events",
    scope="events:read",
    query=EventQuerySchema(),
    responses={200: (FeedPageSchema(), STREAM)},
    problems=(errors.InvalidCursor, errors.CursorExpired, errors.NotAcceptable),
    request_headers=("Last-Event-ID",),
    response_headers=("Link",),
)
def list_feed_events(query: dict[str, Any]) -> Response:
    """List or stream the events of all orders.

    The events are numbered without gaps; those of one order are in the order of its versions. Read the feed page by
    page with `next_cursor`: no event is missed or repeated. With `Accept: text/event-stream` the response is a stream
    that does not end.
    """
    streamed = preferred_media_type((JSON, EVENT_STREAM)) == EVENT_STREAM
    limit, wait, after = query.pop("limit"), query.pop("wait"), query.pop("after", None)
    return _stream_feed(query, after) if streamed else _list_feed(query, after, limit=limit, wait=wait)


@blueprint.operation(
    "GET",
    "/orders/<order_id>/events",
    scope="orders:read",
    query=OrderEventQuerySchema(),
    responses={200: STREAM},
    problems=(errors.OrderNotFound,),
    request_headers=("Last-Event-ID",),
)
def stream_order_events(query: dict[str, Any], order_id: str) -> Response:
    """Stream the events of an order.

    First all events after the version `after`, then each new one as it happens, for a page that shows the progress of
    an order to its customer. `data` is an event as in the order's history, `id` its version.
    """
    after, principal = last_event_id(), current_principal()
    position = int(after) if after and after.isascii() and after.isdigit() and len(after) < 10 else query["after"]
    return stream_response(_history(order_id, principal), after=position, principal=principal)


def _stream_feed(query: dict[str, Any], after: str | None) -> Response:
    principal, position = current_principal(), _position(last_event_id() or after, query)
    return stream_response(_feed(query, principal, limit=STREAM_PAGE), after=position, principal=principal)


def _list_feed(query: dict[str, Any], after: str | None, *, limit: int, wait: int) -> Response:
    principal, position = current_principal(), _position(after, query)
    page = wait_for_page(_feed(query, principal, limit=limit), after=position, principal=principal, seconds=wait)
    next_cursor = make_feed_cursor(page.next_after, query=query)
    documents = [event.document for event in page.events]
    response = list_response("events", documents, next_cursor, parameter="after" if page.more else None)
    response.vary.add("Accept")
    return response


def _feed(query: dict[str, Any], principal: Principal, *, limit: int) -> EventSource:
    """The events that match the query, of the orders that the principal may see."""
    channels, channel = principal.channels, query.get("channel")
    if channel is not None:
        channels = frozenset({channel}) & (frozenset({channel}) if channels is None else channels)
    order_id = query.get("order_id")
    # No order has LOWEST_ID: text that is not a UUID matches nothing.
    types = frozenset(query["types"]) if "types" in query else None
    filters = FeedFilter(types, channels, order_id and (parse_uuid(order_id) or LOWEST_ID))

    def read(after: int) -> StreamPage:
        page = list_events(filters, after=after, limit=limit)
        events = [StreamEvent(event.seq, event.type, event.document) for event in page.events]
        return StreamPage(events, page.next_after, page.more)

    return EventSource(filters, read, of_feed=True)


def _position(after: str | None, query: dict[str, Any]) -> int:
    """The number to read after. Raises InvalidCursor."""
    if after is None:
        return read_ends().pruned_seq
    return read_ends().seq if after == LATEST else read_feed_cursor(after, query=query)


def _history(order_id: str, principal: Principal) -> EventSource:
    """The events of an order as in its history. Reading raises OrderNotFound."""

    def read(after: int) -> StreamPage:
        page = list_history(order_id, principal=principal, after=after, limit=STREAM_PAGE)
        events = []
        for document in page.events:
            event = orjson.loads(document)
            events.append(StreamEvent(event["version"], event["type"], document))
        return StreamPage(events, events[-1].id if events else after, page.next_after is not None)

    return EventSource(FeedFilter(order_id=parse_uuid(order_id)), read, of_feed=False)
