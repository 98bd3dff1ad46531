"""The bar that shows how far a command has come."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import click
from click._termui_impl import ProgressBar


@contextmanager
def progress_bar(label: str, *, length: int | None) -> Iterator[ProgressBar[Any]]:
    """A progress bar on standard error; None for a length that nobody knows. It is there for people only: what is
    written to a file or a log stays clean of it."""
    unknown = length is None
    bar: ProgressBar[Any] = click.progressbar(
        count() if unknown else None,
        length=length,
        label=label,
        show_pos=unknown,
        file=sys.stderr,
        hidden=not sys.stderr.isatty(),
    )
    with bar:
        yield bar
