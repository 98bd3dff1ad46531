"""Many orders in one request."""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import time_machine
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.test import TestResponse

from app.db.engine import db
from app.models import ORDERS
from app.models.order import ID_MAX, IDEMPOTENCY_KEY_MAX
from app.models.order_id import hash_key
from app.models.principal import ANONYMOUS
from app.schemas.order import BATCH_MAX, ITEMS_MAX, BatchInSchema
from app.services import order_service, order_storage
from app.services.order_service import CreateRequest
from app.services.order_storage import insert_orders
from tests.support.marks import on_postgresql
from tests.support.protocol_trace import messages_sent
from tests.support.samples import MINIMAL, RICHEST, error_locations, slug
from tests.support.tables import delete_all_rows


def order(**members: object) -> dict[str, object]:
    return {"customer_id": "c-1", "items": [{"item_id": "sku-1", "quantity": 1}]} | members


def send(client: FlaskClient, *entries: Any) -> list[dict[str, Any]]:
    """The results of a batch."""
    response = client.post("/orders/batch", json={"orders": entries})
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json["results"]
    return results


def count(client: FlaskClient) -> int:
    return len(client.get("/orders?limit=100").json["orders"])


def test_each_entry_has_its_own_result_in_the_order_of_the_request(client: FlaskClient) -> None:
    taken = client.post("/orders", json=order(external_ref="r-0", note="first")).json["id"]

    results = send(
        client,
        order(external_ref="r-1"),
        order(customer_id="x" * (ID_MAX + 1)),
        order(external_ref="r-0"),
        order(idempotency_key="k-1"),
        order(idempotency_key="k-1"),
        order(idempotency_key="k-1", note="other"),
        "nonsense",
        order(external_ref="r-1"),
        None,
        order(external_ref="r-1", note="other"),
    )

    assert [result["status"] for result in results] == [201, 400, 409, 201, 201, 422, 400, 201, 400, 409]
    kinds = [result.get("problem", {}).get("type", "").removeprefix("/problems/") for result in results]
    invalid, taken_ref, reused = "invalid-request", "duplicate-external-ref", "idempotency-key-reused"
    assert kinds == ["", invalid, taken_ref, "", "", reused, invalid, "", invalid, taken_ref]
    assert results[1]["problem"]["errors"][0]["pointer"] == "#/orders/1/customer_id"
    assert results[6]["problem"]["errors"][0]["pointer"] == "#/orders/6"
    assert results[2]["problem"]["order_id"] == taken
    assert results[9]["problem"]["order_id"] == results[0]["order"]["id"]
    assert results[4] == results[3] | {"replayed": True}
    assert results[7] == results[0] | {"replayed": True}
    assert count(client) == 3


def test_an_entry_creates_the_same_order_as_a_single_request(client: FlaskClient) -> None:
    [result] = send(client, RICHEST | {"idempotency_key": "k-1"})

    alone = client.post("/orders", json=RICHEST, headers={"Idempotency-Key": "k-1"})
    assert (alone.status_code, alone.headers["Idempotent-Replayed"]) == (201, "true")
    assert alone.json == result["order"]
    assert client.get(f"/orders/{alone.json['id']}").data == alone.data


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ({}, "customer_id"),
        (order(items=[{"item_id": "x", "quantity": 0}]), "items/0/quantity"),
        (order(colour="red"), "colour"),
        (order(idempotency_key=""), "idempotency_key"),
        (order(idempotency_key="é"), "idempotency_key"),
        (order(idempotency_key="k" * (IDEMPOTENCY_KEY_MAX + 1)), "idempotency_key"),
        (order(idempotency_key=1), "idempotency_key"),
        (order(note="\ud800"), "note"),
    ],
)
@on_postgresql
def test_an_invalid_entry_is_reported_with_its_position(client: FlaskClient, entry: object, place: str) -> None:
    good, bad = send(client, order(), entry)

    assert (good["status"], bad["status"], bad["problem"]["status"]) == (201, 400, 400)
    assert f"#/orders/1/{place}" in {fault["pointer"] for fault in bad["problem"]["errors"]}


def test_a_batch_of_invalid_entries_stores_nothing(client: FlaskClient) -> None:
    assert [result["status"] for result in send(client, None, {}, [])] == [400, 400, 400]
    assert count(client) == 0


def test_the_largest_batch_is_stored_once_and_replayed(client: FlaskClient) -> None:
    entries = [order(external_ref=f"r-{i}") if i % 2 else order(idempotency_key=f"k-{i}") for i in range(BATCH_MAX)]
    first = send(client, *entries)

    again = send(client, *reversed(entries))

    assert {result["status"] for result in first} == {201}
    assert len({result["order"]["id"] for result in first}) == BATCH_MAX
    assert again == [result | {"replayed": True} for result in reversed(first)]


