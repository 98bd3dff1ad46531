"""No personal data reaches a log: real gunicorn, every route, every kind of error."""

import http.client
import json
import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from sqlalchemy import text

from app.config import StartupError, load_config
from app.db.engine import db
from tests.support.credentials import (
    AUDIENCE,
    ISSUER,
    SIGNING_KEY,
    api_key,
    bearer,
    claims,
    encoded,
    public_pem,
    signed,
    token,
)
from tests.support.forgeries import FORGED
from tests.support.samples import ADDRESS
from tests.support.servers import GUNICORN, TIMEOUT, Server, free_port, running

CANARY = "erika.canary"
PERSON = f"{CANARY}@mail.example"
PERSON_UUID = "7c0ffee5-ca4a-4a44-8b1d-0123456789ab"  # issuers use such subjects
ADDRESSES = ("127.0.0.77", "203.0.113.77")  # of the client, and from a proxy's headers
FORBIDDEN = (CANARY, PERSON_UUID, *ADDRESSES, "osk_", "eyJ")
HEADERS = {
    "User-Agent": CANARY, "Referer": f"https://shop.example/{CANARY}", "X-Forwarded-For": ADDRESSES[1],
    "Cookie": f"name={CANARY}", "X-Request-Id": f"{CANARY} 1", "Origin": f"https://{CANARY}",
}  # fmt: skip
ORDER = {
    "customer_id": PERSON,
    "items": [{"item_id": "sku-1", "quantity": 2}],
    "note": CANARY,
    "metadata": {CANARY: CANARY},
    "shipping_address": {name: CANARY for name in ADDRESS} | {"country": "GB"},
}

# Makes every insert fail with an error that quotes the customer's id, if the database does so.
BREAK = {
    "postgresql": ["ALTER TABLE orders ADD CONSTRAINT broken CHECK ({condition}) NOT VALID"],
    "sqlite": ["CREATE TRIGGER broken BEFORE INSERT ON orders BEGIN SELECT {condition}; END"],
}
CONDITIONS = {
    "postgresql": ("customer_id = 'nobody'", "customer_id::integer > 0"),
    "sqlite": ("RAISE(ABORT, 'broken')", "json_extract(NEW.customer_id, '$.' || NEW.customer_id)"),
}
MEND = {"postgresql": "ALTER TABLE orders DROP CONSTRAINT broken", "sqlite": "DROP TRIGGER broken"}


