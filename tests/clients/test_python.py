"""The Python client: its types are those of the API description, and it works with the service on both databases."""

import asyncio
import base64
import hmac
import json
import pickle
import re
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from httpx2 import ConnectError, LocalProtocolError, UnsupportedProtocol
from order_service_client import (
    AsyncClient,
    Client,
    ConflictError,
    IllegalActionError,
    InvalidRequestError,
    NoResponseError,
    NotFoundError,
    ProblemError,
    RetryPolicy,
    Series,
    VersionMismatchError,
    WebhookVerificationError,
    requests,
    verify_webhook,
)
from pytest_httpserver import HTTPServer
from standardwebhooks import Webhook
from werkzeug import Request, Response

from tests.clients.conftest import CUTS, Service, url_of
from tests.support.marks import on_sqlite
from tests.support.servers import ROOT, TIMEOUT, wait_until
from tests.support.severing_proxy import severing_proxy

PACKAGE = ROOT / "clients" / "python" / "order_service_client"
QUICK = RetryPolicy(base_delay=0.001)
PATIENT = RetryPolicy(attempts=100, base_delay=0.001, max_delay=0.005)
NOBODY = "00000000-0000-7000-8000-000000000000"


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, token=service.key) as client:
        yield client


def order(customer: str | None = None, **members: Any) -> Any:
    items = [{"item_id": "sku-1", "quantity": 3, "unit_price": 1250}]
    return {"customer_id": customer or f"c-{uuid4()}", "currency": "EUR", "items": items, **members}


@on_sqlite
def test_the_committed_modules_are_those_that_are_generated(service: Service, tmp_path: Path) -> None:
    description = tmp_path / "openapi.json"
    description.write_bytes(service.server.request("GET", "/openapi.json").body)
    (tmp_path / "ruff.toml").symlink_to(ROOT / "ruff.toml")  # the generator formats with the settings of the directory

    command = ["make", "--no-print-directory", "--silent", "python-types", f"FROM={description}", f"TO={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=TIMEOUT)

    for name in ("documents.py", "requests.py", "client.py"):
        assert (tmp_path / name).read_text() == (PACKAGE / name).read_text(), "Run make client-types."


def test_the_package_depends_on_what_it_imports() -> None:
    modules = (path.read_text() for path in PACKAGE.glob("*.py"))
    imported = {name for module in modules for name in re.findall(r"^(?:from|import) (\w+)", module, re.MULTILINE)}
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]

    dependencies = {re.split("[<>=]", each)[0] for each in project["dependencies"]}
    assert dependencies == imported - sys.stdlib_module_names - {PACKAGE.name}


def test_an_order_can_be_created_changed_and_read(client: Client) -> None:
    created = client.send(requests.create_order(order()))
    held = client.send(requests.place_hold(created, "review", {"kind": "review"}))
    released = client.send(requests.release_hold(held, "review"))
    confirmed = client.send(requests.confirm_order(released))
    lines: Any = [{"line": 1, "quantity": 1}]
    cancelled = client.send(requests.cancel_order(confirmed, {"reason": "customer", "items": lines}))

    assert client.send(requests.get_order(created["id"])) == cancelled
    assert client.send(requests.get_order(created["id"], version=1)) == created
    assert [event["version"] for event in client.iterate(requests.list_order_history(created, limit=2))] == [
        *range(1, 6)
    ]


def test_the_same_request_has_one_effect(client: Client) -> None:
    request = requests.create_order(order())

    assert client.send(request) == client.send(request)
    reused = requests.create_order(order(note="other"), idempotency_key=request.idempotency_key or "")
    with pytest.raises(ProblemError) as raised:
        client.send(reused)
    assert (raised.value.status, raised.value.slug) == (422, "idempotency-key-reused")


@pytest.mark.parametrize("listing", [requests.list_orders(status=[]), requests.search_orders(status=[])])
def test_a_filter_without_values_is_refused_instead_of_left_out(client: Client, listing: Series[Any]) -> None:
    with pytest.raises(InvalidRequestError):
        list(client.iterate(listing))


