"""Forged cursors: they are refused, or list only the principal's own orders."""

from base64 import urlsafe_b64encode
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import example, given
from hypothesis import strategies as st

from app.http.requests import make_cursor, make_version_cursor
from app.schemas.parameters import OrderQuerySchema
from tests.support.credentials import api_key, bearer, token
from tests.support.samples import MINIMAL, slug

UUIDS = st.integers(0, 2**128 - 1).map(lambda number: str(UUID(int=number)))
QUERIES: list[dict[str, str]] = [
    {},
    {"sort": "created_at"},
    {"status": "pending"},
    {"status": "pending,cancelled"},
    {"item_id": "sku-1", "sort": "created_at"},
    {"customer_id": "c-bob"},
    {"external_ref": "r-1", "sort": "created_at"},
]


@pytest.fixture
def orders_of_shop(secure_app: Flask, secure_client: FlaskClient) -> list[str]:
    """The ids of an order of Bob between two of Ada, all created by a shop."""
    key = bearer(api_key(secure_app, "orders:read", "orders:write"))
    bodies = [MINIMAL | {"customer_id": customer} for customer in ("c-ada", "c-bob", "c-ada")]
    return [secure_client.post("/orders", json=body, headers=key).json["id"] for body in bodies]


@given(query=st.sampled_from(QUERIES), after=UUIDS, own=st.booleans(), position=st.integers(0, 2))
@example(query={}, after=str(UUID(int=2**128 - 1)), own=False, position=0)
@example(query={"sort": "created_at"}, after=str(UUID(int=2**128 - 1)), own=False, position=0)
def test_a_forged_list_cursor_lists_only_own_orders(
    secure_client: FlaskClient, orders_of_shop: list[str], query: dict[str, str], after: str, own: bool, position: int
) -> None:
    # The binding is not secret: anybody can compute it.
    bound = {name: value for name, value in OrderQuerySchema().load(query).items() if name != "limit"}
    cursor = make_cursor(orders_of_shop[position] if own else after, query=bound)

    bob = bearer(token(customer="c-bob"))
    page = secure_client.get("/orders", query_string=query | {"cursor": cursor}, headers=bob)

    assert page.status_code == 200
    assert {order["customer_id"] for order in page.json["orders"]} <= {"c-bob"}


@given(version=st.integers(0, 2**32 - 1), position=st.integers(0, 2))
@example(version=2**31, position=1)
@example(version=2**31 - 1, position=1)
@example(version=2**32 - 1, position=0)
@example(version=0, position=0)
def test_a_forged_history_cursor_is_refused_or_reads_an_own_order(
    secure_client: FlaskClient, orders_of_shop: list[str], version: int, position: int
) -> None:
    order_id = orders_of_shop[position]
    cursor = make_version_cursor(version, order_id=order_id)

    page = secure_client.get(f"/orders/{order_id}/history?cursor={cursor}", headers=bearer(token(customer="c-bob")))

    if version >= 2**31:
        assert slug(page) == (400, "invalid-cursor")
    elif position != 1:
        assert slug(page) == (404, "order-not-found")
    else:
        assert (page.status_code, len(page.json["events"])) == (200, 1 if version == 0 else 0)


@given(cursor=st.text(max_size=200) | st.binary(max_size=60).map(lambda raw: urlsafe_b64encode(raw).decode()))
def test_an_arbitrary_cursor_is_never_an_internal_error(
    secure_client: FlaskClient, orders_of_shop: list[str], cursor: str
) -> None:
    for path in ("/orders", f"/orders/{orders_of_shop[1]}/history"):
        page = secure_client.get(path, query_string={"cursor": cursor}, headers=bearer(token(customer="c-bob")))

        assert page.status_code in (200, 400)
        assert "c-ada" not in page.text
