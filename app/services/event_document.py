"""The event document: what happened, with the stored order document inside, byte for byte."""

import orjson

from app.db.types import rfc3339
from app.services.order_history import Event


def render_event(event: Event) -> str:
    """An event as JSON text. Its id is the order's and the version's: one change, one version, one event."""
    return orjson.dumps(
        {
            "id": f"{event.order_id}:{event.version}",
            "type": event.type,
            "order_id": event.order_id,
            "version": event.version,
            "actor": event.actor,
            "at": rfc3339(event.at),
            "data": orjson.Fragment(event.snapshot),
        }
    ).decode()
