"""Transactions of many statements: changes of many orders at once, and reads that take their time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Executable, Row, text
from sqlalchemy.orm import Session

from app.db.bounded_connection import BoundedConnection
from app.db.engine import db
from app.db.errors import is_lost_connection
from app.db.retry import with_retry

Result = TypeVar("Result")


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
def consistent_read(*, seconds: int | None = None) -> Iterator[Session]:
    """A session that reads everything as it is now, and keeps nobody from writing.

    A statement may take so many `seconds`, or the time it needs.
    """
    with Session(db.engine.execution_options(read_only=True)) as session:
        driver = session.connection().connection.dbapi_connection
        if not isinstance(driver, BoundedConnection):
            yield session
            return
        # The limits of a request are not meant for a look at every order.
        session.execute(text(f"SET LOCAL statement_timeout = {1000 * (seconds or 0)}"))
        usual, driver.answer_within = driver.answer_within, None if seconds is None else seconds + 1
        try:
            yield session
        finally:
            driver.answer_within = usual
