"""The issuer's key set (RFC 7517): fetched rarely, cached while it is valid, and only from the configured URL."""

import io
import json
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from flask import Flask
from flask.testing import FlaskClient
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from app.config import StartupError, load_config
from app.services import credentials
from tests.support.credentials import app_with_auth, bearer, private_pem, token
from tests.support.marks import on_sqlite
from tests.support.samples import slug
from tests.support.servers import ROOT, TIMEOUT, free_port, wait_until

pytestmark = on_sqlite

DAY = timedelta(days=1)
WAITING = 10  # requests that wait for a fetch at the same time
KEYS: dict[str, tuple[Any, Any]] = {
    "RS256": (rsa.generate_private_key(65537, 2048), RSAAlgorithm),
    "ES256": (ec.generate_private_key(ec.SECP256R1()), ECAlgorithm),
    "EdDSA": (ed25519.Ed25519PrivateKey.generate(), OKPAlgorithm),
}


def jwk(algorithm: str, **members: Any) -> dict[str, Any]:
    """The public key of the algorithm, named by it."""
    key, kind = KEYS[algorithm]
    return json.loads(kind.to_jwk(key.public_key())) | {"kid": algorithm} | members


def named(algorithm: str, kid: str | None = None, **members: Any) -> str:
    return token(KEYS[algorithm][0], algorithm, header={"kid": kid or algorithm}, **members)


class Issuer:
    """The responses of the issuer's server, and the number of requests."""

    def __init__(self) -> None:
        self.keys = [jwk(algorithm) for algorithm in KEYS]
        self.answer: bytes | None = None
        self.status, self.seconds_a_byte, self.requests, self.url = 200, 0.0, 0, ""
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.user_agents: set[str | None] = set()

    def body(self) -> bytes:
        return json.dumps({"keys": self.keys}).encode() if self.answer is None else self.answer


