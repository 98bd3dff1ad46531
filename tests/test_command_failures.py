"""Errors of the flask commands about the database or the disk: one line, never a traceback."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import flask_migrate.cli
import psycopg
import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import make_url

from app import create_app
from app.config import StartupError
from app.db.engine import db
from app.http.auth import check_before_serving
from tests.support.commands import COMMANDS, FLASK, run_python
from tests.support.credentials import api_key
from tests.support.databases import MIGRATIONS, migrated, new_database
from tests.support.marks import on_sqlite
from tests.support.postgres import libpq_url

WITHOUT_DATABASE = {"token", "webhooks listen"}
UNTIL_STOPPED = {"worker", "orders tail"}  # tests/test_worker.py, tests/test_order_lookup_commands.py
OTHERS = {"orders get", "orders find", "doctor"}  # tests/test_order_lookup_commands.py, tests/test_doctor.py

# These work on a read-only database: they only read, or have nothing to do.
READING = {
    "export",
    "list orders",
    "export personal data",
    "verify",
    "list",
    "list webhooks",
    "import",
    "expire",
    "resume",
    "prune",
}

UPGRADE = ("db", "upgrade", "--directory", MIGRATIONS)
each_command = pytest.mark.parametrize("name", COMMANDS)


def leaves(group: click.Group, *words: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield from leaves(command, *words, name) if isinstance(command, click.Group) else [(*words, name)]


def test_every_command_is_tested(app: Flask) -> None:
    own = {words for words in leaves(app.cli) if words[0] != flask_migrate.cli.db.name}
    tested = [*COMMANDS.values(), *(tuple(name.split()) for name in WITHOUT_DATABASE | UNTIL_STOPPED | OTHERS)]

    assert [words for words in own if not any(args[: len(words)] == words for args in tested)] == []


@on_sqlite
def test_the_help_of_a_group_has_the_whole_summary_of_each_command(app: Flask) -> None:
    groups = [name for name, command in app.cli.commands.items() if isinstance(command, click.Group)]
    for words in ([], *([name] for name in groups if name != flask_migrate.cli.db.name)):
        help_text = app.test_cli_runner().invoke(args=[*words, "--help"]).stdout
        assert "..." not in help_text.partition("Commands:")[2], words


def invoke(database_url: str, *command: str) -> Result:
    """Run a command in this process, on another database than that of the tests."""
    app = create_app({"DATABASE_URL": database_url, "AUTH": "required"})
    try:
        return app.test_cli_runner().invoke(args=command)
    finally:
        with app.app_context():
            db.engine.dispose()


def failed_in_one_line(result: Result) -> bool:
    [line] = result.stderr.splitlines()
    return isinstance(result.exception, SystemExit) and result.exit_code == 1 and line.startswith("Error: ")


@pytest.fixture(scope="module")
def unmigrated_url(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    if database_url.startswith("sqlite"):
        return f"sqlite:///{tmp_path_factory.mktemp('unmigrated')}/orders.db"
    return new_database(database_url, "unmigrated")


@each_command
def test_a_command_on_an_unmigrated_database_names_the_migration_command(unmigrated_url: str, name: str) -> None:
    result = invoke(unmigrated_url, *COMMANDS[name])

    assert failed_in_one_line(result), result.output
    assert "run `flask db upgrade`" in result.stderr


@pytest.fixture(scope="module")
def newer_url(unmigrated_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database that a later release has migrated."""
    statements = (
        "CREATE TABLE alembic_version (version_num VARCHAR(32))",
        "INSERT INTO alembic_version VALUES ('9999')",
    )
    if unmigrated_url.startswith("sqlite"):
        file = tmp_path_factory.mktemp("newer") / "orders.db"
        with closing(sqlite3.connect(file, isolation_level=None)) as sqlite:
            for statement in statements:
                sqlite.execute(statement)
        return f"sqlite:///{file}"
    url = new_database(unmigrated_url, "newer")
    with psycopg.connect(libpq_url(url), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
    return url


OLDER_CODE = "The database is at migration 9999, which this version of the service does not have: deploy the version"


@each_command
def test_a_command_on_the_database_of_a_newer_release_reports_the_older_code(newer_url: str, name: str) -> None:
    result = invoke(newer_url, *COMMANDS[name])

    assert failed_in_one_line(result), result.output
    assert OLDER_CODE in result.stderr and "run `flask db upgrade`" not in result.stderr


def test_an_upgrade_by_an_older_release_reports_the_older_code(newer_url: str) -> None:
    result = invoke(newer_url, *UPGRADE)

    assert failed_in_one_line(result), result.output
    assert OLDER_CODE in result.stderr and "in development, set up an empty database" in result.stderr


def test_a_start_of_an_older_release_reports_the_older_code(newer_url: str) -> None:
    app = create_app({"DATABASE_URL": newer_url, "AUTH": "required"})

    with app.app_context(), pytest.raises(StartupError, match=OLDER_CODE):
        check_before_serving(app)
    with app.app_context():
        db.engine.dispose()


ABSENT = ["sqlite:////nowhere/orders.db", "postgresql://shop:hunter2@127.0.0.1:1/orders"]


@each_command
@pytest.mark.parametrize("url", ABSENT, ids=["sqlite", "postgresql"])
def test_a_command_without_a_database_fails_with_one_line(url: str, name: str) -> None:
    result = invoke(url, *COMMANDS[name])

    assert failed_in_one_line(result), result.output
    assert "hunter2" not in result.output
    assert ("does its directory exist" in result.stderr) is url.startswith("sqlite")


@pytest.fixture(scope="module")
def read_only_url(app: Flask, database_url: str) -> Iterator[str]:
    if database_url.startswith("sqlite"):
        yield f"sqlite:///file:{make_url(database_url).database}?mode=ro&uri=true"
        return
    with psycopg.connect(libpq_url(database_url), autocommit=True) as connection:
        connection.execute("CREATE ROLE reader LOGIN")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
        yield make_url(database_url).set(username="reader").render_as_string(hide_password=False)
        connection.execute("DROP OWNED BY reader; DROP ROLE reader")


@each_command
def test_on_a_database_that_cannot_be_written_a_command_fails_in_one_line(read_only_url: str, name: str) -> None:
    result = invoke(read_only_url, *COMMANDS[name])

    if name in READING:
        assert result.exit_code == 0, result.output
    else:
        assert failed_in_one_line(result), result.output


@pytest.mark.parametrize("url", ABSENT, ids=["sqlite", "postgresql"])
def test_an_upgrade_without_a_database_fails_with_one_line(url: str) -> None:
    result = invoke(url, *UPGRADE)

    assert failed_in_one_line(result), result.output
    assert "hunter2" not in result.output


def test_an_upgrade_by_a_role_without_privileges_fails_with_one_line(unmigrated_url: str) -> None:
    if unmigrated_url.startswith("sqlite"):
        path = make_url(unmigrated_url).database
        Path(str(path)).touch()
        result = invoke(f"sqlite:///file:{path}?mode=ro&uri=true", *UPGRADE)
    else:
        with psycopg.connect(libpq_url(unmigrated_url), autocommit=True) as connection:
            connection.execute("CREATE ROLE stranger LOGIN")
            stranger = make_url(unmigrated_url).set(username="stranger").render_as_string(hide_password=False)
            result = invoke(stranger, *UPGRADE)
            connection.execute("DROP ROLE stranger")

    assert failed_in_one_line(result), result.output


def ended_in_one_line(ended: Any) -> bool:
    return ended.returncode == 1 and ended.stderr.startswith("Error: ") and ended.stderr.count("\n") == 1


FLASK_WITHOUT_PAUSES = ("-m", "flask", "--app", "tests.support.short_requests")


@pytest.mark.parametrize("words", [("db", "upgrade"), COMMANDS["seed"]], ids=["upgrade", "seed"])
def test_where_the_database_cannot_grow_a_command_fails_in_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    url = f"sqlite:///{tmp_path}/orders.db"
    if "seed" in words:
        migrated(url)

    ended = run_python(*FLASK_WITHOUT_PAUSES, *words, DATABASE_URL=url, file_size=40_000)

    assert ended_in_one_line(ended), ended.stderr


@on_sqlite
@pytest.mark.parametrize("name", ["export", "verify", "list"])
def test_where_the_output_cannot_be_written_a_command_fails_in_one_line(
    app: Flask, database_url: str, client: FlaskClient, name: str
) -> None:
    client.post("/orders", json={"customer_id": "c-1", "items": [{"item_id": "sku-1", "quantity": 1}]})
    api_key(app, "orders:read")

    with open("/dev/full", "w") as full:
        ended = run_python(*FLASK, *COMMANDS[name], stdout=full.fileno(), DATABASE_URL=database_url)

    assert ended_in_one_line(ended), ended.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("privacy", "erase", "\udcff"),
        ("privacy", "export", "\udcff"),
        ("api-keys", "revoke", "\udcff"),
        ("orders", "get", "\udcff"),
        ("orders", "find", "\udcff"),
        ("orders", "list", "--customer-id", "\udcff"),
    ],
    ids=" ".join,
)
def test_an_argument_that_is_not_utf_8_fails_in_one_line(app: Flask, database_url: str, words: tuple[str, ...]) -> None:
    result = invoke(database_url, *words)

    assert failed_in_one_line(result), result.output


def test_a_version_that_no_order_can_have_is_a_usage_error(app: Flask, database_url: str) -> None:
    result = invoke(database_url, "orders", "get", "261128-7QK4MZ8D", "--version", "9" * 20)

    assert (result.exit_code, "Invalid value for '--version'" in result.stderr) == (2, True), result.output


def test_ages_before_1970_are_refused(app: Flask, database_url: str) -> None:
    result = invoke(database_url, "events", "prune", "--older-than", "36500d")

    assert (result.exit_code, result.stdout) == (
        0,
        "0 entries of the feed removed.\n0 deliveries of webhooks removed.\n",
    )


@on_sqlite
def test_an_api_key_that_cannot_be_shown_is_revoked(app: Flask, database_url: str) -> None:
    with open("/dev/full", "w") as full:
        ended = run_python(*FLASK, *COMMANDS["create"], stdout=full.fileno(), DATABASE_URL=database_url)
    [key] = app.test_cli_runner().invoke(args=["api-keys", "list"]).stdout.splitlines()

    assert (ended.returncode, ended.stderr.splitlines()[-1].startswith("Error: ")) == (1, True), ended.stderr
    assert " revoked " in key
