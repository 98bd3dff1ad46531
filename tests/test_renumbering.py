"""`flask events renumber`: after a restore, no reader mistakes a new event for one that it knows."""

from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import update

from app.db.engine import db
from app.models import BROKER_CURSOR
from app.models.webhook import WebhookEndpoint
from app.services import event_feed
from tests.support.samples import MINIMAL, slug
from tests.support.search import project, search
from tests.support.webhooks import create_webhook, queue_events, webhook_rules

ADDED = 2_000_000_000


def seqs(client: FlaskClient, path: str = "/events") -> list[int]:
    return [event["seq"] for event in client.get(path).json["events"]]


def create(app: Flask, client: FlaskClient, count: int) -> None:
    for _ in range(count):
        client.post("/orders", json=MINIMAL)
    project(app)


def deliveries(client: FlaskClient, webhook_id: str) -> list[int]:
    found = client.get(f"/webhooks/{webhook_id}/deliveries").json["deliveries"]
    return sorted(delivery["seq"] for delivery in found if delivery["order_id"])


def stored(app: Flask, query: Any) -> Any:
    with app.app_context():
        return db.session.scalar(query)


def test_every_earlier_cursor_is_410_and_the_entries_are_kept(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner
) -> None:
    create(app, client, 3)
    before = client.get("/events").json

    result = runner.invoke(args=["events", "renumber"])
    create(app, client, 2)

    assert result.stdout == f"{ADDED} was added to each number of the feed.\n"
    assert seqs(client) == [ADDED + n for n in range(1, 6)]
    # Before the restore, number 5 belonged to a lost event, or was not used yet.
    for after in (0, 2, before["next_cursor"], 5, ADDED - 1):
        response = client.get(f"/events?after={after}")
        assert slug(response) == (410, "cursor-expired") and response.json["oldest_after"] == ADDED
    assert seqs(client, f"/events?after={ADDED}") == seqs(client)
    assert runner.invoke(args=["verify"]).exit_code == 0


def test_webhooks_the_search_and_the_broker_continue_at_their_positions(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner
) -> None:
    with webhook_rules(app):
        webhook_id = create_webhook(client)["id"]
    create(app, client, 2)
    with app.app_context():
        queue_events()
        db.session.execute(update(BROKER_CURSOR).values(seq=1))
        db.session.commit()

    runner.invoke(args=["events", "renumber"])
    create(app, client, 1)
    with app.app_context():
        queue_events()

    assert deliveries(client, webhook_id) == [ADDED + 1, ADDED + 2, ADDED + 3]
    found = search(client)
    assert (found["as_of_seq"], found["behind"], len(found["orders"])) == (ADDED + 3, 0, 3)
    assert stored(app, db.select(BROKER_CURSOR.c.seq)) == ADDED + 1
    assert stored(app, db.select(WebhookEndpoint.last_seq)) == ADDED + 3


@pytest.mark.parametrize("batch", [1, 2, 5, 6])
def test_all_pending_deliveries_have_the_new_numbers_with_any_batch_size(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(event_feed, "_RENUMBER_MAX", batch)
    with webhook_rules(app):
        ids = [create_webhook(client)["id"] for _ in range(2)]
    create(app, client, 2)
    path = client.post("/orders", json=MINIMAL).headers["Location"]
    for _ in range(3):
        client.patch(path, json={"note": str(uuid4())})
    client.post(f"/webhooks/{ids[0]}/test")  # without a number

    with app.app_context():
        queue_events()
        event_feed.renumber_feed()

    events = [ADDED + n for n in range(1, 7)]
    assert [deliveries(client, id) for id in ids] == [events, events]


def test_a_second_restore_gives_higher_numbers_again(app: Flask, client: FlaskClient, runner: FlaskCliRunner) -> None:
    create(app, client, 1)

    results = [runner.invoke(args=["events", "renumber"]).exit_code for _ in range(2)]

    assert results == [0, 0]
    assert seqs(client) == [2 * ADDED + 1]
    assert runner.invoke(args=["verify"]).exit_code == 0


def test_an_empty_feed_can_be_renumbered(app: Flask, client: FlaskClient, runner: FlaskCliRunner) -> None:
    assert runner.invoke(args=["events", "renumber"]).exit_code == 0
    create(app, client, 1)

    assert seqs(client) == [ADDED + 1]
