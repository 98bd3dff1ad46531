"""Transactions, and the one retry of what the database interrupts."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Engine, Executable, Row, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.orm import Session

from app.db.connection import BoundedConnection
from app.db.engine import db
from app.db.errors import DATABASE_ERRORS, is_connection_unusable, is_lost_connection, is_transient

Result = TypeVar("Result")

_RETRIES = 2
_BACKOFF = 0.05  # seconds before the first retry, at most; the jitter separates the transactions of one deadlock
# An attempt that took longer is not repeated. PostgreSQL detects a deadlock after 1 s. An unresponsive server is given
# up after 2 s or more, and a second wait for it would exceed the 10 s in which every request is answered.
_RETRY_WITHIN = 1.8  # seconds


def _always(_error: BaseException) -> bool:
    return True


def with_retry(work: Callable[[], Result], *, is_repeatable: Callable[[BaseException], bool] = _always) -> Result:
    """Run `work`, and run it again after a transient error: a lost connection, a deadlock, a read-only server.

    After a lost connection it is unknown whether a statement was executed. `is_repeatable` decides for an error whether
    the work may run twice, as every read may. Raises the error of the last attempt.
    """
    for attempt in range(_RETRIES):
        started = time.monotonic()
        try:
            return work()
        except DATABASE_ERRORS as error:
            too_late = time.monotonic() - started > _RETRY_WITHIN
            if too_late or not is_transient(error) or not is_repeatable(error):
                raise
        time.sleep(random.uniform(0, _BACKOFF) * 2**attempt)  # nosec B311
    return work()


@event.listens_for(Engine, "handle_error")
def _invalidate_connections(context: ExceptionContext) -> None:
    # SQLAlchemy then discards this connection and all that the pool opened before: the same failure has ended them too,
    # and after a failover none of them leads to the new primary.
    if is_connection_unusable(context.original_exception):
        context.is_disconnect = True


def in_transaction(work: Callable[[], Result]) -> Result:
    """Run `work` in one transaction of `db.session`, and commit it.

    A transaction that the database aborts is repeated. A COMMIT whose connection is lost is not: it is unknown whether
    it was executed, and the caller must find out.
    """
    committing = False

    def attempt() -> Result:
        nonlocal committing
        committing = False
        with db.session.begin():
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
    limit, is for commands only: they wait for an unresponsive server without end.
    """
    with Session(db.engine.execution_options(read_only=True)) as session:
        connection = session.connection().connection.dbapi_connection
        if not isinstance(connection, BoundedConnection):
            yield session
            return
        session.execute(text(f"SET LOCAL statement_timeout = {1000 * (statement_timeout or 0)}"))
        usual = connection.response_timeout
        connection.response_timeout = None if statement_timeout is None else statement_timeout + 1
        try:
            yield session
        finally:
            connection.response_timeout = usual
