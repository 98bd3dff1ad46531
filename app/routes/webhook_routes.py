"""`/webhooks`."""

from typing import Any

from flask import Flask, Response, current_app

from app import errors
from app.http.application import Blueprint
from app.http.auth import current_principal
from app.http.requests import MERGE_PATCH, check_conditions, make_cursor, read_cursor
from app.http.responses import json_response, list_response
from app.schemas.webhook import (
    DeliveryCountSchema,
    DeliveryListSchema,
    DeliveryQuerySchema,
    ReplayInSchema,
    WebhookInSchema,
    WebhookListSchema,
    WebhookPatchSchema,
    WebhookSchema,
)
from app.services import webhook_service
from app.services.webhook_service import WebhookRules, webhook_rules

blueprint = Blueprint(
    "webhooks", __name__, description="Send signed events to other services until they are delivered."
)


def init_app(app: Flask) -> None:
    """Read the rules of webhooks from the settings."""
    app.extensions["webhook_rules"] = webhook_rules(app.config)


def _rules() -> WebhookRules:
    rules: WebhookRules = current_app.extensions["webhook_rules"]
    return rules


def _check_conditions(webhook_id: str) -> None:
    """Check If-Match and If-None-Match. Raises PreconditionFailed, and WebhookNotFound instead if there is none."""
    try:
        check_conditions()
    except errors.PreconditionFailed:
        webhook_service.get_endpoint(webhook_id, principal=current_principal())
        raise


@blueprint.operation(
    "POST",
    "/webhooks",
    scope="webhooks:manage",
    body=WebhookInSchema(),
    responses={201: WebhookSchema()},
    problems=(errors.TooManyWebhooks,),
    response_headers=("Location",),
)
def create_webhook(body: dict[str, Any]) -> Response:
    """Create a webhook.

    It receives the events from now on. The response has the secret that verifies the signatures; it is not shown again.
    """
    webhook = webhook_service.create_endpoint(body, principal=current_principal(), rules=_rules())
    return json_response(webhook, 201, location=f"/webhooks/{webhook['id']}")


@blueprint.operation("GET", "/webhooks", scope="webhooks:manage", responses={200: WebhookListSchema()})
def list_webhooks() -> Response:
    """List all webhooks with their health.

    An API key that is bound to channels sees the webhooks of these channels only.
    """
    return json_response({"webhooks": webhook_service.list_endpoints(principal=current_principal())})


@blueprint.operation(
    "GET",
    "/webhooks/<webhook_id>",
    scope="webhooks:manage",
    responses={200: WebhookSchema()},
    problems=(errors.WebhookNotFound,),
)
def get_webhook(webhook_id: str) -> Response:
    """Read a webhook and its health.

    `health` says how the endpoint has responded recently. The secret is not shown again.
    """
    return json_response(webhook_service.get_endpoint(webhook_id, principal=current_principal()))


@blueprint.operation(
    "PATCH",
    "/webhooks/<webhook_id>",
    scope="webhooks:manage",
    body=WebhookPatchSchema(),
    body_media_type=MERGE_PATCH,
    responses={200: WebhookSchema()},
    problems=(errors.WebhookNotFound,),
)
def update_webhook(body: dict[str, Any], webhook_id: str) -> Response:
    """Update a webhook by a JSON merge patch, disable or enable it.

    A webhook that is enabled again receives the events since it was disabled. A new `url`, and the status `enabled`
    even if the webhook has it, end the pauses after failures.
    """
    _check_conditions(webhook_id)
    webhook = webhook_service.update_endpoint(webhook_id, body, principal=current_principal(), rules=_rules())
    return json_response(webhook)


@blueprint.operation(
    "DELETE",
    "/webhooks/<webhook_id>",
    scope="webhooks:manage",
    responses={204: None},
    problems=(errors.WebhookNotFound,),
)
def delete_webhook(webhook_id: str) -> Response:
    """Delete a webhook with its deliveries.

    Nothing is sent to it any more, not even pending deliveries.
    """
    _check_conditions(webhook_id)
    webhook_service.delete_endpoint(webhook_id, principal=current_principal())
    return Response(status=204)


@blueprint.operation(
    "POST",
    "/webhooks/<webhook_id>/rotate-secret",
    scope="webhooks:manage",
    responses={200: WebhookSchema()},
    problems=(errors.WebhookNotFound,),
)
def rotate_secret(webhook_id: str) -> Response:
    """Rotate the secret of a webhook.

    For 24 hours, requests are signed with the previous secret too.
    """
    _check_conditions(webhook_id)
    webhook = webhook_service.rotate_secret(webhook_id, principal=current_principal(), rules=_rules())
    return json_response(webhook)


@blueprint.operation(
    "POST",
    "/webhooks/<webhook_id>/test",
    scope="webhooks:manage",
    responses={202: DeliveryCountSchema()},
    problems=(errors.WebhookNotFound,),
)
def test_webhook(webhook_id: str) -> Response:
    """Send an event of the type `webhook.test`.

    The list of deliveries shows the response.
    """
    _check_conditions(webhook_id)
    webhook_service.send_test(webhook_id, principal=current_principal())
    return json_response({"deliveries": 1}, 202)


@blueprint.operation(
    "GET",
    "/webhooks/<webhook_id>/deliveries",
    scope="webhooks:manage",
    query=DeliveryQuerySchema(),
    responses={200: DeliveryListSchema()},
    problems=(errors.WebhookNotFound, errors.InvalidCursor),
    response_headers=("Link",),
)
def list_deliveries(query: dict[str, Any], webhook_id: str) -> Response:
    """List the deliveries of a webhook with their attempts, newest first.

    Deliveries are kept for 30 days.
    """
    limit, cursor = query.pop("limit"), query.pop("cursor", None)
    bound_query = query | {"webhook_id": webhook_id}
    after = read_cursor(cursor, query=bound_query)
    page = webhook_service.list_deliveries(webhook_id, **query, principal=current_principal(), after=after, limit=limit)
    return list_response("deliveries", page.documents, make_cursor(page.next_after, query=bound_query))


@blueprint.operation(
    "POST",
    "/webhooks/<webhook_id>/replay",
    scope="webhooks:manage",
    body=ReplayInSchema(),
    responses={202: DeliveryCountSchema()},
    problems=(errors.WebhookNotFound, errors.EventNotFound),
)
def replay_deliveries(body: dict[str, Any], webhook_id: str) -> Response:
    """Send events again, with the same `webhook-id`.

    One event, the events in a range of the feed that match the webhook's filters, or the deliveries that failed since a
    time. Pending deliveries stay as they are. Events that a webhook has not been sent yet, because it is disabled, are
    sent in order once it is enabled, and not before.
    """
    _check_conditions(webhook_id)
    count = webhook_service.replay_deliveries(webhook_id, body, principal=current_principal())
    return json_response({"deliveries": count}, 202)
