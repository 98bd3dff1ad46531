"""Two clients that send requests: `Client`, and `AsyncClient` for asyncio and Trio."""

import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Generic, Self, TypedDict, TypeVar, Unpack

import anyio
import httpx2

from order_service_client.problems import NoResponseError, ProblemError, problem_error
from order_service_client.requests import Listing, Request, Stream

T = TypeVar("T")
Outcome = httpx2.Response | httpx2.TransportError
_UNPROCESSED = {408, 429}  # the service did nothing
_TRANSIENT = {*_UNPROCESSED, 502, 503, 504}
_SILENCE = 45.0  # seconds without a byte of a stream: three heartbeats of the service


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

    def jitter(self, attempt: int) -> float:
        return random.uniform(0, min(self.max_delay, self.base_delay * 2 ** (attempt - 1)))  # nosec B311

    def pause(self, request: Request[Any], attempt: int, outcome: Outcome) -> float | None:
        """Return the seconds until the next attempt, or None if this was the last one."""
        if attempt >= self.attempts:
            return None
        if not isinstance(outcome, httpx2.Response):
            return self.jitter(attempt) if request.may_repeat else None
        status, retry_after = outcome.status_code, _retry_after(outcome)
        transient = status in _TRANSIENT or (status == 409 and retry_after is not None)
        if not transient or not (request.may_repeat or status in _UNPROCESSED) or (retry_after or 0) > self.max_delay:
            return None
        return min(self.max_delay, (retry_after or 0) + self.jitter(attempt))


class ClientOptions(TypedDict, total=False):
    """`token`: an API key or a customer's token, or a function that returns one for each attempt."""

    token: str | Callable[[], str]
    retry: RetryPolicy


class _StreamState(Generic[T]):
    """Where a stream is: the request that goes on after the last event, and the pause before it."""

    def __init__(self, stream: Stream[T], policy: RetryPolicy) -> None:
        self._policy, self._delay, self._attempt, self.last_id = policy, policy.base_delay, 0, ""
        self.request = stream.request

    def headers(self) -> dict[str, str]:
        return {"Accept": "text/event-stream", **({"Last-Event-ID": self.last_id} if self.last_id else {})}

    def read(self, message: httpx2.ServerSentEvent) -> Iterator[T]:
        self._attempt = 0
        self.last_id = message.id or self.last_id
        self._delay = self._delay if message.retry is None else message.retry / 1000
        if message.data:
            event: Any = message.json()
            yield event

    def pause(self, error: Exception | None) -> float:
        """Return the seconds until the next connection. Raises the error if another attempt would not help."""
        if isinstance(error, ProblemError) and error.status not in _TRANSIENT and error.status < 500:
            raise error
        self._attempt += 1
        return random.uniform(0, min(self._policy.max_delay, self._delay * 2 ** min(self._attempt, 16)))  # nosec B311


