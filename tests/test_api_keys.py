"""API keys: created and revoked from the command line, stored as a hash, and refused if anything is wrong."""

import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, text

from app.db.engine import db
from app.http import auth
from app.models import ApiKey
from app.services import credentials
from tests.support.credentials import SIGNING_KEY, api_key, app_with_auth, bearer, private_pem, public_pem
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL, slug

NEVER = timedelta(microseconds=-1)


def status(client: FlaskClient, key: str) -> int:
    return client.get("/orders", headers=bearer(key)).status_code


def stored(app: Flask) -> list[ApiKey]:
    with app.app_context():
        return list(db.session.scalars(db.select(ApiKey).order_by(ApiKey.created_at)))


def cli(app: Flask, *words: str) -> Any:
    return app.test_cli_runner().invoke(args=words)


def create(app: Flask, *more: str) -> Any:
    return cli(app, "api-keys", "create", "--name", "shop", "--scope", "orders:read", *more)


def test_a_key_is_shown_once_on_the_last_line_and_works(secure_app: Flask, secure_client: FlaskClient) -> None:
    created = create(secure_app, "--scope", "orders:write")

    key = created.stdout.splitlines()[-1]
    assert created.exit_code == 0 and created.stdout == f"{key}\n"
    assert "cannot be shown again" in created.stderr and key not in created.stderr
    assert re.fullmatch(r"osk_[a-z0-9]{16}\.[A-Za-z0-9_-]{43}[0-9a-f]{8}", key)
    assert secure_client.post("/orders", json=MINIMAL, headers=bearer(key)).status_code == 201


def test_the_secret_of_a_key_is_not_in_the_database(secure_app: Flask, secure_client: FlaskClient) -> None:
    key = api_key(secure_app, "orders:read")
    assert status(secure_client, key) == 200

    with secure_app.app_context(), db.engine.connect() as connection:
        rows = repr(connection.execute(text("SELECT * FROM api_keys")).all())

    key_id, _, secret = key.removeprefix("osk_").partition(".")
    assert key_id in rows and secret not in rows


def test_all_keys_are_different(secure_app: Flask) -> None:
    keys = {api_key(secure_app, "orders:read") for _ in range(20)}

    assert len({key.partition(".")[0] for key in keys}) == len({key.partition(".")[2] for key in keys}) == 20


def changed(key: str) -> dict[str, str]:
    """The key with one change."""
    key_id, _, secret = key.removeprefix("osk_").partition(".")
    other = "A" if secret[0] != "A" else "B"
    wrong_ends = {f"without its last {n}": key[:-n] for n in (1, 2, 43, 44)}
    wrong_parts = {
        f"part {i} alone": f"osk_{part}" for i, part in enumerate(("", ".", key_id, f"{key_id}.", f".{secret}", secret))
    }
    return wrong_ends | wrong_parts | {
        "another secret": f"osk_{key_id}.{other}{secret[1:]}",
        "another id": f"osk_{'z' * 16}.{secret}",
        "another prefix": key.replace("osk_", "osp_"),
        "prefix in capitals": key.replace("osk_", "OSK_"),
        "no prefix": key.removeprefix("osk_"),
        "prefix twice": f"osk_{key}",
        "id in capitals": f"osk_{key_id.upper()}.{secret}",
        "secret in capitals": f"osk_{key_id}.{secret.upper()}",
        "longer": key + "A",
        "padded": key + "=",
        "a blank": key.replace(".", ". "),
        "two dots": key.replace(".", ".."),
        "a line break": f"osk_{key_id}.{secret[:-1]}%0a",
        "NUL": f"osk_{key_id}.{secret[:-1]}%00",
        "SQL": f"osk_' OR 1=1 --.{secret}",
        "LIKE": f"osk_{'%' * 16}.{secret}",
        "unicode": f"osk_{key_id}.{'é' * 43}",
        "full width": f"osk_{key_id}.{chr(0xC4)}{secret[1:]}",
        "the hash for the secret": f"osk_{key_id}.{credentials.hash_secret(secret)}",
        "the start of the hash": f"osk_{key_id}.{credentials.hash_secret(secret)[:43]}",
        "long": "osk_" + "a" * 4000,
        "huge": key + "a" * 60_000,
    }  # fmt: skip


@pytest.mark.parametrize("wrong", changed(f"osk_{'a' * 16}.{'b' * 43}"))
def test_a_key_that_is_not_exactly_right_is_refused(secure_app: Flask, secure_client: FlaskClient, wrong: str) -> None:
    key = api_key(secure_app, "orders:read")

    response = secure_client.get("/orders", headers=bearer(changed(key)[wrong]))

    assert slug(response) == (401, "unauthenticated")
    assert status(secure_client, key) == 200


