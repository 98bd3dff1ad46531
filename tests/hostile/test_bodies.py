"""The most expensive bodies delay their sender only."""

import json
import os
import statistics
import time
from collections.abc import Callable

import pytest

from tests.hostile.probe import Probe, Target, together
from tests.support.servers import send_request

LARGEST = 8 * 1024 * 1024  # bytes, of a batch
AT_ONCE = 8
SECONDS = float(os.environ.get("SECONDS_EACH", "5"))  # of each attack; CI has a shorter one


def list_of(entry: bytes, *, size: int = LARGEST) -> bytes:
    return b'{"orders":[' + b",".join([entry] * ((size - 32) // (len(entry) + 1))) + b"]}"


def members(count: int) -> bytes:
    return b"{" + b",".join(b'"%x":1' % i for i in range(count)) + b"}"


BODIES: dict[str, Callable[[], bytes]] = {
    "unknown members": lambda: b'{"orders":[' + members(800_000) + b"]}",
    "as many unknown members as may be": lambda: b'{"orders":[' + b",".join([members(9_999)] * 31) + b"]}",
    "1,000 orders of 100 empty lines": lambda: json.dumps({"orders": [{"items": [{}] * 100}] * 1_000}).encode(),
    "1,000 entries that are no orders": lambda: json.dumps({"orders": [{"a": 1, "b": 2}] * 1_000}).encode(),
    "empty objects": lambda: list_of(b"{}"),
    "as many empty objects as may be": lambda: list_of(b"{}", size=700_000),
    "as many numbers as may be": lambda: list_of(b"12345678", size=2_800_000),
    "as many fractions as may be": lambda: list_of(b"1.50e1", size=2_100_000),
    "strings of commas": lambda: list_of(b'",,"'),
    "escapes": lambda: list_of(b'"\\\\\\""'),
    "brackets": lambda: b"[" * LARGEST,
    "a name twice at the end": lambda: b'{"orders":[' + members(9_000)[:-1] + b',"0":1}]}',
    "one long text": lambda: b'{"orders":[{"customer_id":"c","note":"' + b"x" * (LARGEST - 64) + b'"}]}',
    "a long number": lambda: b'{"orders":[' + b"1" * (LARGEST - 32) + b"]}",
    "the largest valid metadata": lambda: json.dumps(
        {"orders": [{"customer_id": "c", "metadata": {f"{i:040}": "v" * 99 for i in range(50)}, "items": [{}]}] * 1_000}
    ).encode(),
    "no JSON at all": lambda: bytes(range(256)) * (LARGEST // 256),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_most_expensive_bodies_do_not_block_other_clients(target: Target, name: str) -> None:
    body = BODIES[name]()
    assert len(body) <= LARGEST
    statuses: set[int] = set()
    sizes: set[int] = set()
    durations: list[float] = []  # seconds that a request of the attack takes

    def attack() -> None:
        deadline = time.monotonic() + SECONDS
        while (begin := time.monotonic()) < deadline:
            response = send_request(target.port, "POST", "/orders/batch", body)
            durations.append(time.monotonic() - begin)
            statuses.add(response.status)
            sizes.add(len(response.body))

    with Probe(target) as probe:
        together(AT_ONCE, attack)

    print(f"{name}: {probe.report()}, answers of {max(sizes):,} bytes")
    assert statuses <= {200, 400, 413}
    assert max(sizes) < 1_000_000
    # On a slow machine as well: attacks wait for each other, the probe only for the body that is being parsed.
    assert probe.wait < max(0.5, statistics.median(durations))
    assert probe.growth < 200
