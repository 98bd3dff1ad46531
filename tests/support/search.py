"""Search requests, and updates of the projection, as the worker does them."""

from typing import Any

from flask import Flask
from flask.testing import FlaskClient

from app.services.event_feed import sequence_events
from app.services.search_projection import project_events


def project(app: Flask) -> None:
    """Number all events and update the search."""
    with app.app_context():
        while sequence_events():
            pass
        while project_events():
            pass


def search(client: FlaskClient, **parameters: Any) -> Any:
    """The response to a search; a double underscore stands for the dot in `metadata.<key>`."""
    query = {name.replace("__", "."): value for name, value in parameters.items()}
    response = client.get("/orders/search", query_string=query)
    assert response.status_code == 200, response.text
    return response.json


def searched(client: FlaskClient, **parameters: Any) -> list[str]:
    """The ids of the orders on all pages of a search, in their order."""
    ids, cursor = [], {}
    while cursor is not None:
        page = search(client, **parameters, **cursor)
        ids += [order["id"] for order in page["orders"]]
        cursor = {"cursor": page["next_cursor"]} if page["next_cursor"] else None
    return ids
