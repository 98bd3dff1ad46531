"""Well-behaved clients: each retries a request with the same key until it gets a response."""

import http.client
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import uuid4

import orjson

from tests.support.servers import TIMEOUT, Response, send_request

PAUSE = 0.02  # seconds between two requests of a client: the machine should be busy, but not overloaded
_RETRIED = {503, 409}  # the service is unavailable; a request with the same key is in flight
ITEMS = [{"item_id": "sku-1", "quantity": 3, "unit_price": 500}, {"item_id": "sku-2", "quantity": 1}]


def new_order(**members: Any) -> dict[str, Any]:
    return {"customer_id": "c-1", "currency": "EUR", "items": ITEMS} | members


@dataclass
class Record:
    """The acknowledgements of the clients: every returned document by order and version, and the number of keys."""

    documents: dict[tuple[str, int], bytes] = field(default_factory=dict)
    creation_keys: int = 0
    action_keys: int = 0
    resent: int = 0
    surprises: list[str] = field(default_factory=list)

    def acknowledge(self, response: Response) -> dict[str, Any]:
        order: dict[str, Any] = response.json
        self.documents[order["id"], order["version"]] = response.body
        return order


class Abandoned(Exception):
    """The test is over, and no response will come."""


class Traffic:
    """Clients that create orders, act on them and send batches until they are stopped.

    `hot` is an order that all of them act on.
    """

    def __init__(self, port: int, *, clients: int = 6) -> None:
        self.record = Record()
        self._port = port
        self._stopping, self._abandoned = threading.Event(), threading.Event()
        self.hot = self._send("/orders", new_order(items=[{"item_id": "hot", "quantity": 1_000_000}]))
        self._send(f"/orders/{self.hot['id']}/confirm", {})
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._abandoned.set()
        self.stop()

    def stop(self) -> None:
        """Wait until every client has its last response, and send no more."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(TIMEOUT)
        self._abandoned.set()

    def _run(self, seed: int) -> None:
        with suppress(Abandoned):
            self._create_orders(random.Random(seed))

    def _create_orders(self, rng: random.Random) -> None:
        lives: list[Iterator[None]] = []
        while not self._stopping.is_set():
            choice = rng.random()
            if choice < 0.1:
                self._send_batch()
            elif choice < 0.3:
                self._send(f"/orders/{self.hot['id']}/fulfillments", {"items": [{"line": 1, "quantity": 1}]})
            elif choice < 0.5 or not lives:
                lives.append(self._live())
            else:
                with suppress(StopIteration):
                    next(rng.choice(lives))
            time.sleep(PAUSE)

    def _live(self) -> Iterator[None]:
        """The actions of one order, one per step."""
        path = f"/orders/{self._send('/orders', new_order())['id']}"
        for action, body in (
            ("confirm", {}),
            ("fulfillments", {"items": [{"line": 1, "quantity": 2}], "tracking": {"number": "1"}}),
            ("fulfillments", {"items": [{"line": 1, "quantity": 1}, {"line": 2, "quantity": 1}]}),
            ("returns", {"items": [{"line": 1, "quantity": 1}], "reason": "broken"}),
        ):
            yield
            self._send(f"{path}/{action}", body)

    def _send(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = self._send_until_acknowledged(path, body, {"Idempotency-Key": str(uuid4())})
        if path == "/orders":
            self.record.creation_keys += 1
        else:
            self.record.action_keys += 1
        return self.record.acknowledge(response) if response.status < 300 else {"id": "none"}

    def _send_batch(self) -> None:
        entries = [new_order(idempotency_key=str(uuid4())) for _ in range(3)]
        entries += [new_order(external_ref=str(uuid4())[:30]) for _ in range(3)]
        results = self._send_until_acknowledged("/orders/batch", {"orders": entries}, {}).json["results"]
        self.record.creation_keys += len(entries)
        while any(result["status"] == 503 for result in results):
            results = self._send_until_acknowledged("/orders/batch", {"orders": entries}, {}).json["results"]
        for result in results:
            if result["status"] == 201:
                # The bytes in the response: the service renders its documents with the same library.
                self.record.documents[result["order"]["id"], 1] = orjson.dumps(result["order"])
            else:
                self.record.surprises.append(str(result))

    def _send_until_acknowledged(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Response:
        while not self._abandoned.is_set():
            with suppress(OSError, http.client.HTTPException):
                response = send_request(self._port, "POST", path, body, headers)
                if response.status not in _RETRIED:
                    if response.status >= 300:
                        self.record.surprises.append(f"{path}: {response.status} {response.body.decode()}")
                    return response
            self.record.resent += 1
            time.sleep(0.05)
        self.record.surprises.append(f"{path}: never answered")
        raise Abandoned
