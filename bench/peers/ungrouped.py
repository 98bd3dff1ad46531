"""The service itself, with groups of one: each order has a statement and a commit of its own, and each read one too."""

from app.services import order_queries, order_service

order_service._TOGETHER = order_queries._TOGETHER = 1

from wsgi import app  # noqa: E402, F401  # not before the line above
