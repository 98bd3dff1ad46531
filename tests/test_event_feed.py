"""`GET /events`: the feed of all orders, page by page."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.test import TestResponse

from app.http.streams import EventStreams
from app.models.lifecycle import EVENT_TYPES
from app.schemas.parameters import EVENTS_MAX
from app.services import event_feed
from app.services.event_feed import FeedWatcher, Subscription, prune_feed
from tests.support.concurrency import run_concurrently
from tests.support.credentials import api_key, bearer
from tests.support.event_streams import number_events
from tests.support.samples import MINIMAL, RICHEST, slug
from tests.support.search import project
from tests.support.servers import wait_until
from tests.support.tables import delete_all_rows

Event = dict[str, Any]


def create(client: FlaskClient, **members: Any) -> str:
    return str(client.post("/orders", json=MINIMAL | members).json["id"])


def page(client: FlaskClient, **query: Any) -> Any:
    response = client.get(f"/events?{urlencode(query)}")
    assert response.status_code == 200, response.json
    return response.json


def seqs(events: list[Event]) -> list[int]:
    return [event["seq"] for event in events]


def read_all(client: FlaskClient, **query: Any) -> Iterator[Event]:
    """All events, by following the cursors until the feed's end."""
    cursor: dict[str, str] = {}
    while True:
        found = page(client, **query, **cursor)
        yield from found["events"]
        if not found["events"] and cursor == {"after": found["next_cursor"]}:
            return
        cursor = {"after": found["next_cursor"]}


def prune(app: Flask) -> None:
    project(app)
    with app.app_context():
        while prune_feed(older_than=timedelta(0)):
            pass


def test_each_event_of_each_order_has_a_number(app: Flask, client: FlaskClient) -> None:
    first, second = create(client), create(client)
    confirmed = client.post(f"/orders/{first}/confirm", headers={"X-Request-Id": "r-1"})
    number_events(app)

    events = page(client)["events"]

    assert [(event["seq"], event["order_id"], event["version"], event["type"]) for event in events] == [
        (1, first, 1, "order.created"), (2, second, 1, "order.created"), (3, first, 2, "order.confirmed")
    ]  # fmt: skip
    assert events[2] == {
        "id": f"{first}:2",
        "seq": 3,
        "type": "order.confirmed",
        "order_id": first,
        "version": 2,
        "actor": "anonymous",
        "request_id": "r-1",
        "at": confirmed.json["updated_at"],
        "data": confirmed.json,
    }


def test_an_event_that_has_no_number_yet_is_not_in_the_feed(app: Flask, client: FlaskClient) -> None:
    create(client)

    assert page(client)["events"] == []


def test_a_reader_continues_where_the_last_page_ended_even_if_it_was_empty(app: Flask, client: FlaskClient) -> None:
    empty = page(client)
    create(client)
    create(client)
    number_events(app)

    first = page(client, after=empty["next_cursor"], limit=1)
    second = page(client, after=first["next_cursor"])
    third = page(client, after=second["next_cursor"])
    create(client)
    number_events(app)
    fourth = page(client, after=third["next_cursor"])

    assert [seqs(one["events"]) for one in (empty, first, second, third, fourth)] == [[], [1], [2], [], [3]]


def test_a_link_leads_to_the_next_page_if_there_is_one(app: Flask, client: FlaskClient) -> None:
    create(client)
    create(client)
    number_events(app)

    first = client.get("/events?limit=1")
    second = client.get(first.headers["Link"].partition(">")[0].removeprefix("<"))

    assert seqs(second.json["events"]) == [2]
    assert "Link" not in second.headers


CHANNELS = ["web", "shop", None]
steps = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["create", "confirm", "note"])), max_size=15)


@given(
    steps=steps,
    types=st.none() | st.sets(st.sampled_from(["order.created", "order.confirmed", "order.updated"]), min_size=1),
    channel=st.none() | st.sampled_from(["web", "shop", "other"]),
    order=st.none() | st.integers(0, 4),
    limit=st.integers(1, 5),
    scan=st.integers(1, 4),
)
def test_following_the_cursors_yields_each_matching_event_once_and_in_order(
    app: Flask, client: FlaskClient, steps: list[tuple[int, str]], types: Any, channel: Any, order: Any, limit: int,
    scan: int,
) -> None:  # fmt: skip
    delete_all_rows(app)
    ids: list[str] = []
    for number, step in steps:
        if step == "create":
            ids.append(create(client, channel=CHANNELS[number % 3]))
        elif number < len(ids):
            path = f"/orders/{ids[number]}"
            client.post(f"{path}/confirm") if step == "confirm" else client.patch(path, json={"note": f"{number}"})
        if number == 2:
            number_events(app)
    number_events(app)
    query = {"types": types and ",".join(types), "channel": channel}
    query["order_id"] = None if order is None else [*ids, *["01a21f31-96b2-70a7-9fd0-000000000000"] * 5][order]
    everything = list(read_all(client, limit=1000))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(event_feed, "SCAN_MAX", scan)
        # An empty page ends `read_all` only at the feed's end: there the cursor stays the same.
        found = list(read_all(client, limit=limit, **{name: value for name, value in query.items() if value}))

    assert seqs(everything) == list(range(1, len(everything) + 1))
    assert found == [
        event
        for event in everything
        if (types is None or event["type"] in types)
        and (channel is None or event["data"]["channel"] == channel)
        and (query["order_id"] is None or event["order_id"] == query["order_id"])
    ]


