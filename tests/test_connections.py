"""Connections to PostgreSQL: settings, options, and databases that the service refuses."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flask_migrate
import psycopg
import pytest
from flask import Flask
from sqlalchemy import make_url, text
from structlog.testing import capture_logs

from app import create_app
from app.config import ROOT, StartupError
from app.db.engine import SQLITE_LOG_MAX, db
from app.http.auth import check_before_serving
from tests.support.databases import MIGRATIONS, new_database
from tests.support.postgres import libpq_url

UPGRADE = ("db", "upgrade", "--directory", MIGRATIONS)
UNRESTRICTED = "LOCALE 'C' TEMPLATE template0"  # a locale and a template that allow every encoding
ORDER = {"customer_id": "c-1", "items": [{"item_id": "sku-1", "quantity": 2}], "note": r"C:\new\'"}

DEFAULTS = {
    "DateStyle": "German, DMY",
    "TimeZone": "America/St_Johns",
    "IntervalStyle": "sql_standard",
    "client_encoding": "LATIN1",
    "standard_conforming_strings": "off",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "bytea_output": "escape",
    "extra_float_digits": "-5",
    "statement_timeout": "1",
    "lc_messages": "C",
}


@pytest.fixture(scope="module")
def database_url(postgresql_url: str) -> str:
    return postgresql_url


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection for the test."""
    with psycopg.connect(libpq_url(database_url), autocommit=True) as connection:
        yield connection


@pytest.fixture
def other_url(database_url: str) -> str:
    """The URL of an empty database."""
    return new_database(database_url, "other")


class Apps:
    """Creates applications; their connections are closed after the test."""

    def __init__(self) -> None:
        self.created: list[Flask] = []

    def create(self, url: str) -> Flask:
        app = create_app({"DATABASE_URL": url, "AUTH": "off", "TESTING": True})
        self.created.append(app)
        return app

    def migrated(self, url: str) -> Flask:
        app = self.create(url)
        with app.app_context():
            flask_migrate.upgrade(directory=MIGRATIONS)
        return app


@pytest.fixture
def apps() -> Iterator[Apps]:
    apps = Apps()
    yield apps
    for app in apps.created:
        with app.app_context():
            db.engine.dispose()


def scalar(app: Flask, sql: str) -> Any:
    with app.app_context(), db.engine.connect() as connection:
        return connection.scalar(text(sql))


@pytest.mark.parametrize("owner", ["DATABASE other", "ROLE CURRENT_USER"])
def test_the_defaults_of_the_database_and_the_role_do_not_matter(
    database: psycopg.Connection[Any], other_url: str, apps: Apps, owner: str
) -> None:
    for name, value in DEFAULTS.items():
        database.execute(f"ALTER {owner} SET {name} = '{value}'")
    try:
        app = apps.migrated(other_url)
        client = app.test_client()
        with ThreadPoolExecutor(8) as pool:
            sent = [pool.submit(create, app) for _ in range(16)]
            created = [future.result() for future in sent]
        order = created[0].json
        path = created[0].headers["Location"]
        confirmed = client.post(f"{path}/confirm")
        listed = client.get("/orders", query_string={"created_from": order["created_at"]})
        history = client.get(f"{path}/history")
        verified = app.test_cli_runner().invoke(args=["verify"])
    finally:
        database.execute(f"ALTER {owner} RESET ALL")

    assert {response.status_code for response in created} == {201}
    assert {response.data for response in created} == {created[0].data}
    assert order["note"] == ORDER["note"]
    assert confirmed.status_code == 200
    assert listed.json["orders"] == [confirmed.json]
    assert [event["at"] for event in history.json["events"]] == [order["created_at"], confirmed.json["updated_at"]]
    assert verified.exit_code == 0, verified.output


def create(app: Flask) -> Any:
    return app.test_client().post("/orders", json=ORDER, headers={"Idempotency-Key": "k"})


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_of_another_encoding_is_refused_in_one_line(database_url: str, apps: Apps, encoding: str) -> None:
    app = apps.create(new_database(database_url, "other", f"ENCODING '{encoding}' {UNRESTRICTED}"))

    with app.app_context(), pytest.raises(StartupError) as refused:
        check_before_serving(app)
    upgraded = app.test_cli_runner().invoke(args=UPGRADE)

    [line] = upgraded.stderr.splitlines()
    assert upgraded.exit_code == 1
    for message in (str(refused.value), line):
        assert f"encoding is {encoding}" in message and "ENCODING 'UTF8'" in message