def test_problems_are_typed(client: Client) -> None:
    created = client.send(requests.create_order(order()))
    client.send(requests.update_order(created, {"note": "Somebody else was first."}))

    with pytest.raises(VersionMismatchError) as mismatch:
        client.send(requests.confirm_order(created))
    client.send(requests.cancel_order(created["id"], {"reason": "customer"}))
    with pytest.raises(IllegalActionError) as illegal:
        client.send(requests.confirm_order(created["id"]))
    with pytest.raises(InvalidRequestError) as invalid:
        client.send(requests.create_order(order(items=[])))
    with pytest.raises(NotFoundError):
        client.send(requests.get_order(NOBODY))

    assert (mismatch.value.current_version, illegal.value.current_version) == (2, 3)
    assert illegal.value.problem["order_status"] == "cancelled"
    assert [error.get("pointer") for error in invalid.value.problem["errors"]] == ["#/items"]


def test_the_message_of_an_invalid_request_says_what_is_invalid_even_in_another_process(client: Client) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        client.send(requests.create_order(order(items=[])))

    error: InvalidRequestError = pickle.loads(pickle.dumps(raised.value))
    assert str(error) == str(raised.value)
    assert "#/items" in str(error)
    assert (error.status, error.slug, error.problem) == (400, "invalid-request", raised.value.problem)


@pytest.mark.parametrize("dots", [".", ".."])
def test_an_id_of_dots_which_would_lead_to_another_path_is_refused(dots: str) -> None:
    for build in requests.get_order, requests.stream_order_events, requests.get_webhook, requests.export_customer:
        with pytest.raises(ValueError, match="part of a path"):
            build(dots)


def test_lists_batches_and_references(client: Client) -> None:
    customer, reference = f"c-{uuid4()}", f"shop/1?x=ä #{uuid4()}"
    batch = client.send(requests.create_orders({"orders": [order(customer) for _ in range(7)]}))
    first = list(client.iterate(requests.list_orders(customer_id=customer, limit=3)))
    actions: Any = [{"order_id": one["id"], "action": "confirm"} for one in first]
    results = client.send(requests.act_on_orders({"actions": actions}))["results"]

    assert [result["status"] for result in batch["results"]] == [201] * 7
    assert [result["status"] for result in results] == [200] * 7
    assert len({one["id"] for one in first}) == 7
    assert not list(client.iterate(requests.list_orders(customer_id=customer, status=["pending", "cancelled"])))
    created = client.send(requests.create_order(order(external_ref=reference)))
    assert client.send(requests.get_order_by_reference(reference)) == created
    with pytest.raises(ConflictError):
        client.send(requests.create_order(order(external_ref=reference)))


def test_exports_are_iterated_line_by_line(client: Client) -> None:
    customer = f"c-{uuid4()}"
    created = client.send(requests.create_order(order(customer)))
    other = client.send(requests.create_order(order(customer)))
    confirmed = client.send(requests.confirm_order(created))

    assert list(client.iterate(requests.export_orders(customer_id=customer))) == [other, confirmed]
    kinds = [next(iter(line)) for line in client.iterate(requests.export_customer(customer))]
    assert kinds == ["order", "event", "event", "order", "event"]


def test_personal_data_is_erased(client: Client) -> None:
    customer = f"c-{uuid4()}"
    client.send(requests.cancel_order(client.send(requests.create_order(order(customer))), {"reason": "customer"}))

    erasure = client.send(requests.erase_customer(customer))

    assert client.send(requests.read_erasure(erasure["id"]))["status"] == "done"
    assert list(client.iterate(requests.export_customer(customer))) == []


def test_webhooks_are_managed(client: Client) -> None:
    webhook = client.send(requests.create_webhook({"url": "http://127.0.0.1:9/", "events": ["order.reopened"]}))
    disabled = client.send(requests.update_webhook(webhook["id"], {"status": "disabled"}))

    assert client.send(requests.get_webhook(webhook["id"])) == disabled
    assert disabled in client.send(requests.list_webhooks())["webhooks"]
    assert client.send(requests.test_webhook(webhook["id"])) == {"deliveries": 1}
    assert client.send(requests.replay_deliveries(webhook["id"], {"failed_since": "2099-01-01T00:00:00Z"})) == {
        "deliveries": 0
    }
    assert client.send(requests.delete_webhook(webhook["id"])) is None
    with pytest.raises(NotFoundError):
        client.send(requests.get_webhook(webhook["id"]))


