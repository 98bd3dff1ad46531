"""What happens after a database failure: broken connections are discarded, and safe work is repeated. The one retry."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from app.db.errors import DATABASE_ERRORS, is_connection_unusable, is_transient

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
