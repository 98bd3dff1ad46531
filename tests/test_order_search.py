"""Searching orders over HTTP: what is found by which words, filters and sorts; facets, pages, and who sees what."""

from base64 import urlsafe_b64decode
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import product
from threading import BoundedSemaphore
from typing import Any
from uuid import UUID

import pytest
import time_machine
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from app.services import order_search
from app.services.event_feed import sequence_events
from tests.support.credentials import api_key, bearer, token
from tests.support.samples import ADDRESS, MINIMAL, RICHEST, priced, slug
from tests.support.search import project, search, searched


def test_an_order_is_found_after_the_worker_has_projected_it(app: Flask, client: FlaskClient) -> None:
    order = client.post("/orders", json=RICHEST).json
    before = search(client)
    project(app)
    changed = client.patch(f"/orders/{order['id']}", json={"note": "changed"}).json

    after = search(client)

    assert (before["orders"], before["as_of_seq"], before["behind"]) == ([], 0, 0)
    assert (after["orders"], after["as_of_seq"]) == ([changed], 1)
    assert after["next_cursor"] is None and "facets" not in after


def test_a_search_says_how_many_events_it_is_behind(app: Flask, client: FlaskClient) -> None:
    client.post("/orders", json=MINIMAL)
    project(app)
    for _ in range(2):
        client.post("/orders", json=MINIMAL)
    with app.app_context():
        while sequence_events():
            pass

    page = search(client)

    assert (len(page["orders"]), page["as_of_seq"], page["behind"]) == (1, 1, 2)


PHONE = {"shipping_address": ADDRESS | {"phone": "030 1234567"}}


def address(**members: str) -> dict[str, Any]:
    return {"shipping_address": ADDRESS | members}


FOUND: list[tuple[dict[str, Any], list[str]]] = [
    (RICHEST, ["shop-1", "SHOP", "shop1", "c-123", "123", "sku-1", "SKU", "mug", "mug lovelace shop-1"]),
    (RICHEST, ["Ada", "lovel", "LOVELACE ada", "analytical", "SW1Y 4JH", "sw1y4jh", "4jh"]),
    (RICHEST, ["ada@example.com", "ada@exam", "example.com", "EXAMPLE"]),
    (RICHEST, ["+44 20 7946 0000", "+442079460000", "020 7946 0000", "02079460000", "00442079460000", "7946 0000"]),
    (RICHEST, ["2079460000", "7946"]),
    (address(phone="030 1234567"), ["+49 30 1234567", "+49 (0)30 1234567", "0301234567", "1234567"]),
    (
        address(name="Jürgen Müller-Groß"),
        ["müller", "Muller", "MUELLER", "mueller-gross", "jurgen", "Juergen"],
    ),
    (address(name="Jürgen Müller-Groß"), ["groß", "GROSS", "müller-groß", "gross jürgen"]),
    (address(name="Juergen Mueller"), ["Jürgen Müller"]),
    (address(name="Søren Łukasz Ærø"), ["soren lukasz aero", "soeren"]),
    (address(name="José Peña"), ["jose pena", "Jose\u0301"]),
    (address(name="山田太郎"), ["山田"]),
    (address(name="Иван Петров"), ["петр"]),
    ({"items": [{"item_id": "ß" * 64, "quantity": 1}]}, ["s" * 150]),
    ({"external_ref": "0012345678"}, ["0012345678", "0012345", "001234-5678"]),
    ({"items": [{"item_id": "0614141999996", "quantity": 1}]}, ["0614141999996", "0614141"]),
]


@pytest.mark.parametrize(("members", "queries"), FOUND, ids=[queries[0][:20] for _, queries in FOUND])
def test_an_order_is_found_by_the_beginning_of_any_of_its_words(
    app: Flask, client: FlaskClient, members: dict[str, Any], queries: list[str]
) -> None:
    other = {"name": "Zoë", "email": "zoe@else.org", "phone": "1", "country": "GB"}
    items = [{"item_id": "thing", "quantity": 1}]
    client.post("/orders", json={"customer_id": "x", "items": items, "shipping_address": other})
    order = client.post("/orders", json=MINIMAL | members).json
    project(app)

    for q in queries:
        assert searched(client, q=q) == [order["id"]], q


