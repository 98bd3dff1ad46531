"""Queries of event streams."""

from app.models.lifecycle import EVENT_TYPES
from app.models.order_item import ID_MAX
from app.schemas.fields import BoundedInteger, Choices, ParametersSchema, Text

EVENTS_DEFAULT, EVENTS_MAX = 100, 1_000
WAIT_MAX = 20  # seconds; proxies give up after 30
LATEST = "latest"  # the end of the feed


class EventQuerySchema(ParametersSchema):
    """The query of the feed."""

    after = Text(
        200,
        metadata={
            "description": "`next_cursor` of the previous page, with the same filters; or the `seq` of an event; or "
            f"`{LATEST}`, to read only what comes from now on. Without it the feed is read from its beginning."
        },
    )
    types = Choices(EVENT_TYPES, metadata={"description": "Only events of one of these types."})
    order_id = Text(64, metadata={"description": "Only events of this order."})
    channel = Text(ID_MAX, metadata={"description": "Only events of orders of this channel."})
    limit = BoundedInteger(
        1,
        EVENTS_MAX,
        strict=False,
        load_default=EVENTS_DEFAULT,
        metadata={
            "description": "Maximum number of events on the page. A page has fewer events if more would exceed 1 MiB, "
            "or if few of the next 5,000 events match the filters."
        },
    )
    wait = BoundedInteger(
        0,
        WAIT_MAX,
        strict=False,
        load_default=0,
        metadata={"description": "Seconds to wait for an event if there is none yet. The response comes with it."},
    )


class OrderEventQuerySchema(ParametersSchema):
    """The query of the events of an order."""

    after = BoundedInteger(
        0,
        2**31 - 1,
        strict=False,
        load_default=0,
        metadata={"description": "Only events after this version of the order."},
    )
