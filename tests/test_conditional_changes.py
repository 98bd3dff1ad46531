"""If-Match on every change (RFC 9110 §13.1.1), versions and history."""

import re

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.http.requests import make_version_cursor
from app.models.lifecycle import ACTIONS
from tests.support.actions import READY, ROUTES, VARIANTS, order_after, send_action
from tests.support.samples import MINIMAL, slug
from tests.support.webhooks import webhook_rules

ABSENT = "0199c7a4-0000-7000-8000-000000000000"


@pytest.mark.parametrize("name", ACTIONS)
def test_a_change_of_an_older_version_is_412(client: FlaskClient, name: str) -> None:
    path = order_after(client, *READY[name], "update")
    before = client.get(path)

    response = send_action(client, path, name, If_Match='"1"')

    assert slug(response) == (412, "version-mismatch")
    assert response.json["current_version"] == before.json["version"]
    assert client.get(path).data == before.data


@pytest.mark.parametrize("name", ACTIONS)
def test_a_change_of_the_current_version_succeeds(client: FlaskClient, name: str) -> None:
    path = order_after(client, *READY[name])

    response = send_action(client, path, name, If_Match=client.get(path).headers["ETag"])

    assert response.status_code == ROUTES[name][2]
    assert response.headers["ETag"] == f'"{response.json["version"]}"' == client.get(path).headers["ETag"]


# Of an order at version 2.
@pytest.mark.parametrize(
    ("tags", "is_excluded"),
    [("*", True), ('"2"', True), ('W/"2"', True), ('"1", "2-erased"', True), ('"1"', False), ('"x"', False)],
)
@pytest.mark.parametrize("name", ["update", "confirm", "hold"])
def test_a_change_of_a_version_in_if_none_match_is_412(
    client: FlaskClient, name: str, tags: str, is_excluded: bool
) -> None:
    path = order_after(client, "update")
    before = client.get(path)

    response = send_action(client, path, name, If_None_Match=tags)

    if is_excluded:
        assert slug(response) == (412, "precondition-failed")
        assert client.get(path).data == before.data
    else:
        assert response.status_code == ROUTES[name][2]


@pytest.mark.parametrize("name", ACTIONS)
def test_every_change_evaluates_if_none_match(client: FlaskClient, name: str) -> None:
    path = order_after(client, *READY[name])

    assert slug(send_action(client, path, name, If_None_Match="*")) == (412, "precondition-failed")
    assert slug(send_action(client, f"/orders/{ABSENT}", name, If_None_Match="*")) == (404, "order-not-found")


# The conditions of changes of what has no entity tag: the status with none, If-None-Match: *, If-Match: *, "1".
WEBHOOK = {"url": "https://hooks.example.com/orders"}
CONDITIONS = {
    ("POST", "/orders"): (MINIMAL, 201, 412, 201, 412),
    ("POST", "/orders/batch"): ({"orders": [MINIMAL]}, 200, 200, 412, 412),
    ("POST", "/orders/actions"): ({"actions": [{"order_id": ABSENT, "action": "confirm"}]}, 200, 200, 400, 400),
    ("POST", "/webhooks"): (WEBHOOK, 201, 412, 201, 412),
    ("PATCH", "/webhooks/{id}"): ({"status": "disabled"}, 200, 412, 200, 412),
    ("POST", "/webhooks/{id}/test"): (None, 202, 412, 202, 412),
    ("POST", "/webhooks/{id}/rotate-secret"): (None, 200, 412, 200, 412),
    ("POST", "/webhooks/{id}/replay"): ({"failed_since": "2026-01-01T00:00:00Z"}, 202, 412, 202, 412),
    ("DELETE", "/webhooks/{id}"): (None, 204, 412, 204, 412),
    ("PATCH", f"/webhooks/{ABSENT}"): ({"status": "disabled"}, 404, 404, 404, 404),
    ("DELETE", "/customers/c-9/personal-data"): (None, 200, 412, 200, 412),
}


@pytest.mark.parametrize("route", CONDITIONS, ids=" ".join)
def test_a_change_of_a_resource_without_an_entity_tag_evaluates_its_conditions(
    app: Flask, client: FlaskClient, route: tuple[str, str]
) -> None:
    (method, path), (body, *statuses) = route, CONDITIONS[route]
    found = []
    for headers in ({}, {"If-None-Match": "*"}, {"If-Match": "*"}, {"If-Match": '"1"'}):
        with webhook_rules(app):
            webhook = client.post("/webhooks", json=WEBHOOK).json
            response = client.open(path.format(id=webhook["id"]), method=method, json=body, headers=headers)
        found.append(response.status_code)
        if response.status_code == 412:
            assert slug(response) == (412, "precondition-failed")

    assert found == statuses