@pytest.mark.parametrize("number", ["{}", "{:.11}", "{0[7]}{0[8]}{0[9]}{0[10]}{0[11]}"])
def test_an_order_is_found_by_a_part_of_its_number(app: Flask, client: FlaskClient, number: str) -> None:
    orders = [client.post("/orders", json=MINIMAL).json for _ in range(3)]
    project(app)

    assert searched(client, q=number.format(orders[1]["number"]).lower()) == [orders[1]["id"]]


@pytest.mark.parametrize("q", ["ovelace", "lovelace nobody", "ada-lovelace", "!!!", "%", "_", "x" * 200, "'; --", "#"])
def test_only_beginnings_of_words_match(app: Flask, client: FlaskClient, q: str) -> None:
    client.post("/orders", json=RICHEST)
    project(app)

    assert searched(client, q=q) == []


@pytest.mark.parametrize("q", ["", "  "])
def test_a_query_without_a_word_finds_all(app: Flask, client: FlaskClient, q: str) -> None:
    client.post("/orders", json=RICHEST)
    project(app)

    assert len(searched(client, q=q)) == 1


HOSTILE = ["\0", "a\0b", "'", '"', "a' OR '1'='1", "a & b | !c <-> d:*", "%%__\\", "NEAR(a b)", "a AND NOT b", "*",
           "a" * 201, " ".join("abcdefghijk"), "\u0301", "ﷺ", "\U0010ffff", "\ufeff", "a\u202eb", "½", "-1", "{}", "[",
           "a\\", "a''", "$1", ":a", "%(a)s", "\u2028", "İ", "ǅ", "0" * 200, "+" * 9, "+1234567"]  # fmt: skip
any_text = st.one_of(
    st.text(max_size=210), st.sampled_from(HOSTILE), st.text(st.sampled_from(" ab0+-'\"%_\\*é\u0301ß"))
)


@given(q=any_text, tag=st.none() | any_text, pair=st.none() | st.tuples(any_text, any_text))
def test_any_query_is_200_or_400(
    app: Flask, client: FlaskClient, q: str, tag: str | None, pair: tuple[str, str] | None
) -> None:
    query = (
        {"q": q} | ({} if tag is None else {"tag": tag}) | ({} if pair is None else {f"metadata.{pair[0]}": pair[1]})
    )
    try:
        response = client.get("/orders/search", query_string=query)
    except UnicodeEncodeError:  # surrogates cannot be sent
        return

    assert response.status_code == 200 or slug(response) == (400, "invalid-request")


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("q=a+b+c+d+e+f+g+h+i+j+k", "q"), ("q=%00", "q"), ("held=yes", "held"), ("late=1", "late"),
        ("status=open", "status"), ("sort=name", "sort"), ("facets=note", "facets"), ("total_from=1.5", "total_from"),
        ("currency=eur", "currency"), ("metadata=x", "metadata"), ("metadata.=x", "metadata"), ("name=x", "name"),
        (f"metadata.{'k' * 41}=x", "metadata"), ("&".join(f"metadata.k{i}=x" for i in range(11)), "metadata"),
        ("created_from=yesterday", "created_from"), ("limit=101", "limit"), ("tag=", "tag"),
    ],
)  # fmt: skip
def test_an_invalid_parameter_is_named(client: FlaskClient, query: str, parameter: str) -> None:
    refused = client.get(f"/orders/search?{query}")

    assert slug(refused) == (400, "invalid-request")
    assert [error["parameter"] for error in refused.json["errors"]] == [parameter]


