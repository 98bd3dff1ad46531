"""`/customers` and `/erasures`."""

from typing import Any

from flask import Response

from app import errors
from app.http.application import Blueprint, Content
from app.http.auth import current_principal
from app.http.responses import erasure_response
from app.http.streams import NDJSON, Export
from app.schemas.documents import ErasureSchema
from app.schemas.parameters import CustomerPathSchema, PersonalDataQuerySchema
from app.services import personal_data

REQUEST_SECONDS = 2.0  # seconds that a request works on an erasure: far below any proxy's time limit

PERSONAL_DATA = {
    "type": "string",
    "description": 'A JSON object per line: `{"order": …}` for each order in its current state, oldest first; after it '
    '`{"event": …}` for each entry of its history and, except for a customer, `{"delivery": …}` for each delivery to a '
    'webhook; at the end `{"erasure": …}` if one is running. A response that is aborted ends without the last chunk of '
    "its body (RFC 9112 §8). Resume it with `after`, the id of the last order whose events were received completely.",
}

blueprint = Blueprint("customers", __name__, description="Export and erase the personal data of customers.")


@blueprint.operation(
    "GET",
    "/customers/<characters:customer_id>/personal-data",
    scope="privacy:export",
    path_schema=CustomerPathSchema(),
    query=PersonalDataQuerySchema(),
    responses={200: Content((NDJSON,), PERSONAL_DATA)},
)
def export_customer(query: dict[str, Any], customer_id: str) -> Response:
    """Export all that is stored about a customer as NDJSON.

    Every order of the customer, every version of it, and who changed it. Customers get the part of their data that they
    may see: without the reasons of holds, for example. For an unknown customer, the response is empty.
    """
    principal, after = current_principal(), query.get("after")
    principal.require_own_customer(customer_id)
    principal.require_all_channels()
    lines = personal_data.stream_personal_data(customer_id, principal=principal, after=after)
    return Export(NDJSON).response(lines, principal=principal)


@blueprint.operation(
    "DELETE",
    "/customers/<characters:customer_id>/personal-data",
    scope="privacy:erase",
    path_schema=CustomerPathSchema(),
    responses={200: ErasureSchema(), 202: ErasureSchema()},
    problems=(errors.OpenOrders,),
    response_headers=("Location",),
)
def erase_customer(customer_id: str) -> Response:
    """Erase a customer's personal data.

    It is removed from all orders of the customer and from their history. If that takes longer than this request, the
    response is 202, and each request to the address in `Location` continues the erasure.
    """
    principal = current_principal()
    principal.require_own_customer(customer_id)
    principal.require_all_channels()
    state = personal_data.erase_customer(customer_id, principal=principal, seconds=REQUEST_SECONDS)
    return erasure_response(state, started=True)


@blueprint.operation(
    "GET",
    "/erasures/<erasure_id>",
    scope="privacy:erase",
    responses={200: ErasureSchema()},
    problems=(errors.ErasureNotFound,),
)
def read_erasure(erasure_id: str) -> Response:
    """Read the progress of an erasure.

    Each request continues a running erasure for up to two seconds.
    """
    principal = current_principal()
    principal.require_all_channels()
    state = personal_data.get_erasure(erasure_id, principal=principal, seconds=REQUEST_SECONDS)
    return erasure_response(state)
