"""Messages for a message broker; tests/broker publishes them to real ones."""

from typing import Any

import orjson
import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.services.broker import render_message
from app.services.event_feed import FeedFilter, list_events, sequence_events
from tests.support.samples import RICHEST


@pytest.fixture
def order(app: Flask, client: FlaskClient) -> dict[str, Any]:
    created: dict[str, Any] = client.post("/orders", json=RICHEST).json
    return created


def published(app: Flask, *, with_order: bool) -> Any:
    with app.app_context():
        sequence_events()
        [event] = list_events(FeedFilter(), after=0, limit=10).events
        return orjson.loads(render_message(event, source="/orders", with_order=with_order).body)


def test_a_thin_message_has_no_content_of_the_order(app: Flask, order: dict[str, Any]) -> None:
    data = published(app, with_order=False)["data"]

    statuses = {name: value for name, value in order.items() if name == "status" or name.endswith("_status")}
    assert data == {"order_id": order["id"], "version": 1, "seq": 1} | statuses


def test_a_whole_message_has_the_order_as_the_api_returns_it(app: Flask, order: dict[str, Any]) -> None:
    assert published(app, with_order=True)["data"]["order"] == order


def test_the_sequence_sorts_as_the_numbers_of_the_feed(app: Flask, order: dict[str, Any]) -> None:
    assert published(app, with_order=False)["sequence"] == "0000000000000000001"