@pytest.fixture
def orders(app: Flask, client: FlaskClient) -> dict[str, dict[str, Any]]:
    """Orders that differ in what is filtered by."""
    bodies = {
        "web": priced(channel="web", tags=["gift", "VIP"], metadata={"colour": "Red", "x": ""}),
        "app": priced(500, channel="app", tags=["gift"], metadata={"colour": "Blue"}, customer_id="c-2"),
        "dollars": priced(500, currency="USD"),
        "free": MINIMAL,
        "held": priced(100),
        "cancelled": priced(200),
        "paid": priced(300),
        "returned": priced(400),
    }
    paths = {}
    for name, body in bodies.items():
        paths[name] = client.post("/orders", json=body).headers["Location"]
    client.put(f"{paths['held']}/holds/review", json={"kind": "review"})
    client.post(f"{paths['cancelled']}/cancel", json={"reason": "customer"})
    client.post(f"{paths['paid']}/payments", json={"type": "capture", "amount": 1300, "reference": "p"})
    units = {"items": [{"line": 1, "quantity": 1}]}
    for action, content in (("confirm", {}), ("fulfillments", units), ("returns", units)):
        client.post(f"{paths['returned']}/{action}", json=content)
    project(app)
    return {name: client.get(path).json for name, path in paths.items()}


FILTERS: list[tuple[dict[str, Any], set[str]]] = [
    ({"channel": "web"}, {"web"}),
    ({"tag": "gift"}, {"web", "app"}), ({"tag": "VIP"}, {"web"}), ({"tag": "vip"}, set()), ({"tag": "gif"}, set()),
    ({"metadata.colour": "Red"}, {"web"}), ({"metadata.colour": "red"}, set()), ({"metadata.x": ""}, {"web"}),
    ({"metadata.colour": "Red", "metadata.x": ""}, {"web"}), ({"metadata.colour": "Re"}, set()),
    ({"customer_id": "c-2"}, {"app"}), ({"currency": "USD"}, {"dollars"}),
    ({"held": "true"}, {"held"}), ({"held": "false", "status": "cancelled"}, {"cancelled"}), ({"late": "true"}, set()),
    ({"status": "cancelled,completed"}, {"cancelled", "returned"}),
    ({"fulfillment_status": "fulfilled"}, {"returned"}), ({"payment_status": "paid,refunded"}, {"paid"}),
    ({"return_status": "returned,none", "status": "completed"}, {"returned"}), ({"return_status": "partial"}, set()),
    ({"total_from": 1500}, {"app", "dollars"}), ({"total_from": 1500, "currency": "EUR"}, {"app"}),
    ({"total_from": 1100, "total_to": 1300}, {"held", "paid"}), ({"total_to": 0}, {"cancelled"}),
    ({"q": "sku", "status": "cancelled"}, {"cancelled"}), ({"q": "sku", "tag": "gift", "channel": "app"}, {"app"}),
]  # fmt: skip


@pytest.mark.parametrize("candidates", [10_000, 0], ids=["candidates", "walk"])
def test_each_filter_selects_the_orders_that_match(
    client: FlaskClient, orders: dict[str, Any], monkeypatch: pytest.MonkeyPatch, candidates: int
) -> None:
    monkeypatch.setattr(order_search, "CANDIDATES_MAX", candidates)
    ids = {order["id"]: name for name, order in orders.items()}

    for (filters, names), sort in product(FILTERS, ("-created_at", "updated_at", "-total")):
        found = searched(client, **filters, sort=sort)
        assert (len(found), {ids[order_id] for order_id in found}) == (len(names), names), (filters, sort)


def test_times_select_orders_from_the_first_up_to_the_second(client: FlaskClient, orders: dict[str, Any]) -> None:
    by_creation = sorted(orders.values(), key=lambda order: str(order["created_at"]))
    by_change = sorted(orders.values(), key=lambda order: str(order["updated_at"]))

    created = searched(client, created_from=by_creation[2]["created_at"], created_to=by_creation[5]["created_at"])
    updated = searched(client, updated_from=by_change[2]["updated_at"], updated_to=by_change[5]["updated_at"])

    assert created == [order["id"] for order in reversed(by_creation[2:5])]
    assert set(updated) == {order["id"] for order in by_change[2:5]}


