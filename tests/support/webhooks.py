"""Webhook endpoints, a resolver for their names, and the deliveries of a worker."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flask import Flask
from flask.testing import FlaskClient

from app.services.credentials import SecretStore
from app.services.event_feed import sequence_events
from app.services.webhook_delivery import WebhookDeliverer, WebhookSender, tls_context
from app.services.webhook_queue import fan_out
from app.services.webhook_service import Resolver, WebhookRules, resolve_host
from app.telemetry import observe_delivery

SECRETS = SecretStore("a secret key of the installation, for tests")
URL = "https://hooks.shop.com/orders"
PUBLIC_ADDRESS = "93.184.215.14"
TLS_CONTEXT = tls_context()  # shared: reading the certificate authorities takes longer than most tests


def resolve_to(*addresses: str) -> Any:
    """A resolver that returns these addresses for every name."""

    def resolve(_host: str, _port: int) -> Sequence[str]:
        return addresses

    return resolve


@contextmanager
def webhook_rules(
    app: Flask, *, allow_private: bool = True, resolve: Any = resolve_to(PUBLIC_ADDRESS), secrets: Any = SECRETS
) -> Iterator[None]:
    """Make the application resolve names with this resolver, so that no test depends on DNS."""
    usual = app.extensions["webhook_rules"]
    app.extensions["webhook_rules"] = WebhookRules(secrets, allow_private, resolve)
    try:
        yield
    finally:
        app.extensions["webhook_rules"] = usual


def create_webhook(client: FlaskClient, url: str = URL, **members: Any) -> dict[str, Any]:
    response = client.post("/webhooks", json={"url": url} | members)
    assert response.status_code == 201, response.text
    webhook: dict[str, Any] = response.json
    return webhook


def queue_events() -> None:
    """Number and queue events, as the other tasks of a worker do before a delivery."""
    while sequence_events():
        pass
    while fan_out():
        pass


def webhook_sender(*, allow_private: bool = True, resolve: Resolver = resolve_host) -> WebhookSender:
    return WebhookSender(allow_private=allow_private, resolve=resolve, context=TLS_CONTEXT)


def deliverer(app: Flask) -> WebhookDeliverer:
    """The task of a worker that sends webhooks."""
    return WebhookDeliverer(webhook_sender(), app.extensions["webhook_rules"].secrets, observe_delivery)


def deliver(app: Flask) -> None:
    """Deliver like a worker until nothing is due."""
    running = deliverer(app)
    with app.app_context():
        queue_events()
        while running.run():
            pass
        running.finish()
