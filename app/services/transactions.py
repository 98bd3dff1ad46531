"""The one place where a request's changes are committed."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from app.extensions import db
from app.models.faults import FAULTS, is_transient

Result = TypeVar("Result")

_RETRIES = 2
_LONGEST_PAUSE = 0.05  # seconds, before the first retry


def in_transaction(work: Callable[[], Result]) -> Result:
    """Do the work in one transaction, all of it or none.

    It is begun again when the database broke it off before the commit, since then nothing is stored. A commit that
    broke off is not: nobody knows whether it was carried out, and the caller's idempotency key is there to find out.
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
            time.sleep(random.uniform(0, _LONGEST_PAUSE) * 2**attempt)
    raise AssertionError("the last attempt returns or raises")
