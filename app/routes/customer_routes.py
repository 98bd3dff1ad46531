"""`/customers`."""

from flask import Response

from app import errors
from app.http.blueprint import Blueprint
from app.http.principal import current_principal, require_own_customer
from app.schemas.order import CustomerPath
from app.services.erasure import erase_customer

blueprint = Blueprint("customers", __name__, description="The rights of the persons behind the orders.")


@blueprint.operation(
    "DELETE",
    "/customers/<characters:customer_id>/personal-data",
    scope="privacy:erase",
    path_schema=CustomerPath(),
    responses={204: None},
    problems=(errors.OpenOrders,),
)
def erase_personal_data(customer_id: str) -> Response:
    """Erase a customer's personal data from all orders and their history"""
    principal = current_principal()
    require_own_customer(customer_id, principal)
    erase_customer(customer_id, principal=principal)
    return Response(status=204)
