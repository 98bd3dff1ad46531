"""A typed client of the Order Service. Requests are objects that a `Client` or an `AsyncClient` sends."""

from order_service_client.async_client import AsyncClient as AsyncClient
from order_service_client.client import Client as Client
from order_service_client.core import Request as Request
from order_service_client.core import Series as Series
from order_service_client.problems import ConflictError as ConflictError
from order_service_client.problems import IllegalActionError as IllegalActionError
from order_service_client.problems import InvalidRequestError as InvalidRequestError
from order_service_client.problems import NoResponseError as NoResponseError
from order_service_client.problems import NotFoundError as NotFoundError
from order_service_client.problems import ProblemError as ProblemError
from order_service_client.problems import VersionMismatchError as VersionMismatchError
from order_service_client.retries import RetryPolicy as RetryPolicy
from order_service_client.webhooks import WebhookVerificationError as WebhookVerificationError
from order_service_client.webhooks import verify_webhook as verify_webhook
