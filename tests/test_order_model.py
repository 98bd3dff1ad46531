"""Random sequences of changes of several orders, over HTTP and in the reference model: both always agree.

A short run is part of the tests; `make fuzz-model` makes a long one (MODEL_EXAMPLES=… sequences on each database).
"""

import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count, pairwise
from typing import Any

import orjson
import pytest
import time_machine
from flask import Flask
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from jsonpatch import apply_patch
from sqlalchemy import event
from werkzeug.test import TestResponse

from app.db.engine import db
from app.models.lifecycle import ACTIONS
from app.schemas.base import load_body
from app.schemas.order import OrderInSchema, OrderPatchSchema
from app.services.order_actions import apply_due_changes, expire_orders
from app.services.order_import import ExportedOrderSchema, restore_order
from app.services.verification import order_ranges, verify_feed_numbers, verify_range
from tests.support import actions
from tests.support.direct_client import DirectClient
from tests.support.order_model import (
    CHANGES,
    PATCH_MEMBERS,
    Document,
    ReferenceService,
    Refusal,
    Reply,
    allowed_actions,
    open_units,
    returnable,
)
from tests.support.order_requests import ACTIONS as GENERATED_ACTIONS
from tests.support.order_requests import (
    START,
    THE_REST,
    Change,
    RandomValues,
    change_by,
    changes,
    filters,
    keys,
    orders,
)
from tests.support.samples import slug
from tests.support.tables import delete_all_rows

