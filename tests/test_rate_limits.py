"""Each principal's quota of requests, counted exactly across all workers."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Event, Semaphore
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from gevent import GreenletExit
from sqlalchemy import text
from werkzeug.test import TestResponse

from app.db.engine import db
from app.http import rate_limit
from app.http.rate_limit import CUSTOMER_SHARE, RateLimiter
from app.services import order_queries, order_search
from tests.support.credentials import AUDIENCE, ISSUER, SIGNING_KEY, api_key, app_with_auth, bearer, public_pem, token
from tests.support.description import api_description
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL, slug
from tests.support.servers import GUNICORN, TIMEOUT, free_port, running, wait_until

pytestmark = on_sqlite

LIMIT = 5


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rate_limit, "time", clock)
    return clock


@pytest.fixture
def limited(app: Flask, database_url: str, clock: Clock) -> Iterator[Flask]:
    settings = {"RATE_LIMIT_CUSTOMERS": str(LIMIT), "RATE_LIMIT_SERVICES": str(2 * LIMIT)}
    with app_with_auth(database_url, **settings) as limited:
        yield limited


@pytest.fixture
def limited_client(limited: Flask) -> FlaskClient:
    return limited.test_client()


def requests(client: FlaskClient, credential: str, count: int) -> list[Any]:
    return [client.get("/orders", headers=bearer(credential)) for _ in range(count)]


def test_a_principal_above_the_quota_must_wait(limited_client: FlaskClient, clock: Clock) -> None:
    responses = requests(limited_client, token(), LIMIT + 3)
    refused = responses[-1]

    assert [response.status_code for response in responses] == [200] * LIMIT + [429] * 3
    assert slug(refused) == (429, "too-many-requests")
    assert refused.headers.getlist("Retry-After") == ["12"]  # a fifth of a minute
    clock.now += 12
    assert [response.status_code for response in requests(limited_client, token(), 2)] == [200, 429]
    clock.now += 60
    assert [response.status_code for response in requests(limited_client, token(), LIMIT + 1)] == [200] * LIMIT + [429]


def test_every_response_has_the_remaining_quota(limited_client: FlaskClient) -> None:
    responses = requests(limited_client, token(), LIMIT + 1)

    left = [int(re.fullmatch(r'"customers";r=(\d+);t=\d+', response.headers["RateLimit"])[1]) for response in responses]
    assert left == [4, 3, 2, 1, 0, 0]
    assert {response.headers["RateLimit-Policy"] for response in responses} == {f'"customers";q={LIMIT};w=60'}
    documented = api_description(limited_client)["paths"]["/orders"]["get"]["responses"]
    for response in responses:
        assert {"RateLimit", "RateLimit-Policy"} <= documented[str(response.status_code)]["headers"].keys()


def batch(client: FlaskClient, size: int) -> Any:
    orders = [MINIMAL | {"external_ref": None, "metadata": {"n": str(i)}} for i in range(size)]
    return client.post("/orders/batch", json={"orders": orders}, headers=bearer(token()))


def stored(app: Flask) -> int:
    with app.app_context(), db.engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM orders")).scalar_one()


def quota(response: Any) -> tuple[int, int, int]:
    """The status, the remaining quota, and the seconds until it grows."""
    left, seconds = re.fullmatch(r'"customers";r=(\d+);t=(\d+)', response.headers["RateLimit"]).groups()
    return response.status_code, int(left), int(seconds)


def test_a_batch_counts_as_its_orders(limited: Flask, limited_client: FlaskClient, clock: Clock) -> None:
    fits, too_large = batch(limited_client, 3), batch(limited_client, 3)

    assert (quota(fits), quota(too_large)) == ((200, 2, 12), (429, 1, 12))
    assert slug(too_large) == (429, "too-many-requests")
    assert "counts as 3; 1 of 5 per minute remain" in too_large.json["detail"]
    assert stored(limited) == 3
    clock.now += int(too_large.headers["Retry-After"])
    assert quota(batch(limited_client, 3)) == (200, 0, 12)
    assert stored(limited) == 6


def test_a_refused_batch_counts_as_one_request(limited_client: FlaskClient) -> None:
    batch(limited_client, 3)

    statuses = [quota(batch(limited_client, 4))[:2] for _ in range(4)]

    assert statuses == [(429, 1), (429, 0), (429, 0), (429, 0)]
    assert requests(limited_client, token(), 1)[0].status_code == 429


@pytest.mark.parametrize("path", ["/orders/batch", "/orders/actions"])
@pytest.mark.parametrize(("size", "cost"), [(1, 1), (65_536, 1), (65_537, 2), (200_000, 4)])
def test_a_large_body_that_is_not_valid_counts_by_its_size(
    limited_client: FlaskClient, path: str, size: int, cost: int
) -> None:
    headers = bearer(token()) | {"Content-Type": "application/json"}

    invalid = limited_client.post(path, data=b"[" * size, headers=headers)

    assert quota(invalid)[:2] == (400, LIMIT - cost)


def test_the_size_of_a_valid_batch_does_not_count(limited_client: FlaskClient) -> None:
    orders = [MINIMAL | {"metadata": {f"{i}-{j}": "x" * 500 for j in range(50)}} for i in range(5)]
    body = {"orders": orders}
    assert 65_536 < len(json.dumps(body)) < 5 * 65_536

    response = limited_client.post("/orders/batch", json=body, headers=bearer(token()))

    assert quota(response)[:2] == (200, 0)


def test_the_declared_size_of_a_refused_body_counts_up_to_that_of_the_largest_batch(
    limited_client: FlaskClient, clock: Clock
) -> None:
    headers, length = bearer(token()) | {"Content-Type": "application/json"}, {"CONTENT_LENGTH": str(10**15)}

    limited_client.post("/orders/batch", headers=headers, environ_overrides=length)
    [early] = requests(limited_client, token(), 1)
    clock.now += 128 * 60 / LIMIT

    assert early.status_code == 429
    assert quota(requests(limited_client, token(), 1)[0])[:2] == (200, LIMIT - 1)


@pytest.mark.parametrize("length", ["abcdef", "-1000000", "1_000_000"])
def test_a_malformed_content_length_counts_as_one_request(limited_client: FlaskClient, length: str) -> None:
    """gunicorn and uvicorn refuse it, `flask run` does not."""
    headers = bearer(token()) | {"Content-Type": "application/json"}

    response = limited_client.post("/orders/batch", headers=headers, environ_overrides={"CONTENT_LENGTH": length})

    assert quota(response)[:2] == (400, LIMIT - 1)


def test_a_batch_larger_than_the_quota_delays_the_next_request(
    limited: Flask, limited_client: FlaskClient, clock: Clock
) -> None:
    requests(limited_client, token(), 1)
    early = batch(limited_client, 8)
    clock.now += int(early.headers["Retry-After"])
    taken = batch(limited_client, 8)
    [refused] = requests(limited_client, token(), 1)
    clock.now += int(refused.headers["Retry-After"])
    [after] = requests(limited_client, token(), 1)

    assert (quota(early), early.headers["Retry-After"]) == ((429, 3, 12), "24")
    assert quota(taken) == (
        200,
        0,
        48,
    )  # three orders exceed the quota, and the next request is accepted after their time
    assert (quota(refused), refused.headers["Retry-After"]) == ((429, 0, 48), "48")
    assert after.status_code == 200
    assert stored(limited) == 8


def test_a_batch_without_a_limit_is_accepted(secure_client: FlaskClient) -> None:
    response = batch(secure_client, 20)

    assert response.status_code == 200 and "RateLimit" not in response.headers


def test_each_principal_has_its_own_quota(limited: Flask, limited_client: FlaskClient) -> None:
    requests(limited_client, token(), LIMIT + 1)

    other = requests(limited_client, token(customer="c-2"), LIMIT)
    service = requests(limited_client, api_key(limited, "orders:read"), 2 * LIMIT)
    twin = requests(limited_client, api_key(limited, "orders:read"), 1)  # another key of the same name

    assert {response.status_code for response in other + service} == {200}
    assert twin[0].status_code == 429


def test_refused_requests_count_too(limited_client: FlaskClient) -> None:
    without_scope = token(scope="orders:write")

    statuses = [response.status_code for response in requests(limited_client, without_scope, LIMIT + 1)]

    assert statuses == [403] * LIMIT + [429]


def test_public_routes_and_unauthenticated_requests_are_not_counted(limited_client: FlaskClient) -> None:
    public = [limited_client.get("/healthz") for _ in range(LIMIT + 1)]
    nobody = requests(limited_client, "garbage", LIMIT + 1)

    assert [response.status_code for response in public + nobody] == [200] * (LIMIT + 1) + [401] * (LIMIT + 1)
    assert not any("RateLimit" in response.headers for response in public + nobody)


def test_without_a_limit_nothing_is_counted(secure_client: FlaskClient) -> None:
    responses = requests(secure_client, token(), 20)

    assert {response.status_code for response in responses} == {200}
    assert not any("RateLimit" in response.headers for response in responses)


@contextmanager
def searches_in_progress(
    app: Flask, headers: dict[str, str], count: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Future[TestResponse]]]:
    """A number of searches of the principal are in progress until the block ends."""
    begun, may_end = Semaphore(0), Event()

    def acquire(timeout: float) -> bool:
        begun.release()
        return may_end.wait(TIMEOUT)

    monkeypatch.setattr(order_search, "SLOTS", SimpleNamespace(acquire=acquire, release=lambda: None))
    with ThreadPoolExecutor() as threads:
        slow = [threads.submit(app.test_client().get, "/orders/search", headers=headers) for _ in range(count)]
        assert all(begun.acquire(timeout=TIMEOUT) for _ in slow)
        try:
            yield slow
        finally:
            may_end.set()


@pytest.mark.parametrize(("kind", "share"), [("customer", 8 // CUSTOMER_SHARE), ("service", 8 - 8 // CUSTOMER_SHARE)])
def test_the_requests_in_progress_of_one_principal_leave_room_for_others(
    app: Flask, database_url: str, monkeypatch: pytest.MonkeyPatch, kind: str, share: int
) -> None:
    one = bearer(token(customer="c-1") if kind == "customer" else api_key(app, "orders:read"))
    with app_with_auth(database_url, MAX_REQUESTS_IN_PROGRESS="8") as limited:
        client, other = limited.test_client(), bearer(token(customer="c-2"))

        with searches_in_progress(limited, one, share, monkeypatch) as slow:
            refused = client.get("/orders", headers=one)
            assert (slug(refused), refused.headers["Retry-After"]) == ((429, "too-many-requests"), "1")
            assert client.get("/orders", headers=other).status_code == 200
        assert {each.result().status_code for each in slow} == {200}
        for _ in range(8):  # each releases its slot, with any outcome
            assert [client.get(path, headers=one).status_code for path in ("/orders", "/orders/x")] == [200, 404]
            assert client.get("/events", headers=one).status_code == 403


@pytest.mark.parametrize("failure", [GreenletExit, SystemExit, RuntimeError])
@pytest.mark.parametrize("place", ["view", "after_request"])
def test_a_request_that_ends_without_a_response_leaves_its_slot(
    app: Flask, database_url: str, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException], place: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    headers = bearer(token(customer="c-1"))
    with app_with_auth(database_url, MAX_REQUESTS_IN_PROGRESS="4") as limited, monkeypatch.context() as failing:
        if place == "view":
            failing.setattr(order_queries, "list_orders", fail)
        else:
            failing.setitem(limited.after_request_funcs, None, [fail])
        for _ in range(2):
            with suppress(failure):
                limited.test_client().get("/orders", headers=headers)
        failing.undo()

        assert limited.test_client().get("/orders", headers=headers).status_code == 200


def test_readers_that_wait_for_events_are_not_in_progress(app: Flask, database_url: str) -> None:
    headers = bearer(api_key(app, "events:read"))
    with app_with_auth(database_url, MAX_REQUESTS_IN_PROGRESS="1") as limited, ThreadPoolExecutor() as threads:
        streams = limited.extensions["event_streams"]
        waiting = threads.submit(limited.test_client().get, "/events?wait=20", headers=headers)
        wait_until(lambda: streams.slots.occupied_count == 1)

        wait_until(lambda: limited.test_client().get("/events", headers=headers).status_code == 200)
        assert not waiting.done()
        streams.watcher.is_stopping = lambda: True
        assert waiting.result().status_code == 200


def test_a_principal_beyond_the_capacity_of_the_table_is_not_limited(database_url: str, clock: Clock) -> None:
    limiter = RateLimiter()

    waits = [limiter.count(f"p-{i}", per_minute=1)[1] for i in range(20_000)]

    assert set(waits) == {0.0}


def test_processes_that_share_a_file_count_together(database_url: str, clock: Clock, tmp_path: Any) -> None:
    limiters = [RateLimiter(str(tmp_path / "limits")) for _ in range(3)]

    passed = [limiters[i % 3].count("p", per_minute=20)[1] == 0 for i in range(100)]

    assert passed == [True] * 20 + [False] * 80


def test_two_workers_together_accept_exactly_the_quota(app: Flask, database_url: str) -> None:
    port = free_port()
    settings = {
        "AUTH": "required", "JWT_PUBLIC_KEY": public_pem(SIGNING_KEY), "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE,
        "RATE_LIMIT_CUSTOMERS": "10", "WEB_CONCURRENCY": "2", "DATABASE_URL": database_url, "PORT": str(port),
    }  # fmt: skip
    command = (*GUNICORN[:-1], "tests.support.stopped_clocks:app")
    with running(*command, port=port, **settings) as server, ThreadPoolExecutor(8) as pool:
        headers = bearer(token())
        responses = list(pool.map(lambda _: server.request("GET", "/orders", headers=headers), range(60)))
        pids = {pid for pid in re.findall(r"Booting worker with pid: (\d+)", server.output())}

    assert Counter(response.status for response in responses) == {200: 10, 429: 50}
    assert len(pids) == 2