def test_orders_are_searched(client: Client) -> None:
    customer = f"c-{uuid4()}"
    created = client.send(requests.create_order(order(customer, metadata={"gift": "yes, please"})))
    search = requests.search_orders(q=customer, held=False, metadata={"gift": "yes, please"})

    wait_until(lambda: list(client.iterate(search)) == [created])


def test_events_are_listed_and_streamed(client: Client, service: Service) -> None:
    created = client.send(requests.create_order(order()))
    events = client.iterate(requests.stream_order_events(created))
    first = next(events)
    confirmed = client.send(requests.confirm_order(created))
    second = next(events)
    [one, two] = islice(client.iterate(requests.stream_events(order_id=created["id"])), 2)
    listed = list(client.iterate(requests.list_feed_events(order_id=created["id"], limit=1)))
    waiting = client.iterate(requests.list_feed_events(order_id=created["id"], after=str(one["seq"]), wait=20))

    assert (first["type"], second["data"]) == ("order.created", confirmed)
    assert listed == [one, two]
    assert next(waiting) == two
    with pytest.raises(NotFoundError):
        next(client.iterate(requests.stream_order_events(NOBODY)))


def test_the_asynchronous_client_does_the_same(service: Service) -> None:
    async def key() -> str:
        return service.key

    async def act() -> None:
        customer = f"c-{uuid4()}"
        async with AsyncClient(service.url, token=key) as client:
            creates = [client.send(requests.create_order(order(customer))) for _ in range(5)]
            created = {one["id"]: one for one in await asyncio.gather(*creates)}
            listing = requests.list_orders(customer_id=customer, limit=2)
            assert {one["id"]: one async for one in client.iterate(listing)} == created
            some = next(iter(created.values()))
            async with aclosing(client.iterate(requests.stream_order_events(some))) as events:
                async for event in events:
                    if event["type"] == "order.confirmed":
                        break
                    await client.send(requests.confirm_order(some))
            with pytest.raises(VersionMismatchError):
                await client.send(requests.complete_order(some))

    asyncio.run(asyncio.wait_for(act(), TIMEOUT))


@pytest.fixture
def gateway(httpserver: HTTPServer) -> Callable[..., HTTPServer]:
    """A server with predefined responses, in order."""

    def answering(*responses: Response) -> HTTPServer:
        for response in responses:
            httpserver.expect_ordered_request("/orders").respond_with_response(response)
        return httpserver

    return answering


@pytest.mark.parametrize(("status", "seconds"), [(408, 3), (409, 3), (429, 3), (502, 3), (503, 7), (504, 0)])
def test_a_request_is_sent_again_no_earlier_than_the_response_says(
    gateway: Callable[..., HTTPServer], monkeypatch: pytest.MonkeyPatch, status: int, seconds: int
) -> None:
    server = gateway(Response(status=status, headers={"Retry-After": str(seconds)}), Response("{}", 201))
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)

    with Client(server.url_for("").rstrip("/"), retry=QUICK) as client:
        client.send(requests.create_order(order()))

    assert len(pauses) == 1 and pauses[0] >= seconds
    assert len({request.headers["Idempotency-Key"] for request, _ in server.log}) == 1


def test_a_request_that_waits_for_events_is_not_given_up_while_it_waits(httpserver: HTTPServer) -> None:
    def wait(request: Request) -> Response:
        time.sleep(3 * hasty.timeout)
        return Response('{"events": [{"seq": 1}], "next_cursor": "1"}', mimetype="application/json")

    hasty = RetryPolicy(attempts=1, timeout=0.2)
    httpserver.expect_request("/events", query_string="wait=20").respond_with_handler(wait)

    with Client(httpserver.url_for("").rstrip("/"), retry=hasty) as client:
        assert next(client.iterate(requests.list_feed_events(wait=20)))["seq"] == 1


def test_a_response_with_a_longer_retry_after_is_final(gateway: Callable[..., HTTPServer]) -> None:
    server = gateway(Response(status=503, headers={"Retry-After": "3600"}))

    with Client(server.url_for("").rstrip("/"), retry=QUICK) as client, pytest.raises(ProblemError) as raised:
        client.send(requests.create_order(order()))

    assert (raised.value.status, raised.value.retry_after) == (503, 3600)


