"""The service without group commit: each order has its own statement and commit, and each read its own statement."""

from app.services import order_queries, order_service

order_service._TOGETHER = order_queries._TOGETHER = 1

from wsgi import app  # noqa: E402, F401  # not before the line above
