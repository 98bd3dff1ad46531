"""Principals and their scopes."""

from dataclasses import dataclass

from app.errors import Forbidden

PRINCIPAL_MAX = 128  # characters of a principal's id

SCOPES = {
    "orders:read": "Read orders, their versions and their history.",
    "orders:write": "Create orders, change their content, cancel them.",
    "orders:manage": "Confirm, hold, fulfill, complete orders, and record returns.",
    "events:read": "Read the feed of all events.",
    "webhooks:manage": "Manage webhooks.",
    "privacy:erase": "Erase a customer's personal data.",
}
# A customer's token never gets other scopes, whatever its claims say: those give access to other customers' data.
CUSTOMER_SCOPES = frozenset({"orders:read", "orders:write", "privacy:erase"})


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller: a service or a customer.

    Idempotency keys and external references belong to the principal's `id`. `customer_id` is set for a customer, who
    has access to their own orders only.
    """

    id: str
    scopes: frozenset[str]
    customer_id: str | None = None

    def require_own_customer(self, customer_id: str) -> None:
        """Raise Forbidden if the principal is a customer other than `customer_id`."""
        if self.customer_id not in (None, customer_id):
            raise Forbidden(
                "A customer's token gives access to its own customer only: customer_id must be the token's sub claim."
            )


def customer_principal_id(customer_id: str) -> str:
    """The principal id of a customer."""
    return f"customer:{customer_id}"


ANONYMOUS = Principal("anonymous", frozenset(SCOPES))