def test_the_pauses_of_a_stream_do_not_grow_as_long_as_it_can_be_opened(httpserver: HTTPServer) -> None:
    for _ in range(16):
        httpserver.expect_ordered_request("/events").respond_with_data(":\nid: 7\n\n", mimetype="text/event-stream")
    event = 'id: 8\ndata: {"seq": 8}\n\n'
    httpserver.expect_ordered_request("/events", query_string="after=7").respond_with_data(
        event, mimetype="text/event-stream"
    )

    growing = RetryPolicy(base_delay=0.01, max_delay=3600)  # 2¹⁵ · 0.01 s are more than five minutes
    with Client(httpserver.url_for("").rstrip("/"), retry=growing) as client:
        assert next(client.iterate(requests.stream_events()))["seq"] == 8


def test_an_export_continues_after_the_last_complete_order(httpserver: HTTPServer) -> None:
    lines = [{"order": {"id": "1"}}, {"event": {"version": 1}}, {"order": {"id": "2"}}, {"event": {"version": 1}}]

    def cut_off(request: Request) -> Response:
        begin = 2 * int(request.args.get("after", 0))
        body = "".join(json.dumps(line) + "\n" for line in lines[begin:])
        # All but the last event, with a longer Content-Length, so that the connection breaks; then the rest.
        cut = body if begin else body[:-3]
        return Response(iter([cut]), headers={"Content-Length": str(len(body))}, mimetype="application/x-ndjson")

    httpserver.expect_request("/customers/c-1/personal-data").respond_with_handler(cut_off)
    with Client(httpserver.url_for("").rstrip("/"), retry=QUICK) as client:
        received = list(client.iterate(requests.export_customer("c-1")))

    assert received == [*lines[:3], *lines[2:]]


def test_an_export_that_is_cut_off_twice_in_an_order_loses_none_of_its_lines(httpserver: HTTPServer) -> None:
    lines = [{"order": {"id": "1"}}, {"event": {"version": 1}}, {"event": {"version": 2}}]
    body = "".join(json.dumps(line) + "\n" for line in lines)
    for sent in (body[:-3], body[:-3], body):
        httpserver.expect_ordered_request("/customers/c-1/personal-data", query_string="").respond_with_response(
            Response(iter([sent]), headers={"Content-Length": str(len(body))}, mimetype="application/x-ndjson")
        )

    with Client(httpserver.url_for("").rstrip("/"), retry=QUICK) as client:
        received = list(client.iterate(requests.export_customer("c-1")))

    assert received == [*lines[:2], *lines[:2], *lines]


def test_a_request_that_may_have_been_executed_is_not_repeated_without_a_key() -> None:
    with Client("http://127.0.0.1:9", retry=QUICK) as client:
        with pytest.raises(NoResponseError, match="after 1 attempt:"):
            client.send(requests.create_webhook({"url": "http://127.0.0.1:9/"}))
        with pytest.raises(NoResponseError, match="after 6 attempts"):
            client.send(requests.create_order(order()))


@pytest.mark.parametrize(
    ("scheme", "token", "error"), [("", None, UnsupportedProtocol), ("http://", "osk_1\n", LocalProtocolError)]
)
@pytest.mark.parametrize("request_", [requests.create_order(order()), requests.stream_order_events(NOBODY)])
def test_a_request_with_an_invalid_url_or_token_is_not_repeated(
    service: Service, request_: Series[Any], scheme: str, token: str | None, error: type[Exception]
) -> None:
    with Client(f"{scheme}127.0.0.1:{service.server.port}", token=token) as client, pytest.raises(error):
        next(client.iterate(request_))


def test_a_deletion_whose_response_is_lost_succeeds_when_the_webhook_is_not_found(
    service: Service, client: Client
) -> None:
    webhook = client.send(requests.create_webhook({"url": "http://127.0.0.1:9/"}))

    with (
        severing_proxy(service.server.port, cuts=1, answering=b"DELETE") as proxy,
        Client(url_of(proxy.port), token=service.key, retry=QUICK) as severed,
    ):
        assert severed.send(requests.delete_webhook(webhook["id"])) is None
        assert proxy.severed == 1
        with pytest.raises(NotFoundError):
            severed.send(requests.delete_webhook(webhook["id"]))


