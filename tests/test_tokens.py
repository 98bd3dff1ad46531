"""JWT bearer tokens: which are accepted (RFC 7519, RFC 8725), and that all others are refused."""

import time
from datetime import datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from flask import Flask
from flask.testing import FlaskClient

from app.config import StartupError
from tests.support.credentials import (
    AUDIENCE,
    SIGNING_KEY,
    app_with_auth,
    bearer,
    claims,
    private_pem,
    public_pem,
    signed,
    token,
)
from tests.support.forgeries import FORGED, HEADER, P256_KEY, RSA_KEY, hmac_with
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL, slug

pytestmark = on_sqlite

GOOD = token()
NOW = int(time.time())
ISSUERS = {"RS256": RSA_KEY, "ES256": P256_KEY, "EdDSA": SIGNING_KEY}


@pytest.mark.parametrize("forged", FORGED.values(), ids=[name.encode("unicode_escape").decode() for name in FORGED])
def test_a_token_that_the_issuer_did_not_sign_for_this_service_is_401(secure_client: FlaskClient, forged: str) -> None:
    response = secure_client.get("/orders", headers=bearer(forged))

    assert slug(response) == (401, "unauthenticated")
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="orders", error="invalid_token"'
    assert "token" in response.json["detail"] and len(response.json["detail"]) < 100  # without the reason


def test_without_a_configured_issuer_every_token_is_401(app: Flask, database_url: str) -> None:
    with app_with_auth(database_url, JWT_PUBLIC_KEY="") as without_issuer:
        response = without_issuer.test_client().get("/orders", headers=bearer(GOOD))

    assert slug(response) == (401, "unauthenticated")
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="orders", error="invalid_token"'


def test_there_are_at_least_a_hundred_forged_tokens(database_url: str) -> None:
    assert len(set(FORGED.values())) >= 100


TAKEN = {
    "plain": token(),
    "typ at+jwt": token(header={"typ": "at+jwt"}),
    "typ application/at+jwt": token(header={"typ": "application/at+jwt"}),
    "typ AT+JWT": token(header={"typ": "AT+JWT"}),
    "typ jwt": token(header={"typ": "jwt"}),
    "typ Application/JWT": token(header={"typ": "Application/JWT"}),
    "no typ": signed({"alg": HEADER["alg"]}, claims()),
    "a kid, with one key only": token(header={"kid": "any"}),
    "one audience of several": token(aud=["invoices", AUDIENCE]),
    "no iat": token(iat=None),
    "nbf now": token(nbf=NOW),
    "a clock some seconds off": token(nbf=NOW + 5),
    "claims of others": token(email="ada@example.com", scp=["x"]),
    "unknown scopes": token(scope="orders:read admin *"),
    "lasting for ages": token(exp=10**15),
    "a name in another script": token(customer="Зоя 7"),
}


@pytest.mark.parametrize("good", TAKEN.values(), ids=TAKEN)
def test_a_token_of_the_issuer_is_accepted(secure_client: FlaskClient, good: str) -> None:
    first, again = (secure_client.get("/orders", headers=bearer(good)) for _ in range(2))

    assert (first.status_code, again.status_code) == (200, 200)


@pytest.mark.parametrize(
    "scopes",
    [
        {"scope": "orders:read"},
        {"scope": ["orders:read", "openid"]},
        {"scope": None, "scp": "openid orders:read"},
        {"scope": None, "scp": ["openid", "orders:read"]},
        {"scope": "openid", "scp": ["orders:read", 7]},
    ],
)
def test_scopes_are_words_in_a_string_or_a_list(secure_client: FlaskClient, scopes: dict[str, Any]) -> None:
    headers = bearer(token(**scopes))

    read, created = secure_client.get("/orders", headers=headers), secure_client.post("/orders", headers=headers)

    assert (read.status_code, created.status_code) == (200, 403)


@pytest.mark.parametrize("name", ["scope", "scp"])
@pytest.mark.parametrize(
    "scope",
    [None, "", [], {"orders:read": 1}, 1, "orders:readorders:write", "openid\N{NO-BREAK SPACE}orders:read",
     "openid\torders:read", "*", ["*"], ["orders:read orders:write"], [["orders:read"]]],
)  # fmt: skip
def test_no_other_claim_is_a_scope(secure_client: FlaskClient, name: str, scope: Any) -> None:
    response = secure_client.get("/orders", headers=bearer(token(**{"scope": None} | {name: scope})))

    assert slug(response) == (403, "forbidden")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_schemes_case_does_not_matter(secure_client: FlaskClient, scheme: str) -> None:
    assert secure_client.get("/orders", headers={"Authorization": f"{scheme} {GOOD}"}).status_code == 200