def send(server: Server, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    """The response to a request from the person's address; of a stream, which does not end, its first bytes."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    sent = HEADERS | {"Content-Type": "application/json", "Connection": "close"} | (headers or {})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, TIMEOUT, source_address=(ADDRESSES[0], 0))
    with closing(connection):
        connection.request(method, path, data, sent)
        response = connection.getresponse()
        is_stream = response.headers.get_content_type() == "text/event-stream" and method == "GET"
        return response.status, dict(response.getheaders()), response.read1() if is_stream else response.read()


def paths(app: Flask, order_id: str) -> Iterator[tuple[str, str]]:
    """Every method of every route, with a person's name, a person's UUID and an order's id where the path varies."""
    for rule in app.url_map.iter_rules():
        for method in sorted(rule.methods or ()):
            for value in (PERSON, PERSON_UUID, order_id):
                yield method, re.sub(r"<[^>]*>", quote(value, safe=""), rule.rule)
                if "<" not in rule.rule:
                    break


def forged_tokens() -> Iterator[str]:
    """Refused tokens with personal data in each of their parts."""
    yield from (one for one in FORGED.values() if one.isascii() and len(one) < 5000)
    header = {"alg": "EdDSA", "typ": "JWT"}
    for name in ("typ", "kid", "alg", "crit", "jku", CANARY):
        yield signed(header | {name: [PERSON] if name == "crit" else PERSON}, claims(customer=PERSON))
        yield f"{encoded(header | {name: PERSON})}.{encoded(claims(customer=PERSON))}.AAAA"
    for name in ("exp", "nbf", "iat", "iss", "aud"):
        yield signed(header, claims(customer=PERSON) | {name: PERSON})
    yield token(customer=PERSON + "\0")


def requests_of_one_order(server: Server, shop: dict[str, str], own: dict[str, str]) -> Iterator[int]:
    """All actions on an order, and every kind of refusal."""
    keyed = shop | {"Idempotency-Key": f"{CANARY}-key"}
    status, headers, body = send(server, "POST", "/orders", ORDER, keyed)
    yield status
    path = headers["Location"]
    yield send(server, "POST", "/orders", ORDER, keyed)[0]
    yield send(server, "POST", "/orders", ORDER | {"note": "other"}, keyed)[0]
    yield send(server, "POST", "/orders", ORDER | {"external_ref": CANARY}, shop)[0]
    yield send(server, "POST", "/orders", ORDER | {"external_ref": CANARY, "note": "b"}, shop)[0]
    yield send(server, "POST", "/orders", ORDER | {CANARY: CANARY}, shop)[0]
    yield send(server, "POST", "/orders", f'{{"{CANARY}":'.encode(), shop)[0]
    yield send(server, "POST", "/orders", (CANARY * 9000).encode(), shop)[0]
    yield send(server, "POST", "/orders", CANARY.encode(), shop | {"Content-Type": f"text/{CANARY}"})[0]
    yield send(server, "POST", "/orders/batch", {"orders": [ORDER, {CANARY: 1}, ORDER | {"customer_id": "x"}]}, own)[0]
    patch = shop | {"Content-Type": "application/merge-patch+json"}
    yield send(server, "PATCH", path, {"note": CANARY}, patch | {"If-Match": f'"{CANARY}"'})[0]
    yield send(server, "POST", f"{path}/complete", None, shop)[0]
    yield send(server, "POST", f"{path}/cancel", {"reason": "other", "note": CANARY}, shop)[0]
    yield send(server, "GET", f"/orders?customer_id={PERSON}&external_ref={CANARY}", None, shop)[0]
    yield send(server, "GET", f"/orders?{CANARY}={CANARY}&status={CANARY}&cursor={CANARY}", None, shop)[0]
    yield send(server, "GET", f"/orders/{PERSON_UUID}", None, own)[0]
    yield send(server, "PUT", f"/orders/{CANARY}", {}, shop)[0]
    yield send(server, "GET", f"/orders/by-ref/{quote(PERSON, safe='')}", None, shop)[0]
    yield send(server, "GET", f"/orders?idempotency_key={CANARY}-key", None, shop)[0]
    yield send(server, "GET", f"/customers/{PERSON}/personal-data", None, shop)[0]
    yield send(server, "DELETE", f"/customers/{PERSON}/personal-data", None, bearer(token(customer="c-2")))[0]


def raw_requests() -> Iterator[bytes]:
    """Requests that no HTTP parser accepts, with personal data in each place."""
    name = CANARY.encode()
    yield name + b"\r\n\r\n"
    yield b"GET /" + name + b" HTTP/9.9\r\nHost: a\r\n\r\n"
    yield name + b" / HTTP/1.1\r\nHost: a\r\n\r\n"
    yield b"GET /" + name * 900 + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: a\r\n" + name + b"\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: a\r\nX: " + name + b"\0\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: a\r\n" + name + b" : 1\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: " + name + b"\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: " + name + b"\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: a\r\nExpect: " + name + b"\r\n\r\n"
    yield b"POST /orders HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + name + b"\r\n\r\n"


def send_raw(server: Server, sent: bytes) -> None:
    address = ("127.0.0.1", server.port)
    with socket.create_connection(address, TIMEOUT, source_address=(ADDRESSES[0], 0)) as connection:
        with suppress(ConnectionError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass


@contextmanager
def broken(app: Flask, condition: str) -> Iterator[None]:
    def execute(*statements: str) -> None:
        with app.app_context(), db.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    with app.app_context():
        dialect = db.engine.dialect.name
    execute(*(statement.format(condition=condition) for statement in BREAK[dialect]))
    yield
    execute(MEND[dialect])


def attack(server: Server, app: Flask, shop: dict[str, str], database: str) -> Counter[int]:
    """Send all requests; return the number of responses by status."""
    own, staff = bearer(token(customer=PERSON)), bearer(token(customer=PERSON, scope="orders:manage"))
    statuses = Counter(requests_of_one_order(server, shop, own))
    created = json.loads(send(server, "POST", "/orders", ORDER, shop)[2])["id"]
    for method, path in paths(app, created):
        for credentials in ({}, own, staff, shop):
            statuses[send(server, method, path, {CANARY: CANARY}, credentials)[0]] += 1
    for credential in (*forged_tokens(), PERSON, f"osk_{CANARY}", f"osk_{'a' * 16}.{'b' * 43}", f"{PERSON} {PERSON}"):
        with suppress(ValueError):  # http.client sends no such header
            statuses[send(server, "GET", "/orders", None, bearer(credential))[0]] += 1
    for sent in raw_requests():
        send_raw(server, sent)
    for condition in CONDITIONS[database]:
        with broken(app, condition):
            statuses[send(server, "POST", "/orders", ORDER, shop)[0]] += 1
            send(server, "POST", "/orders/batch", {"orders": [ORDER]}, shop)
    for _ in range(25):
        statuses[send(server, "GET", "/orders", None, bearer(token(customer=PERSON_UUID)))[0]] += 1
    return statuses


@pytest.mark.parametrize(
    ("database_url", "form"),
    [("sqlite", "json"), ("postgresql", "json"), ("sqlite", "console")],
    indirect=["database_url"],
)
def test_no_log_line_contains_personal_data(app: Flask, database_url: str, form: str) -> None:
    port, database = free_port(), database_url.partition(":")[0].partition("+")[0]
    shop = bearer(api_key(app, "orders:read", "orders:write", "orders:manage", "privacy:export", "privacy:erase"))
    settings = {
        "AUTH": "required", "JWT_PUBLIC_KEY": public_pem(SIGNING_KEY), "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE,
        "RATE_LIMIT_CUSTOMERS": "20", "WEB_CONCURRENCY": "1", "DATABASE_URL": database_url, "LOG_FORMAT": form,
        "CORS_ORIGINS": "https://shop.example", "LOG_LEVEL": "debug",
    }  # fmt: skip
    with running(*GUNICORN, port=port, PORT=str(port), **settings) as server:
        statuses = attack(server, app, shop, database)
        metrics = server.request("GET", "/metrics").body.decode()
        server.stop()
        output = server.output()

    assert {200, 201, 400, 401, 403, 404, 405, 409, 412, 413, 415, 422, 429, 500} <= statuses.keys(), statuses
    leaks = [line for line in (output + metrics).splitlines() if any(part in line for part in FORBIDDEN)]
    assert leaks == []
    assert "request failed" in output and "denied" in output


def test_a_secret_that_is_too_short_stops_the_start() -> None:
    with pytest.raises(StartupError, match="^SECRET_KEY is …; it must be at least 32 characters") as caught:
        load_config({"SECRET_KEY": "s3cret"})

    assert "s3cret" not in str(caught.value)
