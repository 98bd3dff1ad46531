"""Webhooks are created, changed and deleted over HTTP; secrets are shown once; keys see webhooks of their channels."""

import re
from base64 import b64decode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update

from app.config import RANDOM_KEY_PREFIX
from app.db.engine import db
from app.models import DELIVERIES, WebhookEndpoint
from app.models.lifecycle import EVENT_TYPES
from app.models.order_id import new_id
from app.models.webhook import ENDPOINT_EVENT_TYPES, TEST
from app.services.credentials import SecretStore, UnreadableSecret
from app.services.webhook_service import count_endpoints
from tests.support.credentials import api_key, bearer
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL, error_locations, slug
from tests.support.webhooks import SECRETS, URL, create_webhook, queue_events, resolve_to, webhook_rules

ABSENT = "0199c7a4-0000-7000-8000-000000000000"


@pytest.fixture(autouse=True)
def rules(app: Flask) -> Iterator[None]:
    with webhook_rules(app, allow_private=False):
        yield


def patch(client: FlaskClient, webhook: dict[str, Any], **members: Any) -> Any:
    return client.patch(f"/webhooks/{webhook['id']}", json=members, content_type="application/merge-patch+json")


def test_a_webhook_needs_only_a_url(client: FlaskClient) -> None:
    response = client.post("/webhooks", json={"url": URL})

    assert response.status_code == 201
    webhook = response.json
    assert response.headers["Location"] == f"/webhooks/{webhook['id']}"
    assert response.headers["Cache-Control"] == "no-store"
    assert (webhook["status"], webhook["payload"], webhook["events"], webhook["channels"]) == (
        "enabled", "thin", None, None
    )  # fmt: skip
    assert webhook["health"] == {
        "consecutive_failures": 0, "failing_since": None, "retry_at": None, "last_success_at": None,
        "last_failure_at": None,
    }  # fmt: skip


def test_a_secret_has_256_random_bits_and_is_shown_once(client: FlaskClient) -> None:
    first, second = create_webhook(client), create_webhook(client)

    assert first["secret"] != second["secret"]
    assert len(b64decode(first["secret"].removeprefix("whsec_"))) == 32
    read = client.get(f"/webhooks/{first['id']}").json
    assert read == {name: value for name, value in first.items() if name != "secret"}
    assert all("secret" not in webhook for webhook in client.get("/webhooks").json["webhooks"])
    assert "secret" not in patch(client, first, description="x").json


def test_a_secret_is_encrypted_in_the_database(app: Flask, client: FlaskClient) -> None:
    webhook = create_webhook(client)

    with app.app_context():
        stored = db.session.scalars(select(WebhookEndpoint.secret)).one()
    assert webhook["secret"].removeprefix("whsec_") not in stored
    assert SECRETS.open(stored) == webhook["secret"]
    with pytest.raises(UnreadableSecret):
        SecretStore("another secret key, of 32 characters").open(stored)


def test_without_a_secret_key_secrets_are_stored_in_plain_text_and_survive_a_restart() -> None:
    sealed = SecretStore(f"{RANDOM_KEY_PREFIX}1").seal("whsec_a")

    assert SecretStore(f"{RANDOM_KEY_PREFIX}2").open(sealed) == "whsec_a"
    assert SECRETS.open(sealed) == "whsec_a"
    with pytest.raises(UnreadableSecret):
        SecretStore(f"{RANDOM_KEY_PREFIX}1").open(SECRETS.seal("whsec_a"))


def test_a_patch_changes_only_the_named_members(client: FlaskClient) -> None:
    webhook = create_webhook(client, description="shop", events=["order.created"], channels=["web"], payload="order")

    patched = patch(client, webhook, url="https://other.shop.com/", events=None, description=None).json

    assert (patched["url"], patched["events"], patched["description"]) == ("https://other.shop.com/", None, None)
    assert (patched["channels"], patched["payload"]) == (["web"], "order")
    assert client.get(f"/webhooks/{webhook['id']}").json == patched


def test_a_webhook_is_disabled_and_enabled(client: FlaskClient) -> None:
    webhook = create_webhook(client)

    disabled = patch(client, webhook, status="disabled").json
    enabled = patch(client, webhook, status="enabled").json

    assert (disabled["status"], disabled["disabled_reason"]) == ("disabled", "paused")
    assert (enabled["status"], enabled["disabled_reason"]) == ("enabled", None)


def test_a_rotation_shows_a_new_secret_and_when_the_previous_one_ends(client: FlaskClient) -> None:
    webhook = create_webhook(client)

    rotated = client.post(f"/webhooks/{webhook['id']}/rotate-secret").json

    assert rotated["secret"] not in (webhook["secret"], None)
    assert rotated["previous_secret_until"] is not None
    assert "secret" not in client.get(f"/webhooks/{webhook['id']}").json


