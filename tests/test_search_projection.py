"""The projection of the search: updated by workers and erasures, rebuilt by a command, and verified."""

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Executable, Table, delete, insert, select, update
from structlog.testing import capture_logs

from app.cli.seed import sample_histories
from app.db import statements
from app.db.engine import db
from app.models import EVENTS, SEARCH, SEARCH_HEAD, SEARCH_TERMS
from app.services import search_projection
from app.services.event_feed import prune_feed, sequence_events
from app.services.order_storage import insert_histories
from app.services.search_projection import project_events, search_row, store_rows
from tests.support.order_life import cancelled_life, complete_life
from tests.support.samples import ADDRESS, MINIMAL, RICHEST
from tests.support.search import project, search, searched
from tests.support.servers import running_worker, wait_until
from tests.support.tables import delete_all_rows


def stored(app: Flask, table: Table) -> list[dict[str, Any]]:
    with app.app_context(), db.engine.connect() as connection:
        rows = connection.execute(select(table).order_by(*table.primary_key))
        return [dict(row) for row in rows.mappings()]


def assert_projected(app: Flask, client: FlaskClient) -> None:
    """Assert that the projection matches the documents of the orders."""
    orders, cursor = [], {}
    while cursor is not None:
        page = client.get("/orders", query_string={"sort": "created_at", "limit": 100} | cursor).json
        orders += page["orders"]
        cursor = {"cursor": page["next_cursor"]} if page["next_cursor"] else None
    rows = [search_row(order) for order in orders]
    assert stored(app, SEARCH) == sorted(rows, key=lambda row: row["order_id"])
    terms = {(term, row["order_id"]) for row in rows for term in row["terms"].split()}
    assert {(row["term"], row["order_id"]) for row in stored(app, SEARCH_TERMS)} == terms


