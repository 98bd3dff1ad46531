"""Transactions of several statements, and reads of one consistent state."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Executable, Row, text
from sqlalchemy.orm import Session

from app.db.connection import BoundedConnection
from app.db.engine import db
from app.db.errors import is_lost_connection
from app.db.statement import with_retry
from app.tracing import span

Result = TypeVar("Result")


def in_transaction(work: Callable[[], Result]) -> Result:
    """Run `work` in one transaction of `db.session`, and commit it.

    A transaction that the database aborts is repeated. A COMMIT whose connection is lost is not: it is unknown whether
    it was executed, and the caller must check.
    """
    committing = False

    def attempt() -> Result:
        nonlocal committing
        committing = False
        with span("transaction"), db.session.begin():
            result = work()
            db.session.flush()  # so that only the COMMIT itself remains
            committing = True
        return result

    return with_retry(attempt, is_repeatable=lambda error: not (committing and is_lost_connection(error)))


def read_rows(query: Executable) -> Sequence[Row[Any]]:
    """The rows of a query, read in a read-only transaction of its own, with the time limits of a request.

    It waits for no writer's lock. It ends with COMMIT: after a ROLLBACK psycopg forgets the prepared statements of the
    connection.
    """

    def read() -> Sequence[Row[Any]]:
        with db.engine.execution_options(read_only=True).begin() as connection:
            return connection.execute(query).all()

    return with_retry(read)


@contextmanager
def consistent_read(*, statement_timeout: int | None) -> Iterator[Session]:
    """A read-only session that sees one snapshot of the database. It takes no lock that a writer waits for.

    `statement_timeout` is the limit of one statement in seconds, in place of the one that requests have. None, no
    limit, is for commands only: they wait for an unresponsive server indefinitely.
    """
    with Session(db.engine.execution_options(read_only=True)) as session:
        connection = session.connection().connection.dbapi_connection
        if not isinstance(connection, BoundedConnection):
            yield session
            return
        session.execute(text(f"SET LOCAL statement_timeout = {1000 * (statement_timeout or 0)}"))
        default_timeout = connection.response_timeout
        connection.response_timeout = None if statement_timeout is None else statement_timeout + 1
        try:
            yield session
        finally:
            connection.response_timeout = default_timeout