@pytest.mark.parametrize("sort", ["-created_at", "updated_at", "-total"])
def test_an_order_that_a_machine_with_an_earlier_clock_has_changed_is_found_by_its_creation(
    app: Flask, client: FlaskClient, sort: str
) -> None:
    order = client.post("/orders", json=MINIMAL).json
    with time_machine.travel(datetime.now(UTC) - timedelta(hours=1)):
        client.post(f"/orders/{order['id']}/confirm")
    project(app)

    assert searched(client, created_from=order["created_at"], sort=sort) == [order["id"]]


def sort_key(order: dict[str, Any], sort: str) -> tuple[Any, str]:
    value = {"created_at": 0, "updated_at": order["updated_at"], "total": (order["totals"] or {"total": -1})["total"]}
    return value[sort.removeprefix("-")], order["id"]


SORTS = ("created_at", "-created_at", "updated_at", "-updated_at", "total", "-total")


@pytest.mark.parametrize(("candidates", "walk"), [(10_000, 10_000), (0, 10_000), (0, 1)])
@pytest.mark.parametrize("filters", [{}, {"q": "sku", "status": "pending,completed"}, {"tag": "gift"}])
def test_pages_are_sorted_and_contain_each_order_once(
    client: FlaskClient, orders: dict[str, Any], monkeypatch: pytest.MonkeyPatch, candidates: int, walk: int,
    filters: dict[str, str],
) -> None:  # fmt: skip
    monkeypatch.setattr(order_search, "CANDIDATES_MAX", candidates)
    monkeypatch.setattr(order_search, "WALK_MAX", walk)
    matching = [
        order for order in orders.values()
        if order["status"] in filters.get("status", order["status"]) and filters.get("tag") in (None, *order["tags"])
    ]  # fmt: skip

    for sort, limit in product(SORTS, (1, 2, 3, 100)):
        by_sort = sorted(matching, key=lambda order: sort_key(order, sort), reverse=sort.startswith("-"))
        found = searched(client, **filters, sort=sort, limit=limit)
        assert found == [order["id"] for order in by_sort], (sort, limit)


def test_words_that_many_orders_have_are_intersected(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_search, "CANDIDATES_MAX", 2)
    monkeypatch.setattr(order_search, "WALK_MAX", 1)
    names = [" ".join(pair) for pair in product(("Anna", "Berta", "Clara"), ("Abel", "Braun", "Cohn"))]
    for name in names:
        client.post("/orders", json=MINIMAL | {"shipping_address": ADDRESS | {"name": name}})
    project(app)

    page = search(client, q="berta cohn")

    assert [order["shipping_address"]["name"] for order in page["orders"]] == ["Berta Cohn"]
    assert page["next_cursor"] is None


def test_a_search_that_waits_too_long_for_others_is_503(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_search, "SLOTS", BoundedSemaphore(1))
    monkeypatch.setattr(order_search, "QUEUE_SECONDS", 0.01)

    with order_search.SLOTS:
        answer = client.get("/orders/search")

    assert slug(answer) == (503, "service-unavailable") and answer.headers["Retry-After"] == "1"
    assert client.get("/orders/search").status_code == 200


def test_a_cursor_belongs_to_its_query_and_sort(client: FlaskClient, orders: dict[str, Any]) -> None:
    for query in ({"q": "sku"}, {"sort": "total"}, {"sort": "updated_at"}, {"metadata.colour": "Red"}, {}):
        cursor = search(client, limit=1)["next_cursor"]
        answer = client.get("/orders/search", query_string=query | {"limit": 2, "cursor": cursor})
        assert answer.status_code == 200 if not query else slug(answer) == (400, "invalid-cursor")
    for damaged in (cursor[:-4], cursor[::-1], "x", "é", ""):
        assert client.get("/orders/search", query_string={"cursor": damaged}).status_code == 400