def test_the_conditions_of_every_changing_route_are_evaluated(app: Flask) -> None:
    orders = {(method, f"/orders/<>{path.format('<>')}") for method, path, _ in (ROUTES | VARIANTS).values()}
    others = {(method, path.replace("{id}", "<>").replace("c-9", "<>")) for method, path in CONDITIONS}
    changing = {
        (method, re.sub("<.*?>", "<>", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"GET", "HEAD", "OPTIONS"}
    }

    assert changing <= orders | others


# Of an order at version 2.
@pytest.mark.parametrize(
    ("tags", "matches"),
    [
        ('"2"', True),
        ("*", True),
        ('"1", "2"', True),
        ('"x" , "2","3"', True),
        ('W/"2", "2"', True),
        ('"1"', False),
        ('"3"', False),
        ('"1", "3"', False),
        ('W/"2"', False),
        ('W/"2", "1"', False),
        ('"02"', False),
        ('"+2"', False),
        ('"2 "', False),
        ('"٢"', False),
        ('""', False),
        ('"*"', False),
        ("", False),
        ('"' + "9" * 5000 + '"', False),
    ],
)
def test_a_strong_tag_matches_only_its_version(client: FlaskClient, tags: str, matches: bool) -> None:
    path = order_after(client, "update")

    response = send_action(client, path, "confirm", If_Match=tags)

    assert response.status_code == (200 if matches else 412)
    assert client.get(path).json["version"] == (3 if matches else 2)


def test_the_version_is_checked_before_the_action(client: FlaskClient) -> None:
    path = order_after(client, "cancel")

    assert send_action(client, path, "confirm", If_Match='"1"').status_code == 412
    assert send_action(client, path, "confirm", If_Match='"2"').status_code == 409


@pytest.mark.parametrize("name", ACTIONS)
def test_if_match_can_be_required(app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = order_after(client, *READY[name])
    monkeypatch.setitem(app.config, "REQUIRE_IF_MATCH", True)

    refused, accepted = (
        send_action(client, path, name),
        send_action(client, path, name, If_Match=client.get(path).headers["ETag"]),
    )

    assert slug(refused) == (428, "precondition-required")
    assert accepted.status_code == ROUTES[name][2]


def test_if_match_can_be_required_of_bulk_actions(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    action = {"order_id": order_after(client).removeprefix("/orders/"), "action": "confirm"}
    monkeypatch.setitem(app.config, "REQUIRE_IF_MATCH", True)

    actions = [action, action | {"if_match": 2}, action | {"if_match": 1}]
    response = client.post("/orders/actions", json={"actions": actions})

    assert [result["status"] for result in response.json["results"]] == [428, 412, 200]


def test_creating_needs_no_if_match(app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(app.config, "REQUIRE_IF_MATCH", True)

    assert client.post("/orders", json=MINIMAL).status_code == 201


LIFE = ["update", "hold", "release", "confirm", "fulfill", "fulfill", "return", "update"]


def test_each_version_is_the_response_to_its_change_byte_for_byte(client: FlaskClient) -> None:
    path = order_after(client)
    responses = [client.get(path).data, *(send_action(client, path, name).data for name in LIFE)]

    versions = [client.get(f"{path}?version={n}") for n in range(1, len(responses) + 1)]

    assert [version.data for version in versions] == responses
    assert [version.headers["ETag"] for version in versions] == [f'"{n}"' for n in range(1, len(responses) + 1)]


@pytest.mark.parametrize("version", [3, 2**31 - 1])
def test_a_future_version_is_404(client: FlaskClient, version: int) -> None:
    path = order_after(client, "update")

    assert slug(client.get(f"{path}?version={version}")) == (404, "order-not-found")


@pytest.mark.parametrize("limit", [1, 4, 9, 100])
def test_a_history_is_read_page_by_page(client: FlaskClient, limit: int) -> None:
    path = order_after(client, *LIFE)

    pages, query = [], f"limit={limit}"
    while query:
        page = client.get(f"{path}/history?{query}")
        pages.append(page.json["events"])
        query = page.json["next_cursor"] and f"limit={limit}&cursor={page.json['next_cursor']}"
        assert ("Link" in page.headers) == bool(query)

    assert [len(page) for page in pages] == [limit] * (9 // limit) + [9 % limit] * (9 % limit > 0)
    events = [event for page in pages for event in page]
    assert [event["version"] for event in events] == list(range(1, 10))
    assert [event["type"] for event in events] == ["order.created", *(ACTIONS[name].event for name in LIFE)]
    assert len({event["id"] for event in events}) == 9
    assert [(event["version"], event["at"]) for event in events] == [
        (event["data"]["version"], event["data"]["updated_at"]) for event in events
    ]


def test_a_cursor_of_a_history_continues_with_later_events(client: FlaskClient) -> None:
    path = order_after(client, "update")
    first = client.get(f"{path}/history?limit=1").json
    send_action(client, path, "confirm")

    rest = client.get(f"{path}/history?cursor={first['next_cursor']}").json

    assert [event["version"] for event in rest["events"]] == [2, 3]


def test_a_cursor_belongs_to_its_order(client: FlaskClient) -> None:
    path, other = order_after(client, "update"), order_after(client, "update")
    cursor = client.get(f"{path}/history?limit=1").json["next_cursor"]

    assert slug(client.get(f"{other}/history?cursor={cursor}")) == (400, "invalid-cursor")


@pytest.mark.parametrize("order_id", ["00000000-0000-7000-8000-000000000000", "x"])
def test_an_unknown_order_has_no_history(client: FlaskClient, order_id: str) -> None:
    cursor = make_version_cursor(1, order_id=order_id)

    for query in ("", f"?cursor={cursor}"):
        assert slug(client.get(f"/orders/{order_id}/history{query}")) == (404, "order-not-found")


@pytest.mark.parametrize(
    ("tags", "weak"),
    [
        ('W/"2"', "2"),
        ('W/""', ""),
        ('W/"", W/"a"', ""),
        ('"1", W/"2"', "2"),
        ('W/"x", W/"1"', "1"),
        ('"1"', None),
        ("", None),
    ],
)
def test_a_412_explains_that_a_weak_tag_never_matches(client: FlaskClient, tags: str, weak: str | None) -> None:
    path = order_after(client, "update")

    refused = send_action(client, path, "confirm", If_Match=tags)

    assert slug(refused) == (412, "version-mismatch")
    assert refused.json["detail"].startswith("The order is at version 2.")
    assert (f'W/"{weak}": a weak entity tag never matches' in refused.json["detail"]) == (weak is not None)
    assert ("a proxy that compresses" in refused.json["detail"]) == (weak is not None)
