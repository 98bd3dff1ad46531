"""Who asks, and what they may do."""

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
# What a customer's token can be good for at all, whatever its issuer wrote into it: the rest sees beyond one customer.
CUSTOMER_SCOPES = frozenset({"orders:read", "orders:write", "privacy:erase"})


@dataclass(frozen=True, slots=True)
class Principal:
    """A service, or a customer.

    Idempotency keys and external references belong to the `id`. Where `customer_id` is set, no other customer's order
    exists for this principal.
    """

    id: str
    scopes: frozenset[str]
    customer_id: str | None = None

    def require_own_customer(self, customer_id: str) -> None:
        """Raise Forbidden where this is a customer, and another one than `customer_id`."""
        if self.customer_id not in (None, customer_id):
            raise Forbidden(
                "A customer's token gives access to its own customer only: customer_id must be the token's sub claim."
            )


def customer_principal_id(customer_id: str) -> str:
    """The principal's id of a customer."""
    return f"customer:{customer_id}"


ANONYMOUS = Principal("anonymous", frozenset(SCOPES))
