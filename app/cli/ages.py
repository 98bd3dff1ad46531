"""Lengths of time on the command line."""

import re
from datetime import timedelta
from typing import Any

import click


class Age(click.ParamType[timedelta]):
    """A number of days, hours or minutes: 30d, 12h, 45m."""

    name = "age"
    _UNITS = {"d": "days", "h": "hours", "m": "minutes"}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it, or fail with what is expected."""
        match = re.fullmatch(r"(\d{1,6})([dhm])", str(value), re.ASCII)
        if match is None:
            self.fail(f"{value!r} is not an age; write 30d, 12h or 45m.", param, ctx)
        return timedelta(**{self._UNITS[match[2]]: int(match[1])})
