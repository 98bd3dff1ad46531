"""Event streams: Server-Sent Events of the feed and of single orders."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.http import streams
from app.services.credentials import key_id, revoke_api_key
from tests.support.credentials import api_key, bearer, token
from tests.support.event_streams import (
    ACCEPT,
    ReceivedEvent,
    number_events,
    open_stream,
    parse_event_stream,
    without_comments,
)
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL, slug
from tests.support.servers import GUNICORN, TIMEOUT, free_port, running, wait_until

NOBODYS = "01a21f31-96b2-70a7-9fd0-000000000000"


def create(client: FlaskClient, **members: Any) -> str:
    return str(client.post("/orders", json=MINIMAL | members).json["id"])


@contextmanager
def stream(client: FlaskClient, path: str, **headers: str) -> Iterator[Iterator[ReceivedEvent]]:
    """A stream of the application in this process, with its comments."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(client.get(path, headers=ACCEPT | given)) as response:
        assert response.status_code == 200, response.data
        assert response.mimetype == "text/event-stream"
        lines = (line for part in response.response for line in bytes(part).decode().split("\n")[:-1])
        yield parse_event_stream(lines)


def numbers(events: list[ReceivedEvent]) -> list[str | None]:
    return [event.id for event in events]


def take(events: Iterator[ReceivedEvent], count: int) -> list[ReceivedEvent]:
    """The next events, without comments."""
    return list(islice(without_comments(events), count))


