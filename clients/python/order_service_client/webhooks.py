"""Verification of webhooks (Standard Webhooks)."""

import base64
import hmac
import json
import time
from collections.abc import Mapping
from typing import cast

from order_service_client.documents import EndpointPayload, Payload

_NO_SECRET = "The secret is empty or not in base64. Use the `secret` of the response that created the webhook: whsec_…."


class WebhookVerificationError(Exception):
    """The request is not a webhook of the service, or is too old. Respond with 401."""


def verify_webhook(
    body: bytes, headers: Mapping[str, str], secret: str, *, tolerance: float = 300
) -> Payload | EndpointPayload:
    """Return the event of a webhook. Handle each `webhook-id` once: an event can be delivered more than once.

    `body` is the unchanged body; `secret` is the endpoint's, `whsec_…`; one valid signature is enough. The timestamp
    may differ from the local clock by `tolerance` seconds. Raises WebhookVerificationError, and ValueError for a
    secret that is not valid base64 or is empty: anybody could sign with an empty secret.
    """
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not key:
        raise ValueError(_NO_SECRET)
    lower = {name.lower(): value for name, value in headers.items()}
    timestamp, signatures = lower.get("webhook-timestamp", ""), lower.get("webhook-signature", "")
    if not (timestamp.isascii() and timestamp.isdigit()) or abs(time.time() - int(timestamp[:12])) > tolerance:
        raise WebhookVerificationError("The timestamp is missing, too old or in the future.")
    content = f"{lower.get('webhook-id')}.{timestamp}.".encode() + body
    digest = hmac.digest(key, content, "sha256")
    expected = b"v1," + base64.b64encode(digest)
    if not any([hmac.compare_digest(expected, one.encode()) for one in signatures.split(" ")]):
        raise WebhookVerificationError("No signature is valid.")
    return cast(Payload | EndpointPayload, json.loads(body))
