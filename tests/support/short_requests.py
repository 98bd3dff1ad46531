"""The application with short time limits: for an erasure by one request, which few orders exceed, and for the pauses of
`flask seed` while the database is unavailable."""

import sys

from app.routes import customer_routes
from wsgi import app

__all__ = ["app"]

customer_routes.REQUEST_SECONDS = 0.3
sys.modules["app.cli.seed"].__dict__["_PAUSES"] = (0, 0, 0)  # the package has the command under the module's name
