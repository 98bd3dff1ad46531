"""What a command says when the database is not as it needs it."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from app.config import StartupError
from app.models.faults import FAULTS
from app.models.schema_state import require_migrated


@contextmanager
def faults_in_one_line() -> Iterator[None]:
    """Require the newest schema, and tell what fails in one line; exit status 1 then."""
    try:
        require_migrated()
        yield
    except StartupError as error:
        raise click.ClickException(str(error)) from None
    except FAULTS as error:
        reason = str(error).partition("\n")[0]
        raise click.ClickException(f"The database failed; the same command goes on where it was. {reason}") from None
