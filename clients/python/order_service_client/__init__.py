"""A typed client of the Order Service. Requests are values; a `Client` or an `AsyncClient` sends them."""

from order_service_client.client import AsyncClient, Client, RetryPolicy
from order_service_client.problems import (
    ConflictError,
    IllegalActionError,
    InvalidRequestError,
    NoResponseError,
    NotFoundError,
    ProblemError,
    VersionMismatchError,
)
from order_service_client.requests import Listing, Request, Stream
from order_service_client.webhooks import WebhookVerificationError, verify_webhook

__all__ = [
    "AsyncClient",
    "Client",
    "ConflictError",
    "IllegalActionError",
    "InvalidRequestError",
    "Listing",
    "NoResponseError",
    "NotFoundError",
    "ProblemError",
    "Request",
    "RetryPolicy",
    "Stream",
    "VersionMismatchError",
    "WebhookVerificationError",
    "verify_webhook",
]
