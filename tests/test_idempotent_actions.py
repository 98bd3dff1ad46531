"""The Idempotency-Key on every action that is posted: the key lives on the event."""

from collections import Counter
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.actions import POSTED, READY, ROUTES, UNIT, act, event_types, order_after
from tests.samples import MINIMAL, slug
from tests.test_idempotency import at_once

OTHER_BODIES = {
    "cancel": [{"reason": "fraud"}, {"reason": "customer", "note": "x"}],
    "fulfill": [{"items": [{"line": 1, "quantity": 2}]}, UNIT | {"tracking": {"number": "1"}}],
    "return": [{"items": [{"line": 1, "quantity": 2}]}, UNIT | {"reason": "broken"}],
}


@pytest.mark.parametrize("name", POSTED)
def test_a_replay_is_the_first_answer_whatever_happened_since(client: FlaskClient, name: str) -> None:
    path = order_after(client, *READY[name])
    first = act(client, path, name, Idempotency_Key="k-1")
    now = act(client, path, "update")

    again = act(client, path, name, Idempotency_Key='"k-1"')

    assert (again.status_code, again.data) == (ROUTES[name][2], first.data)
    assert again.headers["ETag"] == first.headers["ETag"]
    assert (first.headers.get("Idempotent-Replayed"), again.headers["Idempotent-Replayed"]) == (None, "true")
    assert client.get(path).data == now.data


@pytest.mark.parametrize("name", POSTED)
def test_a_replay_asks_for_no_version(client: FlaskClient, name: str) -> None:
    path = order_after(client, *READY[name])
    tag = client.get(path).headers["ETag"]

    first, again = (act(client, path, name, Idempotency_Key="k-1", If_Match=tag) for _ in range(2))

    assert (again.status_code, again.data) == (first.status_code, first.data)
    assert again.headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize(("name", "body"), [(name, body) for name in OTHER_BODIES for body in OTHER_BODIES[name]])
def test_another_body_under_the_same_key_is_422(client: FlaskClient, name: str, body: Any) -> None:
    path = order_after(client, *READY[name])
    first = act(client, path, name, Idempotency_Key="k-1")

    response = act(client, path, name, body, Idempotency_Key="k-1")

    assert slug(response) == (422, "idempotency-key-reused")
    assert client.get(path).data == first.data


@pytest.mark.parametrize("name", ["confirm", "complete"])
def test_no_body_and_an_empty_object_are_one_request(client: FlaskClient, name: str) -> None:
    path = order_after(client, *READY[name])

    first, again = (act(client, path, name, body, Idempotency_Key="k-1") for body in (None, {}))

    assert (again.status_code, again.data) == (200, first.data)


def test_a_key_belongs_to_one_action_of_one_order(client: FlaskClient) -> None:
    path = client.post("/orders", json=MINIMAL, headers={"Idempotency-Key": "k-1"}).headers["Location"]
    other = order_after(client)
    names = ["confirm", "fulfill", "return", "complete"]

    made = [act(client, path, name, Idempotency_Key="k-1") for name in names]
    elsewhere = act(client, other, "confirm", Idempotency_Key="k-1")

    assert [response.json["version"] for response in made] == [2, 3, 4, 5]
    assert all("Idempotent-Replayed" not in response.headers for response in [*made, elsewhere])
    assert [act(client, path, name, Idempotency_Key="k-1").data for name in names] == [one.data for one in made]


def test_an_action_that_was_refused_leaves_its_key_free(client: FlaskClient) -> None:
    path = order_after(client, "confirm", "hold")

    refused = [
        act(client, path, "fulfill", Idempotency_Key="k-1"),
        act(client, path, "fulfill", UNIT, Idempotency_Key="k-1", If_Match='"1"'),
        act(client, path, "fulfill", {"items": []}, Idempotency_Key="k-1"),
    ]
    act(client, path, "release")
    made = act(client, path, "fulfill", {"items": [{"line": 1, "quantity": 2}]}, Idempotency_Key="k-1")

    assert [response.status_code for response in refused] == [409, 412, 400]
    assert (made.status_code, made.json["status"]) == (201, "completed")


@pytest.mark.parametrize("name", POSTED)
def test_a_malformed_key_is_refused_and_nothing_happens(client: FlaskClient, name: str) -> None:
    path = order_after(client, *READY[name])
    before = client.get(path).data

    assert slug(act(client, path, name, Idempotency_Key="two words")) == (400, "invalid-idempotency-key")
    assert client.get(path).data == before


@pytest.mark.parametrize("name", POSTED)
def test_twins_at_once_make_one_version(app: Flask, client: FlaskClient, name: str) -> None:
    path = order_after(client, *READY[name])
    before = event_types(client, path)

    responses = at_once(4, lambda _: act(app.test_client(), path, name, Idempotency_Key="k-1"))

    assert {response.status_code for response in responses} == {ROUTES[name][2]}
    assert len({response.data for response in responses}) == 1
    assert Counter(response.headers.get("Idempotent-Replayed") for response in responses) == {None: 1, "true": 3}
    assert len(event_types(client, path)) == len(before) + 1
