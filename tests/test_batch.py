"""Many orders in one request."""

from flask.testing import FlaskClient

from app.models.order_item import ID_MAX


def order(**members: object) -> dict[str, object]:
    return {"customer_id": "c-1", "items": [{"item_id": "sku-1", "quantity": 1}]} | members


def test_each_entry_is_judged_alone_and_answered_in_order(client: FlaskClient) -> None:
    taken = client.post("/orders", json=order(external_ref="r-0", note="first")).json["id"]

    answer = client.post(
        "/orders/batch",
        json={
            "orders": [
                order(external_ref="r-1"),
                order(customer_id="x" * (ID_MAX + 1)),
                order(external_ref="r-0"),
                order(idempotency_key="k-1"),
                order(idempotency_key="k-1"),
                order(idempotency_key="k-1", note="other"),
                "nonsense",
                order(external_ref="r-1"),
            ]
        },
    )

    assert answer.status_code == 200
    results = answer.json["results"]
    assert [result["status"] for result in results] == [201, 400, 409, 201, 201, 422, 400, 201]
    assert results[1]["problem"]["errors"][0]["pointer"] == "#/orders/1/customer_id"
    assert results[2]["problem"]["order_id"] == taken
    assert results[4] == results[3] | {"replayed": True} or results[3] == results[4] | {"replayed": True}
    assert results[7]["order"] == results[0]["order"]
    assert len(client.get("/orders").json["orders"]) == 3


def test_a_batch_sent_again_creates_nothing(client: FlaskClient) -> None:
    body = {"orders": [order(external_ref=f"r-{i}") for i in range(1000)]}
    first = client.post("/orders/batch", json=body).json["results"]

    again = client.post("/orders/batch", json=body).json["results"]

    assert again == [result | {"replayed": True} for result in first]
