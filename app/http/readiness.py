"""Requests are let through once the database has been seen with the schema of this code; until then, 503."""

import structlog
from flask import Flask, current_app

from app.config import StartupError
from app.db.errors import DATABASE_ERRORS, is_missing_file, is_unavailable
from app.db.revision import require_revision
from app.errors import ServiceUnavailable
from app.http.application import current_request
from app.http.auth import declared_scope, require_credentials
from app.http.blueprint import PUBLIC

log = structlog.get_logger()


class Readiness:
    """`checked` is False from a start without a database until the first request that finds it."""

    def __init__(self) -> None:
        self.checked = True

    def check(self) -> None:
        """Let a request through. Raises the database's error, or ServiceUnavailable where its schema is another."""
        if self.checked:
            return
        endpoint = current_request().endpoint
        if endpoint is None or declared_scope(current_app, endpoint) == PUBLIC:
            return
        try:
            require_revision()
        except StartupError as error:
            raise ServiceUnavailable(str(error)) from None
        try:
            require_credentials()
        except StartupError as error:  # clients are answered 401
            log.error(str(error))
        self.checked = True


def init_app(app: Flask) -> None:
    """Check each request; before authentication, which reads the database too."""
    app.extensions["readiness"] = readiness = Readiness()
    app.before_request(readiness.check)


def check_before_serving(app: Flask) -> None:
    """Check the database and the credentials before the first request.

    A database that cannot answer now may answer later: then the check is left to the first request that finds it.
    Raises StartupError for what a restart cannot mend.
    """
    try:
        require_revision()
        require_credentials()
    except DATABASE_ERRORS as error:
        reason = str(error).partition("\n")[0]
        if not is_unavailable(error) or is_missing_file(error):
            raise StartupError(f"The database cannot be used: {reason}") from None
        app.extensions["readiness"].checked = False
        log.warning("started without a database", error=type(error).__name__, reason=reason)
