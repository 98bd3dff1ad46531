"""Errors that the client raises: problem documents of the service (RFC 9457), and requests without a response."""

import json
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from order_service_client.documents import Problem


class ProblemError(Exception):
    """The service refused the request. `slug` is the last part of the `problem`'s type; `retry_after` is in seconds."""

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        super().__init__(problem, retry_after)
        self.problem: Problem = problem
        self.retry_after: float | None = retry_after
        self.status: int = problem["status"]
        self.slug: str = problem["type"].rpartition("/")[2]
        self.current_version: int | None = problem.get("current_version")  # of the order, if a conflict is about one

    def __str__(self) -> str:
        return self.problem.get("detail") or self.problem["title"]


class InvalidRequestError(ProblemError):
    """400: the problem's `errors` list all errors."""

    def __str__(self) -> str:
        return f"{super().__str__()} {self.problem.get('errors', '')}"


class NotFoundError(ProblemError):
    """404: the order, webhook, … does not exist, or belongs to somebody else."""


class ConflictError(ProblemError):
    """409 or 412: the state of the order does not allow the request. Read it again and decide what to do."""


class VersionMismatchError(ConflictError):
    """412: the order has changed since the version that the request was based on. Nothing was changed."""


class IllegalActionError(ConflictError):
    """409: the order's status does not allow the action; the problem's `allowed_actions` list the possible ones."""


class NoResponseError(Exception):
    """No attempt got a response. Send the same request again: it is executed at most once."""


_BY_SLUG = {"version-mismatch": VersionMismatchError, "illegal-action": IllegalActionError}
_BY_STATUS = {400: InvalidRequestError, 404: NotFoundError, 409: ConflictError, 412: ConflictError}


def problem_error(response: httpx2.Response, content: bytes) -> ProblemError:
    """Return a response with a status of 300 or more, and its content, as an error."""
    status, reason = response.status_code, response.reason_phrase
    problem: Any = {"type": "about:blank", "title": reason or str(status), "status": status, "detail": reason}
    if response.headers.get("Content-Type", "").startswith("application/problem+json"):
        # A proxy's problem may be cut off, and every member is optional (RFC 9457 §3.1).
        with suppress(ValueError, TypeError):
            problem |= json.loads(content)
    error_class = _BY_SLUG.get(problem["type"].rpartition("/")[2]) or _BY_STATUS.get(status, ProblemError)
    return error_class(problem, _retry_after(response))


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds of `Retry-After`, which is a number or a date (RFC 9110 §10.2.3)."""
    text = response.headers.get("Retry-After", "")
    with suppress(ValueError):
        return float(text) if text.isdigit() else max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None
