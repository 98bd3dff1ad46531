"""How a request changes an order: its principal, conditions and key."""

from dataclasses import replace
from typing import Any

from app.errors import VersionMismatch
from app.http.auth import current_principal
from app.http.request_input import expected_versions, explain_weak_tags, idempotency_key
from app.services.new_order import fingerprint
from app.services.order_actions import Change, ChangeRequest, change_order
from app.services.order_document import StoredOrder, visible_document


def carry_out(action: str, order_id: str, change: Change, *, body: Any = None) -> StoredOrder:
    """The order after the action that the request asks for, or after the one that its key stands for already."""
    key = idempotency_key()
    request = ChangeRequest(
        action,
        principal=current_principal(),
        expected_versions=expected_versions(),
        idempotency_key=key,
        fingerprint=None if key is None else fingerprint(body),
    )
    try:
        stored = change_order(order_id, change, request=request)
    except VersionMismatch as mismatch:
        explain_weak_tags(mismatch)
        raise
    document = visible_document(stored.document, request.principal)
    return stored if document is stored.document else replace(stored, document=document)