class _Base:
    """What both clients share: everything but sending and waiting."""

    def __init__(self, base_url: str, **options: Unpack[ClientOptions]) -> None:
        self._base_url, self._token = base_url.rstrip("/"), options.get("token")
        self._policy = options.get("retry", RetryPolicy())

    def _message(self, request: Request[Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
        token = self._token() if callable(self._token) else self._token
        sent = {**request.headers, **(headers or {}), **({"Authorization": f"Bearer {token}"} if token else {})}
        query = {
            name: value if isinstance(value, str | int) else ",".join(value) for name, value in request.query.items()
        }
        body = {} if request.body is None else {"json": request.body}
        return {"method": request.method, "url": self._base_url + request.path, "params": query, "headers": sent} | body

    def _final(self, request: Request[Any], attempt: int, outcome: Outcome) -> httpx2.Response:
        """Return the response. Raises ProblemError and NoResponseError."""
        if not isinstance(outcome, httpx2.Response):
            raise NoResponseError(f"No response after {attempt} attempts: {outcome!r}") from outcome
        if outcome.is_error:
            raise problem_error(outcome, _retry_after(outcome))
        return outcome


def _document(response: httpx2.Response) -> Any:
    return response.json() if response.content else None


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds of `Retry-After`, which is a number or a date (RFC 9110 §10.2.3)."""
    text = response.headers.get("Retry-After", "")
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


class Client(_Base):
    """Sends requests, and waits for the responses."""

    def __init__(self, base_url: str, **options: Unpack[ClientOptions]) -> None:
        super().__init__(base_url, **options)
        self._http = httpx2.Client(timeout=self._policy.timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def send(self, request: Request[T]) -> T:
        """Send a request, again if that is safe, and return its document. Raises ProblemError, NoResponseError."""
        document: T = _document(self._send(request))
        return document

    def iterate(self, listing: Listing[T]) -> Iterator[T]:
        """Iterate over a list, page by page. Raises what `send` raises."""
        rest: Listing[T] | None = listing
        while rest:
            response = self._send(rest.request)
            page = response.json()
            yield from page[rest.member]
            rest = rest.next(page, has_link="next" in response.links)

    def stream(self, stream: Stream[T]) -> Iterator[T]:
        """Iterate over a stream, without end: it connects again and goes on. Raises ProblemError if it is refused."""
        state = _StreamState(stream, self._policy)
        while True:
            error: Exception | None = None
            try:
                message = self._message(state.request, state.headers())
                with self._http.stream(**message, timeout=_SILENCE) as response:
                    if response.is_error:
                        response.read()
                        raise problem_error(response, _retry_after(response))
                    for event in httpx2.EventSource(response, max_event_size=None):
                        yield from state.read(event)
            except (httpx2.TransportError, ProblemError) as raised:
                error = raised
            time.sleep(state.pause(error))

    def _send(self, request: Request[Any]) -> httpx2.Response:
        attempt = 1
        while True:
            try:
                outcome: Outcome = self._http.request(**self._message(request))
            except httpx2.TransportError as error:
                outcome = error
            pause = self._policy.pause(request, attempt, outcome)
            if pause is None:
                return self._final(request, attempt, outcome)
            time.sleep(pause)
            attempt += 1


class AsyncClient(_Base):
    """The same as `Client`, with `await`, `async with` and `async for`."""

    def __init__(self, base_url: str, **options: Unpack[ClientOptions]) -> None:
        super().__init__(base_url, **options)
        self._http = httpx2.AsyncClient(timeout=self._policy.timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def send(self, request: Request[T]) -> T:
        document: T = _document(await self._send(request))
        return document

    async def iterate(self, listing: Listing[T]) -> AsyncIterator[T]:
        rest: Listing[T] | None = listing
        while rest:
            response = await self._send(rest.request)
            page = response.json()
            for item in page[rest.member]:
                yield item
            rest = rest.next(page, has_link="next" in response.links)

    async def stream(self, stream: Stream[T]) -> AsyncIterator[T]:
        state = _StreamState(stream, self._policy)
        while True:
            error: Exception | None = None
            try:
                message = self._message(state.request, state.headers())
                async with self._http.stream(**message, timeout=_SILENCE) as response:
                    if response.is_error:
                        await response.aread()
                        raise problem_error(response, _retry_after(response))
                    async for event in httpx2.EventSource(response, max_event_size=None):
                        for item in state.read(event):
                            yield item
            except (httpx2.TransportError, ProblemError) as raised:
                error = raised
            await anyio.sleep(state.pause(error))

    async def _send(self, request: Request[Any]) -> httpx2.Response:
        attempt = 1
        while True:
            try:
                outcome: Outcome = await self._http.request(**self._message(request))
            except httpx2.TransportError as error:
                outcome = error
            pause = self._policy.pause(request, attempt, outcome)
            if pause is None:
                return self._final(request, attempt, outcome)
            await anyio.sleep(pause)
            attempt += 1
