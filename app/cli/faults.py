"""What a command says when the database or a file is not as it needs it."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from app.config import StartupError
from app.db.errors import DATABASE_ERRORS
from app.db.revision import require_migrated


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn an error of the database or of a file into a single line and exit status 1."""
    try:
        yield
    except StartupError as error:
        raise click.ClickException(str(error)) from None
    except DATABASE_ERRORS as error:
        reason = _first_line(error)
        raise click.ClickException(f"The database failed; the same command goes on where it was. {reason}") from None
    except OSError as error:
        raise click.ClickException(f"A file failed: {_first_line(error)}") from None


@contextmanager
def faults_in_one_line() -> Iterator[None]:
    """Require the newest schema, then as `errors_in_one_line`."""
    with errors_in_one_line():
        require_migrated()
        yield


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
