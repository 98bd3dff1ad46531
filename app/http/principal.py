"""Who asks."""

from hashlib import blake2b

from flask import current_app, g

from app.errors import Forbidden
from app.models.principal import Principal, customer_principal_id


def current_principal() -> Principal:
    """The principal of the request, who has the scope that the route requires."""
    principal: Principal = g.principal
    return principal


def require_own_customer(customer_id: str, principal: Principal) -> None:
    """Raise Forbidden where a customer would act for somebody else."""
    if principal.customer_id not in (None, customer_id):
        raise Forbidden("Customers act for themselves only: the customer must be the token's subject.")


def loggable_id(principal: Principal) -> str:
    """Who calls, as it may stand in a log: a service by the name of its key, a person by a keyed hash.

    The same person has the same 16 hexadecimal digits as long as SECRET_KEY is the same.
    """
    if principal.customer_id is None and not principal.id.startswith("token:"):
        return principal.id
    return _keyed_hash(principal.id)


def loggable_customer(customer_id: str) -> str:
    """The hash that `loggable_id` has for the customer's own requests."""
    return _keyed_hash(customer_principal_id(customer_id))


def _keyed_hash(principal_id: str) -> str:
    key = blake2b(current_app.config["SECRET_KEY"].encode()).digest()
    return blake2b(principal_id.encode(), digest_size=8, key=key, person=b"principal in log").hexdigest()
