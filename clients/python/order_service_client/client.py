"""Two clients that send requests: `Client`, and `AsyncClient` for asyncio and Trio."""

import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

import anyio
import httpx2

from order_service_client.core import EventStream, Request, Series
from order_service_client.problems import NoResponseError, ProblemError, problem_error

T = TypeVar("T")
Token = str | Callable[[], str] | None  # an API key or a customer's token, or a function that returns one
_UNPROCESSED = {408, 429}  # the service did nothing
_TRANSIENT = {*_UNPROCESSED, 502, 503, 504}
_DELETED = "webhook-not-found"  # nothing else is deleted by a DELETE without a key
_SILENCE = 45.0  # seconds without a byte of an event stream: three heartbeats of the service


@dataclass(frozen=True)
class RetryPolicy:
    """How often and when a request is sent again. All times are seconds.

    The n-th pause is a random time up to `base_delay` · 2ⁿ⁻¹ ("full jitter"), never more than `max_delay`; a response
    whose `Retry-After` is longer is final. `timeout` is the time without a byte after which an attempt has failed.
    """

    attempts: int = 6
    base_delay: float = 0.2
    max_delay: float = 20.0
    timeout: float = 30.0


class _Exchange(Generic[T]):
    """The requests that return a series, and what their responses mean: all but sending, receiving and waiting."""

    def __init__(self, series: Series[T], policy: RetryPolicy, token: Token) -> None:
        self.series, self.goes_on, self._policy, self._token = series, True, policy, token
        self._attempt, self._content = 1, b""
        self._may_be_done = False  # an attempt without a response may have had its effect

    def message(self) -> dict[str, Any]:
        """Return the next request as arguments for httpx. Raises what the token function raises."""
        self._content, request = b"", self.series
        token = self._token() if callable(self._token) else self._token
        authorization = {"Authorization": f"Bearer {token}"} if token else {}
        message = {"method": request.method, "url": request.path, "params": request.query, "json": request.body}
        timeout = _SILENCE if isinstance(request, EventStream) else self._policy.timeout
        return message | {"headers": {"Accept": request.accept, **authorization, **request.headers}, "timeout": timeout}

    def read(self, response: httpx2.Response, part: bytes | httpx2.ServerSentEvent) -> Iterator[T]:
        """Read a part of a body, and return the items that it completes."""
        if isinstance(part, httpx2.ServerSentEvent):
            if part.retry is not None:
                self._policy = replace(self._policy, base_delay=part.retry / 1000)
            if part.data:
                yield from self._items(response, part.data)
            self.series = self.series.at(part.id) if part.id else self.series
            return
        self._content += part
        if response.is_success:  # the service's JSON documents have no line breaks
            *lines, self._content = self._content.split(b"\n")
            for line in lines:
                yield from self._items(response, line)

    def end(self, response: httpx2.Response) -> Iterator[T]:
        """Return the items of the last line. Raises ProblemError."""
        if not response.is_success:
            self._raise_unless_deleted(problem_error(response, self._content))
        if response.is_success and self._content:
            yield from self._items(response, self._content)
        elif not isinstance(self.series, EventStream):  # an export, or a response without a document
            self.goes_on = False
            yield from self.series.items(None) if self.series.method == "DELETE" else ()

    def _raise_unless_deleted(self, error: ProblemError) -> None:
        """An attempt without a response may have deleted what is not found now."""
        if not (self._may_be_done and self.series.method == "DELETE" and error.slug == _DELETED):
            raise error

    def _items(self, response: httpx2.Response, line: str | bytes) -> Iterator[T]:
        document = json.loads(line)
        yield from self.series.items(document)
        rest = self.series.rest(document, has_link="next" in response.links)
        self.series, self.goes_on, self._attempt = rest or self.series, rest is not None, 1

    def pause(self, error: ProblemError | httpx2.TransportError | None = None) -> float:
        """Return the seconds until the next request. Raises ProblemError or NoResponseError if there is none."""
        attempt, policy, is_endless = self._attempt, self._policy, isinstance(self.series, EventStream)
        if error is None and not is_endless:
            return 0.0
        self._attempt += 1
        self._may_be_done = self._may_be_done or not isinstance(error, ProblemError)
        if error and (not self._may_help(error) or (attempt >= policy.attempts and not is_endless)):
            if isinstance(error, ProblemError):
                raise error
            raise NoResponseError(f"No response after {attempt} attempts: {error!r}") from error
        jitter = random.uniform(0, min(policy.max_delay, policy.base_delay * 2 ** min(attempt - 1, 16)))  # nosec B311
        return min(policy.max_delay, (getattr(error, "retry_after", None) or 0.0) + jitter)

    def _may_help(self, error: ProblemError | httpx2.TransportError) -> bool:
        """Whether another attempt is safe, and may succeed."""
        if not isinstance(error, ProblemError):
            return self.series.may_repeat
        is_transient = error.status in _TRANSIENT or (error.status == 409 and error.retry_after is not None)
        is_safe = self.series.may_repeat or error.status in _UNPROCESSED
        return is_transient and is_safe and (error.retry_after or 0) <= self._policy.max_delay


def _events(response: httpx2.Response) -> httpx2.EventSource | None:
    is_stream = response.headers.get("Content-Type", "").startswith(EventStream.accept)
    return httpx2.EventSource(response, max_event_size=None) if is_stream else None


class Client:
    """Sends requests. `token`: an API key or a customer's token, or a function that returns one for each attempt."""

    def __init__(self, base_url: str, *, token: Token = None, retry: RetryPolicy = RetryPolicy()) -> None:
        self._http, self._policy, self._token = httpx2.Client(base_url=base_url), retry, token

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def send(self, request: Request[T]) -> T:
        """Send a request, again if that is safe, and return its document. Raises ProblemError, NoResponseError."""
        [document] = self.iterate(request)
        return document

    def iterate(self, series: Series[T]) -> Iterator[T]:
        """Iterate over a list page by page, an export or an event stream. Raises what `send` raises."""
        exchange = _Exchange(series, self._policy, self._token)
        while exchange.goes_on:
            message = exchange.message()
            try:
                with self._http.stream(**message) as response:
                    for part in _events(response) or response.iter_bytes():
                        yield from exchange.read(response, part)
                yield from exchange.end(response)
                pause = exchange.pause()
            except (httpx2.TransportError, ProblemError) as error:
                pause = exchange.pause(error)
            time.sleep(pause)


class AsyncClient:
    """The same as `Client`, with `await`, `async with` and `async for`."""

    def __init__(self, base_url: str, *, token: Token = None, retry: RetryPolicy = RetryPolicy()) -> None:
        self._http, self._policy, self._token = httpx2.AsyncClient(base_url=base_url), retry, token

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def send(self, request: Request[T]) -> T:
        [document] = [document async for document in self.iterate(request)]
        return document

    async def iterate(self, series: Series[T]) -> AsyncIterator[T]:
        exchange = _Exchange(series, self._policy, self._token)
        while exchange.goes_on:
            message = exchange.message()
            try:
                async with self._http.stream(**message) as response:
                    async for part in _events(response) or response.aiter_bytes():
                        for item in exchange.read(response, part):
                            yield item
                for item in exchange.end(response):
                    yield item
                pause = exchange.pause()
            except (httpx2.TransportError, ProblemError) as error:
                pause = exchange.pause(error)
            await anyio.sleep(pause)
