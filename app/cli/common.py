"""Shared by the commands: durations, progress, and errors in one line."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Protocol

import click

from app.config import StartupError, parse_age
from app.db.errors import DATABASE_ERRORS, MISSING_FILE, is_missing_file
from app.db.revision import require_migrated
from app.models.order_id import EPOCH

PROGRESS_INTERVAL = 30.0  # seconds


class Age(click.ParamType[timedelta]):
    """A parameter in days, hours or minutes: 30d, 12h, 45m."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """The duration. Fails with a usage error."""
        try:
            return parse_age(str(value))
        except ValueError as error:
            self.fail(f"{value!r} is not {error}.", param, ctx)


class Since(click.ParamType[datetime]):
    """A parameter that is a time, 2026-11-28T02:00:00Z, or becomes one: 30d is the time 30 days ago."""

    name = "since"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The aware time, not before 1970. Fails with a usage error."""
        try:
            text = str(value)
            moment = datetime.fromisoformat(text) if "T" in text else datetime.now(UTC) - parse_age(text)
            return max(moment, EPOCH)
        except (ValueError, TypeError, OverflowError):  # TypeError: the offset from UTC is missing
            expected = "a duration such as 30d or 12h, or a time with its offset from UTC: 2026-11-28T02:00:00Z"
            self.fail(f"{value!r} is not {expected}.", param, ctx)


class ProgressBar(Protocol):
    """The used members of click's progress bar, whose class is private."""

    pos: int  # steps so far

    def update(self, n_steps: int) -> None:
        """Move the bar forward."""


class ProgressLines:
    """Progress where there is no terminal: a line on standard error every PROGRESS_INTERVAL seconds."""

    def __init__(self, label: str, *, length: int | None) -> None:
        self.pos = 0
        self._label, self._length = label, length
        self._started = self._reported = time.monotonic()

    def update(self, n_steps: int) -> None:
        """Count the steps, and write a line if it is time for one."""
        self.pos += n_steps
        now = time.monotonic()
        if now - self._reported >= PROGRESS_INTERVAL:
            self._reported = now
            click.echo(f"{self._label}: {self._state(now - self._started)}", err=True)

    def _state(self, seconds: float) -> str:
        if not self._length or not self.pos:
            return f"{self.pos:,}"
        left = timedelta(seconds=round(seconds * max(self._length - self.pos, 0) / self.pos))
        return f"{self.pos / self._length:.0%}, about {left} left"


@contextmanager
def progress_bar(label: str, *, length: int | None) -> Iterator[ProgressBar]:
    """A progress bar on standard error with the time left, or ProgressLines where that is no terminal.

    `length` is None if it is not known.
    """
    if not sys.stderr.isatty():
        yield ProgressLines(label, length=length)
        return
    unknown = length is None
    steps = count() if unknown else None
    with click.progressbar(steps, length=length, label=label, show_pos=unknown, file=sys.stderr) as bar:
        yield bar


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Report an error of the database, of a file or of an argument's encoding in one line, with exit status 1."""
    try:
        yield
    except StartupError as error:
        raise click.ClickException(str(error)) from None
    except DATABASE_ERRORS as error:
        raise database_failure(error) from None
    except UnicodeEncodeError:
        raise click.ClickException("An argument is not in UTF-8.") from None
    except OSError as error:
        # Python would try to write the rest again when it ends, and report that too.
        with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise click.ClickException(f"File error: {_first_line(error)}") from None


def database_failure(error: BaseException) -> click.ClickException:
    """The report of a database error, in one line."""
    if is_missing_file(error):
        return click.ClickException(MISSING_FILE)
    reason = _first_line(error)
    return click.ClickException(f"Database error. Run the same command again to continue. {reason}")


@contextmanager
def migrated_database() -> Iterator[None]:
    """Require a database with the newest schema, and report errors as `errors_in_one_line` does."""
    with errors_in_one_line():
        require_migrated()
        yield


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
