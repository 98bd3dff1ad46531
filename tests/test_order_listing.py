"""Lists of orders: filters, sort, pages."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
import time_machine
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from app.db.engine import db
from app.models import Order
from tests.support.actions import order_after
from tests.support.samples import LARGE, MINIMAL, error_locations, slug

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def create(client: FlaskClient, at: datetime | None = None, **members: Any) -> dict[str, Any]:
    with time_machine.travel(at or datetime.now(UTC), tick=at is None):
        response = client.post("/orders", json=MINIMAL | members)
    assert response.status_code == 201
    order: dict[str, Any] = response.json
    return order


def listed(client: FlaskClient, **query: Any) -> list[str]:
    response = client.get("/orders", query_string=query)
    assert response.status_code == 200, response.text
    return [order["id"] for order in response.json["orders"]]


def pages(client: FlaskClient, **query: Any) -> Iterator[list[dict[str, Any]]]:
    """All pages, by following `next_cursor`."""
    cursor: dict[str, str] = {}
    while True:
        page = client.get("/orders", query_string=query | cursor).json
        yield page["orders"]
        if page["next_cursor"] is None:
            return
        cursor = {"cursor": page["next_cursor"]}


def test_a_list_without_orders_is_an_empty_page(client: FlaskClient) -> None:
    response = client.get("/orders")

    assert response.json == {"orders": [], "next_cursor": None}
    assert "Link" not in response.headers


def test_the_newest_order_comes_first_and_a_page_has_20(client: FlaskClient) -> None:
    ids = [create(client)["id"] for _ in range(21)]

    assert listed(client) == ids[:0:-1]
    assert listed(client, sort="-created_at") == ids[:0:-1]
    assert listed(client, sort="created_at") == ids[:20]


def test_a_listed_order_is_the_document_of_its_create_response(client: FlaskClient) -> None:
    created = client.post("/orders", json=MINIMAL)

    assert client.get("/orders").data == b'{"orders":[' + created.data + b'],"next_cursor":null}'


def lines(*item_ids: str) -> list[dict[str, Any]]:
    return [{"item_id": item_id, "quantity": 1} for item_id in item_ids]


@pytest.fixture
def shop(app: Flask, client: FlaskClient) -> list[str]:
    """Four orders, oldest first; the last is confirmed and partly fulfilled."""
    ids = [
        create(client, NOON, customer_id="c-1", external_ref="r-1")["id"],
        create(client, NOON + timedelta(seconds=1), customer_id="c-2")["id"],
        create(client, NOON + timedelta(seconds=2), items=lines("a", "b", "a"))["id"],
        create(client, NOON + timedelta(seconds=3), items=lines("a"))["id"],
    ]
    with app.app_context(), db.engine.begin() as connection:
        last = update(Order).where(Order.id == ids[3])
        statuses = {"status": "confirmed", "fulfillment_status": "partial"}
        connection.execute(last.values(statuses | {"payment_status": "paid", "return_status": "partial"}))
    return ids


FILTERS = [
    ({"customer_id": "c-1"}, [0, 2, 3]),
    ({"customer_id": "C-1"}, []),
    ({"status": "pending"}, [0, 1, 2]),
    ({"status": "confirmed"}, [3]),
    ({"status": "cancelled"}, []),
    ({"status": "confirmed,pending"}, [0, 1, 2, 3]),
    ({"status": "pending,pending"}, [0, 1, 2]),
    ({"status": "cancelled,confirmed,completed"}, [3]),
    ({"status": "pending,confirmed", "fulfillment_status": "partial,fulfilled"}, [3]),
    ({"status": "pending,confirmed", "item_id": "a"}, [2, 3]),
    ({"status": "pending,confirmed", "customer_id": "c-2"}, [1]),
    ({"status": "pending,cancelled", "external_ref": "r-1"}, [0]),
    ({"status": "pending,confirmed", "created_from": "2026-11-22T12:00:02Z"}, [2, 3]),
    ({"fulfillment_status": "partial,unfulfilled"}, [0, 1, 2, 3]),
    ({"fulfillment_status": "unfulfilled"}, [0, 1, 2]),
    ({"fulfillment_status": "partial"}, [3]),
    ({"payment_status": "unpaid"}, [0, 1, 2]),
    ({"payment_status": "paid"}, [3]),
    ({"payment_status": "refunded,paid,authorized"}, [3]),
    ({"payment_status": "paid,unpaid"}, [0, 1, 2, 3]),
    ({"payment_status": "paid", "status": "pending"}, []),
    ({"return_status": "none"}, [0, 1, 2]),
    ({"return_status": "returned,partial"}, [3]),
    ({"return_status": "partial", "payment_status": "paid,refunded", "customer_id": "c-1"}, [3]),
    ({"external_ref": "r-1"}, [0]),
    ({"external_ref": "r"}, []),
    ({"item_id": "sku-1"}, [0, 1]),
    ({"item_id": "a"}, [2, 3]),
    ({"item_id": "b"}, [2]),
    ({"created_from": "2026-11-22T12:00:01Z"}, [1, 2, 3]),
    ({"created_to": "2026-11-22T12:00:01Z"}, [0]),
    ({"created_from": "2026-11-22T13:00:01+01:00", "created_to": "2026-11-22T12:00:03.000000Z"}, [1, 2]),
    ({"created_from": "1969-12-31T23:59:59Z", "created_to": "9999-12-31T23:59:59-23:59"}, [0, 1, 2, 3]),
    ({"created_to": "0001-01-01T00:00:00+23:59"}, []),
    ({"customer_id": "c-1", "item_id": "a"}, [2, 3]),
    ({"customer_id": "c-1", "item_id": "a", "status": "pending"}, [2]),
    ({"customer_id": "c-2", "external_ref": "r-1"}, []),
    ({"status": "pending", "created_from": "2026-11-22T12:00:01Z", "created_to": "2026-11-22T12:00:02Z"}, [1]),
    ({"status": "confirmed", "fulfillment_status": "partial", "customer_id": "c-1", "item_id": "a"}, [3]),
]


@pytest.mark.parametrize(("query", "expected"), FILTERS)
def test_filters_select_orders_alone_and_combined(
    client: FlaskClient, shop: list[str], query: dict[str, str], expected: list[int]
) -> None:
    assert listed(client, sort="created_at", **query) == [shop[i] for i in expected]
    assert listed(client, **query) == [shop[i] for i in reversed(expected)]


@pytest.mark.parametrize(
    "as_typed", [str.lower, lambda number: f"  {number} ", lambda number: number.replace("0", "o").replace("1", "l")]
)
def test_a_number_is_found_in_every_common_notation(client: FlaskClient, as_typed: Any) -> None:
    order = create(client)
    create(client)

    assert listed(client, number=as_typed(order["number"])) == [order["id"]]


def test_times_are_distinguished_to_the_microsecond(client: FlaskClient) -> None:
    moments = [NOON + timedelta(microseconds=i) for i in (0, 1, 2, 999, 1000)]
    ids = [create(client, moment)["id"] for moment in moments]

    for i, moment in enumerate(moments):
        assert listed(client, created_from=moment.isoformat(), sort="created_at") == ids[i:]
        assert listed(client, created_to=moment.isoformat(), sort="created_at") == ids[:i]


@given(
    customers=st.lists(st.sampled_from(["c-1", "c-2"]), max_size=8),
    limit=st.integers(1, 9),
    sort=st.sampled_from(["created_at", "-created_at"]),
    customer_id=st.sampled_from(["c-1", "c-2", None]),
    arriving=st.integers(0, 3),
)
def test_pages_have_every_order_once_in_order_even_while_new_orders_arrive(
    client: FlaskClient, customers: list[str], limit: int, sort: str, customer_id: str | None, arriving: int
) -> None:
    mine = f"example-{datetime.now(UTC).timestamp()}"  # the tables are emptied once for all examples
    ids = [create(client, customer_id=customer, items=lines(mine))["id"] for customer in customers]
    matching = [i for i, customer in zip(ids, customers, strict=True) if customer_id in (None, customer)]
    query = {"limit": limit, "sort": sort, "item_id": mine} | ({"customer_id": customer_id} if customer_id else {})

    seen, late = [], []
    for page in pages(client, **query):
        assert len(page) <= limit
        seen += [order["id"] for order in page]
        if len(late) < arriving:
            late.append(create(client, customer_id=customer_id or "c-1", items=lines(mine))["id"])

    # Newest first, what arrives comes before the first page; oldest first, after the last one, if that is not over.
    if sort == "-created_at":
        assert seen == matching[::-1]
    else:
        assert seen == (matching + late)[: max(len(seen), len(matching))]


def test_a_full_last_page_ends_the_list(client: FlaskClient) -> None:
    ids = [create(client)["id"] for _ in range(4)]

    found = [[order["id"] for order in page] for page in pages(client, limit=2, sort="created_at")]

    assert found == [ids[:2], ids[2:]]


def test_the_link_header_equals_next_cursor(client: FlaskClient) -> None:
    for _ in range(3):
        create(client, customer_id="ü &=?#/c")
    query = {"customer_id": "ü &=?#/c", "limit": "1", "sort": "created_at"}

    first = client.get("/orders", query_string=query)

    address, _, relation = first.headers["Link"].partition(">")
    target = urlsplit(address.removeprefix("<"))
    assert (target.path, relation) == ("/orders", '; rel="next"')
    assert dict(parse_qsl(target.query)) == query | {"cursor": first.json["next_cursor"]}
    by_link = client.get(address.removeprefix("<"))
    assert by_link.data == client.get("/orders", query_string=query | {"cursor": first.json["next_cursor"]}).data


STATUSES = ["pending", "confirmed", "completed", "cancelled"]
TO_STATUS = {"pending": (), "confirmed": ("confirm",), "completed": ("confirm", "complete"), "cancelled": ("cancel",)}


@given(
    statuses=st.lists(st.sampled_from(STATUSES), max_size=10),
    chosen=st.lists(st.sampled_from(STATUSES), min_size=1, max_size=5),
    limit=st.integers(1, 4),
    sort=st.sampled_from(["created_at", "-created_at"]),
)
def test_pages_of_several_statuses_have_every_order_once_in_order(
    client: FlaskClient, statuses: list[str], chosen: list[str], limit: int, sort: str
) -> None:
    started = datetime.now(UTC).isoformat()  # the tables are emptied once for all examples
    paths = [order_after(client, *TO_STATUS[status]) for status in statuses]
    matching = [path for path, status in zip(paths, statuses, strict=True) if status in chosen]

    found = list(pages(client, status=",".join(chosen), limit=limit, sort=sort, created_from=started))

    assert [f"/orders/{order['id']}" for page in found for order in page] == matching[:: -1 if sort[0] == "-" else 1]
    assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)


def test_order_and_duplicates_of_the_statuses_do_not_matter_to_a_cursor(client: FlaskClient) -> None:
    first, second = create(client)["id"], create(client)["id"]
    page = client.get("/orders?limit=1&status=pending,confirmed").json
    assert [order["id"] for order in page["orders"]] == [second]

    assert listed(client, cursor=page["next_cursor"], status="confirmed,pending,pending") == [first]
    other = client.get("/orders", query_string={"cursor": page["next_cursor"], "status": "pending"})
    assert slug(other) == (400, "invalid-cursor")


@pytest.mark.parametrize("path", ["/orders", "/orders/export"])
@pytest.mark.parametrize(
    "value",
    [
        "",
        ",",
        "pending,",
        "pending,x",
        "pending;confirmed",
        "Pending",
        "pending, confirmed",
        "pending" + 20 * ",pending",
    ],
)
def test_an_unknown_status_is_400_and_the_allowed_ones_are_named(client: FlaskClient, path: str, value: str) -> None:
    refused = client.get(path, query_string={"status": value})

    assert error_locations(refused) == {"status"}
    assert "pending, confirmed, completed, cancelled" in refused.json["errors"][0]["detail"]


BOUND = [
    {"customer_id": "c-2"},
    {"status": "pending"},
    {"sort": "-created_at"},
    {"created_to": "2030-01-01T00:00:00Z"},
    {"item_id": "sku-1"},
]


@pytest.mark.parametrize("other", BOUND)
def test_a_cursor_is_valid_only_with_its_filters_and_sort(client: FlaskClient, other: dict[str, str]) -> None:
    for _ in range(2):
        create(client)
    query = {"customer_id": "c-1", "sort": "created_at", "limit": "1"}
    cursor = client.get("/orders", query_string=query).json["next_cursor"]

    refused = client.get("/orders", query_string=query | other | {"cursor": cursor})

    assert slug(refused) == (400, "invalid-cursor")


def test_a_cursor_is_valid_with_another_limit(client: FlaskClient) -> None:
    ids = [create(client)["id"] for _ in range(4)]
    cursor = client.get("/orders?limit=1").json["next_cursor"]

    assert listed(client, limit=2, cursor=cursor) == [ids[2], ids[1]]


@pytest.mark.parametrize(
    "spoil", [lambda c: c[:-4], lambda c: c + "AAAA", lambda c: c[::-1], lambda c: "x", lambda c: "é"]
)
def test_a_damaged_cursor_is_refused(client: FlaskClient, spoil: Any) -> None:
    for _ in range(2):
        create(client)
    cursor = client.get("/orders?limit=1").json["next_cursor"]

    refused = client.get("/orders?" + urlencode({"limit": 1, "cursor": spoil(cursor)}))

    assert slug(refused) == (400, "invalid-cursor")


@pytest.mark.parametrize(
    ("typed", "detail"),
    [
        (
            "2026-11-22T13:00:00+01:00",
            "In a query, + is read as a space. Write it as %2B: 2026-11-22T13:00:00%2B01:00.",
        ),
        ("2026-11-22", "The time of day and the UTC offset are missing. Write 2026-11-22T00:00:00Z."),
        ("2026-11-22T13:00:00.5", "The UTC offset is missing. Write 2026-11-22T13:00:00.5Z."),
        ("2026-11-22+13:00:00", "The UTC offset is missing. Write 2026-11-22T13:00:00Z."),
        ("2026-11-22%2013:00:00Z", "The date and the time must be separated by T. Write 2026-11-22T13:00:00Z."),
        ("yesterday", "This must be an RFC 3339 timestamp with its UTC offset, such as 2026-11-22T09:41:07Z."),
    ],
)
def test_an_incomplete_time_is_400_and_names_what_is_missing(client: FlaskClient, typed: str, detail: str) -> None:
    for path in ("/orders", "/orders/export"):
        for name in ("created_from", "created_to"):
            refused = client.get(f"{path}?{name}={typed}")

            assert slug(refused) == (400, "invalid-request")
            assert refused.json["errors"] == [{"parameter": name, "detail": detail}]


@pytest.mark.parametrize("path", ["/orders", "/orders/export"])
def test_orders_committed_late_are_listed_from_complete_until(client: FlaskClient, path: str) -> None:
    newest = create(client)
    first = client.get(f"{path}?sort=created_at", buffered=True)
    late = create(client, datetime.now(UTC) - timedelta(seconds=30))

    from_newest, from_complete = (
        client.get(path, query_string={"created_from": time}, buffered=True)
        for time in (newest["created_at"], first.headers["Complete-Until"])
    )

    assert newest["id"] in first.text
    assert late["id"] not in from_newest.text
    assert late["id"] in from_complete.text and newest["id"] in from_complete.text
    behind = datetime.now(UTC) - datetime.fromisoformat(first.headers["Complete-Until"])
    assert timedelta(seconds=59) < behind < timedelta(seconds=70)


def test_pages_of_lists_and_histories_are_bounded_by_bytes(client: FlaskClient) -> None:
    for _ in range(60):
        assert client.post("/orders", json=LARGE).status_code == 201
    path = f"/orders/{client.get('/orders?limit=1').json['orders'][0]['id']}"
    for n in range(60):
        client.patch(path, json={"note": str(n)}, content_type="application/merge-patch+json")

    for listed, member in (("/orders", "orders"), (f"{path}/history", "events")):
        first = client.get(f"{listed}?limit=100")
        second = client.get(f"{listed}?limit=100&cursor={first.json['next_cursor']}")

        assert 2**20 <= len(first.data) < 2**20 + 2**17
        assert 10 < len(first.json[member]) < 60
        assert first.json[member][-1]["id"] != second.json[member][0]["id"]
    assert len(client.get(f"{path}/history?limit=100&cursor={first.json['next_cursor']}").json["events"]) > 20
    versions = [event["version"] for event in first.json["events"] + second.json["events"]]
    assert versions[:40] == list(range(1, 41))
