"""`/customers` and `/erasures`."""

from flask import Response

from app import errors
from app.http.auth import current_principal
from app.http.blueprint import Blueprint
from app.http.responses import erasure_response
from app.schemas.documents import ErasureSchema
from app.schemas.order import CustomerPathSchema
from app.services.erasure import erase_customer, get_erasure

REQUEST_SECONDS = 2.0  # that a request works on an erasure: far below any proxy's time limit

blueprint = Blueprint("customers", __name__, description="Erase the personal data of customers.")


@blueprint.operation(
    "DELETE",
    "/customers/<characters:customer_id>/personal-data",
    scope="privacy:erase",
    path_schema=CustomerPathSchema(),
    responses={200: ErasureSchema(), 202: ErasureSchema()},
    problems=(errors.OpenOrders,),
    response_headers=("Location",),
)
def erase_personal_data(customer_id: str) -> Response:
    """Erase a customer's personal data.

    It is removed from all orders of the customer and from their history. If that takes longer than this request, the
    response is a 202, and `Location` is the address at which the erasure continues.
    """
    principal = current_principal()
    principal.require_own_customer(customer_id)
    principal.require_all_channels()
    erasure = erase_customer(customer_id, principal=principal, seconds=REQUEST_SECONDS)
    return erasure_response(erasure, started=True)


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
    erasure = get_erasure(erasure_id, principal=principal, seconds=REQUEST_SECONDS)
    return erasure_response(erasure)