def test_the_cursor_of_a_page_without_a_match_is_after_the_skipped_events(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "SCAN_MAX", 2)
    order = [create(client) for _ in range(5)][0]
    client.post(f"/orders/{order}/confirm")
    number_events(app)

    pages = [page(client, types="order.confirmed")]
    for _ in range(2):
        pages.append(page(client, types="order.confirmed", after=pages[-1]["next_cursor"]))

    assert [seqs(one["events"]) for one in pages] == [[], [], [6]]


def test_a_reader_may_begin_after_any_number_or_at_the_end(app: Flask, client: FlaskClient) -> None:
    for _ in range(3):
        create(client)
    number_events(app)

    assert seqs(page(client, after="1")["events"]) == [2, 3]
    latest = page(client, after="latest")
    assert latest["events"] == []
    create(client)
    number_events(app)
    assert seqs(page(client, after=latest["next_cursor"])["events"]) == [4]


@pytest.mark.parametrize("after", ["", "x", "-1", "1e3", "AAAA", "9223372036854775808", "9" * 20, "１"])
def test_an_invalid_cursor_is_refused(app: Flask, client: FlaskClient, after: str) -> None:
    assert client.get("/events", query_string={"after": after}).status_code == 400


def test_a_cursor_belongs_to_its_filters(app: Flask, client: FlaskClient) -> None:
    cursor = page(client, types="order.created,order.updated")["next_cursor"]

    assert page(client, types="order.updated,order.created", after=cursor)["events"] == []
    for other in ("types=order.created", "channel=web", ""):
        assert slug(client.get(f"/events?{other}&after={cursor}")) == (400, "invalid-cursor")


@pytest.mark.parametrize(
    "query", ["types=order.paid%20", "types=", "limit=0", f"limit={EVENTS_MAX + 1}", "wait=21", "wait=-1", "before=1"]
)
def test_invalid_parameters_are_refused(app: Flask, client: FlaskClient, query: str) -> None:
    assert slug(client.get(f"/events?{query}")) == (400, "invalid-request")


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_each_type_of_event_is_a_filter(app: Flask, client: FlaskClient, event_type: str) -> None:
    assert page(client, types=event_type)["events"] == []


def test_an_order_that_does_not_exist_has_no_events(app: Flask, client: FlaskClient) -> None:
    create(client)
    number_events(app)

    assert page(client, order_id="nobody's")["events"] == []


def test_a_page_of_large_orders_ends_early(app: Flask, client: FlaskClient) -> None:
    items = [{"item_id": f"sku-{n}", "quantity": 1} for n in range(100)]
    metadata = {f"key-{n}": "e" * 500 for n in range(50)}
    for _ in range(50):
        assert client.post("/orders", json=MINIMAL | {"items": items, "metadata": metadata}).status_code == 201
    number_events(app)

    first = page(client, limit=1000)

    assert 10 < len(first["events"]) < 50
    assert seqs(list(read_all(client, limit=1000))) == list(range(1, 51))


def test_a_cursor_older_than_the_feed_is_410_and_says_how_to_continue(app: Flask, client: FlaskClient) -> None:
    cursor = page(client)["next_cursor"]
    order = create(client)
    client.post(f"/orders/{order}/confirm")
    number_events(app)
    prune(app)

    expired = client.get(f"/events?after={cursor}")
    assert slug(expired) == (410, "cursor-expired")
    assert expired.json["oldest_after"] == 2

    client.patch(f"/orders/{order}", json={"note": "n"})
    number_events(app)
    assert seqs(page(client, after=expired.json["oldest_after"])["events"]) == [3]
    assert seqs(page(client)["events"]) == [3]  # a new reader begins with the existing events
    assert len(client.get(f"/orders/{order}/history").json["events"]) == 3  # the snapshots are kept


def test_a_cursor_beyond_the_end_of_the_feed_is_410(app: Flask, client: FlaskClient) -> None:
    """After a restore from a backup, the feed is shorter."""
    create(client)
    number_events(app)

    assert slug(client.get("/events?after=2")) == (410, "cursor-expired")


def feed_position(app: Flask) -> int:
    """The number up to which waiting readers have been compared with the feed."""
    watcher: FeedWatcher = app.extensions["event_streams"].watcher
    return watcher.head


@contextmanager
def waiting_reader(app: Flask, **query: Any) -> Iterator[Future[Any]]:
    """The future page of a reader that waits for events."""
    slots = app.extensions["event_streams"].slots
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(page, app.test_client(), wait=20, **query)
        wait_until(lambda: slots.occupied_count == 1)
        yield reading


