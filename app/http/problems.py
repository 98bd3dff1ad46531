"""Problem documents (RFC 9457) for all errors: the service's, the framework's and the database's."""

from typing import Any

import orjson
import structlog
from flask import Flask, Response, g
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from app import errors
from app.db.errors import DATABASE_ERRORS, DatabaseError, is_unavailable, loggable_message
from app.errors import ServiceError
from app.http.auth import loggable_id
from app.http.requests import explain_weak_tags, is_dry_run, public_path, requested_path
from app.models.principal import Principal

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"

# The problem type and detail of an HTTPException, by its status. Flask raises no others.
_BY_STATUS: dict[int | None, tuple[type[ServiceError], str]] = {
    404: (errors.NotFound, "No resource has this path."),
    405: (errors.MethodNotAllowed, "The resource does not support this method. Use one of those in the Allow header."),
    500: (errors.InternalError, "The service failed unexpectedly. The error is logged under the request id."),
}
_NOT_FOUND = (errors.OrderNotFound, errors.ErasureNotFound)
_DENIALS = (errors.Unauthenticated, errors.Forbidden, errors.TooManyRequests)


def init_app(app: Flask) -> None:
    """Render every error as a problem document."""
    app.register_error_handler(ServiceError, _render_service_error)
    app.register_error_handler(HTTPException, _render_http_error)
    for error_type in DATABASE_ERRORS:
        app.register_error_handler(error_type, _render_database_error)


def problem_occurrence(error: ServiceError) -> dict[str, Any]:
    """Return the document of an error of this request, and log denials and the causes of server errors."""
    if error.status >= 500 and error.__cause__ is not None:
        _log_cause(error.__cause__)
    _log_denial(error)
    return {
        "type": public_path(f"/problems/{error.slug}"),
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        **error.members,
        "instance": requested_path(),
        "request_id": g.get("request_id"),
    }


def _log_denial(error: ServiceError) -> None:
    principal: Principal | None = g.get("principal")
    if isinstance(error, _DENIALS):
        log.warning("denied", principal=principal and loggable_id(principal), reason=error.reason or error.detail)
    elif isinstance(error, _NOT_FOUND) and principal and (principal.customer_id or principal.channels):
        # The resource may belong to another owner or not exist. Many such lines suggest that a client guesses ids.
        resource = "order" if isinstance(error, errors.OrderNotFound) else "erasure"
        owner = "the key's channels" if principal.customer_id is None else "this customer"
        log.warning("denied", principal=loggable_id(principal), reason=f"no such {resource} of {owner}")


def _log_cause(cause: BaseException) -> None:
    if is_unavailable(cause):
        log.warning("database unavailable", error=type(cause).__name__, reason=loggable_message(cause))
    else:
        log.error("request failed", exc_info=cause)


def _render_service_error(error: ServiceError) -> Response:
    if isinstance(error, errors.VersionMismatch):
        explain_weak_tags(error)
    response = Response(orjson.dumps(problem_occurrence(error)), error.status, mimetype=MEDIA_TYPE)
    response.headers["Cache-Control"] = "no-store"
    if is_dry_run():
        response.headers["Dry-Run"] = "true"
    response.headers.update(error.headers)
    return response


def _render_http_error(error: HTTPException) -> Response:
    problem_type, detail = _BY_STATUS[error.code]
    problem = problem_type(detail)
    if isinstance(error, MethodNotAllowed):
        problem.with_headers(Allow=", ".join(sorted(error.valid_methods or ())))
    return _render_service_error(problem)


def _render_database_error(error: DatabaseError) -> Response:
    problem: ServiceError
    if is_unavailable(error):
        problem = errors.ServiceUnavailable("The database is temporarily unavailable. Send the request again.")
    else:
        problem = errors.InternalError(_BY_STATUS[500][1])
    problem.__cause__ = error
    return _render_service_error(problem)
