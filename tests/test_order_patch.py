"""PATCH /orders/{id}: JSON merge patches (RFC 7396)."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from app.models.order_aggregate import merge_patch
from tests.support.actions import TO_STATUS, event_types, order_after, send_action
from tests.support.samples import ADDRESS, RICHEST, error_locations, slug

# RFC 7396, appendix A.
EXAMPLES = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("target", "patch", "result"), EXAMPLES)
def test_the_examples_of_the_rfc_give_the_documented_results(target: Any, patch: Any, result: Any) -> None:
    assert merge_patch(target, patch) == result


def with_adjustments(*adjustments: dict[str, Any]) -> dict[str, Any]:
    """The members of RICHEST's document that follow from adjustments without a discount."""
    lines = [{"title": None, "subtotal": None, "discount": 0, "total": None} | item for item in RICHEST["items"]]
    lines[0] |= {"subtotal": 2500, "total": 2500}
    units = {"cancelled": 0, "fulfilled": 0, "returned": 0}
    items = [{"line": i, "unit_price": None, **line, **units} for i, line in enumerate(lines, start=1)]
    total = 2500 + sum(one["amount"] for one in adjustments)
    totals = {"items": 2500, "adjustments": total - 2500, "cancelled": 0, "total": total, "paid": 0, "refunded": 0}
    return {"items": items, "adjustments": list(adjustments), "totals": totals | {"due": total}}


# On RICHEST: the patch, and the members of the document that differ afterwards.
CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"note": "x"}, {"note": "x"}),
    ({"note": None}, {"note": None}),
    ({"note": ""}, {"note": ""}),
    ({"external_ref": "r-2"}, {"external_ref": "r-2"}),
    ({"external_ref": None}, {"external_ref": None}),
    ({"metadata": {"channel": "app", "new": "1"}}, {"metadata": {"channel": "app", "empty": "", "new": "1"}}),
    ({"metadata": {"channel": None, "unknown": None}}, {"metadata": {"empty": ""}}),
    ({"metadata": None}, {"metadata": {}}),
    ({"shipping_address": {"city": "Ulm"}}, {"shipping_address": ADDRESS | {"city": "Ulm"}}),
    ({"billing_address": {"city": "Ulm"}}, {"billing_address": {"country": "DE", "city": "Ulm"}}),
    ({"billing_address": None}, {"billing_address": None}),
    ({"adjustments": None}, with_adjustments()),
    (
        {"adjustments": [{"type": "fee", "amount": 1}]},
        with_adjustments({"type": "fee", "label": None, "amount": 1, "line": None}),
    ),
    ({"tags": ["b", "a"]}, {"tags": ["b", "a"]}),
    ({"tags": None}, {"tags": []}),
    ({"ship_by": "2031-01-01T00:00:00Z"}, {"ship_by": "2031-01-01T00:00:00.000000Z"}),
    ({"ship_by": None, "deliver_by": None}, {"ship_by": None, "deliver_by": None}),
    ({"related_orders": None}, {"related_orders": []}),
    ({"currency": "JPY"}, {"currency": "JPY"}),
    (
        {"items": [{"item_id": "sku-9", "quantity": 4}], "adjustments": None, "currency": None},
        {
            "items": [
                {"line": 1, "item_id": "sku-9", "title": None, "quantity": 4, "unit_price": None}
                | {"subtotal": None, "discount": 0, "total": None, "cancelled": 0, "fulfilled": 0, "returned": 0}
            ],
            "allowed_actions": ["cancel", "confirm", "hold", "update"],
            "adjustments": [],
            "currency": None,
            "totals": None,
        },
    ),
]


@pytest.mark.parametrize(("patch", "changed"), CHANGES)
def test_a_patch_changes_only_the_members_it_names(
    client: FlaskClient, patch: dict[str, Any], changed: dict[str, Any]
) -> None:
    created = client.post("/orders", json=RICHEST)

    response = client.patch(created.headers["Location"], json=patch)

    assert response.status_code == 200, response.text
    assert response.json["updated_at"] > created.json["updated_at"]
    assert response.json == created.json | changed | {"version": 2, "updated_at": response.json["updated_at"]}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_list_of_items_is_replaced_whole(client: FlaskClient, count: int) -> None:
    path = client.post("/orders", json=RICHEST).headers["Location"]
    items = [{"item_id": f"new-{i}", "quantity": i, "unit_price": 1000 * i} for i in range(1, count + 1)]

    order = client.patch(path, json={"items": items}).json

    assert [item["line"] for item in order["items"]] == list(range(1, count + 1))
    assert [{name: item[name] for name in items[0]} for item in order["items"]] == items
    assert sum(item["discount"] for item in order["items"]) == -250
    assert client.get("/orders?item_id=sku-1").json["orders"] == []
    assert client.get(f"/orders?item_id=new-{count}").json["orders"] == [order]
    assert send_action(client, path, "confirm").status_code == 200


SAME: list[dict[str, Any]] = [
    {},
    {"note": RICHEST["note"]},
    {"metadata": {}},
    {"metadata": {"unknown": None}},
    {"metadata": dict(reversed(RICHEST["metadata"].items()))},
    {"shipping_address": {"country": "GB"}},
    {"items": RICHEST["items"], "adjustments": RICHEST["adjustments"], "currency": "EUR"},
    {"external_ref": RICHEST["external_ref"]},
]


@pytest.mark.parametrize("patch", SAME)
def test_a_patch_that_changes_nothing_stores_no_version(client: FlaskClient, patch: dict[str, Any]) -> None:
    created = client.post("/orders", json=RICHEST)
    path = created.headers["Location"]

    response = client.patch(path, json=patch)

    assert (response.status_code, response.data) == (200, created.data)
    assert event_types(client, path) == ["order.created"]