@contextmanager
def serving(issuer: Issuer, tls: ssl.SSLContext | None = None) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.requests += 1
            issuer.user_agents.add(self.headers["User-Agent"])
            issuer.may_answer.wait(TIMEOUT)
            self.send_response(issuer.status)
            if issuer.status == 302:
                self.send_header("Location", issuer.url)
            self.end_headers()
            if not issuer.seconds_a_byte:
                self.wfile.write(issuer.body())
                return
            with suppress(OSError):  # the client has gone
                for byte in issuer.body():
                    self.wfile.write(bytes([byte]))
                    time.sleep(issuer.seconds_a_byte)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A disconnected client is not logged."""

    with Server(("127.0.0.1", 0), Handler) as server:
        issuer.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}/keys"
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield
        server.shutdown()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    with serving(issuer):
        yield issuer


class Clock:
    """The clock of the key set, which only tests advance."""

    ahead = 0.0

    def monotonic(self) -> float:
        return self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(credentials, "time", clock)
    return clock


@pytest.fixture
def client(app: Flask, database_url: str, issuer: Issuer) -> Iterator[FlaskClient]:
    with app_with_auth(database_url, JWT_PUBLIC_KEY="", JWT_JWKS_URL=issuer.url) as secure_app:
        yield secure_app.test_client()


def status(client: FlaskClient, credential: str) -> int:
    return client.get("/orders", headers=bearer(credential)).status_code


def test_tokens_of_all_keys_are_accepted_after_one_fetch(client: FlaskClient, issuer: Issuer) -> None:
    statuses = [status(client, named(algorithm, customer=f"c-{i}")) for i in range(5) for algorithm in KEYS]

    assert statuses == [200] * 15
    assert issuer.requests == 1


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_key_id_of_another_key_is_refused(client: FlaskClient, algorithm: str) -> None:
    others = [name for name in KEYS if name != algorithm]

    assert [status(client, named(algorithm, kid=kid)) for kid in (*others, "x", "../EdDSA")] == [401] * 4
    assert status(client, token(KEYS[algorithm][0], algorithm)) == 401  # no key id, if every key has one


@pytest.mark.parametrize("kid", ["EdDSA", None])
def test_a_token_without_a_key_id_is_checked_with_the_only_key(
    client: FlaskClient, issuer: Issuer, kid: str | None
) -> None:
    issuer.keys = [jwk("EdDSA", kid=kid), jwk("RS256", use="enc")]
    without = [token(KEYS["EdDSA"][0], "EdDSA", customer=f"c-{i}") for i in range(3)]

    assert [status(client, credential) for credential in without] == [200] * 3
    assert status(client, token(ed25519.Ed25519PrivateKey.generate(), "EdDSA")) == 401
    assert status(client, named("EdDSA", kid="other")) == 401
    assert issuer.requests == 1


def test_fetching_the_key_set_sends_a_user_agent(client: FlaskClient, issuer: Issuer) -> None:
    status(client, named("EdDSA"))

    assert issuer.user_agents == {"order-service"}


def test_a_thousand_unknown_key_ids_cause_one_fetch(client: FlaskClient, issuer: Issuer, clock: Clock) -> None:
    assert status(client, named("EdDSA")) == 200
    clock.ahead = 31
    requests = issuer.requests

    statuses = {status(client, f"{named('EdDSA', kid=f'k-{i}')}") for i in range(1000)}

    assert statuses == {401}
    assert issuer.requests - requests == 1


def test_a_rotated_key_set_accepts_the_new_key_and_rejects_the_old_one(
    client: FlaskClient, issuer: Issuer, clock: Clock
) -> None:
    issuer.keys = [jwk("RS256")]
    before = [status(client, named("RS256")), status(client, named("ES256"))]
    issuer.keys = [jwk("ES256")]
    at_once = status(client, named("ES256"))
    clock.ahead = 31

    after = [status(client, named("ES256")), status(client, named("RS256", customer="c-2"))]

    assert (before, at_once, after) == ([200, 401], 401, [200, 401])


def test_a_withdrawn_key_is_refused_after_the_lifetime_of_the_set(
    client: FlaskClient, issuer: Issuer, clock: Clock
) -> None:
    assert status(client, named("RS256")) == 200
    issuer.keys = [jwk("ES256")]
    clock.ahead = 301

    assert status(client, named("RS256", customer="c-2")) == 401


AWAY = {
    "500": (500, b""),
    "404": (404, b""),
    "redirected": (302, None),
    "HTML": (200, b"<html>maintenance</html>"),
    "nothing": (200, b""),
    "no set": (200, b"[]"),
    "no keys": (200, b'{"keys": []}'),
    "keys of no kind": (200, b'{"keys": [1, null, {"kty": "?"}]}'),
    "deep": (200, b"[" * 100_000),
    "not UTF-8": (200, b"\xff\xfe\xfd"),
}


@pytest.mark.parametrize(("code", "answer"), AWAY.values(), ids=AWAY)
def test_tokens_of_known_keys_are_accepted_while_the_issuer_is_unavailable(
    client: FlaskClient, issuer: Issuer, clock: Clock, code: int, answer: bytes | None
) -> None:
    assert status(client, named("EdDSA")) == 200
    issuer.status, issuer.answer = code, answer
    clock.ahead = 301
    requests = issuer.requests

    known = [status(client, named("EdDSA", customer=f"c-{i}")) for i in range(5)]
    unknown = status(client, named("EdDSA", kid="new"))

    assert (known, unknown) == ([200] * 5, 401)
    assert issuer.requests - requests == 1


REASONS = {
    "500": "HTTP status 500",
    "404": "HTTP status 404",
    "redirected": "HTTP status 302",
    "HTML": "the response is not a JSON Web Key Set with usable keys",
    "no keys": "the response is not a JSON Web Key Set with usable keys",
    "deep": "the response is not a JSON Web Key Set with usable keys",
}


def fetch_failures(database_url: str, url: str) -> list[dict[str, Any]]:
    """The log lines of one fetch of this key set."""
    stream = io.StringIO()
    with redirect_stderr(stream), app_with_auth(database_url, JWT_PUBLIC_KEY="", JWT_JWKS_URL=url) as secure_app:
        status(secure_app.test_client(), named("EdDSA"))
    assert "s3cret" not in stream.getvalue()
    lines = map(json.loads, stream.getvalue().splitlines())
    return [line for line in lines if line["event"] == "token signing keys unavailable"]


@pytest.mark.parametrize("case", REASONS)
def test_the_log_names_the_reason_of_a_failed_fetch(app: Flask, database_url: str, issuer: Issuer, case: str) -> None:
    issuer.status, issuer.answer = AWAY[case]

    [failure] = fetch_failures(database_url, f"{issuer.url}?key=s3cret")

    assert failure["reason"] == REASONS[case]


def test_the_log_names_the_reason_of_a_failed_connection(
    app: Flask, database_url: str, issuer: Issuer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refused = fetch_failures(database_url, f"http://127.0.0.1:{free_port()}/keys?key=s3cret")
    untrusted = Issuer()
    with serving(untrusted, tls=self_signed(tmp_path)):
        tls = fetch_failures(database_url, f"{untrusted.url}?key=s3cret")
    monkeypatch.setattr(credentials, "_JWKS_TIMEOUT", 0.2)
    issuer.may_answer.clear()
    slow = fetch_failures(database_url, f"{issuer.url}?key=s3cret")
    issuer.may_answer.set()

    assert "refused" in refused[0]["reason"]
    assert "certificate verify failed" in tls[0]["reason"]
    assert slow[0]["reason"] == "no response within 0.2 seconds"


def test_a_key_set_that_arrives_too_slowly_aborts_the_fetch_in_a_web_worker(app: Flask, issuer: Issuer) -> None:
    """Each byte comes within the time limit of urllib, but not all of them together."""
    issuer.answer, issuer.seconds_a_byte = b" " * 100, 0.05
    script = f"""
from gevent import monkey; monkey.patch_all()
from app.services import credentials
credentials._JWKS_TIMEOUT = 0.3
try:
    credentials.fetch_keys({issuer.url!r})
except credentials.KeySetUnavailable as error:
    print(error)
