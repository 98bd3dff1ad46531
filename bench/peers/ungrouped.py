"""The service without group commit: each order has its own statement and commit, and each read its own statement."""

from app.services import order_queries, order_service, order_storage

order_service.GROUP_COMMIT_MAX = order_storage.GROUP_CHANGES_MAX = 1
order_queries.GROUP_READ_MAX = order_storage.GROUP_READ_MAX = 1

from wsgi import app  # noqa: E402, F401  # not before the lines above
