"""Principals, their scopes, and the API keys that authenticate them."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.db.engine import JSON_VALUE, Base, Timestamp
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
# Of no use to an API key that is bound to channels: a customer's personal data is in orders of all channels.
PERSONAL_DATA_SCOPES = ("privacy:export", "privacy:erase")
KEY_NAME_MAX = 64
KEY_ID_LENGTH = 16
CHANNELS_MAX = 20  # of one key; a list of its orders merges four ranges of an index for each channel


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller: a service (by API key), a member of staff or a customer (by token).

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


class ApiKey(Base):
    """An API key, stored as its id and a hash of its secret.

    Keys with the same name belong to the same principal, so that a key can be rotated. A key that is bound to channels
    has access to their orders only; `channels` is None for access to all orders, including those without a channel.
    """

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(KEY_ID_LENGTH), primary_key=True)
    name: Mapped[str] = mapped_column(String(KEY_NAME_MAX))
    scopes: Mapped[list[str]] = mapped_column(JSON_VALUE)
    channels: Mapped[list[str] | None] = mapped_column(JSON_VALUE)
    secret_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(Timestamp)
    expires_at: Mapped[datetime | None] = mapped_column(Timestamp)
    revoked_at: Mapped[datetime | None] = mapped_column(Timestamp)
    last_used_at: Mapped[datetime | None] = mapped_column(Timestamp)