@on_postgresql
def test_the_conflicts_of_a_batch_are_found_with_outdated_statistics_too(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan for every row reads 54,000 blocks and takes up to three seconds, the statement timeout."""
    blocks: list[int] = []
    read_rows = order_storage.read_rows

    def explained(query: Any) -> Any:
        compiled = query.compile(db.engine, compile_kwargs={"render_postcompile": True})
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {compiled}"
        with db.engine.connect() as connection:
            [plan] = connection.exec_driver_sql(explain, compiled.params).scalar_one()
        blocks.append(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])
        return read_rows(query)

    client.post("/orders", json=order())
    with app.app_context(), db.engine.connect() as connection:
        connection.exec_driver_sql("ANALYZE")
    entries = [order(external_ref=f"r-{i}") if i % 2 else order(idempotency_key=f"k-{i}") for i in range(BATCH_MAX)]
    send(client, *entries)
    monkeypatch.setattr(order_storage, "read_rows", explained)

    again = send(client, *entries)

    assert {result["status"] for result in again} == {201}
    assert blocks and max(blocks) < 20_000


@pytest.mark.parametrize("body", [{"orders": []}, {"orders": [{}] * (BATCH_MAX + 1)}, {"orders": {}}, {}])
@on_postgresql
def test_a_batch_has_one_to_a_thousand_orders(client: FlaskClient, body: object) -> None:
    assert error_locations(client.post("/orders/batch", json=body)) == {"#/orders"}


@on_postgresql
def test_a_batch_has_a_size_limit(client: FlaskClient) -> None:
    def padded(size: int) -> TestResponse:
        body = b'{"orders": [{}]}'
        return client.post("/orders/batch", data=body.ljust(size), content_type="application/json")

    assert padded(BatchInSchema.MAX_BODY_SIZE).status_code == 200
    assert slug(padded(BatchInSchema.MAX_BODY_SIZE + 1)) == (413, "content-too-large")


@on_postgresql
@pytest.mark.parametrize("entries", [1, 100])
def test_a_batch_is_one_statement_and_its_replay_two(
    app: Flask, client: FlaskClient, tmp_path: Path, entries: int
) -> None:
    send(client, order())  # the connection has prepared the statement
    body = [order(external_ref=f"r-{i}") for i in range(entries)]

    first = messages_sent(app, lambda: send(client, *body), tmp_path / "trace")
    again = messages_sent(app, lambda: send(client, *body), tmp_path / "trace")

    assert first.count("Sync") == 1
    # The insert, then BEGIN, SELECT and COMMIT; prepared statements are kept, otherwise there would be one more Query.
    assert (again.count("Execute"), again.count("Query")) == (3, 1)


@on_postgresql
def test_long_orders_are_spread_over_several_statements(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    insert = order_service.insert_orders
    monkeypatch.setattr(order_service, "insert_orders", lambda orders: sizes.append(len(orders)) or insert(orders))
    monkeypatch.setattr(order_service, "STATEMENT_ITEMS_MAX", 10)
    lines = [{"item_id": "sku-1", "quantity": 1}]

    results = send(client, *(order(items=lines * n, note=str(n)) for n in (4, 6, 1, 11, 3)))

    assert sizes == [2, 1, 1, 1]
    assert [len(result["order"]["items"]) for result in results] == [4, 6, 1, 11, 3]


@pytest.fixture
def poison(app: Flask) -> Iterator[str]:
    """A note that the database refuses, as it may refuse values for unforeseen reasons."""
    sqlite = db_name(app) == "sqlite"
    abort = "BEGIN SELECT RAISE(ABORT, 'no'); END"
    refuse = f"CREATE TRIGGER poison BEFORE INSERT ON orders WHEN new.note = 'poison' {abort}"
    check = "ALTER TABLE orders ADD CONSTRAINT poison CHECK (note <> 'poison')"
    execute(app, refuse if sqlite else check)
    yield "poison"
    execute(app, "DROP TRIGGER poison" if sqlite else "ALTER TABLE orders DROP CONSTRAINT poison")


def db_name(app: Flask) -> str:
    with app.app_context():
        return db.engine.dialect.name


def execute(app: Flask, statement: str) -> None:
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(text(statement))


def test_an_order_that_the_database_refuses_fails_alone(client: FlaskClient, poison: str) -> None:
    results = send(client, order(), order(note=poison), order(external_ref="r-1"), order(note="cure"))

    assert [result["status"] for result in results] == [201, 500, 201, 201]
    assert results[1]["problem"]["type"] == "/problems/internal-error"
    assert count(client) == 3


@pytest.fixture
def held_keys(app: Flask, client: FlaskClient, postgresql_url: str) -> Iterator[list[str]]:
    """Two uncommitted keys of another writer; the service waits 0.2 s for their locks."""
    client.post("/orders", json=order(customer_id="twin"))
    execute(app, "SET lock_timeout = 200")
    with psycopg.connect(postgresql_url.replace("+psycopg", "")) as twin:
        own = ("id", "number", "idempotency_key_hash")
        columns = ", ".join(name for name in ORDERS.c.keys() if name not in own)
        for i in range(2):
            twin.execute(
                f"INSERT INTO orders ({', '.join(own)}, {columns}) SELECT gen_random_uuid(), 'twin-{i}', %s, {columns}"
                " FROM orders WHERE customer_id = 'twin' LIMIT 1",
                [hash_key(f"held-{i}", principal="anonymous", operation="create")],
            )
        yield ["held-0", "held-1"]
        twin.rollback()
    execute(app, "SET lock_timeout = 2000")


@on_postgresql
def test_an_entry_whose_key_is_in_use_is_409_and_no_other(client: FlaskClient, held_keys: list[str]) -> None:
    results = send(client, order(), order(idempotency_key=held_keys[0]), order(idempotency_key="free"))

    assert [result["status"] for result in results] == [201, 409, 201]
    assert results[1]["problem"]["type"] == "/problems/request-in-flight"


@on_postgresql
def test_locked_keys_delay_a_batch_for_a_bounded_time(
    client: FlaskClient, held_keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two times are those of the deadline and before the first order; the wait for its lock takes longer."""
    moments = itertools.chain([0.0, 0.0], itertools.repeat(order_service.ONE_BY_ONE_DEADLINE))
    monkeypatch.setattr(order_service, "time", SimpleNamespace(monotonic=lambda: next(moments)))

    results = send(client, *(order(idempotency_key=key) for key in held_keys), order(idempotency_key="late"))

    assert [result["status"] for result in results] == [409, 503, 503]
    monkeypatch.undo()
    assert send(client, order(idempotency_key="late"))[0]["status"] == 201


def test_a_reference_used_as_a_key_stays_one_after_it_was_changed(client: FlaskClient) -> None:
    [first] = send(client, order(external_ref="r-1"))
    path = f"/orders/{first['order']['id']}"
    assert client.patch(path, json={"external_ref": "r-2"}).status_code == 200

    same, other = send(client, order(external_ref="r-1"), order(external_ref="r-1", note="other"))
    alone = client.post("/orders", json=order(external_ref="r-1"))

    assert (same["status"], same["replayed"], same["order"]) == (201, True, first["order"])
    assert other["problem"]["type"] == "/problems/duplicate-external-ref"
    assert other["problem"]["order_id"] == first["order"]["id"]
    assert alone.status_code == 201  # the reference is unused, and is not used as a key here


def test_an_imported_order_is_replayed_at_its_version(app: Flask, client: FlaskClient, tmp_path: Path) -> None:
    exported = client.post("/orders", json=order(external_ref="r-1")).json["id"]
    document = client.patch(f"/orders/{exported}", json={"note": "new"}).data
    delete_all_rows(app)
    file = tmp_path / "orders.ndjson"
    file.write_bytes(document)
    assert app.test_cli_runner().invoke(args=["orders", "import", str(file)]).exit_code == 0

    [replay] = send(client, order(external_ref="r-1", note="new"))

    assert (replay["status"], replay["replayed"], replay["order"]["version"]) == (201, True, 2)


def test_the_orders_of_a_long_batch_are_created_just_before_they_are_stored(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[list[Any]] = []
    stored: list[datetime] = []

    def insert(orders: Any) -> set[str]:
        built.append([one.columns["created_at"] for one in orders])
        ids = insert_orders(orders)
        stored.append(datetime.now(UTC))
        return ids

    monkeypatch.setattr(order_service, "insert_orders", insert)
    body = order(items=[{"item_id": "sku-1", "quantity": 1}] * ITEMS_MAX)
    with app.app_context():
        order_service.create_orders([CreateRequest(body, ANONYMOUS) for _ in range(250)])

    assert [len(part) for part in built] == [100, 100, 50]
    # The first order of a part shows that the previous part is full.
    assert min(built[1][1:]) > stored[0] and min(built[2][1:]) > stored[1]


def test_of_entries_with_one_key_the_first_is_created(client: FlaskClient) -> None:
    entries = [MINIMAL | {"note": f"{i}", "idempotency_key": "k-1"} for i in range(8)]

    with time_machine.travel(datetime(2026, 6, 1, tzinfo=UTC), tick=False):  # their ids have the same time
        results = client.post("/orders/batch", json={"orders": entries}).json["results"]

    assert [result["status"] for result in results] == [201] + [422] * 7
    assert results[0]["order"]["note"] == "0"


def test_of_entries_with_one_reference_the_first_is_created(client: FlaskClient) -> None:
    keys = [f"k-{i}" for i in range(7)]
    entries = [MINIMAL | {"note": key, "external_ref": "r-1", "idempotency_key": key} for key in keys]

    preview = client.post("/orders/batch?dry_run=true", json={"orders": entries}).json["results"]
    results = client.post("/orders/batch", json={"orders": entries}).json["results"]

    assert [result["status"] for result in results] == [201] + [409] * 6
    assert [result["status"] for result in preview] == [result["status"] for result in results]
    assert results[0]["order"]["note"] == "k-0"


def test_a_key_in_the_header_is_refused(client: FlaskClient) -> None:
    response = client.post("/orders/batch", json={"orders": [MINIMAL]}, headers={"Idempotency-Key": "k-1"})

    assert slug(response) == (400, "bad-request")
    assert "Send `idempotency_key` in each entry." in response.json["detail"]
    assert client.get("/orders").json["orders"] == []
