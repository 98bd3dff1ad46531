"""A PostgreSQL connection that does not wait without end."""

from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

Result = TypeVar("Result")

ANSWER_WITHIN = 4.0  # seconds: one more than the statement timeout, by which a server that works has ended a statement


class BoundedConnection(psycopg.Connection[Any]):
    """Gives a server up that does not answer: one that is stopped, or whose network lost it without a word.

    `answer_within` is the limit in seconds, longer where the operator allows a statement more time; None, for
    statements that may take any time, is no limit. Beyond it the driver's OperationalError is raised, and the
    connection is of no further use.
    """

    answer_within: float | None = ANSWER_WITHIN

    def wait(self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None) -> Result:
        """Go through the driver's steps, each of which may wait for the server."""
        return super().wait(gen, interval, self.answer_within if timeout is None else timeout)
