"""The migrations equal the models on both databases, and can be downgraded."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import flask_migrate
import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from flask import Flask
from sqlalchemy import inspect, make_url, text

from app import create_app
from app.config import ROOT
from app.db.engine import db
from app.db.revision import database_state, expected_revision
from tests.support.servers import TIMEOUT, environment

MIGRATIONS = str(ROOT / "migrations")


@pytest.fixture
def empty_app(database_url: str, tmp_path: Any) -> Iterator[Flask]:
    """An application on an empty database of its own."""
    if database_url.startswith("sqlite"):
        url = f"sqlite:///{tmp_path}/empty.db"
    else:
        server = make_url(database_url)
        plain = server.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute("DROP DATABASE IF EXISTS empty WITH (FORCE)")
            connection.execute("CREATE DATABASE empty")
        url = server.set(database="empty").render_as_string(hide_password=False)
    app = create_app({"DATABASE_URL": url, "TESTING": True})
    yield app
    with app.app_context():
        db.engine.dispose()


def schema(app: Flask) -> dict[str, Any]:
    """The schema as the database reports it, including checks and conditions of indexes, which Alembic ignores."""
    with app.app_context():
        inspector = inspect(db.engine)
        return {
            table: {
                "columns": {
                    c["name"]: (str(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns(table)
                },
                "key": (
                    inspector.get_pk_constraint(table)["name"],
                    inspector.get_pk_constraint(table)["constrained_columns"],
                ),
                "checks": {c["name"]: c["sqltext"] for c in inspector.get_check_constraints(table)},
                "indexes": {
                    i["name"]: (i["column_names"], bool(i["unique"]), where(i)) for i in inspector.get_indexes(table)
                },
                "references": inspector.get_foreign_keys(table),
            }
            for table in inspector.get_table_names()
            if table != "alembic_version"
        }


def where(index: Any) -> list[str]:
    options = index.get("dialect_options", {})
    return [str(condition) for name, condition in options.items() if name.endswith("_where")]


def test_the_migrations_equal_the_models(app: Flask, empty_app: Flask) -> None:
    with empty_app.app_context():
        db.metadata.create_all(db.engine)

    assert schema(app) == schema(empty_app)


def server_defaults_differ(*arguments: Any) -> bool:
    """Whether the SQL texts differ. Alembic's own comparison asks PostgreSQL for `=`, which its type json lacks."""
    inspected, _, declared = arguments[3:]
    return (inspected or "").partition("::")[0] != (declared or "")


def test_alembic_finds_nothing_to_migrate(app: Flask) -> None:
    options = {"compare_type": True, "compare_server_default": server_defaults_differ}
    with app.app_context(), db.engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), db.metadata)

    assert differences == []


def test_every_migration_can_be_downgraded_and_upgraded_again(empty_app: Flask) -> None:
    with empty_app.app_context():
        flask_migrate.upgrade(directory=MIGRATIONS)
        first = schema(empty_app)
        assert database_state().revision == expected_revision()

        for _ in ScriptDirectory(MIGRATIONS).walk_revisions():
            flask_migrate.downgrade(directory=MIGRATIONS)
        assert schema(empty_app) == {}
        assert database_state().revision is None

        flask_migrate.upgrade(directory=MIGRATIONS)
        assert schema(empty_app) == first


def test_the_migrations_have_one_head_and_one_base() -> None:
    scripts = ScriptDirectory(MIGRATIONS)

    assert len(scripts.get_heads()) == len(scripts.get_bases()) == 1


def test_concurrent_upgrades_run_one_after_the_other(empty_app: Flask) -> None:
    url = empty_app.config["DATABASE_URL"]
    command = [sys.executable, "-m", "flask", "--app", "wsgi", "db", "upgrade"]

    upgrades = [
        subprocess.Popen(command, cwd=ROOT, env=environment(DATABASE_URL=url), stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    errors = [upgrade.communicate(timeout=TIMEOUT)[1] for upgrade in upgrades]

    assert [upgrade.returncode for upgrade in upgrades] == [0, 0, 0], errors
    with empty_app.app_context():
        assert database_state().revision == expected_revision()


def test_a_database_at_an_unknown_migration_is_reported_in_one_line(empty_app: Flask) -> None:
    """Such as a database that a later version has upgraded, or a development database with outdated migrations."""
    url = empty_app.config["DATABASE_URL"]
    with empty_app.app_context():
        flask_migrate.upgrade(directory=MIGRATIONS)
        with db.engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '0003'"))

    for command in (["-c", "import wsgi"], ["-m", "flask", "--app", "wsgi", "db", "upgrade"]):
        ended = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment(DATABASE_URL=url), capture_output=True, text=True,
            timeout=TIMEOUT,
        )  # fmt: skip

        [line] = ended.stderr.splitlines()
        assert ended.returncode != 0
        assert "is at migration 0003, which this version of the service does not have" in line
        assert "deploy the version that made it or, in development, set up an empty database" in line
