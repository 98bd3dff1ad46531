"""The application with a short time limit for an erasure by one request, so that few orders exceed it."""

from app.routes import customer_routes
from wsgi import app

__all__ = ["app"]

customer_routes.REQUEST_SECONDS = 0.3