def test_a_webhook_is_deleted_with_its_deliveries(client: FlaskClient) -> None:
    webhook = create_webhook(client)
    client.post(f"/webhooks/{webhook['id']}/test")

    deleted = client.delete(f"/webhooks/{webhook['id']}")

    assert (deleted.status_code, deleted.data) == (204, b"")
    assert slug(client.get(f"/webhooks/{webhook['id']}")) == (404, "webhook-not-found")
    assert slug(client.get(f"/webhooks/{webhook['id']}/deliveries")) == (404, "webhook-not-found")
    assert client.get("/webhooks").json == {"webhooks": []}


def test_the_deletion_of_a_webhook_does_not_affect_others(app: Flask, client: FlaskClient) -> None:
    deleted, other = create_webhook(client), create_webhook(client)
    client.post(f"/webhooks/{other['id']}/test")
    old = new_id(datetime.now(UTC) - timedelta(days=31))
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(update(DELIVERIES).values(id=old, status="succeeded"))

    assert client.delete(f"/webhooks/{deleted['id']}").status_code == 204

    assert [one["id"] for one in client.get(f"/webhooks/{other['id']}/deliveries").json["deliveries"]] == [old]


def test_a_deleted_webhook_is_not_counted_as_disabled(app: Flask, client: FlaskClient) -> None:
    """The webhook exists until its deliveries are deleted."""
    create_webhook(client)
    with app.app_context():
        with db.engine.begin() as connection:
            connection.execute(update(WebhookEndpoint).values(status="disabled", disabled_reason="gone"))
        disabled = count_endpoints()
        with db.engine.begin() as connection:
            connection.execute(update(WebhookEndpoint).values(status="deleted"))

        assert (disabled["disabled"], count_endpoints()["disabled"]) == (1, 0)


@on_sqlite
@pytest.mark.parametrize("webhook_id", [ABSENT, "x", "%00"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None), ("PATCH", "", {}), ("DELETE", "", None), ("POST", "/rotate-secret", None),
        ("POST", "/test", None), ("GET", "/deliveries", None), ("POST", "/replay", {"event_id": f"{ABSENT}:1"}),
    ],
)  # fmt: skip
def test_an_unknown_webhook_is_404(client: FlaskClient, method: str, path: str, body: Any, webhook_id: str) -> None:
    response = client.open(f"/webhooks/{webhook_id}{path}", method=method, json=body)

    assert slug(response) == (404, "webhook-not-found")


@on_sqlite
@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"url": None}, "#/url"), ({"url": 1}, "#/url"), ({"url": "ftp://a.com/"}, "#/url"),
        ({"url": "https://a.com/" + "x" * 2048}, "#/url"), ({"events": []}, "#/events"),
        ({"events": ["order.invented"]}, "#/events/0"), ({"events": ["webhook.test"]}, "#/events/0"),
        ({"channels": []}, "#/channels"), ({"channels": [1]}, "#/channels/0"), ({"payload": "fat"}, "#/payload"),
        ({"secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}, "#/secret"),
        ({"description": "x" * 201}, "#/description"),
    ],
)  # fmt: skip
def test_an_invalid_webhook_is_400_and_names_the_member(
    client: FlaskClient, members: dict[str, Any], pointer: str
) -> None:
    response = client.post("/webhooks", json={"url": URL} | members)

    assert slug(response) == (400, "invalid-request")
    assert [error["pointer"] for error in response.json["errors"]] == [pointer]


@on_sqlite
@pytest.mark.parametrize(
    "body",
    [
        {}, {"event_id": "x"}, {"event_id": f"{ABSENT}:0"}, {"from_seq": 1}, {"from_seq": 2, "to_seq": 1},
        {"from_seq": 1, "to_seq": 10_001}, {"failed_since": "yesterday"},
        {"failed_since": "2026-11-28T00:00:00Z", "event_id": f"{ABSENT}:1"},
    ],
)  # fmt: skip
def test_an_invalid_replay_is_400(client: FlaskClient, body: dict[str, Any]) -> None:
    webhook = create_webhook(client)

    assert slug(client.post(f"/webhooks/{webhook['id']}/replay", json=body)) == (400, "invalid-request")


def test_a_replay_of_an_unknown_event_is_404(client: FlaskClient) -> None:
    webhook = create_webhook(client, channels=["web"])
    order = client.post("/orders", json=MINIMAL | {"channel": "app"}).json

    for event_id in (f"{ABSENT}:1", f"{order['id']}:2", f"{order['id']}:1"):
        response = client.post(f"/webhooks/{webhook['id']}/replay", json={"event_id": event_id})
        assert slug(response) == (404, "event-not-found")


def test_at_most_200_webhooks_exist(client: FlaskClient) -> None:
    for _ in range(200):
        create_webhook(client)

    assert slug(client.post("/webhooks", json={"url": URL})) == (409, "too-many-webhooks")


