"""Tracking, delivery events, and cancellation of fulfillments."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from app.models.lifecycle import DELIVERY_EVENTS
from tests.support.actions import UNIT, event_types, order_after, send_action
from tests.support.samples import error_locations, slug

BOTH = {"items": [{"line": 1, "quantity": 2}]}


def deliver(client: FlaskClient, path: str, type: str, number: int = 1, **members: Any) -> Any:
    return client.post(f"{path}/fulfillments/{number}/events", json={"type": type} | members)


def track(client: FlaskClient, path: str, tracking: Any, number: int = 1) -> Any:
    return client.patch(f"{path}/fulfillments/{number}", json={"tracking": tracking})


def statuses(order: dict[str, Any]) -> tuple[str, str, list[str]]:
    return order["status"], order["fulfillment_status"], [one["status"] for one in order["fulfillments"]]


@pytest.mark.parametrize("type", DELIVERY_EVENTS)
def test_an_event_is_recorded_and_gives_the_fulfillment_its_status(client: FlaskClient, type: str) -> None:
    path = order_after(client, "confirm", "fulfill")

    response = deliver(client, path, type, description="at the door")

    at = response.json["updated_at"]
    [fulfillment] = response.json["fulfillments"]
    assert response.status_code == 201
    assert fulfillment["events"] == [{"type": type, "occurred_at": at, "description": "at the door"}]
    assert fulfillment["status"] == type
    assert event_types(client, path)[-1] == "order.fulfillment_updated"


def test_the_latest_event_in_time_gives_the_status_whenever_it_is_recorded(client: FlaskClient) -> None:
    path = order_after(client, "confirm", "fulfill")

    seen = [
        deliver(client, path, type_, occurred_at=occurred_at).json["fulfillments"][0]["status"]
        for type_, occurred_at in [
            ("out_for_delivery", "2026-01-03T00:00:00Z"),
            ("shipped", "2026-01-01T00:00:00Z"),
            ("in_transit", "2026-01-03T00:30:00+01:00"),  # before the first in UTC
            ("failed_attempt", "2026-01-03T00:00:00Z"),  # at the same time: recorded last
            ("delivered", "2026-01-04T00:00:00Z"),
            ("in_transit", "2026-01-02T00:00:00Z"),
        ]
    ]

    assert seen == ["out_for_delivery", "out_for_delivery", "out_for_delivery", "failed_attempt", "delivered"] + [
        "delivered"
    ]


def test_an_order_is_delivered_when_all_its_fulfillments_are(client: FlaskClient) -> None:
    path = order_after(client, "confirm", "fulfill")

    partly = deliver(client, path, "delivered").json
    send_action(client, path, "fulfill")
    sent = client.get(path).json
    delivered = deliver(client, path, "delivered", 2).json
    corrected = deliver(client, path, "returned_to_sender", 2).json

    assert [one["fulfillment_status"] for one in (partly, sent, delivered, corrected)] == [
        "partial", "fulfilled", "delivered", "fulfilled",
    ]  # fmt: skip
    assert [order["id"] for order in client.get("/orders?fulfillment_status=fulfilled").json["orders"]] == [sent["id"]]


def test_a_cancelled_fulfillment_opens_its_units_again(client: FlaskClient) -> None:
    path = order_after(client, "confirm", "fulfill", "fulfill")

    lost = deliver(client, path, "cancelled", 2).json

    assert statuses(lost) == ("confirmed", "partial", ["shipped", "cancelled"])
    assert lost["items"][0]["fulfilled"] == 1
    assert "fulfill" in lost["allowed_actions"]
    again = send_action(client, path, "fulfill").json
    assert statuses(again) == ("completed", "fulfilled", ["shipped", "cancelled", "shipped"])


def test_an_order_that_was_completed_by_hand_stays_so_when_a_fulfillment_is_cancelled(client: FlaskClient) -> None:
    path = order_after(client, "confirm", "fulfill", "complete")

    assert statuses(deliver(client, path, "cancelled").json) == ("completed", "unfulfilled", ["cancelled"])


def test_a_fulfillment_that_was_cancelled_or_delivered_cannot_be_cancelled(client: FlaskClient) -> None:
    path = order_after(client, "confirm", "fulfill", "fulfill")
    deliver(client, path, "delivered", 1)
    deliver(client, path, "cancelled", 2)

    refused = [deliver(client, path, type_, n) for type_, n in [("cancelled", 1), ("cancelled", 2), ("delivered", 2)]]

    assert [slug(response) for response in refused] == [(409, "illegal-action")] * 3
    assert [response.json["detail"] for response in refused] == [
        "Fulfillment 1 was delivered. Record a return instead.",
        "Fulfillment 2 was cancelled.",
        "Fulfillment 2 was cancelled.",
    ]


@pytest.mark.parametrize("status", ["received", "expected"])
def test_a_fulfillment_with_returned_units_cannot_be_cancelled(client: FlaskClient, status: str) -> None:
    path = order_after(client, "confirm", "fulfill", "fulfill")
    send_action(client, path, "return", UNIT | {"status": status})

    first, second = deliver(client, path, "cancelled", 1), deliver(client, path, "cancelled", 2)

    assert first.status_code == 201  # the returned unit may belong to the other fulfillment
    assert slug(second) == (409, "illegal-action")
    assert second.json["detail"] == "Units of fulfillment 2 have been returned, or are expected back."


@pytest.mark.parametrize("number", [0, 2, 99999999999])
def test_an_unknown_fulfillment_is_404(client: FlaskClient, number: int) -> None:
    path = order_after(client, "confirm", "fulfill")

    assert slug(deliver(client, path, "delivered", number)) == (404, "fulfillment-not-found")
    assert slug(track(client, path, None, number)) == (404, "fulfillment-not-found")


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, "#/type"),
        ({"type": "lost"}, "#/type"),
        ({"type": "delivered", "occurred_at": "2999-01-01T00:00:00Z"}, "#/occurred_at"),
        ({"type": "delivered", "description": "x" * 501}, "#/description"),
        ({"type": "delivered", "place": "Ulm"}, "#/place"),
    ],
)
def test_an_invalid_event_is_refused(client: FlaskClient, body: Any, place: str) -> None:
    path = order_after(client, "confirm", "fulfill")

    assert error_locations(client.post(f"{path}/fulfillments/1/events", json=body)) == {place}
    assert client.get(path).json["version"] == 3


def test_a_fulfillment_has_a_limited_number_of_events(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.models.order_aggregate.DELIVERY_EVENTS_MAX", 2)
    path = order_after(client, "confirm", "fulfill")
    for type_ in ("in_transit", "failed_attempt"):
        deliver(client, path, type_)

    refused = deliver(client, path, "delivered")

    assert slug(refused) == (409, "illegal-action")
    assert refused.json["detail"] == "Fulfillment 1 has 2 events, the maximum."


def test_tracking_is_updated_by_a_merge_patch(client: FlaskClient) -> None:
    path = order_after(client, "confirm", "fulfill")

    seen = [
        track(client, path, tracking).json["fulfillments"][0]["tracking"]
        for tracking in [{"carrier": "DHL"}, {"number": "1"}, {"carrier": None}, {}, None]
    ]

    assert seen == [{"carrier": "DHL"}, {"carrier": "DHL", "number": "1"}, {"number": "1"}, {"number": "1"}, None]
    assert event_types(client, path)[3:] == ["order.fulfillment_updated"] * 4  # the empty patch changes nothing


def test_an_empty_tracking_removes_it(client: FlaskClient) -> None:
    path = order_after(client, "confirm")

    sent = send_action(client, path, "fulfill", UNIT | {"tracking": {}})
    emptied = [track(client, path, tracking) for tracking in [{"number": "1"}, {"number": None}, {}]]

    assert sent.json["fulfillments"][0]["tracking"] is None
    assert [one.json["fulfillments"][0]["tracking"] for one in emptied] == [{"number": "1"}, None, None]
    assert [one.json["version"] for one in emptied] == [4, 5, 5]


@pytest.mark.parametrize(
    ("body", "place"),
    [({}, "#/tracking"), ({"tracking": {"url": "ftp://x"}}, "#/tracking/url"), ({"items": []}, "#/items")],
)
def test_an_invalid_patch_of_a_fulfillment_is_refused(client: FlaskClient, body: Any, place: str) -> None:
    path = order_after(client, "confirm", "fulfill")

    assert place in error_locations(client.patch(f"{path}/fulfillments/1", json=body))


def test_all_units_may_be_shipped_in_one_fulfillment_and_lost(client: FlaskClient) -> None:
    path = order_after(client, "confirm")
    send_action(client, path, "fulfill", BOTH)

    lost = deliver(client, path, "cancelled").json
    cancelled = send_action(client, path, "cancel").json

    assert statuses(lost) == ("confirmed", "unfulfilled", ["cancelled"])
    assert statuses(cancelled) == ("cancelled", "unfulfilled", ["cancelled"])
    assert cancelled["totals"]["total"] == 0
