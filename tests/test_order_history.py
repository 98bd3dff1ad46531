"""The history: for each change its request id, and the JSON Patch from the previous version."""

from itertools import pairwise
from typing import Any

import jsonpatch
import orjson
import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from app.db.engine import db
from app.models import EVENTS
from app.services.order_queries import json_patch
from tests.support.actions import order_after, send_action
from tests.support.credentials import api_key, bearer, token
from tests.support.samples import MINIMAL, RICHEST

LIFE = ("update", "hold", "release", "confirm", "fulfill", "return", "complete")


def events_of(client: FlaskClient, path: str, *, limit: int = 100, **headers: str) -> list[dict[str, Any]]:
    """All events of the order, read page by page."""
    events, query = [], f"limit={limit}"
    while query:
        page = client.get(f"{path}/history?{query}", headers=headers).json
        events += page["events"]
        query = page["next_cursor"] and f"limit={limit}&cursor={page['next_cursor']}"
    return events


def test_each_event_has_the_id_of_the_request_that_caused_it(client: FlaskClient) -> None:
    created = client.post("/orders", json=MINIMAL)
    path = created.headers["Location"]
    given = send_action(client, path, "confirm", X_Request_Id="confirm-1")
    made_up = send_action(client, path, "update")

    request_ids = [event["request_id"] for event in events_of(client, path)]

    assert request_ids == [response.headers["X-Request-Id"] for response in (created, given, made_up)]
    assert request_ids[1] == "confirm-1"


def test_all_orders_of_a_batch_have_its_request_id(client: FlaskClient) -> None:
    body = {"orders": [MINIMAL, MINIMAL]}
    results = client.post("/orders/batch", json=body, headers={"X-Request-Id": "batch-1"}).json["results"]

    histories = [events_of(client, f"/orders/{result['order']['id']}") for result in results]

    assert [[event["request_id"] for event in events] for events in histories] == [["batch-1"]] * 2


def test_a_retry_changes_no_request_id(client: FlaskClient) -> None:
    for request_id in ("first", "second"):
        headers = {"Idempotency-Key": "k", "X-Request-Id": request_id}
        path = client.post("/orders", json=MINIMAL, headers=headers).headers["Location"]
    for request_id in ("third", "fourth"):
        send_action(client, path, "confirm", Idempotency_Key="k", X_Request_Id=request_id)

    assert [event["request_id"] for event in events_of(client, path)] == ["first", "third"]


def test_an_order_that_a_command_stores_has_no_request_id(client: FlaskClient, runner: FlaskCliRunner) -> None:
    runner.invoke(args=["orders", "import", "-"], input=orjson.dumps(MINIMAL))
    [order] = client.get("/orders").json["orders"]

    [event] = events_of(client, f"/orders/{order['id']}")

    assert (event["request_id"], event["changes"]) == (None, None)


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_the_changes_lead_from_each_version_to_the_next(client: FlaskClient, limit: int) -> None:
    path = order_after(client, *LIFE, **RICHEST)

    events = events_of(client, path, limit=limit)

    assert [event["version"] for event in events] == list(range(1, len(LIFE) + 2))
    assert events[0]["changes"] is None
    for before, event in pairwise(events):
        assert jsonpatch.apply_patch(before["data"], event["changes"]) == event["data"]


def test_the_changes_name_what_was_changed_and_nothing_else(client: FlaskClient) -> None:
    path = order_after(client)
    send_action(client, path, "update", {"note": "ring twice"})

    changes = events_of(client, path)[1]["changes"]

    assert {change["path"] for change in changes} == {"/note", "/version", "/updated_at"}
    assert {"op": "replace", "path": "/note", "value": "ring twice"} in changes


def test_the_history_of_an_imported_order_begins_without_changes(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner
) -> None:
    document = client.get(order_after(client, "update", "confirm")).json
    document["id"] = document["id"][:-1] + ("0" if document["id"][-1] != "0" else "1")
    document["number"] = document["number"][:-1] + ("0" if document["number"][-1] != "0" else "1")
    runner.invoke(args=["orders", "import", "-"], input=orjson.dumps(document))
    path = f"/orders/{document['id']}"
    send_action(client, path, "update")

    events = events_of(client, path, limit=1)

    assert [event["version"] for event in events] == [3, 4]
    assert events[0]["changes"] is None
    assert jsonpatch.apply_patch(events[0]["data"], events[1]["changes"]) == events[1]["data"]


def test_customers_read_the_changes_of_visible_members_and_their_own_request_ids(
    secure_app: Flask, secure_client: FlaskClient
) -> None:
    shop = bearer(api_key(secure_app, "orders:read", "orders:write", "orders:manage"))
    own = bearer(token(customer="c-1"))
    path = secure_client.post("/orders", json=MINIMAL, headers=own | {"X-Request-Id": "own"}).headers["Location"]
    for request_id in ("shop-1", "shop-2"):  # the reason of a hold is internal
        send_action(secure_client, path, "hold", X_Request_Id=request_id, **shop)

    full, visible = events_of(secure_client, path, **shop), events_of(secure_client, path, **own)

    assert [event["request_id"] for event in full] == ["own", "shop-1", "shop-2"]
    assert [event["request_id"] for event in visible] == ["own", None, None]
    assert all("reason" not in orjson.dumps(event).decode() for event in visible)
    for before, event in pairwise(visible):
        assert jsonpatch.apply_patch(before["data"], event["changes"]) == event["data"]


def test_an_erasure_removes_the_request_ids(secure_app: Flask, secure_client: FlaskClient) -> None:
    scopes = ("orders:read", "orders:write", "orders:manage", "privacy:erase")
    shop = bearer(api_key(secure_app, *scopes)) | {"X-Request-Id": "erika"}
    path = secure_client.post("/orders", json=MINIMAL, headers=shop).headers["Location"]
    send_action(secure_client, path, "confirm", **shop)
    send_action(secure_client, path, "fulfill", **shop)
    send_action(secure_client, path, "complete", **shop)

    assert secure_client.delete("/customers/c-1/personal-data", headers=shop).json["status"] == "done"
    send_action(secure_client, path, "return", **shop)

    events = events_of(secure_client, path, **shop)
    assert [event["type"] for event in events][-2:] == ["order.erased", "order.returned"]
    assert {event["request_id"] for event in events} == {None}


def test_verify_reports_a_request_id_of_an_erased_order(
    app: Flask, client: FlaskClient, runner: FlaskCliRunner
) -> None:
    path = order_after(client, "cancel")
    client.delete("/customers/c-1/personal-data")
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(update(EVENTS).where(EVENTS.c.version == 2).values(request_id="erika"))

    verified = runner.invoke(args=["verify"])

    assert verified.exit_code == 1
    assert f'order {path.removeprefix("/orders/")}: request_id is "erika" in version 2 of an erased' in verified.output


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(2, 9) | st.text("a/~é", max_size=3),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text("a/~0é", max_size=3), values, max_size=4),
    max_leaves=20,
)
documents = st.dictionaries(st.sampled_from(["a", "b", "~0", "a/b", ""]), json_values)


@given(documents, documents)
def test_a_json_patch_leads_from_any_document_to_any_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert jsonpatch.apply_patch(before, json_patch(before, after)) == after