@contextmanager
def database_use(app: Flask) -> Iterator[list[str]]:
    """The statements sent to the database, and the connections checked out for them."""
    statements: list[str] = []

    def on_statement(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    def on_checkout(*_: Any) -> None:
        statements.append("checkout")

    with app.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", on_statement)
    event.listen(engine.pool, "checkout", on_checkout)
    yield statements
    event.remove(engine, "before_cursor_execute", on_statement)
    event.remove(engine.pool, "checkout", on_checkout)


def made_up() -> str:
    return f"osk_{secrets.token_hex(8)}.{secrets.token_urlsafe(32)}{secrets.token_hex(4)}"


def test_malformed_api_keys_are_rejected_without_the_database(secure_app: Flask, secure_client: FlaskClient) -> None:
    with database_use(secure_app) as statements:
        statuses = {status(secure_client, made_up()) for _ in range(200)}

    assert (statuses, statements) == ({401}, [])


@pytest.mark.parametrize("kind", ["unknown", "wrong secret", "revoked", "expired"])
def test_a_key_that_was_refused_is_not_looked_up_again(
    secure_app: Flask, secure_client: FlaskClient, kind: str
) -> None:
    key = api_key(secure_app, "orders:read", expires_in=NEVER if kind == "expired" else None)
    if kind == "revoked":
        cli(secure_app, "api-keys", "revoke", key[4:20])
    elif kind == "wrong secret":
        key = credentials.with_checksum(key[:21] + secrets.token_urlsafe(32))
    elif kind == "unknown":
        key = credentials.with_checksum(made_up()[:-8])
    with database_use(secure_app) as statements:
        first = status(secure_client, key)
        once = len(statements)
        statuses = {status(secure_client, key) for _ in range(200)}

    assert (first, statuses) == (401, {401})
    assert once > 0 and len(statements) == once


def test_the_cache_of_refused_keys_has_a_limited_size(
    secure_app: Flask, secure_client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.http.auth._CACHE_SIZE", 5)
    keys = [credentials.with_checksum(made_up()[:-8]) for _ in range(20)]
    good = api_key(secure_app, "orders:read")

    statuses = [status(secure_client, key) for key in (*keys, good, *keys, good)]

    assert statuses == [*[401] * 20, 200, *[401] * 20, 200]


def test_an_expired_or_revoked_key_is_refused(secure_app: Flask, secure_client: FlaskClient) -> None:
    ended = api_key(secure_app, "orders:read", expires_in=NEVER)
    lasting = api_key(secure_app, "orders:read", expires_in=timedelta(minutes=1))

    assert (status(secure_client, ended), status(secure_client, lasting)) == (401, 200)


class Clock:
    """The clock of cached credentials."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return time.time()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(auth, "time", clock)
    return clock


def test_an_expired_api_key_is_401(secure_app: Flask, secure_client: FlaskClient, clock: Clock) -> None:
    with time_machine.travel(datetime.now(UTC), tick=False) as now:
        key = api_key(secure_app, "orders:read", expires_in=timedelta(seconds=0.5))
        before = status(secure_client, key)
        now.shift(0.5)
        clock.now += 0.5

        assert (before, status(secure_client, key)) == (200, 401)


def test_a_revoked_key_ends_within_a_second(secure_app: Flask, secure_client: FlaskClient, clock: Clock) -> None:
    key, other = (api_key(secure_app, "orders:read") for _ in range(2))
    assert (status(secure_client, key), status(secure_client, other)) == (200, 200)
    revoked = cli(secure_app, "api-keys", "revoke", key[4:20])

    clock.now += 1.0

    assert (revoked.exit_code, revoked.stdout) == (0, f"{key[4:20]} is revoked.\n")
    assert (status(secure_client, key), status(secure_client, other)) == (401, 200)


@pytest.mark.parametrize("twice", [True, False])
def test_revoking_an_unknown_key_is_reported(secure_app: Flask, twice: bool) -> None:
    key_id = api_key(secure_app, "orders:read")[4:20] if twice else "nothing"
    cli(secure_app, "api-keys", "revoke", key_id)

    again = cli(secure_app, "api-keys", "revoke", key_id)

    assert again.exit_code == 1
    assert f"No valid key has the id {key_id}." in again.stderr


def test_the_list_shows_everything_except_the_secrets(secure_app: Flask, secure_client: FlaskClient) -> None:
    used, ended, revoked = (
        api_key(secure_app, "orders:read", name=f"key-{i}", expires_in=NEVER if i == 1 else None) for i in range(3)
    )
    status(secure_client, used)
    cli(secure_app, "api-keys", "revoke", revoked[4:20])

    lines = cli(secure_app, "api-keys", "list").stdout.splitlines()

    for line, key, words in zip(
        lines, (used, ended, revoked), ("valid  last used 20", "expired 20", "revoked 20"), strict=True
    ):
        assert key[4:20] in line and words in line and "orders:read" in line
        assert key[21:] not in line


@contextmanager
def record_each_use(app: Flask, call: Callable[[], None]) -> Iterator[None]:
    def before_statement(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE api_keys SET last_used_at"):
            call()

    with app.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", before_statement)
    yield
    event.remove(engine, "before_cursor_execute", before_statement)


def test_the_last_use_of_a_key_is_recorded_at_most_once_a_minute(
    secure_app: Flask, secure_client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.http.auth.KEY_SECONDS", 0.0)  # ask the database for each request
    key = api_key(secure_app, "orders:read")
    uses: list[int] = []

    with record_each_use(secure_app, lambda: uses.append(1)):
        statuses = [status(secure_client, key) for _ in range(10)]
        [first] = [row.last_used_at for row in stored(secure_app)]
        in_a_minute = len(uses)
        monkeypatch.setattr(credentials, "_USE_RECORDED_EVERY", timedelta(0))  # the minute is over
        status(secure_client, key)

    assert set(statuses) == {200}
    assert first and abs(first - datetime.now(UTC)) < timedelta(seconds=30)
    assert (in_a_minute, len(uses)) == (1, 2)


def test_a_last_use_that_cannot_be_recorded_rejects_no_request(secure_app: Flask, secure_client: FlaskClient) -> None:
    def fail() -> None:
        raise sqlite3.OperationalError("database or disk is full")

    key = api_key(secure_app, "orders:read")

    with record_each_use(secure_app, fail):
        assert status(secure_client, key) == 200
    assert [row.last_used_at for row in stored(secure_app)] == [None]


@pytest.mark.parametrize(
    "words",
    [
        ("--name", "", "--scope", "orders:read"),
        ("--name", "a" * 65, "--scope", "orders:read"),
        ("--name", "a\nb", "--scope", "orders:read"),
        ("--name", "shop"),
        ("--scope", "orders:read"),
        ("--name", "shop", "--scope", "admin"),
        ("--name", "shop", "--scope", "orders:read", "--expires-in", "soon"),
    ],
)
def test_an_invalid_api_key_is_not_created(secure_app: Flask, words: tuple[str, ...]) -> None:
    created = cli(secure_app, "api-keys", "create", *words)

    assert created.exit_code == 2 and "osk_" not in created.output
    assert stored(secure_app) == []


@on_sqlite
def test_a_development_token_is_the_last_line_and_works(app: Flask, database_url: str) -> None:
    signing = private_pem(SIGNING_KEY)
    with app_with_auth(database_url, JWT_SIGNING_KEY=signing) as secure_app:
        created = cli(secure_app, "token", "--customer", "c-1", "--scope", "orders:read", "--scope", "orders:write")
        client = secure_app.test_client()

        own = client.post("/orders", json=MINIMAL, headers=bearer(created.stdout.strip()))
        others = client.post("/orders", json=MINIMAL | {"customer_id": "c-2"}, headers=bearer(created.stdout.strip()))

    assert created.stdout.count("\n") == 1
    assert (own.status_code, others.status_code) == (201, 403)


@on_sqlite
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "JWT_SIGNING_KEY must be set"),
        (
            {"JWT_PUBLIC_KEY": "", "JWT_ISSUER": "", "JWT_AUDIENCE": ""},
            "JWT_SIGNING_KEY and JWT_ISSUER and JWT_AUDIENCE must",
        ),
        ({"JWT_SIGNING_KEY": "secret"}, "JWT_SIGNING_KEY must be a private key"),
        ({"JWT_SIGNING_KEY": public_pem(SIGNING_KEY)}, "JWT_SIGNING_KEY must be a private key"),
        ({"JWT_SIGNING_KEY": private_pem(SIGNING_KEY), "JWT_PUBLIC_KEY": "", "JWT_ISSUER": ""}, "JWT_ISSUER"),
        ({"JWT_SIGNING_KEY": private_pem(SIGNING_KEY), "JWT_PUBLIC_KEY": "", "JWT_AUDIENCE": ""}, "JWT_AUDIENCE"),
    ],
)
def test_without_a_signing_key_no_token_is_issued(
    app: Flask, database_url: str, settings: dict[str, str], message: str
) -> None:
    with app_with_auth(database_url, **settings) as secure_app:
        created = cli(secure_app, "token", "--customer", "c-1", "--scope", "orders:read")

    assert created.exit_code == 1 and created.stdout == ""
    assert message in created.stderr and "secret" not in created.stderr