@pytest.mark.parametrize("spaces", [1, 2, 9])
def test_any_number_of_spaces_separates_scheme_and_credential(secure_client: FlaskClient, spaces: int) -> None:
    header = f"Bearer{' ' * spaces}{GOOD}"

    assert secure_client.get("/orders", headers={"Authorization": header}).status_code == 200


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer    ", "Bearer ", "Basic YTpi", f"Basic {GOOD}", f"Token {GOOD}", GOOD, f"Bearer{GOOD}",
     f"Bearer\t{GOOD}", f"Bearer, Bearer {GOOD}", f"Bearer {GOOD}, Bearer {GOOD}", f"Bearer {GOOD} {GOOD}", "Bearer é",
     f"DPoP {GOOD}"],
)  # fmt: skip
def test_anything_but_one_bearer_credential_is_refused(secure_client: FlaskClient, header: str) -> None:
    response = secure_client.get("/orders", headers={"Authorization": header})

    assert slug(response) == (401, "unauthenticated")
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("place", ["query", "cookie", "body"])
def test_a_token_is_accepted_only_in_the_header(secure_client: FlaskClient, place: str) -> None:
    secure_client.set_cookie("access_token", GOOD if place == "cookie" else "")
    query = {"access_token": GOOD} if place == "query" else {}
    body = MINIMAL | ({"access_token": GOOD} if place == "body" else {})

    response = secure_client.post("/orders", query_string=query, json=body)

    assert slug(response) == (401, "unauthenticated")


def test_an_expired_token_is_401(secure_client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    short = bearer(token(exp=int(time.time()) + 3600))
    before = secure_client.get("/orders", headers=short).status_code
    monotonic = time.monotonic
    monkeypatch.setattr("app.http.auth.time.monotonic", lambda: monotonic() + 7200)
    monkeypatch.setattr("jwt.api_jwt.datetime", Later)

    after = secure_client.get("/orders", headers=short).status_code

    assert (before, after) == (200, 401)


class Later(datetime):
    """The clock, two hours on."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return super().fromtimestamp(time.time() + 7200, tz)


@pytest.mark.parametrize(("algorithm", "key"), ISSUERS.items(), ids=ISSUERS)
def test_each_kind_of_public_key_accepts_only_its_own_tokens(
    app: Flask, database_url: str, algorithm: str, key: Any
) -> None:
    sent = {name: token(other, name) for name, other in ISSUERS.items()} | {"HS256": hmac_with(public_pem(key))}
    with app_with_auth(database_url, JWT_PUBLIC_KEY=public_pem(key)) as secure_app:
        client = secure_app.test_client()

        statuses = {name: client.get("/orders", headers=bearer(one)).status_code for name, one in sent.items()}

    assert statuses == dict.fromkeys(sent, 401) | {algorithm: 200}


@pytest.mark.parametrize(
    "pem",
    [
        "-----BEGIN PUBLIC KEY-----\nxxxx\n-----END PUBLIC KEY-----",
        "secret",
        private_pem(SIGNING_KEY),
        public_pem(rsa.generate_private_key(65537, 1024)),
        public_pem(ec.generate_private_key(ec.SECP384R1())),
        public_pem(ed448.Ed448PrivateKey.generate()),
    ],
    ids=["damaged", "no PEM", "private", "RSA of 1,024 bits", "P-384", "Ed448"],
)
def test_an_invalid_or_weak_public_key_stops_the_start(database_url: str, pem: str) -> None:
    with pytest.raises(StartupError, match="^JWT_PUBLIC_KEY must be a") as caught:
        with app_with_auth(database_url, JWT_PUBLIC_KEY=pem):
            pass

    assert "\n" not in str(caught.value) and "xxxx" not in str(caught.value)


def test_a_key_may_have_its_line_breaks_escaped(app: Flask, database_url: str) -> None:
    with app_with_auth(database_url, JWT_PUBLIC_KEY=public_pem(SIGNING_KEY).replace("\n", "\\n")) as secure_app:
        response = secure_app.test_client().get("/orders", headers=bearer(GOOD))

    assert response.status_code == 200
