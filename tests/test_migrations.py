"""The migrations equal the models on both databases, and can be downgraded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask_migrate
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from flask import Flask
from sqlalchemy import inspect, text

from app import create_app
from app.db.engine import db
from app.db.migrations import database_state, expected_revision
from app.db.statements import read_rows
from tests.support.databases import MIGRATIONS, new_database
from tests.support.marks import on_sqlite
from tests.support.samples import MINIMAL


@pytest.fixture
def empty_app(database_url: str, tmp_path: Path) -> Iterator[Flask]:
    """An application on a new, empty database."""
    is_sqlite = database_url.startswith("sqlite")
    url = f"sqlite:///{tmp_path}/empty.db" if is_sqlite else new_database(database_url, "empty")
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
    return (inspected or "").partition("::")[0].strip("'") != (declared or "").strip("'")


def test_alembic_finds_nothing_to_migrate(app: Flask) -> None:
    options = {"compare_type": True, "compare_server_default": server_defaults_differ}
    with app.app_context(), db.engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), db.metadata)

    assert differences == []


@on_sqlite
@pytest.mark.parametrize("url", ["sqlite:///{}/new%20one.db", "sqlite:///file:{}/new%20one.db?uri=true"])
def test_a_new_sqlite_file_belongs_to_its_owner_alone(database_url: str, tmp_path: Path, url: str) -> None:
    app = create_app({"DATABASE_URL": url.format(tmp_path), "TESTING": True})
    with app.app_context():
        flask_migrate.upgrade(directory=MIGRATIONS)
        files = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        db.engine.dispose()

    assert files == {f"new one.db{end}": 0o600 for end in ("", "-wal", "-shm")}


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


def test_every_migration_after_the_first_keeps_the_stored_orders(empty_app: Flask) -> None:
    """A new column without a value for them would fail only in a database that has orders."""
    with empty_app.app_context():
        flask_migrate.upgrade(directory=MIGRATIONS)
    order = empty_app.test_client().post("/orders", json=MINIMAL)

    with empty_app.app_context():
        for _ in list(ScriptDirectory(MIGRATIONS).walk_revisions())[1:]:
            flask_migrate.downgrade(directory=MIGRATIONS)
        flask_migrate.upgrade(directory=MIGRATIONS)

    assert empty_app.test_client().get(order.headers["Location"]).data == order.data


def test_a_downgrade_deletes_no_orders(empty_app: Flask) -> None:
    with empty_app.app_context():
        flask_migrate.upgrade(directory=MIGRATIONS)
    order = empty_app.test_client().post("/orders", json=MINIMAL).json

    result = empty_app.test_cli_runner().invoke(args=["db", "downgrade", "base"])

    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "would delete all orders" in result.stderr
    with empty_app.app_context():  # later migrations are downgraded, so this code may not work with the schema
        [row] = read_rows(text("SELECT number FROM orders"))
    assert row.number == order["number"]


def test_the_migrations_have_one_head_and_one_base() -> None:
    scripts = ScriptDirectory(MIGRATIONS)

    assert len(scripts.get_heads()) == len(scripts.get_bases()) == 1
