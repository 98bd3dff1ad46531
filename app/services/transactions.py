"""Transactions of many statements: changes of many orders at once, and reads that take their time."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.extensions import db
from app.models.faults import FAULTS, is_transient

Result = TypeVar("Result")

_RETRIES = 2
_LONGEST_PAUSE = 0.05  # seconds, before the first retry


def in_transaction(work: Callable[[], Result]) -> Result:
    """Do the work in one transaction, all of it or none.

    It is begun again when the database broke it off before the commit, since then nothing is stored. A commit that
    broke off is not: nobody knows whether it was carried out, and the caller must find out.
    """
    for attempt in range(_RETRIES + 1):
        committing = False
        try:
            with db.session.begin():
                result = work()
                db.session.flush()  # so that only the COMMIT itself remains
                committing = True
            return result
        except FAULTS as error:
            if committing or attempt == _RETRIES or not is_transient(error):
                raise
            time.sleep(random.uniform(0, _LONGEST_PAUSE) * 2**attempt)  # jitter  # nosec B311
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def one_moment() -> Iterator[Session]:
    """A session that reads everything as it is now, takes the time it needs, and keeps nobody from writing."""
    with Session(db.engine.execution_options(read_only=True)) as session:
        if db.engine.dialect.name == "postgresql":  # the limits of a request are not meant for a look at every order
            session.execute(text("SET LOCAL statement_timeout = 0"))
        yield session