"""

    assert (
        subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True)
        == "no response within 0.3 seconds\n"
    )


def self_signed(directory: Path) -> ssl.SSLContext:
    """The context of a server with a self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + DAY)
    certificate = builder.sign(key, hashes.SHA256())
    file = directory / "server.pem"
    file.write_bytes(certificate.public_bytes(Encoding.PEM) + private_pem(key).encode())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@pytest.mark.parametrize("url", ["https://ada:s3cret@login.example/keys", "https://s3cret@login.example/keys"])
def test_a_key_set_url_with_a_password_stops_the_start(database_url: str, url: str) -> None:
    with pytest.raises(StartupError, match="^JWT_JWKS_URL is …; it must be an https:// URL with a path, ") as caught:
        load_config({"JWT_JWKS_URL": url})

    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(("code", "answer"), AWAY.values(), ids=AWAY)
def test_without_any_key_set_a_token_is_503(
    client: FlaskClient, issuer: Issuer, clock: Clock, code: int, answer: bytes | None
) -> None:
    issuer.status, issuer.answer = code, answer

    first = [client.get("/orders", headers=bearer(named("EdDSA"))) for _ in range(5)]
    requests = issuer.requests
    issuer.status, issuer.answer = 200, None
    clock.ahead = 3
    later = status(client, named("EdDSA"))

    assert {slug(response) for response in first} == {(503, "service-unavailable")}
    assert {response.headers["Retry-After"] for response in first} == {"1"}
    assert requests == 1
    assert later == 200


def test_tokens_with_unknown_keys_do_not_all_wait_for_a_slow_issuer(
    client: FlaskClient, issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert status(client, named("EdDSA")) == 200
    monkeypatch.setattr(credentials, "_JWKS_TIMEOUT", TIMEOUT)
    issuer.may_answer.clear()
    clock.ahead = 31

    with ThreadPoolExecutor(50) as threads:
        unknown = [named("EdDSA", f"kid-{i}") for i in range(50)]
        sent = [threads.submit(status, client.application.test_client(), each) for each in unknown]
        wait_until(lambda: sum(each.done() for each in sent) == 50 - WAITING)
        at_once = Counter(each.result() for each in sent if each.done())
        issuer.may_answer.set()

    assert at_once == {503: 50 - WAITING}
    assert Counter(each.result() for each in sent) == at_once | {401: WAITING}
    assert issuer.requests == 2


def test_a_slow_issuer_does_not_delay_tokens_of_known_keys(
    client: FlaskClient, issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert status(client, named("EdDSA")) == 200
    monkeypatch.setattr(credentials, "_JWKS_TIMEOUT", TIMEOUT)
    issuer.may_answer.clear()
    clock.ahead = 301
    with ThreadPoolExecutor(1) as threads:
        fetching = threads.submit(status, client, named("EdDSA", customer="c-2"))
        wait_until(lambda: issuer.requests == 2)

        other = status(client.application.test_client(), named("EdDSA", customer="c-3"))
        was_fetching = not fetching.done()
        issuer.may_answer.set()

    assert (other, was_fetching, fetching.result(), issuer.requests) == (200, True, 200, 2)


@pytest.mark.parametrize(
    "entry",
    [
        jwk("EdDSA", use="enc"),
        jwk("EdDSA", kid="other"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "EdDSA"},
        json.loads(RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024).public_key())) | {"kid": "EdDSA"},
    ],
    ids=["for encryption", "of another name", "a shared secret", "a short RSA key"],
)
def test_a_key_for_another_use_is_ignored(client: FlaskClient, issuer: Issuer, entry: dict[str, Any]) -> None:
    issuer.keys = [entry, jwk("ES256")]

    assert status(client, named("ES256")) == 200
    assert status(client, named("EdDSA")) == 401


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_private_key_in_the_key_set_is_ignored(client: FlaskClient, issuer: Issuer, algorithm: str) -> None:
    key, kind = KEYS[algorithm]
    published = json.loads(kind.to_jwk(key)) | {"kid": algorithm}
    issuer.keys = [published, *(jwk(other) for other in KEYS if other != algorithm)]

    assert status(client, named(algorithm)) == 401
    assert all(status(client, named(other)) == 200 for other in KEYS if other != algorithm)


def test_a_short_rsa_key_of_the_issuer_verifies_no_token(client: FlaskClient, issuer: Issuer) -> None:
    short = rsa.generate_private_key(65537, 1024)
    issuer.keys = [json.loads(RSAAlgorithm.to_jwk(short.public_key())) | {"kid": "short"}]

    with pytest.warns(Warning, match="1024 bits"):
        forged = token(short, "RS256", header={"kid": "short"})

    assert status(client, forged) == 401


def test_urls_in_the_header_of_a_token_are_not_fetched(client: FlaskClient) -> None:
    elsewhere = Issuer()
    stranger = ed25519.Ed25519PrivateKey.generate()
    elsewhere.keys = [json.loads(OKPAlgorithm.to_jwk(stranger.public_key())) | {"kid": "EdDSA"}]
    with serving(elsewhere):
        for name in ("jku", "x5u"):
            header = {"kid": "EdDSA", name: elsewhere.url}
            assert status(client, token(stranger, header=header)) == 401

    assert elsewhere.requests == 0