@settings(max_examples=settings().max_examples // 3)  # an example has dozens of events
@given(seed=st.integers(0, 2**31 - 1), batches=st.lists(st.integers(1, 8), min_size=1, max_size=4))
def test_the_projection_equals_the_documents_after_random_actions(
    app: Flask, client: FlaskClient, seed: int, batches: list[int]
) -> None:
    delete_all_rows(app)
    for i, size in enumerate(batches):
        histories = list(sample_histories(size, seed=seed, until=datetime(2026, 1 + i, 1, tzinfo=UTC)))
        with app.app_context():
            insert_histories(histories)
        project(app)

    assert_projected(app, client)


def test_an_order_that_cannot_be_read_does_not_keep_others_from_the_search(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner
) -> None:
    broken, other = (client.post("/orders", json=MINIMAL).json["id"] for _ in range(2))
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(update(EVENTS).where(EVENTS.c.order_id == broken).values(snapshot="{}"))

    with capture_logs() as logged:
        project(app)

    assert [entry["order_id"] for entry in logged if entry["log_level"] == "error"] == [broken]
    assert searched(client) == [other]
    rebuilt = runner.invoke(args=["search", "rebuild"])
    assert rebuilt.exit_code == 0 and rebuilt.stdout.startswith("1 order in the search")
    assert searched(client) == [other]


def test_the_projection_follows_every_action(app: Flask, client: FlaskClient) -> None:
    for path in (complete_life(app), cancelled_life(app)):
        project(app)
        changed = {"tags": ["new"], "metadata": {"new": "pair"}, "shipping_address": ADDRESS | {"name": "Grace Hopper"}}
        client.patch(path, json=changed, content_type="application/merge-patch+json")
        project(app)

    assert_projected(app, client)
    assert len(searched(client, q="hopper", tag="new", metadata__new="pair")) == 2
    assert searched(client, tag="gift") == []


def test_workers_that_project_at_the_same_time_do_it_once(app: Flask, client: FlaskClient) -> None:
    paths = [client.post("/orders", json=MINIMAL | {"tags": [str(n)]}).headers["Location"] for n in range(30)]
    for n, path in enumerate(paths):
        client.patch(path, json={"tags": [f"new-{n}"]})

    def work(_: int) -> None:
        with app.app_context():
            for _ in range(20):
                sequence_events()
                project_events()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    project(app)

    assert_projected(app, client)
    assert search(client)["as_of_seq"] == 60


def title_of_many_words(n: int) -> str:
    """A title of 50 words that no other order has."""
    return " ".join(f"{n}{word:02}" for word in range(50))


def test_a_transaction_has_a_limited_number_of_terms(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_projection, "TERMS_MAX", 200)
    for n in range(6):
        item = {"item_id": "sku-1", "title": title_of_many_words(n), "quantity": 1}
        client.post("/orders", json=MINIMAL | {"items": [item]})
    with app.app_context():
        sequence_events()

        assert project_events()

    assert search(client)["behind"] == 3
    project(app)
    assert_projected(app, client)
    assert runner.invoke(args=["search", "rebuild"]).exit_code == 0
    assert_projected(app, client)
    assert runner.invoke(args=["verify"]).exit_code == 0


def test_a_statement_reads_a_limited_size_of_documents(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_rows(query: Executable) -> Any:
        rows = statements.read_rows(query)
        numbers.append(sum("snapshot" in row._fields for row in rows))
        return rows

    numbers: list[int] = []
    size = max(len(client.post("/orders", json=MINIMAL | {"note": "ä" * 400}).data) for _ in range(5))
    monkeypatch.setattr(search_projection, "DOCUMENTS_BYTES", 2 * size)
    monkeypatch.setattr(search_projection, "read_rows", read_rows)
    with app.app_context():
        sequence_events()
        project_events()

    assert max(numbers) == 2
    assert search(client)["behind"] == 0
    assert_projected(app, client)
    numbers.clear()
    assert runner.invoke(args=["search", "rebuild", "--jobs", "1"]).exit_code == 0
    assert_projected(app, client)


def test_an_earlier_version_never_replaces_a_later_one(app: Flask, client: FlaskClient) -> None:
    first = client.post("/orders", json=RICHEST).json
    client.patch(f"/orders/{first['id']}", json={"shipping_address": None, "billing_address": None})
    project(app)

    with app.app_context(), db.engine.begin() as connection:
        store_rows(connection, [search_row(first)])

    assert_projected(app, client)
    assert searched(client, q="lovelace") == []


def test_a_restarted_worker_continues_after_the_last_projected_event(
    app: Flask, client: FlaskClient, database_url: str
) -> None:
    client.post("/orders", json=MINIMAL)
    with running_worker(DATABASE_URL=database_url) as worker:
        wait_until(lambda: search(client, limit=1)["as_of_seq"] == 1)
        for _ in range(14):
            client.post("/orders", json=MINIMAL)
        worker.process.send_signal(signal.SIGKILL)
        worker.process.wait()
    with running_worker(DATABASE_URL=database_url) as worker:
        wait_until(lambda: search(client, limit=1)["as_of_seq"] == 15)
        metrics = worker.request("GET", "/metrics").body.decode()

    assert "\nsearch_as_of_seq 15.0\n" in metrics
    assert_projected(app, client)


def test_an_erasure_reaches_the_search_in_its_own_transaction(app: Flask, client: FlaskClient) -> None:
    order = client.post("/orders", json=RICHEST).json
    client.post(f"/orders/{order['id']}/cancel", json={"reason": "customer"})
    project(app)
    assert searched(client, q="lovelace", tag="gift", metadata__channel="web") == [order["id"]]

    erased = client.delete("/customers/c-123/personal-data")

    assert erased.status_code == 200, erased.text
    assert searched(client, q="lovelace") == searched(client, tag="gift") == searched(client, q="c-123") == []
    assert searched(client, q="mug") == [order["id"]]
    assert_projected(app, client)
    texts = " ".join(f"{row['term']}" for row in stored(app, SEARCH_TERMS)) + stored(app, SEARCH)[0]["terms"]
    assert not [word for word in ("ada", "lovelace", "2079460000", "example", "sw1y", "analytical") if word in texts]


def test_an_erasure_reaches_orders_that_the_search_does_not_include_yet(app: Flask, client: FlaskClient) -> None:
    order = client.post("/orders", json=RICHEST).json
    client.post(f"/orders/{order['id']}/cancel", json={"reason": "customer"})
    client.delete("/customers/c-123/personal-data")
    with app.app_context(), db.engine.begin() as connection:
        store_rows(connection, [search_row(order)])  # a worker that has read the order before

    assert searched(client, q="lovelace") == []
    project(app)
    assert_projected(app, client)


def run(app: Flask, *statements: Executable) -> None:
    with app.app_context(), db.engine.begin() as connection:
        for statement in statements:
            connection.execute(statement)


NOBODY = "0199c7a4-0000-7000-8000-000000000000"
Corruption = Callable[[], list[Executable]]
CORRUPTIONS: dict[str, tuple[Corruption, list[str]]] = {
    "a lost row": (lambda: [delete(SEARCH)], [
        "order {id}: order_search has no row, but version 1 is due",
        *["order {id}: order_search_terms has a term that is not the order's"] * 4,
    ]),
    "an old row": (lambda: [update(SEARCH).values(version=1)], [
        "order {id}: order_search has version 1, but version 2 is due",
    ]),
    "a row of a later version": (lambda: [update(SEARCH).values(version=3)], [
        "order {id}: order_search has version 3, but the order has 2",
    ]),
    "another status": (lambda: [update(SEARCH).values(status="completed")], [
        "order {id}: status in order_search differs from the document",
    ]),
    "a lost term": (lambda: [delete(SEARCH_TERMS).where(SEARCH_TERMS.c.term == "sku1")], [
        "order {id}: order_search_terms does not have all of its terms",
    ]),
    "a surplus term": (lambda: [update(SEARCH_TERMS).where(SEARCH_TERMS.c.term == "sku1").values(term="x")], [
        "order {id}: order_search_terms does not have all of its terms",
        "order {id}: order_search_terms has a term that is not the order's",
    ]),
    "a term of no order": (lambda: [insert(SEARCH_TERMS).values(term="x", order_id=NOBODY)], [
        f"order {NOBODY}: order_search_terms has a term that is not the order's",
    ]),
}  # fmt: skip


@pytest.fixture
def order_id(app: Flask, client: FlaskClient) -> str:
    order_id = str(client.post("/orders", json=MINIMAL).json["id"])
    client.post(f"/orders/{order_id}/confirm")
    project(app)
    return order_id


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_of_the_search_is_reported_and_repaired_by_a_rebuild(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner, order_id: str, name: str
) -> None:
    corruption, expected = CORRUPTIONS[name]
    run(app, *corruption())

    found = runner.invoke(args=["verify"])
    rebuilt = runner.invoke(args=["search", "rebuild"])

    *lines, last = found.stdout.splitlines()
    if name == "a lost row":
        lines = lines[:1] + lines[-4:]
    assert lines == [line.format(id=order_id) for line in expected]
    assert rebuilt.exit_code == 0 and rebuilt.stdout.startswith("1 order in the search, as of number 2 of")
    assert_projected(app, client)
    assert runner.invoke(args=["verify"]).exit_code == 0


def test_a_search_that_is_ahead_of_a_restored_feed_continues_at_the_end_of_the_feed(
    app: Flask, client: FlaskClient
) -> None:
    client.post("/orders", json=MINIMAL)
    project(app)
    run(app, update(SEARCH_HEAD).values(seq=5))
    with capture_logs() as logs:
        project(app)
    client.post("/orders", json=MINIMAL | {"customer_id": "new"})
    project(app)

    assert_projected(app, client)
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("search is ahead of the feed: run `flask search rebuild`", "error")
    ]


def test_a_search_that_is_behind_is_no_difference(app: Flask, client: FlaskClient, runner: FlaskCliRunner) -> None:
    order_id = client.post("/orders", json=MINIMAL).json["id"]
    assert runner.invoke(args=["verify"]).exit_code == 0
    with app.app_context():
        sequence_events()
    assert runner.invoke(args=["verify"]).exit_code == 0
    project(app)
    client.post(f"/orders/{order_id}/confirm")
    assert runner.invoke(args=["verify"]).exit_code == 0


def test_a_search_without_its_head_is_named(app: Flask, runner: FlaskCliRunner, order_id: str) -> None:
    run(app, delete(SEARCH_HEAD))
    found = runner.invoke(args=["verify"])
    rebuilt = runner.invoke(args=["search", "rebuild"])

    assert found.stdout.splitlines()[0] == "search: search_head has no row"
    assert rebuilt.exit_code == 0 and stored(app, SEARCH_HEAD) == [{"id": 1, "seq": 2}]


def test_a_rebuild_creates_the_search_of_a_service_without_one(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner
) -> None:
    with app.app_context():
        insert_histories(list(sample_histories(30, seed=1, until=datetime(2026, 1, 1, tzinfo=UTC))))
        while sequence_events():
            pass

    rebuilt = runner.invoke(args=["search", "rebuild"])

    page = search(client)
    assert rebuilt.exit_code == 0, rebuilt.output
    assert page["behind"] == 0 and page["as_of_seq"] > 30
    assert_projected(app, client)
    with app.app_context():
        assert prune_feed(older_than=timedelta(0)) == page["as_of_seq"]
