"""Who asks."""

from flask import g

from app.errors import Forbidden
from app.models.principal import Principal


def current_principal() -> Principal:
    """The principal of the request, who has the scope that the route requires."""
    principal: Principal = g.principal
    return principal


def require_own_customer(customer_id: str, principal: Principal) -> None:
    """Raise Forbidden where a customer would act for somebody else."""
    if principal.customer_id not in (None, customer_id):
        raise Forbidden("Customers act for themselves only: the customer must be the token's subject.")