def test_deliveries_are_listed_page_by_page_newest_first(app: Flask, client: FlaskClient) -> None:
    webhook = create_webhook(client)
    for _ in range(5):
        client.post("/orders", json=MINIMAL)
    with app.app_context():
        queue_events()

    path, seqs = f"/webhooks/{webhook['id']}/deliveries?limit=2&status=pending", []
    while path:
        response = client.get(path)
        seqs += [delivery["seq"] for delivery in response.json["deliveries"]]
        link = re.match("<(.*)>", response.headers.get("Link", ""))
        path = link[1] if link else ""

    assert seqs == sorted(seqs, reverse=True) and len(set(seqs)) == 5


@on_sqlite
def test_a_cursor_belongs_to_its_webhook_and_filter(app: Flask, client: FlaskClient) -> None:
    first, second = create_webhook(client), create_webhook(client)
    for _ in range(2):
        client.post(f"/webhooks/{first['id']}/test")
    cursor = client.get(f"/webhooks/{first['id']}/deliveries?limit=1").json["next_cursor"]

    for path in (
        f"{second['id']}/deliveries?cursor={cursor}",
        f"{first['id']}/deliveries?status=failed&cursor={cursor}",
    ):
        assert slug(client.get(f"/webhooks/{path}")) == (400, "invalid-cursor")


@pytest.mark.parametrize("before", [None, ["web"], ["app", "web"]])
@pytest.mark.parametrize("after", [None, ["web"], ["app", "web"], ["web", "app", "phone"]])
def test_channels_can_be_added_but_not_removed(
    client: FlaskClient, before: list[str] | None, after: list[str] | None
) -> None:
    """A key that is bound to the remaining channels would see deliveries of the others."""
    webhook = create_webhook(client, channels=before)

    patched = patch(client, webhook, channels=after)

    if after is None or (before is not None and set(after) >= set(before)):
        assert patched.json["channels"] == after
    else:
        assert error_locations(patched) == {"#/channels"}


@pytest.fixture
def bound(secure_app: Flask) -> Iterator[dict[str, str]]:
    """The key of a service that is bound to the channel web."""
    with webhook_rules(secure_app, resolve=resolve_to("93.184.215.14")):
        yield bearer(api_key(secure_app, "webhooks:manage", channels=["web"]))


def test_a_key_that_is_bound_to_channels_manages_their_webhooks_only(
    client: FlaskClient, secure_client: FlaskClient, bound: dict[str, str]
) -> None:
    foreign = [
        create_webhook(client),
        create_webhook(client, channels=["app"]),
        create_webhook(client, channels=["app", "web"]),
    ]
    own = secure_client.post("/webhooks", json={"url": URL}, headers=bound).json

    assert own["channels"] == ["web"]
    assert [one["id"] for one in secure_client.get("/webhooks", headers=bound).json["webhooks"]] == [own["id"]]
    assert secure_client.get(f"/webhooks/{own['id']}", headers=bound).status_code == 200
    for webhook in foreign:
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rotate-secret"), ("GET", "/deliveries")):
            response = secure_client.open(f"/webhooks/{webhook['id']}{path}", method=method, headers=bound)
            assert slug(response) == (404, "webhook-not-found")


@pytest.mark.parametrize("channels", [["app"], ["app", "web"]])
def test_a_key_that_is_bound_to_channels_cannot_use_others(
    secure_client: FlaskClient, bound: dict[str, str], channels: list[str]
) -> None:
    own = secure_client.post("/webhooks", json={"url": URL}, headers=bound).json

    created = secure_client.post("/webhooks", json={"url": URL, "channels": channels}, headers=bound)
    patched = secure_client.patch(
        f"/webhooks/{own['id']}", json={"channels": channels}, headers=bound,
        content_type="application/merge-patch+json",
    )  # fmt: skip
    widened = secure_client.patch(
        f"/webhooks/{own['id']}", json={"channels": None}, headers=bound, content_type="application/merge-patch+json"
    )

    assert slug(created) == slug(patched) == (403, "forbidden")
    assert widened.json["channels"] == ["web"]


@on_sqlite
def test_the_description_has_each_event_that_an_endpoint_can_get(client: FlaskClient) -> None:
    description = client.get("/openapi.json").json

    assert description["webhooks"].keys() == {*EVENT_TYPES, *ENDPOINT_EVENT_TYPES, TEST}
    for item in description["webhooks"].values():
        references = [parameter["$ref"].rpartition("/")[2] for parameter in item["post"]["parameters"]]
        names = [description["components"]["parameters"][reference]["name"] for reference in references]
        assert names == ["webhook-id", "webhook-timestamp", "webhook-signature"]
        schema = item["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert description["components"]["schemas"][schema]["required"] == ["data", "timestamp", "type"]
