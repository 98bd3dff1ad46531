"""Content coding of long responses, but never of a single order, since If-Match needs its strong entity tag."""

import gzip
import zlib
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.http.responses import MIN_SIZE
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL, RICHEST

pytestmark = on_sqlite

GZIP = {"Accept-Encoding": "gzip"}
COMPRESSED = (
    "/orders", "/orders?limit=5", "/orders/{id}/history", "/orders/export", "/orders/export?format=csv",
    "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", "/openapi.json", "/problems",
)  # fmt: skip


@pytest.fixture
def order_id(client: FlaskClient) -> str:
    """The last of five orders; it has been changed a few times."""
    for _ in range(5):
        order_id: str = client.post("/orders", json=MINIMAL).json["id"]
    for note in "abcde":
        client.patch(f"/orders/{order_id}", json={"note": note})
    return order_id


def is_compressed(response: TestResponse) -> bool:
    assert response.status_code in (200, 201)
    assert "Accept-Encoding" in response.headers["Vary"]
    return response.headers.get("Content-Encoding") == "gzip"


@pytest.mark.parametrize("path", COMPRESSED)
def test_a_long_response_is_compressed_if_accepted(client: FlaskClient, order_id: str, path: str) -> None:
    plain = client.get(path.format(id=order_id))
    coded = client.get(path.format(id=order_id), headers=GZIP)
    head = client.head(path.format(id=order_id), headers=GZIP)

    assert (is_compressed(plain), is_compressed(coded)) == (False, True)
    assert gzip.decompress(coded.data) == plain.data
    assert len(coded.data) < len(plain.data) / 2
    assert coded.content_type == plain.content_type
    assert [head.headers.get(name) for name in ("Content-Encoding", "Content-Length", "ETag")] == [
        coded.headers.get(name) for name in ("Content-Encoding", "Content-Length", "ETag")
    ]


def test_metrics_and_batches_are_also_compressed(client: FlaskClient) -> None:
    metrics = client.get("/metrics", headers=GZIP)
    batch = client.post("/orders/batch", json={"orders": [MINIMAL] * 300}, headers=GZIP)

    assert is_compressed(metrics) and b"http_request_duration_seconds" in gzip.decompress(metrics.data)
    assert is_compressed(batch) and gzip.decompress(batch.data).count(b'"status":201') == 300


def test_a_single_order_is_never_compressed(client: FlaskClient) -> None:
    created = client.post("/orders", json=RICHEST | {"note": "n" * 2000}, headers=GZIP)
    path = f"/orders/{created.json['id']}"
    responses = [
        created,
        client.get(path, headers=GZIP),
        client.get(f"{path}?version=1", headers=GZIP),
        client.patch(path, json={"note": "n"}, headers=GZIP | {"If-Match": created.headers["ETag"]}),
        client.post(f"{path}/confirm", headers=GZIP),
    ]

    assert len(created.data) >= MIN_SIZE
    for response in responses:
        assert response.status_code in (200, 201)
        assert "Content-Encoding" not in response.headers
        assert not response.headers["ETag"].startswith("W/") and "gzip" not in response.headers["ETag"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/orders", "/nothing", "/docs/favicon-32x32.png"])
def test_a_short_response_is_never_compressed(client: FlaskClient, path: str) -> None:
    assert "Content-Encoding" not in client.get(path, headers=GZIP).headers


@pytest.mark.parametrize(
    ("accepted", "coded"),
    [
        (None, False), ("", False), ("identity", False), ("gzip;q=0", False), ("br", False), ("*;q=0", False),
        ("gzip;q=0, *", False), ("identity, gzip;q=0.5", False), ("gzip;q=x", False), ("gzipped", False),
        ("gzip", True), ("GZIP", True), ("x-gzip", True), ("*", True), ("br, gzip;q=0.1", True),
        ("deflate, gzip", True), ("gzip, identity", True), ("gzip;q=.5", True), ("identity;q=0.2, gzip;q=0.5", True),
    ],
)  # fmt: skip
def test_accept_encoding_selects_the_encoding(client: FlaskClient, accepted: str | None, coded: bool) -> None:
    headers = {} if accepted is None else {"Accept-Encoding": accepted}

    assert is_compressed(client.get("/openapi.json", headers=headers)) is coded


@pytest.mark.parametrize("path", ["/openapi.json", "/docs/swagger-ui.css", "/problems"])
def test_each_coding_has_its_own_entity_tag(client: FlaskClient, path: str) -> None:
    tags = [client.get(path, headers=headers).headers["ETag"] for headers in ({}, GZIP)]

    def status(accepted: dict[str, str], tag: str) -> int:
        return client.get(path, headers=accepted | {"If-None-Match": tag}).status_code

    assert len(set(tags)) == 2 and not any(tag.startswith("W/") for tag in tags)
    assert [status({}, tags[0]), status(GZIP, tags[1]), status(GZIP, ", ".join(tags))] == [304, 304, 304]
    assert [status({}, tags[1]), status(GZIP, '"x"')] == [200, 200]


def test_a_compressed_export_can_be_read_as_it_arrives(client: FlaskClient) -> None:
    client.post("/orders/batch", json={"orders": [MINIMAL] * 300})

    parts: list[Any] = list(client.get("/orders/export", headers=GZIP).iter_encoded())

    reader = zlib.decompressobj(wbits=31)
    texts = [reader.decompress(part) for part in parts]
    assert len(parts) >= 3
    assert all(text.endswith(b"}\n") for text in texts[:-1])  # complete lines: nothing is held back until the next part
    assert sum(text.count(b"\n") for text in texts) == 300
