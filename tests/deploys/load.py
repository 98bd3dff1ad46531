"""Clients behind nginx that never retry: a request without a successful response has failed."""

import http.client
import json
import threading
from collections import Counter
from contextlib import closing
from typing import Any, Self
from uuid import uuid4

from tests.support.databases import ORDER
from tests.support.servers import TIMEOUT

READS = 4  # of an order, after its creation


class Load:
    """Clients that create orders and read them until they are stopped."""

    def __init__(self, port: int, *, clients: int = 8) -> None:
        self.created: set[str] = set()  # ids of the acknowledged orders
        self.failures: Counter[str] = Counter()
        self._port = port
        self._answered = [0] * clients
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(clients)]

    @property
    def count(self) -> int:
        """The number of requests, failed ones included."""
        return sum(self._answered) + self.failures.total()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self, client: int) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT)) as connection:
            while not self._stopping.is_set():
                order = self._send(client, connection, "POST", "/orders", ORDER)
                if order is None:
                    continue
                self.created.add(order["id"])
                for _ in range(READS):
                    self._send(client, connection, "GET", f"/orders/{order['id']}")

    def _send(self, client: int, connection: Any, method: str, path: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json", "Idempotency-Key": str(uuid4())} if body else {}
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.failures[f"{method}: {error!r}"] += 1
            return None
        if response.status not in (200, 201):
            self.failures[f"{method}: {response.status} {json.loads(content).get('detail')}"] += 1
            return None
        self._answered[client] += 1
        return json.loads(content)
