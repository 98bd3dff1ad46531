"""How a gevent worker waits for PostgreSQL."""

from typing import Any, TypeVar

import gevent
from gevent.socket import wait_read, wait_readwrite, wait_write
from psycopg.abc import PQGen
from psycopg.errors import ConnectionTimeout
from psycopg.pq import PipelineStatus
from psycopg.waiting import Wait

from app.db.bounded_connection import BoundedConnection

Result = TypeVar("Result")

_CONNECT_WITHIN = 5.0  # seconds for all hosts of a URL together, and for their names to be resolved
_WAITS = {Wait.R: wait_read, Wait.W: wait_write, Wait.RW: wait_readwrite}


class GreenConnection(BoundedConnection):
    """Waits in gevent's own loop.

    The driver asks gevent's imitation of poll(), which makes an event and a timer each time: of the 100 µs of a short
    statement these are 50.
    """

    def wait(self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None) -> Result:
        """Go through the driver's steps; each says for what it waits, and is told that it came."""
        if timeout is not None or self.pgconn.pipeline_status != PipelineStatus.OFF:  # where more is to be told
            return super().wait(gen, interval, timeout)
        try:
            wanted = next(gen)
            while True:
                _WAITS[wanted](self.pgconn.socket, self.answer_within)
                wanted = gen.send(wanted)  # Wait and Ready are the same bits
        except StopIteration as end:
            result: Result = end.value
            return result
        except TimeoutError:
            raise ConnectionTimeout(f"The database has not answered within {self.answer_within} seconds.") from None


def connect(*arguments: Any, **named: Any) -> GreenConnection:
    """A new connection. Raises ConnectionTimeout where there is none within 5 seconds, whatever takes so long."""
    with gevent.Timeout(_CONNECT_WITHIN, ConnectionTimeout("No connection within 5 seconds.")):
        return GreenConnection.connect(*arguments, **named)
