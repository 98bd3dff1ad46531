"""`flask verify` finds events that are missing in the feed, duplicated, or out of order."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import Executable, delete, insert, select, update

from app.db.engine import db
from app.errors import pluralize
from app.models import FeedEntry, OutboxEntry
from app.models.event import FeedHead
from app.services.event_feed import prune_feed
from tests.support.samples import MINIMAL
from tests.support.search import project

NOW = datetime.now(UTC)


def run(app: Flask, *statements: Executable) -> None:
    with app.app_context(), db.engine.begin() as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def order_id(app: Flask, client: FlaskClient) -> str:
    """An order whose versions 1 to 3 are in the feed, and 4 and 5 in the outbox."""
    order_id = str(client.post("/orders", json=MINIMAL).json["id"])
    for note in ("2", "3", "4", "5"):
        if note == "4":
            project(app)
        client.patch(f"/orders/{order_id}", json={"note": note})
    return order_id


def differences(runner: FlaskCliRunner) -> list[str]:
    result = runner.invoke(args=["verify"])
    *lines, last = result.stdout.splitlines()
    verdict = f"1 order verified, {pluralize(len(lines), 'difference')}."
    assert (result.exit_code, last) == (1 if lines else 0, verdict), result
    return lines


def test_events_are_in_the_feed_or_in_the_outbox(app: Flask, runner: FlaskCliRunner, order_id: str) -> None:
    assert differences(runner) == []
    project(app)
    assert differences(runner) == []


Corruption = Callable[[str], list[Executable]]  # of the order with the id


def without(model: type[FeedEntry] | type[OutboxEntry], *versions: int) -> Corruption:
    return lambda order_id: [delete(model).where(model.version.in_(versions))]


def feed_entry(version: int, seq: int) -> Corruption:
    return lambda order_id: [
        insert(FeedEntry).values(order_id=order_id, version=version, seq=seq, at=NOW),
        update(FeedHead).values(seq=seq),
    ]


def of_head(**values: int) -> Corruption:
    return lambda order_id: [update(FeedHead).values(values)]


def swap_the_first_two(order_id: str) -> list[Executable]:
    return [
        update(FeedEntry).where(FeedEntry.version == old).values(version=new) for old, new in ((1, 9), (2, 1), (9, 2))
    ]


def outbox_entry(version: int) -> Corruption:
    return lambda order_id: [insert(OutboxEntry).values(order_id=order_id, version=version, at=NOW)]


CORRUPTIONS: dict[str, tuple[Corruption, list[str]]] = {
    "an event lost before it was numbered": (
        without(OutboxEntry, 4),
        ["order {id}: version 4 is neither in the outbox nor in the feed"],
    ),
    "lost entries": (
        without(FeedEntry, 1, 2),
        [
            "order {id}: version 1 is neither in the outbox nor in the feed",
            "order {id}: version 2 is neither in the outbox nor in the feed",
            "feed: there are no entries 1 to 2",
        ],
    ),
    "the last entry lost": (
        without(FeedEntry, 3),
        ["order {id}: version 3 is neither in the outbox nor in the feed", "feed: there are no entries 3 to 3"],
    ),
    "all entries lost": (
        without(FeedEntry, 1, 2, 3),
        [
            *(f"order {{id}}: version {version} is neither in the outbox nor in the feed" for version in (1, 2, 3)),
            "feed: there are no entries 1 to 3",
        ],
    ),
    "an event in both": (outbox_entry(2), ["order {id}: version 2 is both in the outbox and in the feed"]),
    "an event numbered before an earlier one": (
        swap_the_first_two,
        ["order {id}: version 2 is in the feed before the version that precedes it"],
    ),
    "an event numbered before a pending one": (
        lambda order_id: [*without(OutboxEntry, 5)(order_id), *feed_entry(5, 4)(order_id)],
        ["order {id}: version 5 is in the feed before the version that precedes it"],
    ),
    "an outbox entry without an event": (
        outbox_entry(7),
        ["order {id}: the outbox has version 7, but there is no such event"],
    ),
    "a feed entry without an event": (
        feed_entry(7, 4),
        ["order {id}: the feed has version 7, but there is no such event"],
    ),
    "a number that was not given": (
        lambda order_id: [update(FeedEntry).where(FeedEntry.seq == 3).values(seq=6)],
        ["feed: there are no entries 3 to 3", "feed: there is an entry 6, but feed_head has 1 to 3"],
    ),
    "a head that is behind": (
        of_head(seq=2),
        ["feed: there is an entry 3, but feed_head has 1 to 2", "search: search_head has 3, but the feed ends at 2"],
    ),
    "a head that is ahead": (of_head(seq=4), ["feed: there are no entries 4 to 4"]),
    "an entry that was removed": (of_head(pruned_seq=1), ["feed: there is an entry 1, but feed_head has 2 to 3"]),
    "no head": (lambda order_id: [delete(FeedHead)], ["feed: feed_head has no row"]),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_of_the_feed_is_reported(app: Flask, runner: FlaskCliRunner, order_id: str, name: str) -> None:
    corruption, expected = CORRUPTIONS[name]
    with app.app_context():
        head = {column.name: value for column, value in zip(FeedHead.__table__.c, head_row(), strict=True)}
    run(app, *corruption(order_id))

    found = differences(runner)

    run(app, delete(FeedHead), insert(FeedHead).values(head))
    assert found == [line.format(id=order_id) for line in expected]


def head_row() -> tuple[int, ...]:
    with db.engine.connect() as connection:
        return tuple(connection.execute(select(FeedHead.__table__)).one())


def test_removed_entries_are_no_difference(app: Flask, runner: FlaskCliRunner, order_id: str) -> None:
    with app.app_context():
        assert prune_feed(older_than=timedelta(0)) == 3
    assert differences(runner) == []
    project(app)
    assert differences(runner) == []


def test_an_event_after_the_removed_ones_must_not_be_missing(app: Flask, runner: FlaskCliRunner, order_id: str) -> None:
    with app.app_context():
        prune_feed(older_than=timedelta(0))
    run(app, *without(OutboxEntry, 5)(order_id))

    assert differences(runner) == [f"order {order_id}: version 5 is neither in the outbox nor in the feed"]


def test_an_event_younger_than_the_oldest_entry_must_not_be_missing(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner, order_id: str
) -> None:
    with app.app_context():
        prune_feed(older_than=timedelta(0))
    project(app)
    with time_machine.travel(NOW + timedelta(hours=1)):
        lost = client.post("/orders", json=MINIMAL).json["id"]
    run(app, delete(OutboxEntry))

    result = runner.invoke(args=["verify"])

    assert result.stdout.splitlines()[:-1] == [f"order {lost}: version 1 is neither in the outbox nor in the feed"]
