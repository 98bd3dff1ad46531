"""Conformance: all contestants accept and refuse the same bodies, and return the same documents."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any

from bench.servers import Server
from tests.support import samples
from tests.support.samples import MINIMAL
from tests.support.servers import Response, send_request

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")
UNKNOWN = "019dab70-c2b3-7c51-b9f8-1d6f2a6c3e11"
# Members of every contestant's documents. The service's have a dozen more, which the workloads do not use, and are a
# third larger.
MEMBERS = """
    id number customer_id external_ref status fulfillment_status holds currency items adjustments totals
    shipping_address billing_address note metadata cancellations fulfillments returns version allowed_actions created_at
    updated_at
""".split()
# The members of an order that all contestants accept.
RICHEST = {name: value for name, value in samples.RICHEST.items() if name in MEMBERS} | {
    "items": [{name: item[name] for name in item if name != "title"} for item in samples.RICHEST["items"]]
}


def _changed(body: dict[str, Any], *path: Any, to: Any) -> dict[str, Any]:
    changed = deepcopy(body)
    target: Any = changed
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = to
    return changed


def _rich(*path: Any, to: Any) -> dict[str, Any]:
    return _changed(RICHEST | {"external_ref": None}, *path, to=to)


ACCEPTED: list[Any] = [
    MINIMAL,
    RICHEST | {"external_ref": "gate-1"},
    _rich("items", 0, "quantity", to=1_000_000),
    _rich("items", 1, "unit_price", to=0),
    _rich("note", to="n" * 2000),
    _rich("note", to=""),
    _rich("customer_id", to="c" * 64),
    _rich("customer_id", to="ç " * 32),
    _rich("adjustments", to=[]),
    _rich("adjustments", 0, "amount", to=-2500),
    _rich("shipping_address", to=None),
    _rich("metadata", to={f"k{i}": "v" * 500 for i in range(50)}),
    _changed(MINIMAL, "items", to=MINIMAL["items"] * 100),
]
REFUSED: list[Any] = [
    {},
    [],
    None,
    MINIMAL | {"unknown": 1},
    MINIMAL | {"items": []},
    _changed(MINIMAL, "items", to=MINIMAL["items"] * 101),
    _rich("customer_id", to=""),
    _rich("customer_id", to="c" * 65),
    _rich("customer_id", to=1),
    _rich("customer_id", to="c\u0000"),
    _rich("customer_id", to="c\n"),
    _rich("customer_id", to="c\u009f"),
    _rich("items", 0, "quantity", to=0),
    _rich("items", 0, "quantity", to=1_000_001),
    _rich("items", 0, "quantity", to="1"),
    _rich("items", 0, "quantity", to=1.5),
    _rich("items", 0, "quantity", to=True),
    _rich("items", 0, "unit_price", to=-1),
    _rich("items", 0, "unit_price", to=10**12 + 1),
    _rich("items", 0, "color", to="red"),
    _rich("items", 0, "item_id", to=None),
    _rich("currency", to=None),
    _rich("currency", to="EUX"),
    _rich("currency", to="eur"),
    _rich("adjustments", 0, "amount", to=-(10**9)),
    _rich("adjustments", 0, "type", to="gift"),
    _rich("adjustments", to=None),
    _rich("shipping_address", "country", to="gb"),
    _rich("shipping_address", "country", to="GB\n"),
    _rich("shipping_address", "planet", to="Earth"),
    _rich("shipping_address", "city", to=None),
    _rich("billing_address", to={}),
    _rich("note", to="n" * 2001),
    _rich("note", to="\u0007"),
    _rich("metadata", to={"k": 1}),
    _rich("metadata", to={"k" * 41: "v"}),
    _rich("metadata", to={"": "v"}),
    _rich("metadata", to={"k": "v" * 501}),
    _rich("metadata", to={f"k{i}": "v" for i in range(51)}),
]


def find_differences(server: Server) -> list[str]:
    """Return all differences from the expected behaviour; a contestant without any may be measured."""

    def send(method: str, path: str, body: Any = None, **headers: str) -> Response:
        encoded = None if method == "GET" or path.endswith("/confirm") else json.dumps(body).encode()
        return send_request(
            server.port, method, path, encoded, {name.replace("_", "-"): text for name, text in headers.items()}
        )

    found: list[str] = []
    for check in (_bodies, _documents, _replay, _reading, _confirming, _batch):
        if check is not _batch or "batch" in server.contestant.works:
            try:
                found += check(send)
            except (AssertionError, LookupError, TypeError, ValueError) as error:
                found.append(f"{check.__name__}: {error!r}")
    return found


Send = Callable[..., Response]


def _bodies(send: Send) -> Iterator[str]:
    for status, bodies in ((201, ACCEPTED), (400, REFUSED)):
        for body in bodies:
            answer = send("POST", "/orders", body)
            if answer.status != status:
                yield f"{answer.status}, not {status}, for {json.dumps(body)[:200]}: {answer.body[:200]!r}"
    if send("POST", "/orders", ACCEPTED[1]).status != 409:
        yield "an external_ref is accepted twice"


def _documents(send: Send) -> Iterator[str]:
    sent = RICHEST | {"external_ref": "gate-2"}
    created = send("POST", "/orders", sent).json
    if not set(MEMBERS) <= created.keys():
        yield f"the document has the members {list(created)}"
    if not {"items": 2500, "adjustments": 240, "total": 2740}.items() <= created["totals"].items():
        yield f"the totals are {created['totals']}"
    if not {"cancel", "confirm", "hold", "update"} <= set(created["allowed_actions"]):
        yield f"the allowed actions are {created['allowed_actions']}"
    expected = {"status": "pending", "version": 1}
    same = ("customer_id", "external_ref", "currency", "shipping_address", "billing_address", "note", "metadata")
    for name, value in (expected | {name: sent[name] for name in same}).items():
        if created[name] != value:
            yield f"{name} is {created[name]!r}, not {value!r}"
    item = {"line": 2, "item_id": "sku-2", "quantity": 1, "unit_price": None, "fulfilled": 0, "returned": 0}
    if not item.items() <= created["items"][1].items() or created["adjustments"][1]["label"] is not None:
        yield f"items or adjustments are {created['items']}, {created['adjustments']}"
    yield from _times(created)
    read = send("GET", f"/orders/{created['id']}").json
    yield from _times(read)
    if _timeless(read) != _timeless(created):
        yield f"GET answers {read}, POST answered {created}"


def _replay(send: Send) -> Iterator[str]:
    for key, body in (("gate-a", MINIMAL), ("gate-b", RICHEST | {"external_ref": "gate-3"})):
        first, again = (send("POST", "/orders", body, Idempotency_Key=key) for _ in range(2))
        if (first.status, again.status, first.body) != (201, 201, again.body):
            yield f"a replay answers {again.status} {again.body!r}, not {first.body!r}"
        if again.headers["Idempotent-Replayed"] != "true":
            yield "a replay has no header Idempotent-Replayed: true"
        send("POST", f"/orders/{first.json['id']}/confirm")
        if send("POST", "/orders", body, Idempotency_Key=key).body != first.body:
            yield "a replay is not the first answer after a change"
        other = send("POST", "/orders", _changed(body, "customer_id", to="c-2"), Idempotency_Key=key)
        if other.status != 422:
            yield f"{other.status}, not 422, for another body with the key"


def _reading(send: Send) -> Iterator[str]:
    created = [send("POST", "/orders", MINIMAL).json["id"] for _ in range(5)]
    seen, cursor = [], ""
    for _ in range(2):
        page = send("GET", f"/orders?limit=2{cursor}").json
        seen += [order["id"] for order in page["orders"]]
        cursor = f"&cursor={page['next_cursor']}"
    if seen != created[:0:-1]:
        yield f"the list has {seen}, the last orders are {created}"
    for path, status in ((f"/orders/{UNKNOWN}", 404), ("/orders?limit=0", 400), ("/orders?limit=101", 400)):
        if (answer := send("GET", path).status) != status:
            yield f"{answer}, not {status}, for GET {path}"
    if len(send("GET", "/orders?limit=20").json["orders"]) != 20:
        yield "a page of 20 orders has another number"


def _confirming(send: Send) -> Iterator[str]:
    path = f"/orders/{send('POST', '/orders', MINIMAL).json['id']}"
    answer = send("POST", f"{path}/confirm")
    changed = answer.json
    if (answer.status, changed["status"], changed["version"]) != (200, "confirmed", 2):
        yield f"confirm answers {answer.status} {changed}"
    yield from _times(changed)
    if _timeless(send("GET", path).json) != _timeless(changed):
        yield "GET does not return the same document as confirm"
    for target, status in ((path, 409), (f"/orders/{UNKNOWN}", 404)):
        if (again := send("POST", f"{target}/confirm").status) != status:
            yield f"{again}, not {status}, for a confirm that is not possible"


def _batch(send: Send) -> Iterator[str]:
    keyed = MINIMAL | {"idempotency_key": "gate-c"}
    for _ in range(2):
        answer = send("POST", "/orders/batch", {"orders": [MINIMAL, {}, keyed, keyed | {"customer_id": "c-2"}]})
        statuses = [result["status"] for result in answer.json["results"]]
        if (answer.status, statuses) != (200, [201, 400, 201, 422]):
            yield f"a batch answers {answer.status} {statuses}"
    yield from _times(answer.json["results"][0]["order"])
    large = send("POST", "/orders/batch", {"orders": [MINIMAL] * 1000})
    if [result["status"] for result in large.json["results"]] != [201] * 1000:
        yield "a batch of 1,000 is not accepted"
    if send("POST", "/orders/batch", {"orders": []}).status != 400:
        yield "an empty batch is accepted"


def _times(order: dict[str, Any]) -> Iterator[str]:
    for name in ("created_at", "updated_at"):
        if not RFC3339.fullmatch(order[name]):
            yield f"{name} is {order[name]}"


def _timeless(order: dict[str, Any]) -> dict[str, Any]:
    """Return the order with Z in place of +00:00, which means the same."""
    with suppress(KeyError):
        for name in ("created_at", "updated_at"):
            order = order | {name: order[name].replace("+00:00", "Z")}
    return order
