"""An erasure that takes longer than a request: it continues, and is done when nothing remains."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text, update
from structlog.testing import capture_logs

from app.db.engine import db
from app.models import EVENTS
from app.routes import customer_routes
from app.services import personal_data
from tests.support.actions import event_types, order_after, send_action
from tests.support.credentials import api_key, bearer, token
from tests.support.marks import on_sqlite
from tests.support.personal_data import CUSTOMER, add_versions, canary, personal_order, traces
from tests.support.samples import MINIMAL, slug

ERASE = f"/customers/{CUSTOMER}/personal-data"


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request takes one step, of three snapshots at most."""
    monkeypatch.setattr(customer_routes, "REQUEST_SECONDS", 0)
    monkeypatch.setattr(personal_data, "_PAGE_FIRST", 3)
    monkeypatch.setattr(personal_data, "_PAGE_MAX", 3)


def cancelled_orders(client: FlaskClient, count: int, **members: Any) -> list[str]:
    """The paths of a number of cancelled orders of the customer."""
    paths = [client.post("/orders", json=personal_order(**members)).headers["Location"] for _ in range(count)]
    for path in paths:
        assert client.post(f"{path}/cancel", json={"reason": "other", "note": canary()}).status_code == 200
    return paths


def verify(app: Flask) -> str:
    result = app.test_cli_runner().invoke(args=["verify"])
    return "" if result.exit_code == 0 else result.output


def follow(client: FlaskClient, location: str, seen: Callable[[], None] = lambda: None) -> Any:
    """The completed erasure; `seen` is called after each earlier request."""
    for _ in range(100):
        response = client.get(location)
        assert response.status_code == 200
        if response.json["status"] == "done":
            return response.json
        seen()
    raise AssertionError("the erasure is never done")


@pytest.mark.usefixtures("small_steps")
def test_an_erasure_continues_with_every_request_until_it_is_complete(app: Flask, client: FlaskClient) -> None:
    paths = cancelled_orders(client, 3)
    add_versions(app, paths[1].rpartition("/")[2], 10, note_length=20)

    started = client.delete(ERASE)
    again = client.delete(ERASE)

    assert (started.status_code, again.status_code) == (202, 202)
    assert started.json["id"] == again.json["id"]
    assert started.headers["Location"] == again.headers["Location"] == f"/erasures/{started.json['id']}"
    assert (started.json["status"], started.json["finished_at"]) == ("running", None)
    differences: list[str] = []
    done = follow(client, started.headers["Location"], lambda: differences.append(verify(app)))
    assert (done["orders"], done["finished_at"] is not None) == (3, True)
    assert len(differences) >= 4 and set(differences) == {""}  # also while only some snapshots were erased
    assert traces(app) == []
    assert verify(app) == ""
    assert [event_types(client, path).count("order.erased") for path in paths] == [1, 1, 1]
    assert len({client.get(path).json["customer_id"] for path in paths}) == 1