@pytest.fixture
def short_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream sends a heartbeat every tenth of a second."""
    monkeypatch.setattr(streams, "HEARTBEAT", 0.1)


def test_a_stream_has_the_events_of_the_feed_and_then_each_new_one(app: Flask, client: FlaskClient) -> None:
    order = create(client)
    number_events(app)

    with stream(client, "/events") as events:
        [first] = take(events, 1)
        client.post(f"/orders/{order}/confirm")
        number_events(app)
        [second] = take(events, 1)

    assert (first.id, first.type, second.id, second.type) == ("1", "order.created", "2", "order.confirmed")
    assert [first.data, second.data] == client.get("/events").json["events"]


def test_a_stream_continues_after_the_last_received_event(app: Flask, client: FlaskClient) -> None:
    for _ in range(3):
        create(client)
    number_events(app)
    cursor = client.get("/events?limit=1").json["next_cursor"]

    for path, headers in (
        ("/events", {"Last_Event_ID": "1"}),
        ("/events?after=2", {"Last_Event_ID": "1"}),
        ("/events?after=1", {}),
        (f"/events?after={cursor}", {}),
    ):
        with stream(client, path, **headers) as events:
            assert numbers(take(events, 2)) == ["2", "3"]


def test_a_stream_of_future_events_keeps_its_position_before_its_first_event(app: Flask, client: FlaskClient) -> None:
    create(client)
    number_events(app)
    with stream(client, "/events?after=latest") as events:
        first = next(events)
    create(client)
    number_events(app)

    assert (first.id, first.data) == ("1", None)
    with stream(client, "/events?after=latest", Last_Event_ID=first.id) as events:
        assert numbers(take(events, 1)) == ["2"]


def test_a_stream_has_only_the_events_that_match(app: Flask, client: FlaskClient) -> None:
    first, second = create(client, channel="web"), create(client, channel="shop")
    with stream(client, "/events?types=order.confirmed&channel=shop") as events:
        for order in (first, second):
            client.post(f"/orders/{order}/confirm")
        number_events(app)
        [event] = take(events, 1)

    assert (event.id, event.data["order_id"]) == ("4", second)


def test_heartbeats_contain_the_position_in_the_feed(app: Flask, client: FlaskClient, short_heartbeat: None) -> None:
    """So a client that reconnects does not get skipped events again."""
    create(client)
    number_events(app)
    with stream(client, "/events?types=order.confirmed&after=latest") as events:
        create(client)
        number_events(app)
        comments = (event for event in events if event.data is None and event.id == "2")

        assert next(comments)


def test_many_simultaneous_events_are_all_in_the_stream(app: Flask, client: FlaskClient) -> None:
    with stream(client, "/events") as events:
        for _ in range(5):
            assert client.post("/orders/batch", json={"orders": [MINIMAL] * 300}).status_code == 200
        number_events(app)

        assert numbers(take(events, 1_500)) == [str(number) for number in range(1, 1_501)]


def test_a_request_for_a_stream_that_fails_is_a_problem(app: Flask, client: FlaskClient) -> None:
    assert slug(client.get("/events?after=7", headers=ACCEPT)) == (410, "cursor-expired")
    assert slug(client.get("/events?after=x", headers=ACCEPT)) == (400, "invalid-cursor")
    assert slug(client.get(f"/orders/{NOBODYS}/events")) == (404, "order-not-found")
    assert slug(client.get("/events", headers={"Accept": "text/html"})) == (406, "not-acceptable")


def test_the_stream_of_an_order_has_its_history_and_then_each_new_event(app: Flask, client: FlaskClient) -> None:
    order, other = create(client), create(client)
    with stream(client, f"/orders/{order}/events") as events:
        [first] = take(events, 1)
        client.post(f"/orders/{other}/confirm")
        client.post(f"/orders/{order}/confirm")
        number_events(app)
        [second] = take(events, 1)

    assert (first.id, first.type, second.id, second.type) == ("1", "order.created", "2", "order.confirmed")
    assert [first.data, second.data] == client.get(f"/orders/{order}/history").json["events"]


@pytest.mark.parametrize(("path", "last"), [("?after=1", ""), ("", "1"), ("?after=0", "1")])
def test_the_stream_of_an_order_continues_after_a_version(
    app: Flask, client: FlaskClient, path: str, last: str
) -> None:
    order = create(client)
    client.post(f"/orders/{order}/confirm")

    with stream(client, f"/orders/{order}/events{path}", Last_Event_ID=last) as events:
        assert numbers(take(events, 1)) == ["2"]


def test_a_customer_streams_their_own_order_in_the_customers_view(
    app: Flask, secure_app: Flask, secure_client: FlaskClient
) -> None:
    shop = bearer(api_key(secure_app, "orders:write", "orders:manage"))
    ada, bob = bearer(token(customer="c-ada")), bearer(token(customer="c-bob"))
    path = secure_client.post("/orders", json=MINIMAL | {"customer_id": "c-ada"}, headers=shop).headers["Location"]
    number_events(app)

    assert slug(secure_client.get(f"{path}/events", headers=bob)) == (404, "order-not-found")
    with stream(secure_client, f"{path}/events", **ada) as events:
        [event] = take(events, 1)
    assert event.data["actor"] == "service"
    assert [event.data] == secure_client.get(f"{path}/history", headers=ada).json["events"]


def test_the_stream_ends_when_the_order_is_no_longer_the_customers(
    app: Flask, secure_app: Flask, secure_client: FlaskClient
) -> None:
    shop = bearer(api_key(secure_app, "orders:write", "privacy:erase"))
    ada = bearer(token(customer="c-ada"))
    path = secure_client.post("/orders", json=MINIMAL | {"customer_id": "c-ada"}, headers=shop).headers["Location"]
    with stream(secure_client, f"{path}/events", **ada) as events:
        take(events, 1)
        secure_client.post(f"{path}/cancel", json={"reason": "customer"}, headers=shop)
        secure_client.delete("/customers/c-ada/personal-data", headers=shop)
        number_events(app)

        assert list(events) == []


def test_a_revoked_key_ends_its_streams(
    app: Flask, secure_app: Flask, secure_client: FlaskClient, short_heartbeat: None
) -> None:
    key = api_key(secure_app, "events:read")
    with stream(secure_client, "/events", **bearer(key)) as events:
        assert next(events)
        with app.app_context():
            revoke_api_key(key_id(key))

        assert all(event.data is None for event in events)  # it ends


def gunicorn(database_url: str, *, application: str = GUNICORN[-1], **settings: str) -> Any:
    port = free_port()
    options = {"PORT": str(port), "WEB_CONCURRENCY": "1", "DATABASE_URL": database_url} | settings
    return running(*GUNICORN[:-1], application, port=port, **options)


@on_sqlite
def test_a_worker_has_a_limited_number_of_streams(app: Flask, database_url: str) -> None:
    stopped = "tests.support.stopped_clocks:app"
    with gunicorn(database_url, application=stopped, EVENT_STREAMS="2") as server, ExitStack() as streams:
        for _ in range(2):
            streams.enter_context(open_stream(server.port, "/events"))

        wait_until(lambda: b"\nevent_streams 2.0\n" in server.request("GET", "/metrics").body)
        for path, headers in (("/events", ACCEPT), ("/events?wait=1", {})):
            refused = server.request("GET", path, headers=headers)
            assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        assert server.request("GET", "/events").status == 200  # without waiting

        streams.close()  # without heartbeats, the server sees it only by watching the connections
        wait_until(lambda: b"\nevent_streams 0.0\n" in server.request("GET", "/metrics").body)


def test_a_customer_has_a_limited_number_of_streams(app: Flask, secure_app: Flask, secure_client: FlaskClient) -> None:
    ada, bob = bearer(token(customer="c-ada")), bearer(token(customer="c-bob"))
    paths = [
        secure_client.post("/orders", json=MINIMAL | {"customer_id": customer}, headers=headers).headers["Location"]
        for customer, headers in (("c-ada", ada), ("c-bob", bob))
    ]
    for _ in range(secure_app.config["EVENT_STREAMS_CUSTOMERS"] + 1):  # no body, and no stream
        assert secure_client.head(f"{paths[0]}/events", headers=ada).status_code == 200
    with ExitStack() as streams:
        for _ in range(secure_app.config["EVENT_STREAMS_CUSTOMERS"]):
            streams.enter_context(stream(secure_client, f"{paths[0]}/events", **ada))

        assert slug(secure_client.get(f"{paths[0]}/events", headers=ada)) == (429, "too-many-requests")
        with stream(secure_client, f"{paths[1]}/events", **bob):
            pass
    with stream(secure_client, f"{paths[0]}/events", **ada):
        pass


def test_streams_and_requests_share_a_server_whose_stop_ends_the_streams(
    app: Flask, client: FlaskClient, database_url: str
) -> None:
    orders = [create(client) for _ in range(100)]
    number_events(app)
    with gunicorn(database_url) as server, ExitStack() as streams:
        opened = [streams.enter_context(open_stream(server.port, f"/orders/{order}/events")) for order in orders]
        assert all(next(events).type == "order.created" for events in opened)
        feed = streams.enter_context(open_stream(server.port, "/events?after=latest"))

        for order in orders:
            assert server.request("POST", f"/orders/{order}/confirm").status == 200
        number_events(app)

        assert all(next(events).type == "order.confirmed" for events in opened)
        assert {next(feed).type for _ in orders} == {"order.confirmed"}

        server.process.send_signal(signal.SIGTERM)

        assert [list(events) for events in (feed, *opened)] == [[]] * 101
        assert server.process.wait(TIMEOUT) == 0


@on_sqlite
def test_a_script_of_an_allowed_origin_can_read_a_stream(app: Flask, client: FlaskClient, database_url: str) -> None:
    order = create(client)
    origin = {"Origin": "https://shop.example"}
    with gunicorn(database_url, CORS_ORIGINS=origin["Origin"]) as server:
        preflight = server.request(
            "OPTIONS", f"/orders/{order}/events", headers=origin | {"Access-Control-Request-Method": "GET"}
        )
        with open_stream(server.port, f"/orders/{order}/events", origin) as events:
            assert next(events).id == "1"

    assert "Last-Event-ID" in preflight.headers["Access-Control-Allow-Headers"]
