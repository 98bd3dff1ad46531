"""Settings: read once, checked at startup, refused in one line."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from psycopg.pq import Conninfo
from sqlalchemy import make_url

from app import create_app
from app.config import LIBPQ_PARAMETERS, ROOT, SETTINGS, StartupError, load_config
from app.http.auth import check_before_serving


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


def test_the_default_is_sqlite_on_loopback() -> None:
    config = load_config()

    assert config["DATABASE_URL"] == f"sqlite:///{ROOT / 'instance' / 'orders.db'}"
    assert (config["HOST"], config["PORT"], config["AUTH"]) == ("127.0.0.1", 8000, "required")


def test_an_argument_overrides_the_environment_and_that_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PORT", "8001")
    monkeypatch.setenv("LOG_LEVEL", "")

    assert load_config()["PORT"] == 8001
    assert load_config()["LOG_LEVEL"] == "info"
    assert load_config({"PORT": 8002})["PORT"] == 8002


def test_an_unknown_setting_is_passed_on_to_flask() -> None:
    assert load_config({"TESTING": True})["TESTING"] is True


@pytest.mark.parametrize("name", ["postgres", "postgresql", "postgresql+psycopg"])
def test_a_postgresql_url_may_be_written_in_every_usual_way(name: str) -> None:
    url = load_config({"DATABASE_URL": f"{name}://user:p%40ss@db:5433/orders?sslmode=require"})["DATABASE_URL"]

    assert url == "postgresql+psycopg://user:p%40ss@db:5433/orders?sslmode=require"


URLS = {
    "postgresql://shop@a,b:5433/orders?target_session_attrs=read-write":
        "postgresql+psycopg://shop@/orders?host=a%2Cb&port=%2C5433&target_session_attrs=read-write",
    "postgresql://%2Frun%2Fpostgresql/orders": "postgresql+psycopg:///orders?host=%2Frun%2Fpostgresql",
    "postgresql:///orders?host=/run/postgresql": "postgresql+psycopg:///orders?host=%2Frun%2Fpostgresql",
    "postgresql://shop@[::1]:5433/orders": "postgresql+psycopg://shop@[::1]:5433/orders",
    "postgresql://shop:a:b@db/orders\n": "postgresql+psycopg://shop:a%3Ab@db/orders",
    "postgresql://db/orders?options=-csearch_path%3Dshop":
        "postgresql+psycopg://db/orders?options=-csearch_path%3Dshop",
    "sqlite:////var/lib/orders.db": "sqlite:////var/lib/orders.db",
    "sqlite:///instance/orders.db": f"sqlite:///{ROOT}/instance/orders.db",
    "sqlite:///file:instance/orders.db?mode=ro&uri=true":
        f"sqlite:///file:{ROOT}/instance/orders.db?mode=ro&uri=true",
}  # fmt: skip


@pytest.mark.parametrize(("text", "url"), URLS.items())
def test_a_database_url_accepts_the_options_of_its_database(text: str, url: str) -> None:
    read = load_config({"DATABASE_URL": text})["DATABASE_URL"]

    assert make_url(read) == make_url(url)


BAD = [
    (
        "EXPIRE_PENDING_AFTER",
        "30",
        "EXPIRE_PENDING_AFTER is '30'; it must be a duration in days, hours or minutes from 1m to 36500d, such as 30d.",
    ),
    (
        "EXPIRE_PENDING_AFTER",
        "0d",
        "EXPIRE_PENDING_AFTER is '0d'; it must be a duration in days, hours or minutes from 1m to 36500d, such as 30d.",
    ),
    ("HOST", "a b", "HOST is 'a b'; it must be an address of this machine, such as 127.0.0.1, or its name."),
    ("PORT", "http", "PORT is 'http'; it must be an integer from 1 to 65535."),
    ("PORT", "0", "PORT is '0'; it must be an integer from 1 to 65535."),
    ("PORT", "65536", "PORT is '65536'; it must be an integer from 1 to 65535."),
    ("PORT", "８０００", "PORT is '８０００'; it must be an integer from 1 to 65535."),
    ("LOG_LEVEL", "loud", "LOG_LEVEL is 'loud'; it must be debug, info, warning or error."),
    ("URL_PREFIX", "shop", "URL_PREFIX is 'shop'; it must be a path such as /shop/api."),
    ("LOG_FORMAT", "xml", "LOG_FORMAT is 'xml'; it must be json or console."),
    ("DATABASE_POOL_SIZE", "-1", "DATABASE_POOL_SIZE is '-1'; it must be an integer from 1 to 1000."),
    (
        "SECRET_KEY",
        "random-key-of-the-shop-in-32-characters",
        "SECRET_KEY is …; it must be a key that does not begin with random-, which marks one that is not set.",
    ),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_the_error_for_an_invalid_setting_names_what_is_expected(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(StartupError) as caught:
        load_config()

    assert str(caught.value) == message


def test_a_python_with_an_old_sqlite_cannot_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.34.1")

    with pytest.raises(StartupError, match="^This Python has SQLite 3.34.1, but 3.35 or newer is required."):
        load_config()
    assert load_config({"DATABASE_URL": "postgresql://shop@db/orders"})


BAD_URLS = [
    "secret", "mysql://root:secret@db/orders", "postgresql+psycopg2://u:secret@db/x", "sqlite://", "sqlite:///:memory:",
    "postgresql://u:secret@db:port/x", "sqlite+pysqlcipher://:secret@/x.db", "postgresql://u:secret@db/x?secret=1",
    "postgresql:u:secret@db", "postgresql://u@db?port=secret", "sqlite://secret@/x.db", "sqlite:///:memory:?x=secret",
    "sqlite:///file:x?mode=memory&uri=true",
]  # fmt: skip
NOT_ENCODED = [
    "postgresql://shop:S3cr@t:hunter2@db/orders", "postgresql://shop:S3cr@tpart@db/orders",
    "postgresql://shop:hunter/2@db/orders", "postgresql://shop:S3cr@t/hunter2@db/orders",
    "postgresql://shop:S3cr@t?hunter2@db/orders", "postgresql://shop:hunter#2@db/orders",
    "postgresql://shop:hunter%2@db/orders", "postgresql://shop:hunter%ff@db/orders", "postgresql://shop:hunter2",
    "postgresql://shop:hunter 2@db/orders", "postgresql://shop@corp:hunter2@db/orders",
    "postgresql://db/orders?user=shop&password=hunter@2",
]  # fmt: skip


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_bad_database_url_is_refused_and_never_shown(url: str) -> None:
    with pytest.raises(StartupError) as caught:
        load_config({"DATABASE_URL": url})

    message = str(caught.value)
    assert message.startswith("DATABASE_URL is …; it must be ")
    assert "secret" not in message and "\n" not in message


@pytest.mark.parametrize("url", NOT_ENCODED)
def test_a_database_url_with_unencoded_characters_is_reported_without_the_password(url: str) -> None:
    with pytest.raises(StartupError) as caught:
        load_config({"DATABASE_URL": url})

    message = str(caught.value)
    assert "@ is %40" in message
    assert not any(part in message for part in ("S3cr", "hunter", "tpart")) and "\n" not in message


def test_two_sources_of_the_public_key_are_refused() -> None:
    pem = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"
    with pytest.raises(StartupError, match="^JWT_JWKS_URL and JWT_PUBLIC_KEY are both set: "):
        load_config({"JWT_JWKS_URL": "https://id.example.com/jwks.json", "JWT_PUBLIC_KEY": pem})


BAD_BROKER_URLS = [
    "secret", "rabbit://u:secret@mq/", "amqp:u:secret@mq", "amqp://u:se/cret@mq/", "amqp://u:s@ecret@mq/",
    "amqp://u:secret@mq:port/", "amqp://u:secr et@mq/", "redis://:secret#@mq/0", "memory://secret", "amqp://mq/@secret",
]  # fmt: skip


@pytest.mark.parametrize("url", BAD_BROKER_URLS)
def test_a_bad_broker_url_is_refused_and_never_shown(url: str) -> None:
    with pytest.raises(StartupError, match="^BROKER_URL is …; it must be amqp://[^\n]*$") as caught:
        load_config({"BROKER_URL": url})

    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "amqp://u:p%40ss@mq:5672/shop",
        "amqps://mq",
        "redis://:pass@[::1]:6379/0",
        "sqs://key:secret@",
        "kafka://mq:9092",
    ],
)
def test_a_broker_url_has_the_scheme_of_its_broker(url: str) -> None:
    assert load_config({"BROKER_URL": url})["BROKER_URL"] == url


def test_options_of_the_broker_are_a_json_object_and_are_not_shown() -> None:
    with pytest.raises(StartupError, match="^BROKER_OPTIONS is …; it must be a JSON object.$"):
        load_config({"BROKER_OPTIONS": "secret"})


def test_a_start_without_its_database_succeeds_and_logs_one_line_without_the_password() -> None:
    command, url = [sys.executable, "-c", "import wsgi"], "postgresql://user:secret@127.0.0.1:1/orders"
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS}

    started = subprocess.run(
        command, cwd=ROOT, env=inherited | {"DATABASE_URL": url}, capture_output=True, text=True, timeout=60
    )

    assert (started.returncode, started.stdout) == (0, "")
    [line] = started.stderr.splitlines()
    assert "started without a database" in line and "secret" not in line


def test_a_database_file_in_a_missing_directory_prevents_the_start(tmp_path: Path) -> None:
    app = create_app({"DATABASE_URL": f"sqlite:///{tmp_path}/missing/orders.db"})

    with app.app_context(), pytest.raises(StartupError, match="^The file of DATABASE_URL cannot be used: .*$"):
        check_before_serving(app)


def test_every_setting_has_a_default_that_is_valid_and_a_description() -> None:
    for name, setting in SETTINGS.items():
        assert name.isupper()
        setting.parse(setting.default)
        assert setting.description.endswith("."), name


def test_the_parameters_of_a_database_url_are_those_of_the_installed_libpq() -> None:
    assert {option.keyword.decode() for option in Conninfo.get_defaults()} == LIBPQ_PARAMETERS


def test_gunicorns_master_reads_the_settings_without_loading_the_application() -> None:
    code = """
import runpy, sys
conf = runpy.run_path("gunicorn.conf.py")
print(conf["bind"], conf["workers"])
print(sorted({name.partition(".")[0] for name in sys.modules} & {"app", "flask", "gevent", "psycopg", "sqlalchemy"}))
"""
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    settings = {"HOST": "::1", "PORT": "8001", "WEB_CONCURRENCY": "3", "DATABASE_URL": "postgresql://db/orders"}

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=inherited | settings, capture_output=True, text=True
    )

    assert done.stdout.splitlines() == ["[::1]:8001 3", "[]"], done.stderr
