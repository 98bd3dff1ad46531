"""Shared by the commands: durations, progress bars, and errors in one line."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any, Protocol

import click

from app.config import StartupError
from app.db.errors import DATABASE_ERRORS
from app.db.revision import require_migrated


class Age(click.ParamType[timedelta]):
    """A parameter in days, hours or minutes: 30d, 12h, 45m."""

    name = "age"
    _UNITS = {"d": "days", "h": "hours", "m": "minutes"}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """The duration. Fails with a usage error."""
        match = re.fullmatch(r"(\d{1,6})([dhm])", str(value), re.ASCII)
        if match is None:
            self.fail(f"{value!r} is not a duration in days, hours or minutes, such as 30d, 12h or 45m.", param, ctx)
        return timedelta(**{self._UNITS[match[2]]: int(match[1])})


class ProgressBar(Protocol):
    """The used members of click's progress bar, whose class is private."""

    pos: int  # steps so far

    def update(self, n_steps: int) -> None:
        """Move the bar forward."""


@contextmanager
def progress_bar(label: str, *, length: int | None) -> Iterator[ProgressBar]:
    """A progress bar on standard error, shown on a terminal only. `length` is None if it is not known."""
    unknown = length is None
    bar = click.progressbar(
        count() if unknown else None,
        length=length,
        label=label,
        show_pos=unknown,
        file=sys.stderr,
        hidden=not sys.stderr.isatty(),
    )
    with bar:
        yield bar


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Report an error of the database or of a file in one line, with exit status 1."""
    try:
        yield
    except StartupError as error:
        raise click.ClickException(str(error)) from None
    except DATABASE_ERRORS as error:
        reason = _first_line(error)
        raise click.ClickException(f"Database error. Run the same command again to continue. {reason}") from None
    except OSError as error:
        raise click.ClickException(f"File error: {_first_line(error)}") from None


@contextmanager
def migrated_database() -> Iterator[None]:
    """Require a database with the newest schema, and report errors as `errors_in_one_line` does."""
    with errors_in_one_line():
        require_migrated()
        yield


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