def test_options_of_the_url_and_of_the_environment_override_the_limits(
    database: psycopg.Connection[Any], other_url: str, apps: Apps, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(libpq_url(other_url), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA shop")
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=7000 -c work_mem=5MB")
    query = "&options=-csearch_path%3Dshop%20-c%20lock_timeout%3D3000&application_name=web-1"

    app = apps.migrated(other_url + query)

    assert scalar(app, "SELECT 'orders'::regclass = 'shop.orders'::regclass")
    assert scalar(app, "SHOW statement_timeout") == "7s"
    assert scalar(app, "SHOW work_mem") == "5MB"
    assert scalar(app, "SHOW lock_timeout") == "3s"
    assert scalar(app, "SHOW idle_in_transaction_session_timeout") == "5s"
    assert scalar(app, "SHOW application_name") == "web-1"
    assert scalar(app, "SELECT pg_sleep(4.5)") is not None  # longer than the default RESPONSE_TIMEOUT
    assert app.test_client().post("/orders", json=ORDER).status_code == 201


def test_environment_variables_of_libpq_override_the_defaults(
    other_url: str, apps: Apps, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = apps.migrated(other_url)
    monkeypatch.setenv("PGAPPNAME", "web-2")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "9")
    named = apps.migrated(other_url)

    assert scalar(default, "SHOW application_name") == "order-service"
    assert scalar(named, "SHOW application_name") == "web-2"
    with named.app_context(), db.engine.connect() as connection:
        driver = connection.connection.dbapi_connection
        assert isinstance(driver, psycopg.Connection)
        assert driver.info.get_parameters()["connect_timeout"] == "9"


def test_of_several_hosts_the_writable_one_is_used(other_url: str, apps: Apps) -> None:
    socket = make_url(other_url).query["host"]
    assert isinstance(socket, str)
    hosts = f"127.0.0.1:1,{socket.replace('/', '%2F')}:5432"

    app = apps.migrated(f"postgresql://postgres@{hosts}/other?target_session_attrs=read-write")

    assert app.test_client().post("/orders", json=ORDER).status_code == 201


def test_sslmode_reaches_the_driver(database_url: str, apps: Apps) -> None:
    """The test server has no TLS, so this only shows that the driver checks the value."""
    app = apps.create(f"{database_url}&sslmode=never")

    upgraded = app.test_cli_runner().invoke(args=UPGRADE)

    [line] = upgraded.stderr.splitlines()
    assert upgraded.exit_code == 1 and 'invalid sslmode value: "never"' in line


def test_a_broken_connection_is_removed_from_the_pool_without_a_log_line(
    database: psycopg.Connection[Any], other_url: str, apps: Apps, caplog: pytest.LogCaptureFixture
) -> None:
    app = apps.migrated(other_url)
    logger = logging.getLogger("sqlalchemy.pool")
    logger.addHandler(caplog.handler)  # the application has replaced the handlers of the root logger
    with app.app_context():
        pooled = db.engine.raw_connection()
        broken = pooled.dbapi_connection
        assert isinstance(broken, psycopg.Connection)
        database.execute("SELECT pg_terminate_backend(%s, 5000)", [broken.info.backend_pid])
        with pytest.raises(psycopg.OperationalError):
            broken.execute("SELECT 1")
        pooled.close()
    logger.removeHandler(caplog.handler)

    assert broken.closed
    assert not caplog.records
    assert app.test_client().post("/orders", json=ORDER).status_code == 201


@pytest.mark.parametrize("directory", [ROOT, ROOT.parent])
def test_the_url_of_the_readme_is_a_file_below_the_project(
    apps: Apps, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    monkeypatch.chdir(directory)

    app = apps.create("sqlite:///instance/orders.db")

    with app.app_context():
        assert db.engine.url.database == f"{ROOT}/instance/orders.db"


def become_latin1(database: psycopg.Connection[Any]) -> None:
    """Simulate a failover to a server with another encoding."""
    database.execute("DROP DATABASE other WITH (FORCE)")
    database.execute(f"CREATE DATABASE other ENCODING 'LATIN1' {UNRESTRICTED}")


def become_serializable(database: psycopg.Connection[Any]) -> None:
    """Simulate an administrator who changes the role behind a pooler."""
    database.execute("ALTER DATABASE other SET default_transaction_isolation = 'serializable'")
    database.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'other'")


@pytest.mark.parametrize(
    ("change", "reason"),
    [(become_latin1, "encoding is LATIN1"), (become_serializable, "isolation is 'serializable' behind the pooler")],
    ids=["encoding", "isolation"],
)
def test_a_database_that_becomes_unsuitable_while_the_service_runs_causes_503(
    database: psycopg.Connection[Any], other_url: str, apps: Apps, monkeypatch: pytest.MonkeyPatch,
    change: Callable[[psycopg.Connection[Any]], None], reason: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("DATABASE_POOLER", "transaction")
    app = apps.migrated(other_url)
    client = app.test_client()
    created = client.post("/orders", json=ORDER)
    change(database)

    with capture_logs() as logs:
        responses = [
            client.post("/orders", json=ORDER),
            client.get(created.headers["Location"]),
            client.get("/orders"),
            client.post(f"{created.headers['Location']}/confirm"),
            client.get("/readyz"),
        ]

    assert created.status_code == 201
    assert [(response.status_code, response.headers["Retry-After"]) for response in responses] == [(503, "1")] * len(
        responses
    )
    assert reason not in "".join(response.text for response in responses)
    warned = [line for line in logs if line["event"] == "database unavailable"]
    assert len(warned) == len(responses) and all(reason in line["reason"] for line in warned)


def test_a_log_that_has_grown_during_a_long_read_is_truncated(apps: Apps, tmp_path: Path) -> None:
    log = tmp_path / "orders.db-wal"
    app = apps.create(f"sqlite:///{tmp_path}/orders.db")
    with app.app_context():
        with db.engine.begin() as connection:
            connection.execute(text("CREATE TABLE filler (content BLOB)"))
        with db.engine.execution_options(read_only=True).connect() as reader:
            reader.execute(text("SELECT count(*) FROM filler"))
            for _ in range(2):
                with db.engine.begin() as connection:
                    connection.execute(text("INSERT INTO filler VALUES (zeroblob(:size))"), {"size": SQLITE_LOG_MAX})
            grown = log.stat().st_size
        for _ in range(2):
            with db.engine.begin() as connection:
                connection.execute(text("INSERT INTO filler VALUES (NULL)"))
        truncated = log.stat().st_size

    assert grown > 2 * SQLITE_LOG_MAX and truncated <= SQLITE_LOG_MAX
