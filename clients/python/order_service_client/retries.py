"""When requests are retried."""

import random
from dataclasses import dataclass
from typing import Any

import httpx2

from order_service_client.core import EventStream, Series
from order_service_client.problems import NoResponseError, ProblemError

_UNPROCESSED = {408, 429}  # the service did nothing
_TRANSIENT = {None, *_UNPROCESSED, 502, 503, 504}  # None: no response

# Invalid URLs and headers are not among them.
NO_RESPONSE = (httpx2.NetworkError, httpx2.TimeoutException, httpx2.RemoteProtocolError, httpx2.ProxyError)


@dataclass(frozen=True)
class RetryPolicy:
    """How often and when a request is retried. All times are in seconds.

    The n-th pause is a random time up to `base_delay` · 2ⁿ⁻¹ ("full jitter"), never more than `max_delay`; a response
    with a longer `Retry-After` is not retried. `timeout` is the time without a byte after which an attempt has failed.
    """

    attempts: int = 6
    base_delay: float = 0.2
    max_delay: float = 20.0
    timeout: float = 30.0

    def pause(self, request: Series[Any], attempt: int, error: ProblemError | httpx2.TransportError) -> float:
        """Return the seconds before the next attempt. Raises ProblemError or NoResponseError if there is none."""
        problem = error if isinstance(error, ProblemError) else None
        status, retry_after = (problem.status, problem.retry_after) if problem else (None, None)
        is_transient = status in _TRANSIENT or (status == 409 and retry_after is not None)
        is_safe = request.repeatable or status in _UNPROCESSED
        is_last = attempt >= self.attempts and not isinstance(request, EventStream)
        if is_last or not (is_transient and is_safe) or (retry_after or 0.0) > self.max_delay:
            if problem:
                raise problem
            attempts = "1 attempt" if attempt == 1 else f"{attempt} attempts"
            raise NoResponseError(f"No response after {attempts}: {error!r}") from error
        jitter = random.uniform(0, min(self.max_delay, self.base_delay * 2 ** min(attempt - 1, 16)))  # nosec B311
        return min(self.max_delay, (retry_after or 0.0) + jitter)
