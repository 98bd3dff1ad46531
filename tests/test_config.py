"""Settings: read once, checked at start-up, refused in one line."""

import os
import subprocess
import sys

import pytest

from app.config import ROOT, SETTINGS, StartupError, load_config


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


def test_without_any_setting_it_is_sqlite_on_loopback() -> None:
    config = load_config()

    assert config["DATABASE_URL"] == f"sqlite:///{ROOT / 'instance' / 'orders.db'}"
    assert (config["HOST"], config["PORT"], config["AUTH"]) == ("127.0.0.1", 8000, "required")


def test_what_is_given_comes_before_the_environment_and_that_before_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PORT", "8001")
    monkeypatch.setenv("LOG_LEVEL", "")

    assert load_config()["PORT"] == 8001
    assert load_config()["LOG_LEVEL"] == "info"
    assert load_config({"PORT": 8002})["PORT"] == 8002


def test_what_is_no_setting_is_handed_on_to_flask() -> None:
    assert load_config({"TESTING": True})["TESTING"] is True


@pytest.mark.parametrize("name", ["postgres", "postgresql", "postgresql+psycopg"])
def test_a_postgresql_url_may_be_written_in_every_usual_way(name: str) -> None:
    url = load_config({"DATABASE_URL": f"{name}://user:p%40ss@db:5433/orders?sslmode=require"})["DATABASE_URL"]

    assert url == "postgresql+psycopg://user:p%40ss@db:5433/orders?sslmode=require"


BAD = [
    ("PORT", "http", "PORT is 'http'; it must be a whole number from 1 to 65535."),
    ("PORT", "0", "PORT is '0'; it must be a whole number from 1 to 65535."),
    ("PORT", "65536", "PORT is '65536'; it must be a whole number from 1 to 65535."),
    ("PORT", "８０００", "PORT is '８０００'; it must be a whole number from 1 to 65535."),
    ("LOG_LEVEL", "loud", "LOG_LEVEL is 'loud'; it must be debug or info or warning or error."),
    ("LOG_FORMAT", "xml", "LOG_FORMAT is 'xml'; it must be json or console."),
    ("DATABASE_POOL_SIZE", "-1", "DATABASE_POOL_SIZE is '-1'; it must be a whole number from 1 to 1000."),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_a_bad_setting_is_named_with_what_is_expected(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(StartupError) as caught:
        load_config()

    assert str(caught.value) == message


BAD_URLS = [
    "secret", "mysql://root:secret@db/orders", "postgresql+psycopg2://u:secret@db/x", "sqlite://", "sqlite:///:memory:",
    "postgresql://u:secret@db:port/x", "sqlite+pysqlcipher://:secret@/x.db",
]  # fmt: skip


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_bad_database_url_is_refused_and_never_shown(url: str) -> None:
    with pytest.raises(StartupError) as caught:
        load_config({"DATABASE_URL": url})

    message = str(caught.value)
    assert message.startswith("DATABASE_URL is …; it must be ")
    assert "secret" not in message and "\n" not in message


def start(**environment: str) -> tuple[int, list[str]]:
    """How loading the service ends, and what it says."""
    command = [sys.executable, "-c", "import wsgi"]
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True, timeout=60)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_a_start_with_a_bad_setting_says_so_in_one_line() -> None:
    assert start(PORT="http") == (3, ["order service: PORT is 'http'; it must be a whole number from 1 to 65535."])


def test_a_start_on_an_unmigrated_database_says_so_in_one_line(tmp_path: object) -> None:
    status, [line] = start(DATABASE_URL=f"sqlite:///{tmp_path}/new.db")

    assert status == 3
    assert "run `flask db upgrade`" in line


def test_a_start_without_its_database_says_so_in_one_line_without_the_password() -> None:
    status, lines = start(DATABASE_URL="postgresql://user:secret@127.0.0.1:1/orders")

    assert status != 0
    assert len(lines) == 1
    assert "secret" not in lines[0]


def test_every_setting_has_a_default_that_is_valid_and_a_meaning() -> None:
    for name, setting in SETTINGS.items():
        assert name.isupper()
        setting.parse(setting.default)
        assert setting.meaning.endswith("."), name
