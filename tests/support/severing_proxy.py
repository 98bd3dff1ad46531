"""A TCP proxy that severs connections at random points in requests and responses."""

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Queue

# Bytes after which a connection is severed: somewhere in its first requests or responses.
REQUEST_BYTES, RESPONSE_BYTES = 1_500, 6_000
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: the connection ends with RST


class SeveringProxy:
    """Forwards connections to a port of this machine, and severs each until `cuts` are done.

    A third is severed in a request, a third in a response, and a third when the first byte of a response has arrived:
    the service has executed the request, but the client does not know. Half of the connections are closed normally.

    With `answering`, only the responses to requests that begin with these bytes are severed, at their first byte.
    """

    def __init__(self, target: int, *, cuts: int, answering: bytes = b"", seed: int = 0) -> None:
        self.target = target
        self.answering = answering
        self.remaining = cuts
        self.severed = 0
        self.port = 0
        self._silenced = 0
        self._random = random.Random(seed)

    def silence(self) -> None:
        """Stop forwarding on the open connections, but keep them open: neither end notices."""
        self._silenced += 1

    async def serve(self, started: "Queue[Callable[[], object]]") -> None:
        """Listen on `port`, until the function that `started` gets is called from another thread."""
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.put(lambda: loop.call_soon_threadsafe(stopped.set))
        await stopped.wait()
        server.close()

    async def _connected(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        limits = self._limits() if self.remaining > 0 and not self.answering else {}
        writers = [to_client]
        try:
            service, to_service = await asyncio.open_connection("127.0.0.1", self.target)
            writers.append(to_service)
            await asyncio.gather(
                self._forward(client, to_service, "request", limits, writers),
                self._forward(service, to_client, "response", limits, writers),
            )
        except OSError:
            pass  # one end has reset the connection
        finally:
            for writer in writers:
                writer.close()

    def _limits(self) -> dict[str, int]:
        """The number of bytes of the requests, or of the responses, after which a connection is severed."""
        match self._random.randrange(3):
            case 0:
                return {"request": self._random.randrange(REQUEST_BYTES)}
            case 1:
                return {"response": self._random.randrange(RESPONSE_BYTES)}
            case _:
                return {"response": 0}

    async def _forward(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        direction: str,
        limits: dict[str, int],
        writers: list[asyncio.StreamWriter],
    ) -> None:
        silenced = self._silenced
        while data := await source.read(65_536):
            if self._silenced > silenced:
                continue
            if self.answering and self.remaining > 0 and direction == "request" and data.startswith(self.answering):
                limits["response"] = 0
            if direction in limits:
                if len(data) > limits[direction]:
                    target.write(data[: limits[direction]])
                    self._sever(writers)
                    return
                limits[direction] -= len(data)
            target.write(data)
            await target.drain()
        target.close()

    def _sever(self, writers: list[asyncio.StreamWriter]) -> None:
        self.severed += 1
        self.remaining -= 1
        for writer in writers:
            if self._random.random() < 0.5:
                connection: socket.socket = writer.get_extra_info("socket")
                with suppress(OSError):  # it is closed already
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()
            else:
                writer.close()


@contextmanager
def severing_proxy(target: int, *, cuts: int, answering: bytes = b"") -> Iterator[SeveringProxy]:
    """A proxy in front of a port, until the block ends."""
    proxy, started = SeveringProxy(target, cuts=cuts, answering=answering), Queue[Callable[[], object]]()
    thread = threading.Thread(target=lambda: asyncio.run(proxy.serve(started)))
    thread.start()
    stop = started.get()
    try:
        yield proxy
    finally:
        stop()
        thread.join()