def test_readers_do_not_wait_for_an_unavailable_database_one_after_the_other(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers, begun, attempts = 10, list[int](), list[int]()

    def fail() -> Any:
        attempts.append(1)
        wait_until(lambda: len(begun) == readers)
        time.sleep(0.2)  # they join the next batch meanwhile
        raise PoolTimeout("No database connection became free in time.")

    def read(number: int) -> TestResponse:
        begun.append(number)
        return app.test_client().get(f"/events?after={number}")

    monkeypatch.setattr(event_feed, "read_ends", fail)

    responses = run_concurrently(readers, read)

    assert {slug(response) for response in responses} == {(503, "service-unavailable")}
    assert len(attempts) < readers


def test_pages_that_cannot_be_read_in_time_fail_no_reader_further_ahead(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers, behind, begun, check = 10, 5, list[int](), event_feed.require_retained
    for _ in range(readers):
        create(client)
    number_events(app)

    def fail_at_the_beginning(after: int, head: event_feed.FeedEnds) -> None:
        wait_until(lambda: len(begun) == readers)
        if after < behind:
            raise psycopg.errors.QueryCanceled("canceling statement due to statement timeout")
        check(after, head)

    def read(number: int) -> TestResponse:
        begun.append(number)
        return app.test_client().get(f"/events?after={number}")

    monkeypatch.setattr(event_feed, "require_retained", fail_at_the_beginning)

    responses = run_concurrently(readers, read)

    assert [response.status_code for response in responses] == [503] * behind + [200] * (readers - behind)


def test_waiting_ends_with_the_event(app: Flask, client: FlaskClient) -> None:
    with waiting_reader(app) as reading:
        assert not reading.done()
        create(client)
        number_events(app)

    assert seqs(reading.result()["events"]) == [1]


def test_waiting_for_certain_events_skips_others(app: Flask, client: FlaskClient) -> None:
    order = create(client)
    number_events(app)
    at_end = page(client, types="order.confirmed")["next_cursor"]

    with waiting_reader(app, types="order.confirmed", after=at_end) as reading:
        create(client)
        number_events(app)
        wait_until(lambda: feed_position(app) == 2)
        assert not reading.done()
        client.post(f"/orders/{order}/confirm")
        number_events(app)

    assert seqs(reading.result()["events"]) == [3]


def test_a_wait_without_a_match_ends_with_an_empty_page_after_the_skipped_events(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(client)
    number_events(app)
    wait = Subscription.wait

    def wait_for_other_events(subscription: Subscription, _seconds: float) -> int | None:
        wait_until(lambda: feed_position(app) == 1)
        subscription.reset()
        create(client)
        number_events(app)
        wait_until(lambda: feed_position(app) == 2)
        return wait(subscription, 0)

    monkeypatch.setattr(Subscription, "wait", wait_for_other_events)
    found = page(app.test_client(), types="order.confirmed", after="latest", wait=20)
    prune(app)

    assert found["events"] == []
    assert page(client, types="order.confirmed", after=found["next_cursor"])["events"] == []


def test_waiting_works_again_after_no_thread_could_be_started(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setitem(app.extensions, "event_streams", EventStreams(app))  # of which no thread is running yet
    with monkeypatch.context() as without_threads:
        without_threads.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            client.get("/events?wait=5")
    with waiting_reader(app, after="latest") as reading:
        create(client)
        number_events(app)

    assert seqs(reading.result()["events"]) == [1]


def test_existing_events_are_returned_without_waiting(app: Flask, client: FlaskClient) -> None:
    create(client)
    number_events(app)

    assert seqs(page(client, wait=20)["events"]) == [1]


def test_a_key_that_is_bound_to_channels_reads_their_events_only(secure_app: Flask, secure_client: FlaskClient) -> None:
    everything = bearer(api_key(secure_app, "orders:write", "events:read", name="shop"))
    bound = bearer(api_key(secure_app, "events:read", name="outlet", channels=["web", "outlet"]))
    for channel in ("web", "phone", "outlet", None):
        secure_client.post("/orders", json=MINIMAL | {"channel": channel}, headers=everything)
    number_events(secure_app)

    def channels(headers: dict[str, str], query: str = "") -> list[str | None]:
        return [
            event["data"]["channel"] for event in secure_client.get(f"/events{query}", headers=headers).json["events"]
        ]

    assert channels(everything) == ["web", "phone", "outlet", None]
    assert channels(bound) == ["web", "outlet"]
    assert channels(bound, "?channel=web") == ["web"]
    assert channels(bound, "?channel=phone") == []


def test_after_an_erasure_the_feed_has_no_personal_data(app: Flask, client: FlaskClient) -> None:
    order = client.post("/orders", json=RICHEST | {"customer_id": "c-canary", "note": "canary"}).json["id"]
    client.post(f"/orders/{order}/cancel", json={"reason": "customer", "note": "canary"})
    number_events(app)
    assert client.delete("/customers/c-canary/personal-data").json["orders"] == 1
    number_events(app)

    feed = client.get("/events")

    assert [event["type"] for event in feed.json["events"]][-1] == "order.erased"
    assert b"canary" not in feed.data
