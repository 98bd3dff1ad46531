"""`/customers`."""

from flask import Response

from app import errors
from app.http.blueprint import Blueprint
from app.http.principal import current_principal
from app.services.erasure import erase_customer

blueprint = Blueprint("customers", __name__, description="The rights of the persons behind the orders.")


@blueprint.route("/customers/<customer_id>/personal-data", methods=["DELETE"])
@blueprint.requires("privacy:erase")
@blueprint.response(204)
@blueprint.describe(problems=(errors.OpenOrders,))
def erase_personal_data(customer_id: str) -> Response:
    """Erase a customer's personal data from all orders and their history"""
    erase_customer(customer_id, principal=current_principal())
    return Response(status=204)
