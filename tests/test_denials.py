"""Log lines of denials have the principal and the reason, and no logs contain secrets or personal data."""

import io
import sys
from collections.abc import Callable, Iterator

import orjson
import pytest
import structlog
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.models.principal import SCOPES
from app.telemetry import configure_logging
from tests.support.credentials import api_key, app_with_auth, bearer, hashed, token
from tests.support.forgeries import FORGED
from tests.support.marks import on_sqlite
from tests.support.samples import ADDRESS, MINIMAL

pytestmark = on_sqlite

ABSENT = "0199c7a4-0000-7000-8000-000000000000"
CANARY = "canary"
Denials = Callable[[], list[tuple[str | None, str]]]


@pytest.fixture
def log(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        configure_logging("info", "json")
    yield stream
    configure_logging("info", "json")


@pytest.fixture
def denials(log: io.StringIO) -> Denials:
    """Reads the principals and reasons of the denials so far; each line has its request's id."""

    def read() -> list[tuple[str | None, str]]:
        lines = [line for line in map(orjson.loads, log.getvalue().splitlines()) if line["event"] == "denied"]
        assert all(line["level"] == "warning" and line["request_id"] for line in lines)
        return [(line["principal"], line["reason"]) for line in lines]

    return read


BY_CREDENTIAL: list[tuple[dict[str, str], str | None, str]] = [
    ({}, None, "no bearer credentials"),
    ({"Authorization": "Basic YTpi"}, None, "no bearer credentials"),
    (bearer(""), None, "the credentials are empty or too long"),
    (bearer(f"osk_{'a' * 16}.{'b' * 43}"), None, "the key is unknown, wrong, expired or revoked"),
    (bearer(token(exp=1)), None, "the token is not valid: Signature has expired"),
    (bearer(token(aud="x")), None, "the token is not valid: Audience doesn't match"),
    (bearer(FORGED["a stranger's key"]), None, "the token is not valid: Signature verification failed"),
    (bearer(token(scope="orders:write")), hashed("customer:c-1"), "The scope orders:read is missing."),
    (bearer(token(scope="orders:manage")), hashed("token:c-1"), "The scope orders:read is missing."),
]


@pytest.mark.parametrize(("headers", "principal", "reason"), BY_CREDENTIAL)
def test_a_denial_is_one_log_line_with_principal_and_reason(
    secure_client: FlaskClient, denials: Denials, headers: dict[str, str], principal: str | None, reason: str
) -> None:
    secure_client.get("/orders", headers=headers)

    assert denials() == [(principal, reason)]


def denied_by_rule(client: FlaskClient, app: Flask) -> Iterator[tuple[TestResponse, str]]:
    """Requests of a customer for objects of others, each with the expected reason."""
    shops = client.post("/orders", json=MINIMAL, headers=bearer(api_key(app, "orders:write"))).json["id"]
    own, stranger = (bearer(token(customer=who, scope="orders:write privacy:erase")) for who in ("c-1", "c-2"))
    patch = {"json": {"metadata": {}, "external_ref": "r-1"}, "content_type": "application/merge-patch+json"}
    themselves = "A customer's token gives access to its own customer only: customer_id must be the token's sub claim."
    yield client.post("/orders", json=MINIMAL, headers=stranger), themselves
    yield client.post("/orders/batch", json={"orders": [MINIMAL]}, headers=stranger), themselves
    yield client.delete("/customers/c-1/personal-data", headers=stranger), themselves
    yield client.patch(f"/orders/{shops}", headers=stranger, **patch), "no such order of this customer"
    yield client.get(f"/erasures/{ABSENT}", headers=stranger), "no such erasure of this customer"
    yield client.patch(f"/orders/{ABSENT}", headers=own, **patch), "no such order of this customer"
    yield (
        client.patch(f"/orders/{shops}", headers=own, **patch),
        ("A customer cannot change external_ref of an order that a service created."),
    )


def test_access_to_orders_of_others_is_recorded_as_denied(
    secure_app: Flask, secure_client: FlaskClient, denials: Denials
) -> None:
    reasons = [reason for _, reason in denied_by_rule(secure_client, secure_app)]

    assert [reason for _, reason in denials()] == reasons
    assert {principal for principal, _ in denials()} == {hashed("customer:c-1"), hashed("customer:c-2")}


def test_access_to_orders_of_other_channels_is_recorded_as_denied(
    secure_app: Flask, secure_client: FlaskClient, denials: Denials
) -> None:
    bound = bearer(api_key(secure_app, *SCOPES, channels=["app", "web"]))

    for path in (f"/orders/{ABSENT}", f"/orders/{ABSENT}/history"):
        secure_client.get(path, headers=bound)
    secure_client.post("/orders", json=MINIMAL, headers=bound)
    secure_client.delete("/customers/c-1/personal-data", headers=bound)

    refused = "This API key creates orders of its channels only. `channel` must be one of: app, web."
    personal = "A customer's personal data is in orders of all channels. Use a key without channels."
    hidden = ("service:shop", "no such order of the key's channels")
    assert denials() == [hidden, hidden, ("service:shop", refused), ("service:shop", personal)]


def test_exceeding_the_rate_limit_is_recorded(
    app: Flask, database_url: str, log: io.StringIO, denials: Denials
) -> None:
    with app_with_auth(database_url, RATE_LIMIT_CUSTOMERS="1") as limited:
        structlog.configure(
            logger_factory=structlog.WriteLoggerFactory(file=log)
        )  # the new application has its own log
        responses = [limited.test_client().get("/orders", headers=bearer(token())) for _ in range(2)]

    assert [response.status_code for response in responses] == [200, 429]
    assert denials() == [(hashed("customer:c-1"), "More than 1 request per minute. Wait for Retry-After seconds.")]


def canary_requests(app: Flask, client: FlaskClient) -> Iterator[TestResponse]:
    """Requests with every outcome, with canaries in all secrets and personal data."""
    customer = f"{CANARY}-customer"
    key = api_key(app, "orders:read", "orders:write", "orders:manage", "privacy:erase")
    shop, own = bearer(key), bearer(token(customer=customer, email=f"{CANARY}@example.com"))
    address = {name: CANARY for name in ADDRESS} | {"country": "GB"}
    personal = {"note": CANARY, "shipping_address": address, "metadata": {CANARY: CANARY}}
    order = MINIMAL | {"customer_id": customer} | personal
    keyed = {"Idempotency-Key": f"{CANARY}-key"}
    for credential in (f"{key}{CANARY}", f"osk_{CANARY}", f"{CANARY}.{CANARY}.{CANARY}", CANARY, f"{CANARY} {CANARY}"):
        yield client.get("/orders", headers=bearer(credential))
    yield client.get("/orders", headers={"Authorization": f"Basic {CANARY}"})
    yield client.get(f"/orders?access_token={CANARY}", headers=shop)
    path = f"/orders/{client.post('/orders', json=order, headers=shop | keyed).json['id']}"
    yield client.post("/orders", json=order | {"note": "other"}, headers=shop | keyed)
    yield client.post("/orders", json=order | {CANARY: CANARY}, headers=shop)
    yield client.put(f"{path}/holds/review", json={"kind": "other", "reason": CANARY}, headers=shop)
    yield client.post(f"{path}/confirm", headers=shop)
    yield client.post(f"{path}/cancel", json={"reason": "other", "note": CANARY}, headers=shop)
    yield client.get(f"/orders/{CANARY}", headers=shop)
    yield client.delete(f"/customers/{customer}/personal-data", headers=bearer(token(customer="c-2")))
    yield client.delete(f"/customers/{customer}/personal-data", headers=shop)
    yield client.post("/orders", json=order | {"customer_id": f"{CANARY}-other"}, headers=own)


def test_no_secret_and_no_personal_data_is_in_logs_errors_or_metrics(
    secure_app: Flask, secure_client: FlaskClient, log: io.StringIO
) -> None:
    statuses = []
    for response in canary_requests(secure_app, secure_client):
        statuses.append(response.status_code)
        if response.status_code >= 400:
            problem = response.json | {"instance": None}  # the path, which the client itself has sent
            assert CANARY not in problem["detail"].replace(f"Order {CANARY} was not found.", "")
            assert CANARY not in repr(
                {name: value for name, value in problem.items() if name not in ("detail", "errors")}
            )

    written = log.getvalue()
    assert CANARY not in written and "osk_" not in written and "eyJ" not in written
    assert CANARY not in secure_client.get("/metrics").text
    assert statuses == [401] * 6 + [400, 422, 400, 200, 409, 200, 404, 403, 200, 403]


def test_no_forged_token_is_logged(secure_client: FlaskClient, log: io.StringIO) -> None:
    for forged in FORGED.values():
        secure_client.get("/orders", headers=bearer(forged))

    lines = log.getvalue()
    assert len(lines.splitlines()) == 2 * len(FORGED)
    for forged in FORGED.values():
        assert len(forged) < 20 or forged[:200] not in lines
    assert max(map(len, lines.splitlines())) < 400
