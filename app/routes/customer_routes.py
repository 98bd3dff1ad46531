"""`/customers`."""

from typing import Any

from flask import Response

from app import errors
from app.http.blueprint import Blueprint
from app.http.principal import current_principal, require_own_customer
from app.schemas.order import CustomerPath
from app.services.erasure import erase_customer

blueprint = Blueprint("customers", __name__, description="The rights of the persons behind the orders.")


@blueprint.route("/customers/<customer_id>/personal-data", methods=["DELETE"])
@blueprint.requires("privacy:erase")
@blueprint.arguments(CustomerPath(), location="path")
@blueprint.response(204)
@blueprint.describe(problems=(errors.OpenOrders,))
def erase_personal_data(path: dict[str, Any], customer_id: str) -> Response:
    """Erase a customer's personal data from all orders and their history"""
    principal = current_principal()
    require_own_customer(customer_id, principal)
    erase_customer(customer_id, principal=principal)
    return Response(status=204)
