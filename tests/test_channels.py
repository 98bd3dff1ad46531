"""Channels: where an order was placed, and API keys that are bound to channels."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from app.models.principal import SCOPES
from tests.support.concurrency import retry_while_unavailable, run_concurrently
from tests.support.credentials import api_key, bearer, token
from tests.support.samples import MINIMAL, error_locations, slug

Send = Callable[..., TestResponse]
ON_WEB = MINIMAL | {"channel": "web"}


def sender(client: FlaskClient, credential: str | None = None) -> Send:
    """Sends requests with the credential."""

    def send(method: str, path: str, body: Any = None, **headers: str) -> TestResponse:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        sent: dict[str, Any] = {} if body is None else {"json": body, "content_type": kind}
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        given |= bearer(credential) if credential else {}
        return client.open(path, method=method, headers=given, buffered=True, **sent)

    return send


def test_an_order_keeps_the_channel_it_was_created_with(client: FlaskClient) -> None:
    created = client.post("/orders", json=ON_WEB)

    order = client.get(created.headers["Location"])
    assert (created.json["channel"], order.json["channel"]) == ("web", "web")


@pytest.mark.parametrize("channel", ["", "x" * 65, "a\n", 1, ["web"]])
def test_a_channel_has_1_to_64_characters(client: FlaskClient, channel: object) -> None:
    assert error_locations(client.post("/orders", json=MINIMAL | {"channel": channel})) == {"#/channel"}


@pytest.mark.parametrize("channel", ["web", "app", None])
def test_no_patch_changes_the_channel(client: FlaskClient, channel: str | None) -> None:
    path = client.post("/orders", json=ON_WEB).headers["Location"]

    response = client.patch(path, json={"channel": channel})

    assert error_locations(response) == {"#/channel"}
    assert response.json["errors"][0]["detail"].startswith("A patch cannot change this. Allowed: external_ref, ")
    assert client.patch(path, json={"note": "x"}).json["channel"] == "web"


def test_a_batch_and_exports_have_the_channel(client: FlaskClient) -> None:
    client.post("/orders/batch", json={"orders": [ON_WEB, MINIMAL]})

    documents = client.get("/orders/export?sort=created_at").text.splitlines()
    rows = client.get("/orders/export?format=csv").text.splitlines()
    assert [json.loads(document)["channel"] for document in documents] == ["web", None]
    assert rows[0].split(",")[4] == "channel"
    assert sorted(row.split(",")[4] for row in rows[1:]) == ["", "web"]


def test_an_idempotency_key_with_another_channel_is_another_body(client: FlaskClient) -> None:
    headers = {"Idempotency-Key": "k-1"}
    client.post("/orders", json=ON_WEB, headers=headers)

    response = client.post("/orders", json=MINIMAL, headers=headers)

    assert response.status_code == 422


@pytest.fixture
def orders(client: FlaskClient) -> list[dict[str, str]]:
    """Orders of several channels and of none, oldest first; every third one is confirmed."""
    channels = ["web", "app", "web", None, "app", "web", "web", "phone", "WEB", "web", None, "app"]
    orders = [client.post("/orders", json=MINIMAL | {"channel": channel}).json for channel in channels]
    for order in orders[::3]:
        client.post(f"/orders/{order['id']}/confirm")
    return [client.get(f"/orders/{order['id']}").json for order in orders]


def listed(send: Send, query: str) -> list[str]:
    """The ids of all pages."""
    ids, cursor = [], ""
    while cursor is not None:
        page = send("GET", f"/orders?{query}{cursor and f'&cursor={cursor}'}")
        assert page.status_code == 200, page.text
        ids += [order["id"] for order in page.json["orders"]]
        cursor = page.json["next_cursor"]
    return ids


@pytest.mark.parametrize("status", [None, "pending", "confirmed", "cancelled"])
def test_lists_and_exports_filter_by_channel_alone_and_with_the_status(
    client: FlaskClient, orders: list[dict[str, str]], status: str | None
) -> None:
    for channel in ("web", "app", "phone", "WEB", "none", "%"):
        matching = [one["id"] for one in orders if one["channel"] == channel and status in (None, one["status"])]
        query = urlencode({"channel": channel} | ({"status": status} if status else {}))

        exported = client.get(f"/orders/export?{query}").text.splitlines()

        assert listed(sender(client), f"{query}&limit=2") == matching[::-1]
        assert listed(sender(client), f"{query}&limit=2&sort=created_at") == matching
        assert [json.loads(document)["id"] for document in exported] == matching[::-1]


@pytest.mark.parametrize(
    "filters", [{"customer_id": "c-1"}, {"item_id": "sku-1"}, {"fulfillment_status": "unfulfilled"}]
)
def test_other_filters_are_combined_with_the_channel(
    client: FlaskClient, orders: list[dict[str, str]], filters: dict[str, str]
) -> None:
    matching = [one["id"] for one in orders if one["channel"] == "web"]

    assert listed(sender(client), urlencode(filters | {"channel": "web", "limit": 2})) == matching[::-1]
    assert listed(sender(client), urlencode({"customer_id": "c-2", "channel": "web"})) == []


@dataclass
class Shop:
    """Keys of one principal: one for all orders, one for the channel web, one for web and app."""

    all: Send
    web: Send
    two: Send


@pytest.fixture
def shop(secure_app: Flask, secure_client: FlaskClient) -> Shop:
    bindings: tuple[list[str], ...] = ([], ["web"], ["app", "web"])
    return Shop(*(sender(secure_client, api_key(secure_app, *SCOPES, channels=names)) for names in bindings))


@pytest.fixture
def of_channels(shop: Shop) -> dict[str | None, str]:
    """The id of an order of each channel, all of one customer, with the same item and note."""
    channels = ["web", "app", "phone", "WEB", "we", "web ", "%", '"web"', None]
    body = MINIMAL | {"note": "canary"}
    return {name: shop.all("POST", "/orders", body | {"channel": name}).json["id"] for name in channels}


QUERIES = [
    "", "status=pending", "fulfillment_status=unfulfilled", "customer_id=c-1", "item_id=sku-1", "channel={channel}",
    "channel={channel}&status=pending", "customer_id=c-1&status=pending", "sort=created_at", "number={number}",
    "created_from=2020-01-01T00:00:00Z", "item_id=sku-1&status=pending&sort=created_at",
]  # fmt: skip


@pytest.mark.parametrize("query", QUERIES)
def test_a_bound_key_lists_and_exports_the_orders_of_its_channels_only(
    shop: Shop, of_channels: dict[str | None, str], query: str
) -> None:
    queries = {query: None}
    if "{" in query:
        documents = [shop.all("GET", f"/orders/{order_id}").json for order_id in of_channels.values()]
        queries = {
            query.format(number=order["number"], channel=quote(order["channel"] or "none")): order["channel"]
            for order in documents
        }
    paths = ("/orders?", "/orders/export?format=ndjson&", "/orders/export?format=csv&")
    for path, (send, own) in product(paths, ((shop.web, {"web"}), (shop.two, {"web", "app"}))):
        for parameters, channel in queries.items():
            found = send("GET", path + parameters)

            assert found.status_code == 200, found.text
            seen = {name for name, order in of_channels.items() if order in found.text}
            assert seen == (own & {channel} if "{" in query else own), path


def test_pages_of_a_bound_key_have_each_order_once_and_in_order(shop: Shop) -> None:
    channels = ["web", "app", None, "phone"] * 6
    ids = [shop.all("POST", "/orders", MINIMAL | {"channel": name}).json["id"] for name in channels]
    for order_id in ids[::5]:
        shop.all("POST", f"/orders/{order_id}/confirm")
    expected = [order_id for order_id, name in zip(ids, channels, strict=True) if name in ("web", "app")]

    for sort, order in (("created_at", expected), ("-created_at", expected[::-1])):
        exported = shop.two("GET", f"/orders/export?sort={sort}").text.splitlines()
        assert listed(shop.two, f"sort={sort}&limit=3") == order
        assert [json.loads(document)["id"] for document in exported] == order


def test_a_cursor_of_another_key_lists_the_orders_of_the_keys_own_channels(
    shop: Shop, of_channels: dict[str | None, str]
) -> None:
    cursor = shop.all("GET", "/orders?limit=1&sort=created_at").json["next_cursor"]

    assert shop.web("GET", f"/orders?limit=1&sort=created_at&cursor={cursor}").json["orders"] == []


@pytest.mark.parametrize("below", ["", "?version=1", "/history"])
def test_an_order_of_another_channel_its_versions_and_its_history_do_not_exist(
    shop: Shop, of_channels: dict[str | None, str], below: str
) -> None:
    for channel, order_id in of_channels.items():
        own, response = channel == "web", shop.web("GET", f"/orders/{order_id}{below}")

        assert response.status_code == (200 if own else 404)
        assert own or (slug(response), "canary" in response.text) == ((404, "order-not-found"), False)


def test_a_new_order_gets_the_only_channel_of_its_key(shop: Shop) -> None:
    created = [shop.web("POST", "/orders", MINIMAL | more) for more in ({}, {"channel": None}, {"channel": "web"})]
    batch = shop.web("POST", "/orders/batch", {"orders": [MINIMAL]}).json["results"]

    assert [response.json["channel"] for response in created] == ["web"] * 3
    assert batch[0]["order"]["channel"] == "web"


@pytest.mark.parametrize("body", [MINIMAL, MINIMAL | {"channel": None}, MINIMAL | {"channel": "phone"}])
def test_an_order_in_another_channel_is_refused_and_the_allowed_channels_are_named(
    shop: Shop, body: dict[str, Any]
) -> None:
    refused = shop.two("POST", "/orders", body)
    results = shop.two("POST", "/orders/batch", {"orders": [body, ON_WEB]}).json["results"]

    assert slug(refused) == (403, "forbidden")
    assert refused.json["detail"].endswith("`channel` must be one of: app, web.")
    assert [result["status"] for result in results] == [403, 201]
    assert len(shop.all("GET", "/orders").json["orders"]) == 1


def test_the_default_channel_is_part_of_the_fingerprint(shop: Shop) -> None:
    first = shop.web("POST", "/orders", MINIMAL, Idempotency_Key="k-1")

    explicit = shop.two("POST", "/orders", ON_WEB, Idempotency_Key="k-1")
    other = shop.all("POST", "/orders", MINIMAL, Idempotency_Key="k-1")

    assert (explicit.status_code, explicit.data) == (201, first.data)
    assert slug(other) == (422, "idempotency-key-reused")


def test_no_replay_of_a_create_reveals_an_order_of_another_channel(shop: Shop) -> None:
    """Keys of one name share their idempotency keys and references."""
    on_app = MINIMAL | {"channel": "app", "note": "canary", "external_ref": "r-1"}
    created = shop.two("POST", "/orders", on_app, Idempotency_Key="k-1")

    responses = [
        shop.web("POST", "/orders", on_app | {"channel": "web"}, Idempotency_Key="k-1"),
        shop.web("POST", "/orders", on_app | {"channel": "app"}, Idempotency_Key="k-1"),
        shop.web("POST", "/orders", MINIMAL | {"external_ref": "r-1"}, Idempotency_Key="k-2"),
        shop.web("POST", "/orders", MINIMAL | {"external_ref": "r-1"}),
    ]
    entries = [ON_WEB | {"idempotency_key": "k-1"}, ON_WEB | {"external_ref": "r-1"}, on_app]
    batch = shop.web("POST", "/orders/batch", {"orders": entries})

    assert [response.status_code for response in responses] == [422, 403, 409, 409]
    assert [result["status"] for result in batch.json["results"]] == [422, 409, 403]
    for response in (*responses, batch):
        assert created.json["id"] not in response.text and "canary" not in response.text
        assert created.json["number"] not in response.text


def test_a_duplicate_reference_names_its_order_only_to_keys_of_its_channel(shop: Shop) -> None:
    created = shop.two("POST", "/orders", MINIMAL | {"channel": "app", "external_ref": "r-1"}).json
    path = f"/orders/{shop.web('POST', '/orders', MINIMAL).json['id']}"

    of_bound = [
        shop.web("POST", "/orders", MINIMAL | {"external_ref": "r-1"}), shop.web("PATCH", path, {"external_ref": "r-1"})
    ]  # fmt: skip
    of_others = [
        shop.two("POST", "/orders", ON_WEB | {"external_ref": "r-1"}), shop.two("PATCH", path, {"external_ref": "r-1"})
    ]  # fmt: skip

    assert {slug(response) for response in of_bound + of_others} == {(409, "duplicate-external-ref")}
    assert ["order_id" in response.json or created["id"] in response.text for response in of_bound] == [False, False]
    assert [response.json["order_id"] for response in of_others] == [created["id"]] * 2


def test_after_an_erasure_no_retry_reveals_an_order_of_another_channel(shop: Shop) -> None:
    """The fingerprint is erased, so a request with the key and any body is a retry."""
    for more in ({"idempotency_key": "k-1"}, {"external_ref": "r-1"}):
        entry = MINIMAL | {"channel": "app"} | more
        created = shop.two("POST", "/orders/batch", {"orders": [entry]}).json["results"][0]["order"]
        shop.two("POST", f"/orders/{created['id']}/cancel", {"reason": "customer"})
        assert shop.all("DELETE", "/customers/c-1/personal-data").status_code == 200

        hidden = shop.web("POST", "/orders/batch", {"orders": [entry | {"channel": "web"}]})
        replayed = shop.two("POST", "/orders/batch", {"orders": [entry]})

        assert hidden.json["results"][0]["status"] == (422 if "idempotency_key" in more else 409)
        assert created["id"] not in hidden.text and created["number"] not in hidden.text
        assert replayed.json["results"][0]["order"]["id"] == created["id"]


def test_no_replay_of_a_change_reveals_an_order_of_another_channel(shop: Shop) -> None:
    path = f"/orders/{shop.two('POST', '/orders', MINIMAL | {'channel': 'app'}).json['id']}"
    shop.two("PATCH", path, {"note": "canary"}, Idempotency_Key="k-1")

    replayed = shop.web("PATCH", path, {"note": "canary"}, Idempotency_Key="k-1")

    assert slug(replayed) == (404, "order-not-found")
    assert shop.two("PATCH", path, {"note": "canary"}, Idempotency_Key="k-1").headers["Idempotent-Replayed"] == "true"


def test_a_customers_token_is_bound_to_no_channel(shop: Shop, secure_client: FlaskClient) -> None:
    mine = [shop.all("POST", "/orders", MINIMAL | {"channel": name}).json["id"] for name in ("web", "app", None)]
    customer = sender(secure_client, token(customer="c-1"))

    assert {one["id"] for one in customer("GET", "/orders").json["orders"]} == set(mine)
    assert customer("GET", "/orders?channel=app").json["orders"][0]["id"] == mine[1]
    assert customer("POST", "/orders", MINIMAL | {"channel": "kiosk"}).json["channel"] == "kiosk"


def create(app: Flask, *channels: str) -> Any:
    words = ["api-keys", "create", "--name", "shop", "--scope", "orders:read"]
    return app.test_cli_runner().invoke(args=[*words, *(word for name in channels for word in ("--channel", name))])


def test_the_command_line_binds_keys_to_channels_and_lists_them(
    secure_app: Flask, secure_client: FlaskClient, shop: Shop, of_channels: dict[str | None, str]
) -> None:
    key = create(secure_app, "phone", "we", "we").stdout.strip()

    send = sender(secure_client, key)
    keys = secure_app.test_cli_runner().invoke(args=["api-keys", "list"]).stdout.splitlines()

    assert {one["channel"] for one in send("GET", "/orders").json["orders"]} == {"phone", "we"}
    assert "  shop  orders:read  channels phone, we  valid  " in keys[-1]
    assert "channels" not in keys[0]


@pytest.mark.parametrize("channels", [("",), ("x" * 65,), ("a\n",), tuple(f"c-{i}" for i in range(21))])
def test_a_key_is_bound_to_at_most_20_channels_with_valid_names(secure_app: Flask, channels: tuple[str, ...]) -> None:
    assert create(secure_app, *channels).exit_code == 2


def test_a_key_that_is_bound_to_channels_cannot_have_scopes_for_personal_data(secure_app: Flask) -> None:
    words = ["api-keys", "create", "--name", "shop", "--scope", "orders:read", "--channel", "web"]

    result = secure_app.test_cli_runner().invoke(args=[*words, "--scope", "privacy:erase"])

    assert (result.exit_code, result.stdout) == (2, "")
    assert "without channels, for privacy:erase" in result.stderr


def test_a_key_of_20_channels_lists_their_orders(secure_app: Flask, secure_client: FlaskClient, shop: Shop) -> None:
    names = [f"{i} é'\"\\{{}},%_" for i in range(20)]
    ids = [shop.all("POST", "/orders", MINIMAL | {"channel": name}).json["id"] for name in [*names, "other"]]
    send = sender(secure_client, create(secure_app, *names).stdout.strip())

    assert listed(send, "limit=100") == ids[:20][::-1]
    assert [send("GET", f"/orders/{order_id}").status_code for order_id in ids] == [200] * 20 + [404]


def test_no_lookup_finds_an_order_of_another_channel(shop: Shop) -> None:
    on_app = MINIMAL | {"channel": "app", "external_ref": "r-1"}
    created = shop.two("POST", "/orders", on_app, Idempotency_Key="k-1").json["id"]

    lookups = ["/orders/by-ref/r-1", "/orders?external_ref=r-1", "/orders?idempotency_key=k-1"]
    hidden, found = ([send("GET", path) for path in lookups] for send in (shop.web, shop.two))

    assert [(response.status_code, created in response.text) for response in hidden] == [
        (404, False), (200, False), (200, False)
    ]  # fmt: skip
    assert [(response.status_code, created in response.text) for response in found] == [(200, True)] * 3


@pytest.mark.parametrize("by", ["key", "reference"])
def test_concurrent_creates_of_two_channels_store_one_order_and_reveal_nothing(secure_app: Flask, by: str) -> None:
    """The requests share a statement and its conflicts, but have different owners."""
    keys = {name: api_key(secure_app, *SCOPES, channels=[name]) for name in ("web", "app")}
    names = ["web", "app"] * 8
    body = MINIMAL | ({"external_ref": "r-1"} if by == "reference" else {})
    headers = {"Idempotency_Key": "k-1"} if by == "key" else {}

    def post(i: int) -> TestResponse:
        send = sender(secure_app.test_client(), keys[names[i]])
        return retry_while_unavailable(lambda: send("POST", "/orders", body, **headers))

    responses = run_concurrently(len(names), post)

    created = {response.json["id"]: response.json["channel"] for response in responses if response.status_code == 201}
    assert len(created) == 1
    [(order_id, winner)] = created.items()
    for name, response in zip(names, responses, strict=True):
        if name != winner:
            assert response.status_code == (422 if by == "key" else 409)
            assert order_id not in response.text


def test_concurrent_requests_that_share_a_statement_keep_their_own_owners(secure_app: Flask, shop: Shop) -> None:
    path = f"/orders/{shop.two('POST', '/orders', MINIMAL | {'channel': 'app'}).json['id']}"
    keys = [api_key(secure_app, *SCOPES, channels=[name]) for name in ("web", "app")]

    def send(i: int) -> TestResponse:
        own = sender(secure_app.test_client(), keys[i % 2])
        method, body = (("GET", None), ("PATCH", {"note": str(i)}))[i // 2 % 2]
        return retry_while_unavailable(lambda: own(method, path, body))

    responses = run_concurrently(24, send)

    assert [response.status_code for response in responses] == [404, 200] * 12


@given(
    channels=st.lists(st.sampled_from([None, "web", "app", "phone"]), min_size=1, max_size=12),
    bound=st.sets(st.sampled_from(["web", "app", "phone", "none"]), min_size=1),
    filters=st.fixed_dictionaries(
        {},
        optional={
            "channel": st.sampled_from(["web", "app", "none"]),
            "status": st.sampled_from(["pending", "confirmed", "pending,confirmed"]),
            "item_id": st.just("sku-1"),
            "sort": st.sampled_from(["created_at", "-created_at"]),
        },
    ),
    limit=st.integers(1, 5),
)
def test_a_bound_key_lists_the_same_orders_as_any_key_except_other_channels(
    secure_app: Flask,
    secure_client: FlaskClient,
    channels: list[str | None],
    bound: set[str],
    filters: dict[str, str],
    limit: int,
) -> None:
    customer = f"c-{datetime.now(UTC).timestamp()}"  # the tables are emptied once for all examples
    everything = sender(secure_client, api_key(secure_app, *SCOPES))
    for i, channel in enumerate(channels):
        created = everything("POST", "/orders", MINIMAL | {"customer_id": customer, "channel": channel}).json["id"]
        if i % 2:
            everything("POST", f"/orders/{created}/confirm")
    send = sender(secure_client, api_key(secure_app, *SCOPES, channels=sorted(bound)))

    first = everything("GET", f"/orders?customer_id={customer}&sort=created_at&limit=1").json["orders"][0]

    for more in ({"customer_id": customer}, {"created_from": first["created_at"]}):
        query = urlencode(filters | more)
        expected = everything("GET", f"/orders?limit=100&{query}").json["orders"]
        assert listed(send, f"{query}&limit={limit}") == [one["id"] for one in expected if one["channel"] in bound]