def test_a_step_is_limited_by_the_size_of_its_snapshots_whatever_the_one_before_was(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    _small, large = cancelled_orders(client, 2)
    add_versions(app, large.rpartition("/")[2], 40, note_length=20_000)
    sizes: list[int] = []
    step, load = personal_data.in_transaction, personal_data.load_document

    def count_step(work: Callable[[], Any]) -> Any:
        sizes.append(0)
        return step(work)

    def count_size(document: str) -> dict[str, Any]:
        sizes[-1] += len(document)
        return load(document)

    monkeypatch.setattr(personal_data, "in_transaction", count_step)
    monkeypatch.setattr(personal_data, "load_document", count_size)

    follow(client, f"/erasures/{client.delete(ERASE).json['id']}")

    assert sum(sizes) > 3 * personal_data.EXPORT_PAGE_BYTES
    assert max(sizes) < 1.5 * personal_data.EXPORT_PAGE_BYTES


@pytest.mark.usefixtures("small_steps")
def test_an_order_can_be_changed_while_it_is_being_erased(app: Flask, client: FlaskClient) -> None:
    [path] = cancelled_orders(client, 1)
    add_versions(app, path.rpartition("/")[2], 5, note_length=20)
    location = client.delete(ERASE).headers["Location"]
    patch = {"content_type": "application/merge-patch+json"}

    changed = client.patch(path, json={"note": canary()}, **patch)

    assert changed.json["metadata"] != {}  # the current version is complete until the order is erased
    follow(client, location)
    assert traces(app) == []
    assert client.get(path).json["note"] is None
    assert verify(app) == ""


@pytest.mark.usefixtures("small_steps")
def test_an_erasure_waits_for_an_order_that_is_reopened_meanwhile(app: Flask, client: FlaskClient) -> None:
    [path] = cancelled_orders(client, 1)
    add_versions(app, path.rpartition("/")[2], 5, note_length=20)
    location = client.delete(ERASE).headers["Location"]
    send_action(client, path, "reopen")
    client.post("/orders", json=personal_order())  # a later order does not keep it running

    states = [client.get(location).json for _ in range(3)]
    verified = verify(app)
    send_action(client, path, "cancel")

    assert [state["status"] for state in states] == ["running"] * 3
    assert verified == verify(app) == ""
    assert follow(client, location)["orders"] == 1
    assert client.get(path).json["customer_id"] != CUSTOMER
    assert verify(app) == ""


@pytest.mark.usefixtures("small_steps")
def test_the_worker_continues_each_erasure_and_leaves_those_that_wait(app: Flask, client: FlaskClient) -> None:
    _, other, waiting = cancelled_orders(client, 3)
    client.delete(ERASE)
    send_action(client, waiting, "reopen")

    def calls() -> list[bool]:
        with app.app_context():
            return [any(personal_data.continue_erasures(seconds=5)) for _ in range(2)]

    before = calls()
    other_order, waiting_order = client.get(other).json, client.get(waiting).json
    send_action(client, waiting, "cancel")

    assert before == calls() == [True, False]
    assert (other_order["customer_id"] != CUSTOMER, waiting_order["customer_id"] == CUSTOMER) == (True, True)
    assert client.get(waiting).json["customer_id"] == other_order["customer_id"]
    assert traces(app) == []
    assert verify(app) == ""


@pytest.mark.usefixtures("small_steps")
def test_an_erasure_that_fails_does_not_prevent_the_worker_from_continuing_others(
    app: Flask, client: FlaskClient
) -> None:
    broken, others = ([order_after(client, "cancel", customer_id=customer) for _ in range(3)] for customer in "ab")
    failing, _ = (client.delete(f"/customers/{customer}/personal-data") for customer in "ab")
    ids = [path.rpartition("/")[2] for path in broken]
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(update(EVENTS).where(EVENTS.c.order_id.in_(ids)).values(snapshot="{}"))

    with app.app_context(), capture_logs() as logged:
        progress = list(personal_data.continue_erasures(seconds=5))

    errors = [(entry["event"], entry["erasure_id"]) for entry in logged if entry["log_level"] == "error"]
    assert errors == [("erasure failed", failing.json["id"])]
    assert progress == [False, True]
    assert all(client.get(path).json["customer_id"] != "b" for path in others)


@pytest.mark.usefixtures("small_steps")
def test_the_next_request_completes_a_failed_erasure(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled_orders(client, 2)
    location = client.delete(ERASE).headers["Location"]

    def fail(order: Any) -> bytes:
        raise OSError("the machine is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(personal_data, "render_order", fail)
        patch.setitem(app.config, "PROPAGATE_EXCEPTIONS", False)
        assert client.get(location).status_code == 500

    assert follow(client, location)["orders"] == 2
    assert traces(app) == []
    assert verify(app) == ""


@pytest.mark.usefixtures("small_steps")
def test_the_command_completes_an_erasure_begun_by_requests(app: Flask, client: FlaskClient) -> None:
    cancelled_orders(client, 3)
    location = client.delete(ERASE).headers["Location"]

    result = app.test_cli_runner().invoke(args=["privacy", "resume"])
    again = app.test_cli_runner().invoke(args=["privacy", "resume"])

    assert (result.exit_code, result.output.splitlines()[-1]) == (0, "1 erasure, 0 not done."), result.output
    assert (again.exit_code, again.output) == (0, "0 erasures, 0 not done.\n")
    assert client.get(location).json["status"] == "done"
    assert traces(app) == []


def test_the_command_erases_personal_data(app: Flask, client: FlaskClient) -> None:
    cancelled_orders(client, 2)
    client.post("/orders", json=MINIMAL | {"customer_id": "c-open"})

    erased = app.test_cli_runner().invoke(args=["privacy", "erase", CUSTOMER])
    refused = app.test_cli_runner().invoke(args=["privacy", "erase", "c-open"])

    assert erased.exit_code == 0 and "2 orders erased, done." in erased.output
    assert (refused.exit_code, refused.output) == (
        1,
        "Error: The customer has open orders. Complete or cancel them first.\n",
    )
    assert traces(app) == []


@pytest.mark.usefixtures("small_steps")
def test_open_orders_prevent_a_repeated_erasure_too(app: Flask, client: FlaskClient) -> None:
    cancelled_orders(client, 2)
    location = client.delete(ERASE).headers["Location"]
    later = client.post("/orders", json=personal_order()).headers["Location"]

    assert slug(client.delete(ERASE)) == (409, "open-orders")
    assert follow(client, location)["orders"] == 2
    assert client.get(later).json["customer_id"] == CUSTOMER  # it still has to be fulfilled


def test_erasing_an_alias_erases_nothing(app: Flask, client: FlaskClient) -> None:
    [path] = cancelled_orders(client, 1)
    client.delete(ERASE)
    before, history = client.get(path), event_types(client, path)

    again = client.delete(f"/customers/{before.json['customer_id']}/personal-data")

    assert (again.status_code, again.json["status"], again.json["orders"]) == (200, "done", 0)
    assert (client.get(path).data, event_types(client, path)) == (before.data, history)
    assert verify(app) == ""


@pytest.mark.usefixtures("small_steps")
def test_customers_follow_their_own_erasure_and_no_other(secure_app: Flask, secure_client: FlaskClient) -> None:
    shop = bearer(api_key(secure_app, "orders:write", "privacy:erase"))
    own, other = (bearer(token(customer=name, scope="privacy:erase")) for name in (CUSTOMER, "c-other"))
    for _ in range(2):
        order = secure_client.post("/orders", json=personal_order(), headers=shop).headers["Location"]
        secure_client.post(f"{order}/cancel", json={"reason": "other"}, headers=shop)
    location = secure_client.delete(ERASE, headers=own).headers["Location"]

    statuses = [secure_client.get(location, headers=headers).status_code for headers in (other, own, own, own, shop)]

    assert statuses == [404, 200, 200, 200, 200]
    assert secure_client.get(location, headers=own).json["status"] == "done"
    assert traces(secure_app) == []
    by_the_shop = secure_client.delete("/customers/c-9/personal-data", headers=shop).headers["Location"]
    assert slug(secure_client.get(by_the_shop, headers=own)) == (404, "erasure-not-found")


@pytest.mark.parametrize("erasure_id", ["00000000-0000-7000-8000-000000000000", "x", "é"])
def test_an_unknown_erasure_is_404(client: FlaskClient, erasure_id: str) -> None:
    assert slug(client.get(f"/erasures/{erasure_id}")) == (404, "erasure-not-found")


def test_verify_reports_personal_data_that_an_erasure_left(app: Flask, client: FlaskClient) -> None:
    [path] = cancelled_orders(client, 1)
    old = client.get(path).text
    client.delete(ERASE)
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(update(EVENTS).where(EVENTS.c.version == 2).values(snapshot=old))
        connection.execute(text("UPDATE erasures SET orders = 2"))

    output = verify(app)

    assert 'customer_id is "canary-customer" in version 2 of an erased order' in output
    assert "orders is 2, but 1 have its alias" in output


@pytest.mark.usefixtures("small_steps")
def test_the_fingerprints_of_many_keys_are_removed_in_pages(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(personal_data, "_KEYS_PAGE", 3)
    [path] = cancelled_orders(client, 1)
    for number in range(8):
        send_action(client, path, "update", {}, Idempotency_Key=f"k-{number}")
    fingerprints = "SELECT count(fingerprint) FROM change_keys"
    counts: list[Any] = []

    def count() -> None:
        with app.app_context(), db.engine.connect() as connection:
            counts.append(connection.scalar(text(fingerprints)))

    location = client.delete(ERASE).headers["Location"]
    count()
    done = follow(client, location, count)

    assert counts[:2] == [5, 2] and done["orders"] == 1
    count()
    assert counts[-1] == 0
    assert send_action(client, path, "update", {}, Idempotency_Key="k-0").headers["Idempotent-Replayed"] == "true"
    assert verify(app) == ""


@on_sqlite
def test_repeated_erasures_do_not_rewrite_the_file_each_time(
    secure_app: Flask, secure_client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(personal_data, "REWRITE_PACE", 1000)  # minutes for the smallest file
    own = bearer(token(customer=CUSTOMER, scope="orders:write privacy:erase"))
    responses = []
    for _ in range(3):
        path = secure_client.post("/orders", json=personal_order(), headers=own).headers["Location"]
        secure_client.post(f"{path}/cancel", json={"reason": "customer"}, headers=own)
        responses.append(secure_client.delete(ERASE, headers=own))

    assert [(response.status_code, response.json["status"]) for response in responses] == [
        (200, "done"), (202, "running"), (202, "running")
    ]  # fmt: skip
    later = responses[1].headers["Location"]
    assert secure_client.get(later, headers=own).json["status"] == "running"
    assert secure_app.test_cli_runner().invoke(args=["privacy", "resume"]).exit_code == 0
    assert secure_client.get(later, headers=own).json["status"] == "done"
    assert traces(secure_app) == []


@on_sqlite
def test_a_request_waits_for_the_next_rewrite_of_a_small_file(app: Flask, client: FlaskClient) -> None:
    statuses = []
    for _ in range(3):
        cancelled_orders(client, 1)
        statuses.append(client.delete(ERASE).json["status"])

    assert statuses == ["done"] * 3
    assert traces(app) == []


@on_sqlite
def test_an_erasure_is_complete_only_after_the_write_ahead_log_is_empty(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(personal_data, "COMMAND_REWRITE_SECONDS", 0)
    cancelled_orders(client, 2)
    with app.app_context():
        path = Path(db.engine.url.database or "")
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM orders").fetchall()  # keeps the log as it is

        started = client.delete(ERASE)
        by_command = app.test_cli_runner().invoke(args=["privacy", "resume"])

    assert (started.status_code, started.json["status"], started.json["orders"]) == (202, "running", 2)
    assert (by_command.exit_code, by_command.output.splitlines()[-1]) == (1, "1 erasure, 1 not done.")
    assert client.get(started.headers["Location"]).json["status"] == "done"
    assert traces(app) == []


@on_sqlite
def test_the_command_waits_for_a_process_that_uses_the_file(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader ends after the time for which a request would try."""
    cancelled_orders(client, 1)
    monkeypatch.setattr(personal_data, "REWRITE_MAX", 4096)
    client.delete(ERASE)
    with app.app_context():
        path = Path(db.engine.url.database or "")
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM orders").fetchall()
        end = Timer(1, reader.rollback)
        end.start()

        result = app.test_cli_runner().invoke(args=["privacy", "resume"])

        end.join()
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, "1 erasure, 0 not done.")
    assert traces(app) == []


@on_sqlite
def test_a_large_file_is_rewritten_by_the_command_only(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled_orders(client, 1)
    monkeypatch.setattr(personal_data, "REWRITE_MAX", 4096)

    started = client.delete(ERASE)

    assert (started.status_code, started.json["orders"]) == (202, 1)
    assert client.get(started.headers["Location"]).json["status"] == "running"
    assert app.test_cli_runner().invoke(args=["privacy", "resume"]).exit_code == 0
    assert client.get(started.headers["Location"]).json["status"] == "done"
    assert traces(app) == []


@on_sqlite
def test_the_file_is_rewritten_only_after_an_erasure(app: Flask, client: FlaskClient) -> None:
    cancelled_orders(client, 20)
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(text("DELETE FROM order_events"))
    free = "PRAGMA freelist_count"
    with app.app_context(), db.engine.connect() as connection:
        before = connection.scalar(text(free))

    assert client.delete("/customers/nobody/personal-data").json["status"] == "done"

    with app.app_context(), db.engine.connect() as connection:
        assert connection.scalar(text(free)) == before > 0


@on_sqlite
def test_reading_an_erasure_takes_no_write_lock(app: Flask, client: FlaskClient) -> None:
    location = client.delete("/customers/nobody/personal-data").headers["Location"]
    with app.app_context():
        path = Path(db.engine.url.database or "")
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")

        assert client.get(location).json["status"] == "done"
