# Generated from async_client.py by make client-types.
"""The synchronous client."""

import json
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Self, cast

import httpx2

from order_service_client.core import EventStream, Request, Series, T
from order_service_client.problems import ProblemError, problem_error
from order_service_client.retries import NO_RESPONSE, RetryPolicy

Token = str | Callable[[], str] | None
_DELETED = "webhook-not-found"  # only webhooks are deleted by a DELETE without a key
_SILENCE = 45.0  # seconds without a byte of an event stream: three heartbeats of the service


class Client:
    """Sends requests. `token`: an API key or a customer's token, or a function that returns one for each attempt."""

    def __init__(self, base_url: str, *, token: Token = None, retry: RetryPolicy = RetryPolicy()) -> None:
        self._http, self._token, self._retry = httpx2.Client(base_url=base_url), token, retry

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def send(self, request: Request[T]) -> T:
        """Send a request, retry it if that is safe, and return its document. Raises ProblemError, NoResponseError."""
        documents = [document for document in self.iterate(request)]
        return documents[0] if documents else cast(T, None)  # a deletion has no document

    def iterate(self, series: Series[T]) -> Generator[T, None, None]:
        """Iterate over a list page by page, an export or an event stream. Raises the same errors as `send`."""
        policy, attempt, document = self._retry, 1, None
        may_be_done = False  # an attempt without a response may have been executed
        while True:
            token = self._token() if callable(self._token) else self._token
            headers = {**series.headers, **({"Authorization": f"Bearer {token}"} if token else {})}
            timeout = _SILENCE if isinstance(series, EventStream) else policy.timeout + series.query.get("wait", 0)
            try:
                with self._http.stream(
                    series.method, series.path, params=series.query, json=series.body, headers=headers, timeout=timeout
                ) as response:
                    if not response.is_success:
                        raise problem_error(response, response.read())
                    for event in _events(response):
                        attempt = 1
                        if event.retry is not None:
                            policy = replace(policy, base_delay=event.retry / 1000)
                        if event.data:
                            document = json.loads(event.data)
                            for item in series.items(document):
                                yield item
                            series = series.rest(document)
                        series = series.at(event.id) if event.id else series
                following = series.following(document, has_link="next" in response.links)
                if following is None:
                    return
                series = following
            except (*NO_RESPONSE, ProblemError) as error:
                if may_be_done and series.method == "DELETE" and getattr(error, "slug", None) == _DELETED:
                    return
                may_be_done = may_be_done or not isinstance(error, ProblemError)
                time.sleep(policy.pause(series, attempt, error))
                attempt += 1


def _events(response: httpx2.Response) -> Generator[httpx2.ServerSentEvent, None, None]:
    """Yield the events of an event stream, or each line of any other response as an event."""
    if response.headers.get("Content-Type", "").startswith(EventStream.accept):
        for event in httpx2.EventSource(response, max_event_size=None):
            yield event
        raise httpx2.RemoteProtocolError("The event stream ended.")
    line = b""
    for chunk in response.iter_bytes():
        *lines, line = (line + chunk).split(b"\n")  # the service's JSON documents have no line breaks
        for each in lines:
            yield httpx2.ServerSentEvent(data=each.decode())
    yield httpx2.ServerSentEvent(data=line.decode())
