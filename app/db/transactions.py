"""Transactions of many statements: changes of many orders at once, and reads that take their time."""

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

_REPEATS = 2
_LONGEST_PAUSE = 0.05  # seconds before the first repeat, at most; jitter keeps the victims of one deadlock apart
# Seconds an attempt may have taken. PostgreSQL finds a deadlock after 1; a server that does not answer is given up
# after 2 or more, and to wait for it twice would take too much of the 10 seconds in which a request is answered.
_REPEATED_WITHIN = 1.8


def _always(_error: BaseException) -> bool:
    return True


def with_retry(work: Callable[[], Result], *, is_repeatable: Callable[[BaseException], bool] = _always) -> Result:
    """Do the work, and do it again where the database broke it off: a lost connection, a deadlock, a read-only server.

    After a lost connection nobody knows whether a statement was carried out: `is_repeatable` tells for an error whether
    the work may then be done twice, as every read may. Raises the error of the last attempt.
    """
    for attempt in range(_REPEATS):
        started = time.monotonic()
        try:
            return work()
        except DATABASE_ERRORS as error:
            too_late = time.monotonic() - started > _REPEATED_WITHIN
            if too_late or not is_transient(error) or not is_repeatable(error):
                raise
        time.sleep(random.uniform(0, _LONGEST_PAUSE) * 2**attempt)  # jitter  # nosec B311
    return work()


@event.listens_for(Engine, "handle_error")
def _discard_connections(context: ExceptionContext) -> None:
    # SQLAlchemy then discards this connection, and every other that the pool opened before now: what ended one of them
    # ended them all, and after a failover none of them leads to the new primary.
    if is_connection_unusable(context.original_exception):
        context.is_disconnect = True


def in_transaction(work: Callable[[], Result]) -> Result:
    """Do the work in one transaction, all of it or none.

    It is begun again when the database broke it off before the commit, since then nothing is stored. A commit whose
    connection was lost is not: nobody knows whether it was carried out, and the caller must find out.
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
    """The rows of a query in a read-only transaction of its own, repeated where the connection was lost.

    It takes no lock that a writer could hold. Ended by a COMMIT: after a ROLLBACK the driver forgets every statement
    that the connection has prepared.
    """

    def read() -> Sequence[Row[Any]]:
        with db.engine.execution_options(read_only=True).begin() as connection:
            return connection.execute(query).all()

    return with_retry(read)


@contextmanager
def consistent_read(*, statement_timeout: int | None) -> Iterator[Session]:
    """A read-only session that sees one snapshot of the database. It takes no lock that a writer waits for.

    `statement_timeout` is the limit of one statement in seconds, in place of the one that requests have. None, no
    limit, is for commands only: a server that stops answering is then waited for without end.
    """
    with Session(db.engine.execution_options(read_only=True)) as session:
        driver = session.connection().connection.dbapi_connection
        if not isinstance(driver, BoundedConnection):
            yield session
            return
        session.execute(text(f"SET LOCAL statement_timeout = {1000 * (statement_timeout or 0)}"))
        usual = driver.answer_within
        driver.answer_within = None if statement_timeout is None else statement_timeout + 1
        try:
            yield session
        finally:
            driver.answer_within = usual
