"""`flask doctor`: its findings and its advice."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import time_machine
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import make_url, update

from app import create_app
from app.db.engine import db
from app.models import SEARCH_HEAD, Erasure, OutboxEntry
from app.models.webhook import FAILING, WebhookEndpoint
from app.routes import customer_routes
from app.services import diagnosis
from app.services.event_feed import sequence_events
from tests.support.actions import order_after, send_action
from tests.support.databases import new_database
from tests.support.marks import on_postgresql, on_sqlite
from tests.support.postgres import libpq_url
from tests.support.samples import MINIMAL
from tests.support.servers import free_port, running_worker


def diagnosed(database_url: str, **settings: Any) -> Result:
    app = create_app({"DATABASE_URL": database_url, "SECRET_KEY": "k" * 32, "AUTH": "required"} | settings)
    try:
        return app.test_cli_runner().invoke(args=["doctor"])
    finally:
        with app.app_context():
            db.engine.dispose()


def lines(result: Result, topic: str) -> list[str]:
    """The findings about a topic, each with its level."""
    return [line for line in result.stdout.splitlines() if line[9:].startswith(topic)]


@on_sqlite
def test_a_healthy_installation_has_no_error(client: FlaskClient, database_url: str) -> None:
    result = diagnosed(database_url)

    assert result.exit_code == 0
    assert [
        line[:5] for topic in ("database", "durability", "migrations", "worker") for line in lines(result, topic)
    ] == ["ok   "] * 4
    assert lines(result, "access")[0].startswith("warning") and "flask api-keys create" in result.stdout


@on_sqlite
def test_doctor_works_on_systems_without_cpu_affinity(
    client: FlaskClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)  # as on macOS

    assert diagnosed(database_url).exit_code == 0


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"AUTH": "off"}, "AUTH=off gives everybody on this machine full access"),
        ({"SECRET_KEY": ""}, "openssl rand -hex 32"),
        ({"WEBHOOKS_ALLOW_PRIVATE": "1"}, "Remove it in production"),
    ],
)
@on_sqlite
def test_settings_for_development_are_warnings(
    app: Flask, database_url: str, settings: dict[str, str], advice: str
) -> None:
    [line] = lines(diagnosed(database_url, **settings), "settings")

    assert line.startswith("warning") and advice in line


def test_an_event_that_waits_is_an_error_that_names_the_worker(
    app: Flask, client: FlaskClient, database_url: str
) -> None:
    client.post("/orders", json=MINIMAL)
    with app.app_context():
        db.session.execute(update(OutboxEntry).values(at=datetime.now(UTC) - timedelta(minutes=2)))
        db.session.commit()

    result = diagnosed(database_url)

    [line] = lines(result, "worker")
    assert result.exit_code == 1
    assert line.startswith("error") and "Start `flask worker`." in line


@on_postgresql
def test_a_worker_is_found_by_its_connection(app: Flask, database_url: str) -> None:
    [without] = lines(diagnosed(database_url), "worker")
    with running_worker(DATABASE_URL=database_url):
        [present] = lines(diagnosed(database_url), "worker")

    assert without.startswith("error") and "Start one." in without
    assert present.startswith("ok")


@pytest.fixture
def reader(app: Flask, database_url: str) -> Iterator[str]:
    """The URL of a role that may only read."""
    with psycopg.connect(libpq_url(database_url), autocommit=True) as connection:
        connection.execute("CREATE ROLE doctors_reader LOGIN")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO doctors_reader")
        try:
            yield make_url(database_url).set(username="doctors_reader").render_as_string(hide_password=False)
        finally:
            connection.execute("DROP OWNED BY doctors_reader; DROP ROLE doctors_reader")


@on_postgresql
def test_a_role_without_privileges_is_an_error_that_names_the_grant(reader: str) -> None:
    result = diagnosed(reader)

    [line] = [line for line in lines(result, "database") if "orders" in line]
    assert result.exit_code == 1 and line.startswith("error")
    assert "doctors_reader may not read and write" in line
    assert "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO doctors_reader." in line


@on_postgresql
def test_a_role_that_may_not_read_gets_an_error_that_names_the_grant(reader: str, database_url: str) -> None:
    with psycopg.connect(libpq_url(database_url), autocommit=True) as connection:
        connection.execute("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM doctors_reader")

    [line] = lines(diagnosed(reader), "database")

    assert line.startswith("error") and "permission denied" in line and "GRANT SELECT" in line


@on_postgresql
def test_a_table_that_another_session_has_locked_is_an_error_that_says_so(app: Flask, database_url: str) -> None:
    with psycopg.connect(libpq_url(database_url)) as connection:
        connection.execute("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE")
        [line] = lines(diagnosed(database_url), "database")

    assert line.startswith("error") and "pg_stat_activity" in line


@on_postgresql
def test_a_server_without_a_free_connection_is_an_error_that_names_the_setting(reader: str, database_url: str) -> None:
    with psycopg.connect(libpq_url(database_url), autocommit=True) as connection:
        connection.execute("ALTER ROLE doctors_reader CONNECTION LIMIT 0")

    [line] = lines(diagnosed(reader), "database")

    assert line.startswith("error") and "DATABASE_POOL_SIZE" in line


@on_postgresql
def test_a_read_only_database_is_an_error(app: Flask, database_url: str) -> None:
    result = diagnosed(f"{database_url}&options=-c%20default_transaction_read_only%3Don")

    assert result.exit_code == 1
    assert any(line.startswith("error") and "read_only is on" in line for line in lines(result, "database"))


@on_postgresql
def test_connections_with_a_name_from_the_url_do_not_count_as_a_missing_worker(app: Flask, database_url: str) -> None:
    [line] = lines(diagnosed(f"{database_url}&application_name=shop"), "worker")

    assert line.startswith("ok")


@on_postgresql
def test_a_server_that_may_lose_orders_is_an_error(app: Flask, database_url: str) -> None:
    found = lines(diagnosed(database_url), "durability")  # the test server runs without fsync

    [fsync] = (line for line in found if "fsync is off" in line)
    assert fsync.startswith("error") and "ALTER SYSTEM SET fsync = on, and SELECT pg_reload_conf()" in fsync


@on_postgresql
def test_a_database_that_cannot_store_every_order_is_an_error_that_says_what_to_do(
    app: Flask, database_url: str
) -> None:
    other = new_database(database_url, "latin1", "ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")

    [line] = lines(diagnosed(other), "database")

    assert line.startswith("error    database     The database's encoding is LATIN1, which cannot store every order. ")
    assert line.endswith(" ENCODING 'UTF8' TEMPLATE template0.")


@on_postgresql
@pytest.mark.parametrize(("pooler", "needed"), [("", 51), ("transaction", 50)])
def test_the_connection_that_listens_is_counted(app: Flask, database_url: str, pooler: str, needed: int) -> None:
    [line] = lines(diagnosed(database_url, WEB_CONCURRENCY="2", DATABASE_POOLER=pooler), "connections")

    assert f"up to {needed} connections" in line
    assert ("and one that listens" in line) == (not pooler)


@on_postgresql
def test_a_pool_that_the_server_does_not_allow_is_an_error(app: Flask, database_url: str) -> None:
    [line] = lines(diagnosed(database_url, DATABASE_POOL_SIZE="1000"), "connections")

    assert line.startswith("error") and "Lower DATABASE_POOL_SIZE" in line


@on_postgresql
def test_a_wrong_clock_is_a_warning(app: Flask, database_url: str) -> None:
    with time_machine.travel(datetime.now(UTC) + timedelta(minutes=5)):
        [line] = lines(diagnosed(database_url), "clock")

    assert line.startswith("warning") and re.search(r"differ by (299|300)\.", line) and "by NTP" in line


@on_postgresql
def test_an_index_that_was_not_completed_is_an_error(app: Flask, client: FlaskClient, database_url: str) -> None:
    for _ in range(2):
        client.post("/orders", json=MINIMAL)
    with psycopg.connect(libpq_url(database_url), autocommit=True) as connection:
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("CREATE UNIQUE INDEX CONCURRENTLY uq_status ON orders (status)")
        try:
            found = lines(diagnosed(database_url), "database")
        finally:
            connection.execute("DROP INDEX uq_status")

    assert any(line.startswith("error") and "Run REINDEX INDEX CONCURRENTLY uq_status." in line for line in found)


def test_a_search_or_broker_behind_the_feed_is_reported(
    app: Flask, client: FlaskClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("/orders", json=MINIMAL)
    with app.app_context():
        sequence_events()
    monkeypatch.setattr(diagnosis, "_SEARCH_EVENTS_MAX", 0)
    monkeypatch.setattr(diagnosis, "_BROKER_SECONDS_MAX", 0)

    result = diagnosed(database_url, BROKER_URL="amqp://127.0.0.1//")

    [search], [broker] = lines(result, "search"), lines(result, "broker")
    assert search.startswith("warning") and "is 1 event behind" in search and "`flask worker`" in search
    assert broker.startswith("error") and re.search(r"1 event and \d+ s behind", broker) and "`flask worker`" in broker


def test_a_search_that_is_ahead_of_the_feed_is_an_error(app: Flask, client: FlaskClient, database_url: str) -> None:
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(update(SEARCH_HEAD).values(seq=5))

    [line] = lines(diagnosed(database_url), "search")

    assert line.startswith("error") and "5 events ahead of the feed" in line and "`flask search rebuild`" in line


@on_sqlite
def test_a_key_set_that_cannot_be_fetched_is_an_error(app: Flask, database_url: str) -> None:
    issuer = {"JWT_JWKS_URL": f"http://127.0.0.1:{free_port()}/keys", "JWT_ISSUER": "i", "JWT_AUDIENCE": "a"}

    [line] = lines(diagnosed(database_url, **issuer), "access")

    assert line.startswith("error") and "Connection refused" in line and "JWT_JWKS_URL" in line


def test_webhooks_that_receive_nothing_are_reported(app: Flask, database_url: str) -> None:
    now = datetime.now(UTC)
    with app.app_context():
        db.session.add_all(endpoint(f"https://{name}.example/secret?token=secret", now) for name in ("a", "b", "c"))
        db.session.flush()
        _, failing, disabled = db.session.query(WebhookEndpoint).order_by(WebhookEndpoint.url)
        failing.failing_since = now
        disabled.disable(FAILING)
        db.session.commit()

    first, second, last = sorted(lines(diagnosed(database_url), "webhooks"))

    assert first.startswith("error") and " c.example receives no events" in first
    assert second.startswith("ok") and "Enabled: 2." in second
    assert last.startswith("warning") and " b.example has failed since" in last
    assert "secret" not in first + second + last


def test_an_erasure_that_is_not_done_after_a_day_is_reported_with_the_reason(
    app: Flask, client: FlaskClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(customer_routes, "REQUEST_SECONDS", 0)
    _, reopened = (order_after(client, "cancel", customer_id="c-1") for _ in range(2))
    erasure_id = client.delete("/customers/c-1/personal-data").json["id"]
    send_action(client, reopened, "reopen")
    before = lines(diagnosed(database_url), "erasures")
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(update(Erasure).values(created_at=datetime.now(UTC) - timedelta(hours=25)))

    waiting = lines(diagnosed(database_url), "erasures")
    send_action(client, reopened, "cancel")
    unfinished = lines(diagnosed(database_url), "erasures")

    assert before[0].startswith("ok")
    assert waiting[0].startswith("warning") and erasure_id in waiting[0] and reopened.rpartition("/")[2] in waiting[0]
    assert unfinished[0].startswith("warning") and "`flask privacy resume`" in unfinished[0]
    assert [len(found) for found in (before, waiting, unfinished)] == [1, 1, 1]


def endpoint(url: str, at: datetime) -> WebhookEndpoint:
    return WebhookEndpoint(
        id=f"01a22042-56f9-7604-b0ea-{url[8:9] * 12}", url=url, payload="thin", status="enabled", secret="plain:",
        created_by="ops", created_at=at, updated_at=at, last_seq=0, consecutive_failures=0,
    )  # fmt: skip


def test_a_missing_migration_is_an_error(app: Flask, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/empty.db"
    (tmp_path / "empty.db").touch()

    result = diagnosed(url)

    assert result.exit_code == 1
    assert lines(result, "migrations")[0].startswith("error") and "flask db upgrade" in result.stdout


@pytest.mark.parametrize(
    "url", ["postgresql://shop:hidden@127.0.0.1:1/orders", "postgresql://shop:hidden@localhost:1/orders"]
)
@on_sqlite
def test_an_unavailable_database_is_an_error_without_its_password(app: Flask, url: str) -> None:
    result = diagnosed(url)

    [line] = lines(result, "database")
    assert (result.exit_code, result.stderr) == (1, "")
    assert line.startswith("error") and "DATABASE_URL" in line and "hidden" not in result.stdout


@on_sqlite
def test_a_missing_file_is_not_created(app: Flask, tmp_path: Path) -> None:
    [line] = lines(diagnosed(f"sqlite:///{tmp_path}/orders.db"), "database")

    assert line.endswith(f"{tmp_path}/orders.db does not exist. Run `flask db upgrade`, or correct DATABASE_URL.")
    assert list(tmp_path.iterdir()) == []