def test_a_hold_whose_order_is_not_found_is_not_released_even_if_a_response_is_lost(service: Service) -> None:
    with (
        severing_proxy(service.server.port, cuts=1, answering=b"DELETE") as proxy,
        Client(url_of(proxy.port), token=service.key, retry=QUICK) as severed,
        pytest.raises(NotFoundError),
    ):
        severed.send(requests.release_hold(NOBODY, "fraud"))

    assert proxy.severed == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_webhook_that_is_not_found_after_a_response_was_not_deleted_by_this_request(
    httpserver: HTTPServer, status: int
) -> None:
    problem = {"type": "/problems/webhook-not-found", "title": "Webhook not found", "status": 404}
    httpserver.expect_ordered_request("/webhooks/1").respond_with_data(status=status)
    not_found = Response(json.dumps(problem), 404, content_type="application/problem+json")
    httpserver.expect_ordered_request("/webhooks/1").respond_with_response(not_found)

    with Client(httpserver.url_for("").rstrip("/"), retry=QUICK) as client, pytest.raises(NotFoundError):
        client.send(requests.delete_webhook("1"))

    assert len(httpserver.log) == 2


@pytest.mark.parametrize("error", [ValueError("Signed out."), ConnectError("The identity provider is down.")])
@pytest.mark.parametrize("request_", [requests.create_order(order()), requests.stream_order_events(NOBODY)])
def test_an_error_of_the_token_function_fails_the_request_at_once(request_: Series[Any], error: Exception) -> None:
    def token() -> str:
        calls.append(1)
        assert len(calls) <= 2, "The token function is called again."
        raise error

    async def asynchronous_token() -> str:
        return token()

    async def act() -> None:
        async with AsyncClient("http://127.0.0.1:9", token=asynchronous_token, retry=QUICK) as client:
            async for _ in client.iterate(request_):
                pass

    calls: list[int] = []
    with Client("http://127.0.0.1:9", token=token, retry=QUICK) as client, pytest.raises(type(error)) as raised:
        next(client.iterate(request_))
    with pytest.raises(type(error)):
        asyncio.run(asyncio.wait_for(act(), TIMEOUT))

    assert raised.value is error
    assert len(calls) == 2


def test_an_entry_whose_key_is_null_gets_one_since_a_batch_is_sent_again() -> None:
    entries: Any = [order(idempotency_key=None), order(idempotency_key="k"), order()]
    actions: Any = [{"order_id": NOBODY, "action": "confirm", "idempotency_key": None}]

    created, acted = requests.create_orders({"orders": entries}), requests.act_on_orders({"actions": actions})

    keys = [entry["idempotency_key"] for entry in (*created.body["orders"], *acted.body["actions"])]
    assert all(keys) and len(set(keys)) == 4 and keys[1] == "k"


@pytest.mark.parametrize("body", ['{"title": "Too busy"}', '{"status": 503, "ti', "[]", "null"])
def test_a_problem_of_a_proxy_may_lack_members(gateway: Callable[..., HTTPServer], body: str) -> None:
    server = gateway(Response(body, 503, content_type="application/problem+json"))

    once = RetryPolicy(attempts=1)
    with Client(server.url_for("").rstrip("/"), retry=once) as client, pytest.raises(ProblemError) as raised:
        client.send(requests.create_order(order()))

    assert (raised.value.status, raised.value.slug) == (503, "about:blank")


def test_webhooks_of_the_service_are_verified(client: Client, httpserver: HTTPServer) -> None:
    received: list[Request] = []
    httpserver.expect_request("/hook").respond_with_handler(lambda request: received.append(request) or Response())
    webhook = client.send(requests.create_webhook({"url": httpserver.url_for("/hook"), "events": ["order.created"]}))
    created = client.send(requests.create_order(order()))
    wait_until(lambda: received)
    client.send(requests.delete_webhook(webhook["id"]))

    [request] = received
    event: Any = verify_webhook(request.data, request.headers, webhook["secret"])

    assert (event["type"], event["data"]["order_id"]) == ("order.created", created["id"])
    for body, secret in ((request.data + b" ", webhook["secret"]), (request.data, "whsec_AAAA")):
        with pytest.raises(WebhookVerificationError):
            verify_webhook(body, request.headers, secret)


SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.mark.parametrize(
    "changed",
    [{"webhook-id": "e:2"}, {"webhook-timestamp": "1"}, {"webhook-timestamp": "²"}, {"webhook-timestamp": ""},
     {"webhook-signature": ""}, {"webhook-signature": "v1,ä"}, {"webhook-signature": "v2,AAAA"}],
)  # fmt: skip
def test_a_webhook_with_a_forged_header_is_refused(changed: dict[str, str]) -> None:
    at = datetime.now(UTC)
    valid = {"webhook-id": "e:1", "webhook-timestamp": str(int(at.timestamp()))}
    valid["webhook-signature"] = f"v1,AAAA {Webhook(SECRET).sign('e:1', at, '{}')} v2,AAAA"

    assert verify_webhook(b"{}", valid, SECRET) == {}
    with pytest.raises(WebhookVerificationError):
        verify_webhook(b"{}", valid | changed, SECRET)


@pytest.mark.parametrize("secret", ["", "whsec_", "not base64!"])
def test_without_a_secret_no_webhook_is_verified(secret: str) -> None:
    """Like a deployment without the variable: anybody can sign with an empty key."""
    timestamp = str(int(time.time()))
    digest = hmac.digest(b"", f"e:1.{timestamp}.{{}}".encode(), "sha256")
    forged = {
        "webhook-id": "e:1",
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }

    with pytest.raises(ValueError, match="empty or not in base64"):
        verify_webhook(b"{}", forged, secret)


def test_severed_connections_neither_duplicate_nor_lose_anything(service: Service, client: Client) -> None:
    customer, intents, clients = f"c-{uuid4()}", CUTS // 2, 8
    latest = client.send(requests.list_feed_events(after="latest").page)["next_cursor"]
    events: list[Any] = []

    def act(severed: Client, intent: int) -> Any:
        created = severed.send(requests.create_order(order(customer, metadata={"intent": str(intent)})))
        confirmed = severed.send(requests.confirm_order(severed.send(requests.get_order(created))))
        lines: Any = [{"line": 1, "quantity": 1}]
        return severed.send(requests.cancel_order(confirmed, {"reason": "customer", "items": lines}))

    async def follow(port: int) -> None:
        async with (
            AsyncClient(url_of(port), token=service.key, retry=PATIENT) as severed,
            aclosing(severed.iterate(requests.stream_events(after=latest))) as stream,
        ):
            async for event in stream:
                if event["data"]["customer_id"] == customer:
                    events.append(event)
                    if len(events) == 3 * intents:
                        return

    with (
        severing_proxy(service.server.port, cuts=CUTS) as proxy,
        Client(url_of(proxy.port), token=service.key, retry=PATIENT) as severed,
    ):
        follower = threading.Thread(target=asyncio.run, args=(follow(proxy.port),))
        follower.start()
        with ThreadPoolExecutor(clients) as pool:
            acknowledged = list(pool.map(lambda intent: act(severed, intent), range(intents)))
        follower.join()
        listed = list(severed.iterate(requests.list_orders(customer_id=customer)))
        assert proxy.severed >= CUTS

    stored = {one["id"]: one for one in client.iterate(requests.list_orders(customer_id=customer, limit=100))}
    assert len(stored) == len({one["metadata"]["intent"] for one in stored.values()}) == intents
    assert {one["id"]: one for one in acknowledged} == stored == {one["id"]: one for one in listed}
    assert {one["version"] for one in stored.values()} == {3}  # no change was executed twice
    assert len({event["id"] for event in events}) == 3 * intents
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)


@on_sqlite
def test_the_programs_of_the_readme_work(service: Service) -> None:
    programs = re.findall(r"```python\n(.*?)```", (PACKAGE.parent / "README.md").read_text(), re.DOTALL)
    base, client = 'Client("http://127.0.0.1:8000")', f'Client("{service.url}", token="{service.key}")'
    commands = [[sys.executable, "-c", program.replace(base, client)] for program in programs]

    synchronous, asynchronous = (
        subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True, timeout=TIMEOUT).stdout
        for command in commands
    )

    assert re.match(r"\d{6}-\w{8} pending\n(.+\n)*.+ confirmed\n(.+\n)*order.created pending\n$", synchronous)
    assert asynchronous == "order.created pending\n"
