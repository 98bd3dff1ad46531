"""How a gevent worker waits for PostgreSQL."""

from typing import Any, TypeVar

import psycopg
from gevent.socket import wait_read, wait_readwrite, wait_write
from psycopg.abc import PQGen
from psycopg.pq import PipelineStatus
from psycopg.waiting import Wait

Result = TypeVar("Result")

_WAITS = {Wait.R: wait_read, Wait.W: wait_write, Wait.RW: wait_readwrite}


class GreenConnection(psycopg.Connection[Any]):
    """Waits in gevent's own loop.

    The driver asks gevent's imitation of poll(), which makes an event and a timer each time: of the 100 µs of a short
    statement these are 50. No limit is needed here: the server ends what takes too long, and the kernel a connection
    whose other end is gone (app.extensions).
    """

    def wait(self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None) -> Result:
        """Go through the driver's steps; each says for what it waits, and is told that it came."""
        if timeout is not None or self.pgconn.pipeline_status != PipelineStatus.OFF:  # where more is to be told
            return super().wait(gen, interval, timeout)
        try:
            wanted = next(gen)
            while True:
                _WAITS[wanted](self.pgconn.socket)
                wanted = gen.send(wanted)  # Wait and Ready are the same bits
        except StopIteration as end:
            result: Result = end.value
            return result