RUN = settings(
    max_examples=int(
        os.environ.get("MODEL_EXAMPLES", settings().max_examples // 6)
    ),  # an example has dozens of requests
    stateful_step_count=25,
    deadline=None,
    print_blob=True,
    phases=set(Phase) - {Phase.explain},  # it takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

sorts = st.sampled_from(["created_at", "-created_at"])
picks = st.integers(0, 2)  # one of the last three orders, so that each gets several changes
ORDERS = 3  # at a time
EXPORTED = ExportedOrderSchema()
hours = st.sampled_from([1, 3, 24, 48])
Condition = tuple[str | None, set[int] | None]
# "track" is the change of a tracking here, and "deliver" the delivery event.
ROUTES = actions.ROUTES | {"track": actions.VARIANTS["tracking"], "deliver": actions.ROUTES["track"]}
RECORDS = {"track": "fulfillments", "deliver": "fulfillments", "receive": "returns", "reject": "returns"}
# How often an action that is allowed is chosen, if not once.
ONWARD = {"confirm": 4, "fulfill": 6, "deliver": 3, "return": 4, "receive": 2, "reject": 2, "complete": 0}


def test_every_member_and_every_action_is_generated() -> None:
    values = [RandomValues(seed) for seed in range(300)]
    missing = OrderInSchema().fields.keys() ^ {name for one in values for name in one.order()}
    missing |= OrderPatchSchema().fields.keys() - {name for one in values for name in one.patch()}

    undecided = OrderPatchSchema().fields.keys() ^ PATCH_MEMBERS

    assert not undecided, f"add {undecided} to OrderPatchSchema, or remove it from PATCH_MEMBERS of order_model.py"
    assert not missing, f"RandomValues in tests/support/order_requests.py needs {missing}"
    assert {*GENERATED_ACTIONS} == ACTIONS.keys() | {"deliver"}, "change tests/support/order_requests.py"
    assert CHANGES.keys() == ACTIONS.keys() | {"deliver"}, "change tests/support/order_model.py"


def shown(document: Document) -> Document:
    """The document without members that the model does not have."""
    return {name: value for name, value in document.items() if name not in ("id", "number")}


def content_of(response: TestResponse) -> bytes | Document:
    """The document, or the problem without the values that differ in each response."""
    if response.status_code < 400:
        return bytes(response.data)
    problem: Document = orjson.loads(response.data)
    return {name: value for name, value in problem.items() if name not in ("request_id", "instance")}


def condition(kind: str, version: int) -> Condition:
    """The If-Match header, and the versions that it names (None for any)."""
    kinds: dict[str, Condition] = {
        "absent": (None, None),
        "right": (f'"{version}"', {version}),
        "stale": (f'"{version - 1}"', {version - 1}),
        "*": ("*", None),
        "several": (f'"{version + 7}", W/"1", "{version}"', {version + 7, version}),
        "weak": (f'W/"{version}"', set()),
        "unknown": (f'"0{version}", "x", ""', set()),
    }
    return kinds[kind]


class OrderLives(RuleBasedStateMachine):
    """The service behind `client`, and the model beside it."""

    client: DirectClient
    app: Flask
    database: str
    lives: Iterator[int]

    def __init__(self) -> None:
        super().__init__()
        self.clock = time_machine.travel(START, tick=False)
        self.traveller = self.clock.start()
        self.model = ReferenceService(START)
        self.ids: list[str] = []
        self.answers: dict[tuple[int, int], bytes] = {}  # the document of each version, from its first response
        self.sent: list[Callable[[], None]] = []
        self.touched = 0
        self.is_list_old = False  # a request may have changed an order since the list was compared
        delete_all_rows(self.app)

    @precondition(lambda self: len(self.ids) < ORDERS)
    @rule(order=orders)
    def create(self, order: tuple[Document, str | None]) -> None:
        self.repeatable(lambda: self.send_order(*order))

    @precondition(lambda self: len(self.ids) < ORDERS)
    @rule(entries=st.lists(orders, min_size=1, max_size=2))
    def create_batch(self, entries: list[tuple[Document, str | None]]) -> None:
        # If entries conflict in both a key and a reference, their order is not defined.
        pairs = {(key, body.get("external_ref")) for body, key in entries}
        for taken in zip(*pairs, strict=True):
            named = [one for one in taken if one is not None]
            if len(set(named)) < len(named):
                return
        self.repeatable(lambda: self.send_batch(entries))

    @precondition(lambda self: self.ids)
    @rule(wanted=st.lists(changes, min_size=1, max_size=4))
    def change(self, wanted: list[tuple[int, Change, str | None, str]]) -> None:
        for pick, change, key, kind in wanted:
            self.change_order(pick, change, key, kind)

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), pick=picks, steps=st.integers(3, 8))
    def do_an_allowed_action(self, data: st.DataObject, pick: int, steps: int) -> None:
        """An allowed action: random actions alone rarely lead far."""
        for _ in range(steps):
            allowed = allowed_actions(self.model.orders[self.numbered(pick)].now)
            allowed += ["deliver"] if "track" in allowed else []  # the two changes of this action
            names = [name for action in allowed for name in [action] * ONWARD.get(action, 1)]
            self.change_order(pick, data.draw(change_by(*names)), data.draw(keys), "absent")

    @precondition(lambda self: self.ids)
    @rule(hours=hours, age=st.none() | hours)
    def time_passes(self, hours: int, age: int | None) -> None:
        """Due changes are made, and with an age, pending orders expire."""
        self.advance(timedelta(hours=hours))

        with self.app.app_context():
            expired = sum(expire_orders(older_than=timedelta(hours=age))) if age else 0
            changed = sum(apply_due_changes())

        assert expired == (self.model.expire(timedelta(hours=age)) if age else 0)
        assert changed == self.model.apply_due_changes()
        for number in range(len(self.ids)):
            self.read(number, None)
        self.is_list_old = True

    @precondition(lambda self: self.sent)
    @rule(wanted=st.lists(st.integers(0, 9), min_size=1, max_size=3))
    def send_again(self, wanted: list[int]) -> None:
        for pick in wanted:
            self.advance(timedelta(seconds=1))
            self.sent[-1 - pick % len(self.sent)]()
        self.is_list_old = True

    @precondition(lambda self: self.ids)
    @rule(pick=picks, version=st.none() | st.integers(1, 6), chosen=filters, limit=st.integers(1, 4), sort=sorts)
    def look(self, pick: int, version: int | None, chosen: dict[str, str], limit: int, sort: str) -> None:
        self.read(self.numbered(pick), version)
        self.read_history(self.numbered(pick), limit)
        self.agree_on_list(chosen, limit=limit, sort=sort)

    @rule(wanted=changes)
    def change_an_unknown_order(self, wanted: tuple[int, Change, str | None, str]) -> None:
        _, change, key, kind = wanted
        assert slug(self.send("00000000-0000-7000-8000-000000000000", change, key, condition(kind, 1)[0])) in [
            (404, "order-not-found"),
            (400, "invalid-request"),
        ]

    @precondition(lambda self: self.ids and self.is_list_old)
    @invariant()
    def the_list_by_status_agrees(self) -> None:
        self.agree_on_list({"status": self.model.orders[self.touched].now["status"]}, limit=100, sort="created_at")
        self.is_list_old = False

    def teardown(self) -> None:
        for (number, version), answer in self.answers.items():
            assert self.client.get(f"/orders/{self.ids[number]}", {"version": version}).data == answer
        for order_id in self.ids:
            document = orjson.loads(self.client.get(f"/orders/{order_id}").data)
            restored = restore_order(load_body(EXPORTED, document), document=document, principal="import")
            assert orjson.loads(restored.document) == document
        with self.app.app_context():
            [result] = map(verify_range, order_ranges())
            differences = result.differences + verify_feed_numbers()
        self.clock.stop()
        assert (result.verified, differences) == (len(self.ids), [])
        if (lives := next(self.lives)) % 500 == 0:
            print(f"{lives} lives on {self.database}, 0 differences", file=sys.stderr, flush=True)

    def advance(self, duration: timedelta) -> None:
        self.traveller.move_to(self.model.now + duration)
        self.model.now = datetime.now(UTC)  # time-machine may round to the microsecond before

    def read(self, number: int, version: int | None) -> None:
        last = self.model.orders[number].now["version"]

        response = self.client.get(f"/orders/{self.ids[number]}", {"version": version} if version else {})

        if version is not None and version > last:
            assert slug(response) == (404, "order-not-found")
        else:
            self.agree(response, 200, Reply(number, version or last))

    def read_history(self, number: int, limit: int) -> None:
        order = self.model.orders[number]

        events = list(self.pages(f"/orders/{self.ids[number]}/history", "events", {"limit": limit}))

        assert [(event["type"], event["actor"], event["at"]) for event in events] == order.events
        assert [event["version"] for event in events] == list(range(1, len(order.events) + 1))
        assert [shown(event["data"]) for event in events] == order.versions
        assert events[0]["changes"] is None
        for before, after in pairwise(events):
            assert apply_patch(before["data"], after["changes"]) == after["data"]

    def numbered(self, pick: int) -> int:
        return max(0, len(self.ids) - 1 - pick)

    def change_order(self, pick: int, change: Change, key: str | None, kind: str) -> None:
        number, (name, target, body) = self.numbered(pick), change
        order = self.model.orders[number]
        if body and body.get("items") == THE_REST:
            left = returnable(order.now) if name == "return" else {i["line"]: open_units(i) for i in order.now["items"]}
            body = body | {"items": [{"line": line, "quantity": left[line]} for line in left if left[line]]}
        if name in RECORDS and target <= 2:  # mostly one that exists
            target = 1 + target % max(1, len(order.now[RECORDS[name]]))
        header, versions = condition(kind, order.now["version"])
        self.repeatable(lambda: self.send_change(number, (name, target, body), key, header, versions))

    def repeatable(self, send: Callable[[], None]) -> None:
        self.sent.append(send)
        self.is_list_old = True
        self.advance(timedelta(seconds=1))
        send()

    def send_order(self, body: Document, key: str | None) -> None:
        response = self.client.post("/orders", body, {"Idempotency-Key": key} if key else {})

        self.judge(response, 201, lambda: self.model.create(body, key=key))

    def send_batch(self, entries: list[tuple[Document, str | None]]) -> None:
        given = [body | ({"idempotency_key": key} if key else {}) for body, key in entries]

        response = self.client.post("/orders/batch", {"orders": given})
        results = orjson.loads(response.data)["results"]

        for i, ((body, key), result) in enumerate(zip(entries, results, strict=True)):
            try:
                reply = self.model.create(body, key=key, ref_is_key=True)
            except Refusal as refusal:
                assert result["status"] == refusal.status, result
                self.agree_on_problem(result["problem"], refusal, base=f"#/orders/{i}")
            else:
                assert (result["status"], result.get("replayed", False)) == (201, reply.replayed), result
                self.agree_on_document(orjson.dumps(result["order"]), reply)

    def send_change(
        self, number: int, change: Change, key: str | None, header: str | None, versions: set[int] | None
    ) -> None:
        self.touched = number
        is_previewed = self.model.now.second % 4 == 0
        preview = self.send(self.ids[number], change, key, header, dry_run="true") if is_previewed else None

        response = self.send(self.ids[number], change, key, header)

        self.judge(response, ROUTES[change[0]][2], lambda: self.model.act(number, *change, key=key, if_match=versions))
        if preview is not None:
            assert (preview.status_code, content_of(preview)) == (response.status_code, content_of(response))

    def send(self, order_id: str, change: Change, key: str | None, if_match: str | None, **query: str) -> TestResponse:
        name, target, body = change
        method, path, _ = ROUTES[name]
        headers = {"Idempotency-Key": key, "If-Match": if_match}
        given = {header: value for header, value in headers.items() if value is not None}
        path = f"/orders/{order_id}{path.format(target)}"
        return self.client.send(method, path, query=query, headers=given, body=body)

    def judge(self, response: TestResponse, status: int, expected: Callable[[], Reply]) -> None:
        try:
            reply = expected()
        except Refusal as refusal:
            assert slug(response) == (refusal.status, refusal.slug), response.text
            self.agree_on_problem(orjson.loads(response.data), refusal)
        else:
            self.agree(response, 200 if reply.unchanged else status, reply)

    def agree(self, response: TestResponse, status: int, reply: Reply) -> None:
        assert response.status_code == status, response.text
        assert response.headers["ETag"] == f'"{reply.version}"'
        assert response.headers.get("Idempotent-Replayed") == ("true" if reply.replayed else None)
        self.agree_on_document(response.data, reply)

    def agree_on_document(self, data: bytes, reply: Reply) -> None:
        document = orjson.loads(data)
        if reply.order == len(self.ids):
            self.ids.append(document["id"])
            self.touched = reply.order
        first = self.answers.setdefault((reply.order, reply.version), data)
        assert data == first
        assert (document["id"], document["number"]) == (self.ids[reply.order], self.number_of(reply.order))
        assert shown(document) == self.model.orders[reply.order].versions[reply.version - 1]

    def number_of(self, order: int) -> str:
        number: str = orjson.loads(self.answers[order, 1])["number"]
        return number

    def agree_on_problem(self, problem: Document, refusal: Refusal, *, base: str = "#") -> None:
        members = dict(refusal.members)
        if "order" in members:
            members["order_id"] = self.ids[members.pop("order")]
        if "pointers" in members:
            pointers = sorted(f"{base}/{pointer}" for pointer in members.pop("pointers"))
            assert sorted(fault["pointer"] for fault in problem["errors"]) == pointers, problem
        assert problem["type"] == f"/problems/{refusal.slug}"
        assert {name: problem.get(name) for name in members} == members

    def agree_on_list(self, chosen: dict[str, str], *, limit: int, sort: str) -> None:
        documents = list(self.pages("/orders", "orders", chosen | {"limit": limit, "sort": sort}))

        ids = sorted((self.ids[i] for i in self.model.matching(**chosen)), reverse=sort.startswith("-"))
        assert [document["id"] for document in documents] == ids
        for document in documents:
            number = self.ids.index(document["id"])
            current = self.model.orders[number].now["version"]
            assert document == orjson.loads(self.answers[number, current])

    def pages(self, path: str, member: str, query: dict[str, Any]) -> Iterator[Document]:
        cursor: str | None = None
        while True:
            response = self.client.get(path, query | ({"cursor": cursor} if cursor else {}))
            page = orjson.loads(response.data)
            assert 0 < len(page[member]) <= query["limit"] or cursor is None
            yield from page[member]
            cursor = page["next_cursor"]
            if cursor is None:
                return


@pytest.fixture
def volatile_app(app: Flask) -> Iterator[Flask]:
    """The application on a database that does not wait for the disk."""
    with app.app_context():
        engine = db.engine
    if engine.dialect.name == "postgresql":  # tests/support/postgres.py
        yield app
        return
    event.listen(engine, "connect", do_not_sync)
    engine.dispose()
    yield app
    event.remove(engine, "connect", do_not_sync)
    engine.dispose()


def do_not_sync(connection: sqlite3.Connection, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=OFF")


def test_the_service_and_the_reference_model_agree(volatile_app: Flask) -> None:
    with volatile_app.app_context():
        database = db.engine.dialect.name
    members = {"app": volatile_app, "client": DirectClient(volatile_app), "database": database, "lives": count(1)}
    machine = type("OrderLives", (OrderLives,), members)

    run_state_machine_as_test(machine, settings=RUN)
