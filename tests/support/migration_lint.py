"""`python -m tests.support.migration_lint` checks the SQL of each migration on PostgreSQL with squawk.

A migration must neither block requests nor break the code that runs meanwhile. What a contracting migration removes
is for squawk to ignore if it says which code works without it, in `schema_compatibility`.
"""

import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import flask_migrate
from alembic.script import ScriptDirectory

from app import create_app
from tests.support.databases import MIGRATIONS

SQUAWK = Path(sys.executable).parent / "squawk"
NOT_CHECKED = [
    "prefer-text-field",  # the columns have the limits of the API
    "prefer-bigint-over-int",  # of versions, lines and quantities, which have limits
]
CONTRACTING = ["ban-drop-column", "ban-drop-table", "renaming-column", "renaming-table"]
COMPATIBILITY = "UPDATE schema_compatibility SET oldest_code"


def main() -> int:
    return max(lint(revision, sql) for revision, sql in migrations())


def migrations() -> Iterator[tuple[str, str]]:
    """Each migration in order, with its SQL. No database is needed."""
    app = create_app({"DATABASE_URL": "postgresql://nowhere/orders", "AUTH": "off"})
    for script in reversed(list(ScriptDirectory(MIGRATIONS).walk_revisions())):
        with app.app_context(), redirect_stdout(io.StringIO()) as output:
            revisions = f"{script.down_revision or 'base'}:{script.revision}"
            flask_migrate.upgrade(directory=MIGRATIONS, revision=revisions, sql=True)
        yield script.revision, output.getvalue()


def lint(revision: str, sql: str) -> int:
    """Print squawk's warnings about the SQL. Returns its exit status."""
    excluded = NOT_CHECKED + (CONTRACTING if COMPATIBILITY in sql else [])
    command = [str(SQUAWK), "--reporter=gcc", "--pg-version=15", f"--stdin-filepath={revision}.sql"]
    squawk = subprocess.run([*command, f"--exclude={','.join(excluded)}"], input=sql, stdout=subprocess.PIPE, text=True)
    print(squawk.stdout, end="")
    return squawk.returncode


if __name__ == "__main__":
    sys.exit(main())
