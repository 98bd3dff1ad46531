"""Many orders in one request: each entry is judged as a request of its own would be."""

from collections.abc import Sequence
from typing import Any

import orjson

from app.errors import InvalidRequest, ServiceError
from app.http import rate_limit
from app.http.application import in_stretches
from app.http.auth import current_principal, require_own_customer
from app.http.problems import problem_occurrence
from app.models.principal import Principal
from app.schemas.order import BatchEntryInSchema
from app.schemas.strict_json import load_body
from app.services.new_order import OrderRequest
from app.services.order_service import Outcome, create_orders

_ENTRY = BatchEntryInSchema()
_FAULTS_MAX = 1_000  # faults that are reported in one response; invalid entries after them are only said to be so


def create_batch(entries: Sequence[Any]) -> bytes:
    """The results of all entries, in their order, as the JSON body of the answer.

    Raises TooManyRequests where they are more than what is left of the principal's share; nothing is stored then.
    """
    outcomes: dict[int, Outcome] = {}
    requests: dict[int, OrderRequest] = {}
    principal, faults = current_principal(), 0
    rate_limit.count(principal, cost=len(entries), counted=1)
    for i, entry in in_stretches(enumerate(entries)):
        try:
            requests[i] = _read(entry, principal, pointer=f"#/orders/{i}", quick=faults >= _FAULTS_MAX)
        except ServiceError as error:
            outcomes[i] = error.with_traceback(None)  # whose frames refer to the outcomes and to the entry
            faults += len(error.members.get("errors", ()))
    outcomes |= zip(requests, create_orders(list(requests.values())), strict=True)
    return orjson.dumps({"results": [_render(outcomes[i]) for i in in_stretches(range(len(entries)))]})


def _read(entry: Any, principal: Principal, *, pointer: str, quick: bool) -> OrderRequest:
    """The entry as a request of its own. Where it must be quick, an invalid entry is not searched for its faults."""
    if quick and _ENTRY.load_valid(entry) is None:
        detail = f"This entry is not valid. Only {_FAULTS_MAX:,} faults are reported; correct those first."
        raise InvalidRequest(detail, errors=[{"pointer": pointer, "detail": "This entry is not valid."}])
    data = load_body(_ENTRY, entry, pointer=pointer)
    key = data.pop("idempotency_key", None)
    require_own_customer(data["customer_id"], principal)
    return OrderRequest(data, principal=principal, idempotency_key=key, ref_is_key=True)


def _render(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, ServiceError):
        return {"status": outcome.status, "problem": problem_occurrence(outcome)}
    replayed = {"replayed": True} if outcome.replayed else {}
    return {"status": 201, **replayed, "order": orjson.Fragment(outcome.document)}
