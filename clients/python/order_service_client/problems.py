"""Errors that the client raises: problem documents of the service (RFC 9457), and requests without a response."""

from typing import Any

import httpx2

from order_service_client.documents import Problem


class ProblemError(Exception):
    """The service refused the request. `problem` is the whole document; `retry_after` is in seconds.

    `slug` is the last part of the problem's `type`, for example `order-not-found`.
    """

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        super().__init__(problem.get("detail") or problem["title"])
        self.problem = problem
        self.status = problem["status"]
        self.slug = problem["type"].rpartition("/")[2]
        self.retry_after = retry_after


class InvalidRequestError(ProblemError):
    """400: the problem's `errors` list everything that is invalid."""


class NotFoundError(ProblemError):
    """404: the order, webhook, … does not exist, or belongs to somebody else."""


class ConflictError(ProblemError):
    """409 or 412: the state of the order does not allow the request. Read it again and decide what to do."""

    @property
    def current_version(self) -> int | None:
        """The order's version now, where the conflict is about an order."""
        return self.problem.get("current_version")


class VersionMismatchError(ConflictError):
    """412: the order has changed since the version that the request was based on. Nothing was changed."""


class IllegalActionError(ConflictError):
    """409: the order's status does not allow the action; the problem's `allowed_actions` are possible."""


class NoResponseError(Exception):
    """No response arrived, at any attempt. Send the same request again to find out, without doing anything twice."""


_BY_SLUG = {"version-mismatch": VersionMismatchError, "illegal-action": IllegalActionError}
_BY_STATUS = {400: InvalidRequestError, 404: NotFoundError, 409: ConflictError, 412: ConflictError}


def problem_error(response: httpx2.Response, retry_after: float | None) -> ProblemError:
    """Return the error that a response with a status of 400 or more stands for."""
    status, reason = response.status_code, response.reason_phrase
    problem: Any = {"type": "about:blank", "title": reason or str(status), "status": status, "detail": reason}
    if response.headers.get("Content-Type", "").startswith("application/problem+json"):
        problem = response.json()
    error = ProblemError(problem)
    error_class = _BY_SLUG.get(error.slug) or _BY_STATUS.get(status, ProblemError)
    return error_class(problem, retry_after)
