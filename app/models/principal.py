"""Principals and their scopes."""

from dataclasses import dataclass

from app.errors import Forbidden

PRINCIPAL_MAX = 128  # characters of a principal's id

SCOPES = {
    "orders:read": "Read orders, their versions and their history.",
    "orders:write": "Create orders, change their content, cancel them.",
    "orders:manage": "Confirm, hold, fulfill, complete and reopen orders, and record deliveries and returns.",
    "payments:write": "Record payments.",
    "events:read": "Read the feed of all events.",
    "webhooks:manage": "Manage webhooks, and so receive the events of all orders.",
    "privacy:export": "Export all that is stored about a customer.",
    "privacy:erase": "Erase a customer's personal data.",
}
# A customer's token never gets other scopes, whatever its claims say: those give access to other customers' data.
CUSTOMER_SCOPES = frozenset({"orders:read", "orders:write", "privacy:export", "privacy:erase"})


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller: a service or a customer.

    Idempotency keys and external references belong to the principal's `id`. `customer_id` is set for a customer, who
    has access to their own orders only. `channels` is set for an API key that is bound to channels: it has access to
    their orders only. To the principal, all other orders do not exist.
    """

    id: str
    scopes: frozenset[str]
    customer_id: str | None = None
    channels: frozenset[str] | None = None

    def require_own_customer(self, customer_id: str) -> None:
        """Raise Forbidden if the principal is a customer other than `customer_id`."""
        if self.customer_id not in (None, customer_id):
            raise Forbidden(
                "A customer's token gives access to its own customer only: customer_id must be the token's sub claim."
            )

    def channel_of_new_order(self, channel: str | None) -> str | None:
        """The channel of an order that names `channel`, or none: the only channel of the principal is the default.

        Raises Forbidden for a channel that the principal is not bound to.
        """
        if self.channels is None:
            return channel
        if channel is None and len(self.channels) == 1:
            return min(self.channels)
        if channel not in self.channels:
            names = ", ".join(sorted(self.channels))
            raise Forbidden(f"This API key creates orders of its channels only. `channel` must be one of: {names}.")
        return channel

    def require_all_channels(self) -> None:
        """Raise Forbidden if the principal is bound to channels."""
        if self.channels is not None:
            raise Forbidden("A customer's personal data is in orders of all channels. Use a key without channels.")


def customer_principal_id(customer_id: str) -> str:
    """The principal id of a customer."""
    return f"customer:{customer_id}"


ANONYMOUS = Principal("anonymous", frozenset(SCOPES))