@pytest.mark.parametrize("sort", ["-created_at", "created_at", "total"])
def test_orders_that_match_all_the_time_are_found_once_during_concurrent_changes(
    app: Flask, client: FlaskClient, sort: str
) -> None:
    paths = [client.post("/orders", json=priced(n, tags=["mine"])).headers["Location"] for n in range(12)]
    project(app)
    found, cursor = [], {}
    for n in range(30):
        page = search(client, tag="mine", limit=2, sort=sort, **cursor)
        found += [order["id"] for order in page["orders"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
        client.patch(paths[-n % 12], json={"note": str(n)})
        client.post("/orders", json=priced(n))
        project(app)

    assert sorted(found) == sorted(path.removeprefix("/orders/") for path in paths)


@pytest.mark.parametrize("candidates", [10_000, 0], ids=["candidates", "walk"])
@pytest.mark.parametrize("filters", [{}, {"q": "sku"}, {"status": "pending"}, {"tag": "gift"}, {"q": "nobody"}])
def test_facets_count_all_orders_that_match(
    client: FlaskClient, orders: dict[str, Any], monkeypatch: pytest.MonkeyPatch, filters: Any, candidates: int
) -> None:
    monkeypatch.setattr(order_search, "CANDIDATES_MAX", candidates)
    facets = ("status", "fulfillment_status", "payment_status", "return_status", "channel", "currency", "held", "late")

    page = search(client, **filters, facets=",".join(facets), limit=1)

    matching = search(client, **filters, limit=100)["orders"]
    for name in facets:
        counted = Counter(bool(order["holds"]) if name == "held" else order[name] for order in matching)
        assert {entry["value"]: entry["count"] for entry in page["facets"][name]} == counted
    assert page["facets_complete"] is True


def test_facets_of_many_orders_are_counted_up_to_a_limit_and_say_so(
    client: FlaskClient, orders: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_search, "FACETS_MAX", 5)

    page = search(client, facets="currency")

    assert sum(entry["count"] for entry in page["facets"]["currency"]) == 5
    assert page["facets_complete"] is False


def test_a_customer_and_a_channel_find_their_own_orders_only(
    secure_app: Flask, secure_client: FlaskClient, app: Flask
) -> None:
    master = bearer(api_key(secure_app, "orders:read", "orders:write"))
    for customer, channel in product(("c-1", "c-2"), ("web", "app", None)):
        body = MINIMAL | {"customer_id": customer, "channel": channel}
        assert secure_client.post("/orders", json=body, headers=master).status_code == 201
    project(app)
    credentials = {
        "customer": token(customer="c-1", scope="orders:read"),
        "channel": api_key(secure_app, "orders:read", channels=["web"]),
        "channels": api_key(secure_app, "orders:read", channels=["web", "app"]),
    }

    for credential, count in (("customer", 3), ("channel", 2), ("channels", 4)):
        headers = bearer(credentials[credential])
        for query in ({}, {"q": "sku"}, {"status": "pending"}, {"sort": "total"}):
            found = secure_client.get(
                "/orders/search", query_string=query | {"facets": "channel,status"}, headers=headers
            ).json
            assert len(found["orders"]) == count
            assert sum(entry["count"] for entry in found["facets"]["channel"]) == count
            assert found["facets"]["status"] == [{"value": "pending", "count": count}]
        for query in ({"customer_id": "c-2", "channel": "app"}, {"channel": "phone"}):
            found = secure_client.get("/orders/search", query_string=query | {"facets": "status"}, headers=headers).json
            own = 1 if credential == "channels" and "customer_id" in query else 0
            assert (len(found["orders"]), len(found["facets"]["status"])) == (own, own)


@pytest.mark.parametrize("sort", SORTS)
def test_no_cursor_of_a_bound_key_names_an_order_of_another_channel(
    secure_app: Flask, secure_client: FlaskClient, app: Flask, monkeypatch: pytest.MonkeyPatch, sort: str
) -> None:
    monkeypatch.setattr(order_search, "CANDIDATES_MAX", 0)
    monkeypatch.setattr(order_search, "WALK_MAX", 1)
    master = bearer(api_key(secure_app, "orders:read", "orders:write"))
    orders = [
        secure_client.post("/orders", json=MINIMAL | {"channel": channel}, headers=master).json
        for channel in ("app", "web", "app", "web", "app")
    ]
    project(app)

    bound, cursor, named = bearer(api_key(secure_app, "orders:read", channels=["web"])), {}, set()
    while cursor is not None:
        query = {"status": "pending", "sort": sort, "limit": "1"} | cursor
        page = secure_client.get("/orders/search", query_string=query, headers=bound).json
        cursor = {"cursor": page["next_cursor"]} if page["next_cursor"] else None
        named |= {str(UUID(bytes=urlsafe_b64decode(text)[:16])) for text in (cursor or {}).values()}

    assert named == {order["id"] for order in orders if order["channel"] == "web"}


def test_a_customer_sees_no_internal_members_in_search_results(
    secure_app: Flask, secure_client: FlaskClient, app: Flask
) -> None:
    master = bearer(api_key(secure_app, "orders:read", "orders:write", "orders:manage"))
    path = secure_client.post("/orders", json=MINIMAL, headers=master).headers["Location"]
    secure_client.put(f"{path}/holds/fraud", json={"kind": "fraud", "reason": "canary"}, headers=master)
    project(app)

    own = bearer(token(customer="c-1", scope="orders:read"))
    found = secure_client.get("/orders/search?held=true", headers=own)

    assert found.json["orders"] == [secure_client.get(path, headers=own).json]
    assert (found.json["as_of_seq"], found.json["behind"]) == (None, 0)  # how many changes the shop has is internal
    assert "canary" not in found.text


def test_several_values_of_the_filter_with_a_partial_index_can_be_combined(app: Flask, client: FlaskClient) -> None:
    client.post("/orders", json=MINIMAL)
    project(app)

    assert search(client, return_status="partial,returned")["orders"] == []
    assert len(search(client, return_status="partial,none")["orders"]) == 1


def test_the_address_of_the_next_page_leaves_the_query_as_it_is(app: Flask, client: FlaskClient) -> None:
    """Encoded again, its punctuation would make it longer than a request line may be."""
    metadata = {f"k{i}": "(:)" * 166 for i in range(10)}
    for _ in range(3):
        client.post("/orders", json=MINIMAL | {"metadata": metadata})
    project(app)
    query = "&".join(f"metadata.{key}={value}" for key, value in metadata.items())

    first = client.get(f"/orders/search?limit=1&{query}")
    address = first.headers["Link"].partition(">")[0].removeprefix("<")
    second = client.get(address)

    assert address == f"/orders/search?limit=1&{query}&cursor={first.json['next_cursor']}"
    assert second.json["orders"] != first.json["orders"]
    assert second.headers["Link"].count("cursor=") == 1


def test_a_query_that_leaves_no_room_for_the_cursor_is_refused(app: Flask, client: FlaskClient) -> None:
    metadata = {f"k{i}": "a" * (500 if i < 5 else 125) for i in range(6)}
    for _ in range(2):
        client.post("/orders", json=MINIMAL | {"metadata": metadata})
    project(app)
    query = "&".join(f"metadata.{key}={value.replace('a', '%61')}" for key, value in metadata.items())

    refused = client.get(f"/orders/search?limit=1&{query}")

    assert slug(refused) == (400, "invalid-request")
    assert [error["parameter"] for error in refused.json["errors"]] == ["cursor"]
