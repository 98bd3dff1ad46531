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

blueprint = Blueprint("customers", __name__, description="The rights of the persons behind the orders.")


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
    """Erase a customer's personal data from all orders and their history; 202 where it goes on at the Location"""
    principal = current_principal()
    principal.require_own_customer(customer_id)
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
    """Read how far an erasure has come; each request carries it on for up to two seconds"""
    erasure = get_erasure(erasure_id, principal=current_principal(), seconds=REQUEST_SECONDS)
    return erasure_response(erasure)
