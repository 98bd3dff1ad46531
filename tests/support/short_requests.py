"""The application, with requests that work on an erasure for a moment only, so that orders need not be many."""

from app.routes import customer_routes
from wsgi import app

__all__ = ["app"]

customer_routes.REQUEST_SECONDS = 0.3
