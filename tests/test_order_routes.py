"""Orders over HTTP."""

from flask.testing import FlaskClient

MINIMAL = {"customer_id": "c-1", "items": [{"item_id": "sku-1", "quantity": 2}]}


def test_the_seeds_body_makes_an_order_that_can_be_read(client: FlaskClient) -> None:
    created = client.post("/orders", json=MINIMAL)

    assert created.status_code == 201
    read = client.get(created.headers["Location"])
    assert read.status_code == 200
    assert read.data == created.data


def test_a_replay_answers_the_first_response(client: FlaskClient) -> None:
    first = client.post("/orders", json=MINIMAL, headers={"Idempotency-Key": "k-1"})

    again = client.post("/orders", json=MINIMAL, headers={"Idempotency-Key": '"k-1"'})

    assert (again.status_code, again.data) == (201, first.data)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert client.post("/orders", json=MINIMAL | {"customer_id": "c"}, headers={"Idempotency-Key": "k-1"}).status_code == 422
    assert len(client.get("/orders").json["orders"]) == 1