@pytest.mark.parametrize("status", ["confirmed", "completed", "cancelled"])
@pytest.mark.parametrize(
    "patch", [{"items": [{"item_id": "sku-9", "quantity": 1}]}, {"currency": "JPY"}, {"adjustments": [], "note": "x"}]
)
def test_items_can_be_changed_only_while_the_order_is_pending(
    client: FlaskClient, status: str, patch: dict[str, Any]
) -> None:
    adjustments = [{"type": "fee", "amount": 1}]
    path = order_after(client, *TO_STATUS[status], currency="EUR", adjustments=adjustments)
    before = client.get(path)

    response = client.patch(path, json=patch)

    assert slug(response) == (409, "illegal-action")
    assert response.json["order_status"] == status
    assert response.json["allowed_actions"] == before.json["allowed_actions"]
    assert client.get(path).data == before.data


@pytest.mark.parametrize("status", TO_STATUS)
def test_notes_and_addresses_change_at_any_time(client: FlaskClient, status: str) -> None:
    path = order_after(client, *TO_STATUS[status])
    patch = {"note": "x", "shipping_address": {"country": "DE"}, "metadata": {"a": "b"}, "external_ref": "r-1"}

    order = client.patch(path, json=patch).json

    assert {name: order[name] for name in patch} == patch
    assert order["status"] == status


# Validated like the complete body of a create.
DATABASE_ERRORS = [
    ({"customer_id": "c-2"}, {"#/customer_id"}),
    ({"status": "completed", "version": 7}, {"#/status", "#/version"}),
    ({"items": None}, {"#/items"}),
    ({"items": []}, {"#/items"}),
    ({"items": [{"item_id": "sku-1", "quantity": 0}]}, {"#/items/0/quantity"}),
    ({"items": [{"line": 1, "item_id": "sku-1", "quantity": 1}]}, {"#/items/0/line"}),
    ({"currency": None}, {"#/currency"}),
    ({"currency": "XXY"}, {"#/currency"}),
    ({"adjustments": [{"type": "discount", "amount": -2501}]}, {"#/adjustments"}),
    ({"shipping_address": {"country": None}}, {"#/shipping_address/country"}),
    ({"shipping_address": {"planet": "Mars"}}, {"#/shipping_address/planet"}),
    ({"metadata": {"a": 1}}, {"#/metadata/a"}),
    ({"metadata": {"a" * 41: "x"}}, {"#/metadata/" + "a" * 41}),
    ({"metadata": {f"k-{i}": "x" for i in range(49)}}, {"#/metadata"}),  # 51 with the two existing ones
    ({"note": "x" * 2001, "external_ref": ""}, {"#/note", "#/external_ref"}),
    ({"note": "\0"}, {"#/note"}),
    ([], {"#"}),
    ("note", {"#"}),
]


@pytest.mark.parametrize(("patch", "places"), DATABASE_ERRORS)
def test_a_patch_whose_result_is_invalid_is_refused(client: FlaskClient, patch: Any, places: set[str]) -> None:
    created = client.post("/orders", json=RICHEST)
    path = created.headers["Location"]

    response = client.patch(path, json=patch)

    assert error_locations(response) == places
    assert client.get(path).data == created.data


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/merge-patch+json", 200),
        ("application/merge-patch+json; charset=utf-8", 200),
        ("application/json; charset=UTF-8", 200),
        ("application/json-patch+json", 415),
        ("text/plain", 415),
        ("application/merge-patch+json; charset=latin-1", 415),
    ],
)
def test_a_patch_is_a_merge_patch_or_plain_json(client: FlaskClient, content_type: str, status: int) -> None:
    path = order_after(client)

    response = client.patch(path, data=b'{"note": "x"}', content_type=content_type)

    assert response.status_code == status


def test_only_patch_accepts_a_merge_patch(client: FlaskClient) -> None:
    path = order_after(client)

    response = client.post(f"{path}/cancel", data=b'{"reason": "other"}', content_type="application/merge-patch+json")

    assert slug(response) == (415, "unsupported-media-type")


def test_a_reference_of_another_order_is_a_conflict_that_names_that_order(client: FlaskClient) -> None:
    other = client.get(order_after(client, external_ref="r-1")).json["id"]
    path = order_after(client, external_ref="r-2")
    before = client.get(path).data

    response = client.patch(path, json={"external_ref": "r-1", "note": "x"})

    assert slug(response) == (409, "duplicate-external-ref")
    assert response.json["order_id"] == other
    assert client.get(path).data == before


def test_a_removed_reference_can_be_used_again(client: FlaskClient) -> None:
    first, second = order_after(client, external_ref="r-1"), order_after(client)

    client.patch(first, json={"external_ref": None})

    assert client.patch(second, json={"external_ref": "r-1"}).json["external_ref"] == "r-1"
    assert slug(client.patch(first, json={"external_ref": "r-1"})) == (409, "duplicate-external-ref")


@pytest.mark.parametrize(
    ("name", "body"), [("update", {"note": "x"}), ("hold", {"kind": "other", "reason": "x"}), ("release", None)]
)
def test_a_repeated_put_patch_or_delete_changes_nothing(client: FlaskClient, name: str, body: Any) -> None:
    path = order_after(client, "hold")

    first, again = (send_action(client, path, name, body) for _ in range(2))

    assert (first.status_code, first.json["version"]) == (200, 3)
    assert (again.status_code, again.data) == (200, first.data)
